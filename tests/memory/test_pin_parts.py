# SPDX-License-Identifier: MIT
# The parts of pin that decide: who holds which pages, of which mappings memory is made, and how
# much may be locked.

from __future__ import annotations

import errno
import mmap
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.memory._kernel import libc, mappings
from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.mappings import Mapping, mappings_between, mappings_in
from aioktask.memory._kernel.memlock import Allowance, allowance, allowance_in
from aioktask.memory._pin_owners import PinnedPages, Stretch
from tests.memory.lock_state import address_of, vm_locked

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc of Linux")

# PinnedPages

END = 24
RANGES = st.tuples(st.integers(0, END), st.integers(0, END)).map(sorted)
OWNERS = st.sampled_from("abcd")

Model = dict[int, tuple[frozenset[str], bool]]


def pages_of(pinned: PinnedPages) -> Model:
    return {
        page: (frozenset(map(str, each.owners)), each.unlocks)
        for each in pinned.stretches
        for page in range(each.start, each.stop)
    }


def numbers(ranges: list[range]) -> list[int]:
    return [page for each in ranges for page in each]


def check_form(pinned: PinnedPages) -> None:
    """Ascending, nothing empty, nothing that could be one stretch."""
    for each in pinned.stretches:
        assert each.start < each.stop
        assert each.owners
    for one, other in zip(pinned.stretches, pinned.stretches[1:], strict=False):
        assert one.stop <= other.start
        if one.stop == other.start:
            assert (one.owners, one.unlocks) != (other.owners, other.unlocks)


def ranges_in(data: st.DataObject, start: int, stop: int) -> list[range]:
    cuts = data.draw(st.lists(st.integers(start, stop), max_size=6, unique=True).map(sorted))
    return [range(*cuts[at : at + 2]) for at in range(0, len(cuts) - 1, 2)]


@given(st.data())
def test_pinned_pages_are_what_a_dictionary_of_pages_says(data: st.DataObject) -> None:
    pinned = PinnedPages()
    model: Model = {}
    for _ in range(data.draw(st.integers(1, 12))):
        owner = data.draw(OWNERS)
        start, stop = data.draw(RANGES)
        before, pages = pinned.stretches, range(start, stop)
        assert numbers(pinned.free(start, stop)) == [page for page in pages if page not in model]
        if data.draw(st.booleans()):
            unlocks = ranges_in(data, start, stop)
            pinned_then, pinned = pinned, pinned.held_by(owner, start, stop, unlocks)
            for page in pages:
                owners, was = model.get(page, (frozenset(), any(page in each for each in unlocks)))
                model[page] = (owners | {owner}, was)
        else:
            pinned_then, (pinned, unlock) = pinned, pinned.without(owner, start, stop)
            expected = [page for page in pages if model.get(page) == (frozenset(owner), True)]
            assert numbers(unlock) == expected
            for page in pages:
                owners, was = model.pop(page, (frozenset(), False))
                if owners - {owner}:
                    model[page] = (owners - {owner}, was)
        assert pinned_then.stretches == before
        check_form(pinned)
        assert pages_of(pinned) == model
        held = [page for page in range(END) if page in model and model[page][1]]
        assert numbers(pinned.unlocking(0, END)) == held


@given(RANGES, RANGES, OWNERS)
def test_adding_and_taking_away_may_be_repeated(
    one: list[int], other: list[int], owner: str
) -> None:
    there = PinnedPages().held_by("z", *one, [range(*one)])
    pinned = there.held_by(owner, *other, [range(*other)])
    assert pinned.held_by(owner, *other, []) == pinned
    left, unlock = pinned.without(owner, *other)
    assert left.without(owner, *other) == (left, [])
    assert left == there
    assert set(numbers(unlock)) == set(range(*other)) - set(range(*one))


def test_neighbours_with_the_same_owners_are_one_stretch() -> None:
    pinned = PinnedPages().held_by("a", 0, 4, [range(4)]).held_by("a", 8, 12, [range(8, 12)])
    assert len(pinned.stretches) == 2
    pinned = pinned.held_by("a", 4, 8, [range(4, 8)])
    assert pinned.stretches == (Stretch(0, 12, frozenset("a"), unlocks=True),)


# mappings

MAPS = b"""\
1000-3000 r-xp 00000000 08:01 11 /bin/program
3000-4000 rw-p 00002000 08:01 11 /bin/program
4000-6000 rw-p 00000000 00:00 0
6000-9000 rw-p 00000000 00:00 0
a000-b000 r--s 00000000 00:05 7 /dev/shm/with a name
b000-d000 rw-s 00000000 00:05 8 /dev/zero (deleted)
"""
# The fourth line begins anew: 4000 to 6000 had become a part of it when it was written.
JOINED = MAPS.replace(b"6000-9000", b"4000-9000")


def test_mappings_are_read_and_cut_off() -> None:
    assert mappings_in(MAPS, b"", 0x2000, 0x7000) == [
        Mapping(0x2000, 0x3000, writable=False, shared=False, page=PAGE),
        Mapping(0x3000, 0x4000, writable=True, shared=False, page=PAGE),
        Mapping(0x4000, 0x6000, writable=True, shared=False, page=PAGE),
        Mapping(0x6000, 0x7000, writable=True, shared=False, page=PAGE),
    ]
    assert mappings_in(MAPS, b"", 0x8000, 0xC000) == [
        Mapping(0x8000, 0x9000, writable=True, shared=False, page=PAGE),
        Mapping(0xA000, 0xB000, writable=False, shared=True, page=PAGE),
        Mapping(0xB000, 0xC000, writable=True, shared=True, page=PAGE),
    ]
    assert mappings_in(MAPS, b"", 0xE000, 0xF000) == []
    assert mappings_in(b"", b"", 0x1000, 0x2000) == []


@given(st.integers(0, 15), st.integers(0, 15))
def test_mappings_that_were_joined_meanwhile_are_told_once(start: int, stop: int) -> None:
    start, stop = start << 12, stop << 12
    assert mappings_in(JOINED, b"", start, stop) == mappings_in(MAPS, b"", start, stop)


def test_the_size_of_huge_pages_is_that_of_smaps() -> None:
    maps = b"200000-600000 rw-p 00000000 00:0f 5 /anon_hugepage (deleted)\n"
    smaps = maps + b"Size: 4096 kB\nKernelPageSize: 2048 kB\nMMUPageSize: 2048 kB\n"
    expected = Mapping(0x400000, 0x500000, writable=True, shared=False, page=2 << 20)
    assert mappings_in(maps, smaps, 0x400000, 0x500000) == [expected]


@linux
def test_the_query_and_the_text_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query is that of Linux 6.11; on an older kernel this compares the text with itself."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ends = [int(each, 16) for each in re.findall(r"-([0-9a-f]+) ", "\n".join(lines[:-3]))]
    start, stop = ends[0] - PAGE, ends[-1]
    memory = mmap.mmap(-1, 3 * PAGE)  # shared
    place = address_of(memory)
    wanted = [(start, stop), (place, place + 3 * PAGE), (place + PAGE, place + 2 * PAGE)]

    def stable(found: list[Mapping]) -> list[Mapping]:
        """Without those that other threads and the allocator change meanwhile."""
        return [each for each in found if not each.writable or each.shared]

    asked = [stable(mappings_between(*each)) for each in wanted]
    assert asked[1] == [Mapping(place, place + 3 * PAGE, writable=True, shared=True, page=PAGE)]
    calls = []

    def refuses(*_: object) -> int:
        calls.append(1)
        raise OSError(errno.ENOTTY, "as before Linux 6.11")

    monkeypatch.setattr(libc, "ioctl", refuses)
    assert [stable(mappings_between(*each)) for each in wanted] == asked
    assert len(calls) == 3
    memory.close()


@linux
def test_another_failure_of_the_query_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "as the test says")

    monkeypatch.setattr(mappings.libc, "ioctl", fails)
    with pytest.raises(OSError, match="as the test says"):
        mappings_between(0, PAGE)


# the limit

STATUS = "Name:\tpython\nVmLck:\t     {} kB\nCapPrm:\t{:016x}\nCapEff:\t{:016x}\nCapBnd:\t0\n"
LIMITS = st.none() | st.integers(0, 40 * PAGE)


@given(st.integers(0, 30), LIMITS, st.integers(0, (1 << 41) - 1), st.integers(0, (1 << 41) - 1))
def test_what_may_be_locked_is_read_from_the_status(
    pages: int, limit: int | None, permitted: int, effective: int
) -> None:
    found = allowance_in(STATUS.format(pages * PAGE >> 10, permitted, effective), limit)
    assert found == Allowance(limit, pages * PAGE, bool(effective & 1 << 14))


@given(st.integers(0, 30), st.integers(0, 30), LIMITS, st.booleans())
def test_the_kernels_rule(locked: int, asked: int, limit: int | None, privileged: bool) -> None:
    refusal = Allowance(limit, locked * PAGE, privileged).refusal(asked * PAGE)
    fits = privileged or limit is None or (limit > 0 and locked + asked <= limit // PAGE)
    assert (refusal is None) == (fits or asked == 0)
    if refusal is not None:
        assert refusal.errno == (errno.ENOMEM if limit else errno.EPERM)
        for figure in (asked * PAGE, locked * PAGE, limit):
            assert f" {figure}" in str(refusal)
        assert "ulimit -l" in str(refusal)
        assert "CAP_IPC_LOCK" in str(refusal)


@linux
def test_what_this_thread_may_lock() -> None:
    assert allowance().locked == vm_locked()
