# SPDX-License-Identifier: MIT
# Pinned memory against what the kernel says of it: the flags of its mappings, what is locked in the
# process, and what is resident; on every path, with other locks on the same pages.

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import mmap
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioktask import Coordinator, Job, UndoFailed, run_multithreaded_sync
from aioktask.memory import _locks, _pin, _populate
from aioktask.memory._buffer import Buffer
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.faulting import fault_in
from aioktask.memory._kernel.libc import PAGE, Advice
from aioktask.memory._kernel.mappings import Mapping, mappings_between
from aioktask.memory._pin import Pinned, pin
from aioktask.memory._pin_owners import PinnedPages
from tests.memory.hugepages import HUGE
from tests.memory.lock_state import (
    Pages,
    address_of,
    flags_of,
    in_a_child,
    locked_pages,
    resident_pages,
    vm_locked,
)
from tests.memory.sweep import cancelled_at, fails, shim
from tests.support.gates import Gate
from tests.support.meanwhile import Scene, play_at_each_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mlock2(2) of Linux")

MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SEQUENTIAL = 2


def private(pages: int) -> mmap.mmap:
    """Small pages, apart from all other mappings by a flag of its own: none is joined with it."""
    memory = mmap.mmap(-1, pages * PAGE, flags=PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


def pinned_pages() -> PinnedPages:
    return _locks.of_this_process()._pages


def state_of(memory: Any) -> tuple[Pages, int, PinnedPages]:
    """All that a pin may change and must put back."""
    return flags_of(memory), vm_locked(), pinned_pages()


@pytest.fixture(autouse=True)
def leaves_nothing_locked() -> Iterator[None]:
    before = vm_locked()
    yield
    gc.collect()
    assert vm_locked() == before
    assert pinned_pages() == PinnedPages()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pin, "PIECE", 4 * PAGE)
    monkeypatch.setattr(_pin, "MIN_CHUNK", 4 * PAGE)


# what it does to pages


@pytest.mark.anyio
async def test_pages_are_resident_and_locked_inside_and_as_before_afterwards() -> None:
    memory = private(64)
    before = state_of(memory)
    with memoryview(memory) as view, view[5 * PAGE : 20 * PAGE] as middle:
        async with pin(middle) as pinned:
            assert isinstance(pinned, Pinned)
            assert pinned.nbytes == 15 * PAGE
            assert locked_pages(memory) == resident_pages(memory) == set(range(5, 20))
            assert vm_locked() == before[1] + 15 * PAGE
    assert state_of(memory) == before


@pytest.mark.anyio
async def test_plain_calls_do_the_same() -> None:
    memory = private(8)
    before = state_of(memory)
    pinned = await pin(memory)
    assert locked_pages(memory) == set(range(8))
    assert repr(pinned) == f"<Pinned of {8 * PAGE} bytes: open>"
    await pinned.aclose()
    assert state_of(memory) == before
    await pinned.aclose()


def test_a_thread_may_use_it() -> None:
    memory = private(8)
    before = state_of(memory)
    with pin(memory):
        assert locked_pages(memory) == set(range(8))
    assert state_of(memory) == before
    pinned = pin(memory).open()
    assert locked_pages(memory) == set(range(8))
    pinned.close()
    assert state_of(memory) == before


def test_nothing_is_done_before_it_is_entered() -> None:
    memory = private(8)
    before = state_of(memory)
    with shim() as calls:
        pin(memory)
    assert set(calls.names) <= {"ioctl"}  # looks at the mappings
    assert state_of(memory) == before


def test_within_a_chunk_of_another_job() -> None:
    memory = private(8)
    found: list[set[int]] = []

    def chunk(start: int, stop: int) -> None:
        with pin(memory):
            found.append(locked_pages(memory))
        found.append(locked_pages(memory))

    run_multithreaded_sync(Job(chunk, 1))
    assert found == [set(range(8)), set()]


@given(st.integers(0, 6 * PAGE), st.integers(0, 6 * PAGE))
@settings(max_examples=30)
def test_whole_pages_are_locked_and_no_byte_is_changed(start: int, stop: int) -> None:
    start, stop = sorted((start, stop))
    memory = private(6)
    text = bytes(range(251)) * (6 * PAGE // 251 + 1)
    memory[:] = text[: 6 * PAGE]
    before = state_of(memory)
    with memoryview(memory) as view, view[start:stop] as middle, pin(middle):
        touched = set(range(start // PAGE, -(-stop // PAGE))) if stop > start else set()
        assert locked_pages(memory) == touched
    assert state_of(memory) == before
    assert memory[:] == text[: 6 * PAGE]


def faults() -> int:
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_minflt + used.ru_majflt


PAGE_KINDS = {
    "private": lambda: private(512),
    "shared": lambda: mmap.mmap(-1, 512 * PAGE),
    "read before": lambda: read_before(private(512)),
}


def read_before(memory: mmap.mmap) -> mmap.mmap:
    """Each page is the kernel's one page of zeros: there, and copied at the first write."""
    np.frombuffer(memory, np.uint8)[::PAGE].sum()
    return memory


@pytest.mark.parametrize("make", PAGE_KINDS.values(), ids=list(PAGE_KINDS))
def test_no_access_meets_a_page_fault(make: Callable[[], mmap.mmap]) -> None:
    touched = np.frombuffer(make(), np.uint8)[::PAGE]
    with pin(touched.base):
        before = faults()
        touched[:] = 7
        during = faults() - before
    # A few for what Python itself maps meanwhile.
    assert during < 20


def file_of(pages: int, folder: Path) -> Path:
    path = folder / "data"
    path.write_bytes(b"data" * (pages * PAGE // 4))
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path


def dirty_bytes(memory: Any) -> int:
    """How much of the mapping that begins with `memory` is dirty, as the kernel says."""
    text = Path("/proc/self/smaps").read_text()
    section = text[text.index(f"\n{address_of(memory):x}-") :]
    figures = [line.split() for line in section.splitlines()[2:25]]
    kinds = "Shared_Dirty:", "Private_Dirty:"
    return sum(int(kib) << 10 for name, kib, *_ in figures if name in kinds)


@pytest.mark.parametrize("access", [mmap.ACCESS_WRITE, mmap.ACCESS_READ, mmap.ACCESS_COPY])
def test_files_are_pinned_and_a_shared_one_stays_clean(access: int, tmp_path: Path) -> None:
    path = file_of(16, tmp_path)
    with path.open("rb+") as file:
        memory = mmap.mmap(file.fileno(), 0, access=access)
    before = state_of(memory)
    with pin(memory):
        assert locked_pages(memory) == resident_pages(memory) == set(range(16))
        assert dirty_bytes(memory) == (16 * PAGE if access == mmap.ACCESS_COPY else 0)
    assert state_of(memory) == before
    assert memory[:] == path.read_bytes() == b"data" * (4 * PAGE)


def test_holes_of_a_file_stay_holes(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    with path.open("wb+") as file:
        file.truncate(16 * PAGE)
        memory = mmap.mmap(file.fileno(), 0)
        blocks = os.stat(path).st_blocks
        with pin(memory):
            assert resident_pages(memory) == set(range(16))
        memory.flush()
        os.fsync(file.fileno())
    assert os.stat(path).st_blocks == blocks


def test_read_only_buffers_are_taken() -> None:
    text = b"x" * (8 * PAGE)
    with pin(text):
        assert locked_pages(text) == resident_pages(text)
        assert len(locked_pages(text)) in (8, 9)
    assert locked_pages(text) == set()
    assert text == b"x" * (8 * PAGE)


def test_transparent_huge_pages() -> None:
    memory = mmap.mmap(-1, 6 * MIB, flags=PRIVATE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    before = state_of(memory)
    with memoryview(memory) as view, view[12345:-54321] as middle, pin(middle):
        touched = set(range(12345 // PAGE, -(-(6 * MIB - 54321) // PAGE)))
        assert locked_pages(memory) == touched
        assert resident_pages(memory) >= touched
    assert state_of(memory) == before


def test_pages_of_hugetlbfs_are_made_resident_and_need_no_lock(
    huge_pages: Callable[[int], None],
) -> None:
    huge_pages(3)
    memory = mmap.mmap(-1, 3 * HUGE, flags=PRIVATE | 0x40000)
    before = state_of(memory)
    with memoryview(memory) as view, view[5 : HUGE + 7] as middle, shim() as calls, pin(middle):
        assert resident_pages(memory) == set(range(2 * HUGE // PAGE))
        assert state_of(memory)[:2] == before[:2]
    assert "mlock2" not in calls.names
    assert state_of(memory) == before
    memory.close()


@pytest.mark.parametrize("empty", [b"", bytearray(), np.ones((3, 0))])
def test_a_buffer_of_no_bytes_is_nothing(empty: Any) -> None:
    with shim() as calls, pin(empty) as pinned:
        assert pinned.nbytes == 0
    assert calls.names == []


@pytest.mark.anyio
async def test_no_system_call_is_made_on_the_loops_thread() -> None:
    memory = private(16)
    threads: dict[str, set[int]] = {}

    def action(_: int, name: str) -> None:
        threads.setdefault(name, set()).add(threading.get_ident())

    with shim(action):
        async with pin(memory):
            pass
    assert {"any_locked", "mlock2", "madvise", "munlock"} <= set(threads)
    assert all(threading.get_ident() not in each for each in threads.values())


def test_much_memory_is_locked_in_pieces_and_populated_by_several() -> None:
    memory = np.empty(200 * MIB, np.uint8)
    with shim() as calls, pin(memory):
        assert len(locked_pages(memory)) == len(flags_of(memory))
    assert calls.names.count("mlock2") >= 3
    assert calls.names.count("madvise") > 1
    assert locked_pages(memory) == set()


# what it holds


def test_a_mmap_cannot_be_closed_before_it_is_left() -> None:
    memory = private(4)
    pinned = pin(memory).open()
    with pytest.raises(BufferError):
        memory.close()
    pinned.close()
    memory.close()


def test_after_a_failure_the_buffer_is_free() -> None:
    memory = bytearray(8 * PAGE)
    pinned = pin(memory)
    with shim(fails(3)), pytest.raises(OSError, match="injected"):
        pinned.open()
    gc.collect()
    memory.append(1)


def test_one_that_is_dropped_keeps_its_memory_locked() -> None:
    memory: list[mmap.mmap] = [private(4)]
    start = address_of(memory[0])
    dropped = [pin(memory[0]).open()]
    with pytest.warns(ResourceWarning, match="Pinned was never closed"):
        dropped.clear()
    gc.collect()
    with pytest.raises(BufferError):
        memory[0].close()
    assert locked_pages(memory[0]) == set(range(4))
    (stretch,) = pinned_pages().stretches
    (owner,) = stretch.owners
    _locks.of_this_process().let_go(owner, start, start + 4 * PAGE)


@pytest.mark.parametrize("call", ["hold", "let go"])
@pytest.mark.parametrize("meanwhile", ["hold", "let go"])
def test_a_finalizer_may_pin_and_let_go_in_any_line_of_a_pin(call: str, meanwhile: str) -> None:
    """On the thread that is at it, which cannot wait for itself."""

    def begin() -> Scene:
        memory, locks = private(4), _locks.of_this_process()
        first = address_of(memory)
        mine, others = Buffer(memory, "pin"), Buffer(memory, "pin")
        wanted = {mine: (first, first + 3 * PAGE), others: (first + PAGE, first + 4 * PAGE)}

        def hold(owner: Buffer) -> None:
            locks.hold(owner, *wanted[owner])
            locks.lock(*wanted[owner])

        def let_go(owner: Buffer) -> None:
            locks.let_go(owner, *wanted[owner])

        takes = {"hold": hold, "let go": let_go}
        for owner, what in ((mine, call), (others, meanwhile)):
            if what == "let go":
                hold(owner)

        def check() -> None:
            held = [owner for owner, what in ((mine, call), (others, meanwhile)) if what == "hold"]
            pages = {0: {0, 1, 2}, 1: {1, 2, 3}}
            locked = [pages[(mine, others).index(owner)] for owner in held]
            assert locked_pages(memory) == set().union(*locked)
            for owner in held:
                let_go(owner)
            assert not locked_pages(memory)
            assert pinned_pages() == PinnedPages()

        return Scene(lambda: takes[call](mine), lambda: takes[meanwhile](others), check)

    play_at_each_line(begin, _locks)


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([[1, 2]], {}, TypeError, "pin needs an object with the buffer protocol .* got list"),
        ([np.array([None])], {}, TypeError, "holds references to Python objects"),
        ([np.zeros(6)[::2]], {}, ValueError, "pin needs contiguous memory"),
        ([b"abc"], {"nice": 20}, ValueError, "nice must be"),
        ([b"abc"], {"max_threads": 0}, ValueError, "max_threads must be at least 1, got 0"),
        ([b""], {"nice": 2.5}, TypeError, "nice"),
    ],
)
def test_bad_arguments(
    arguments: list[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pin(*arguments, **options)


def test_a_kernel_without_populate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_populate, "kernel_can_populate", lambda: False)
    with pytest.raises(OSError, match="pin needs MADV_POPULATE_WRITE") as info:
        pin(b"abc")
    assert info.value.errno == errno.ENOSYS


def test_options_reach_the_jobs() -> None:
    pinned = pin(b"abc", nice=3, max_threads=2, name="mine")
    jobs = pinned._take + pinned._give_back
    names = [each.name for each in jobs]
    assert names == ["mine.hold", "mine.lock", "mine.populate", "mine.unlock"]
    assert {each.nice for each in jobs} == {3}
    assert jobs[2].max_threads == 2
    assert pin(b"abc")._give_back[0].name == "memory.pin.unlock"


@pytest.mark.anyio
async def test_a_coordinator_that_has_ended() -> None:
    memory = private(8)
    before = state_of(memory)
    coordinator = Coordinator()
    async with coordinator:
        pinned = await pin(memory, coordinator=coordinator)
    assert locked_pages(memory) == set(range(8))
    await pinned.aclose()
    assert state_of(memory) == before
    with pytest.raises(RuntimeError):
        await pin(memory, coordinator=coordinator)
    assert state_of(memory) == before


def test_a_file_that_is_shorter_than_its_mapping(tmp_path: Path) -> None:
    path = file_of(16, tmp_path)
    with path.open("rb+") as file:
        memory = mmap.mmap(file.fileno(), 0)
        file.truncate(4 * PAGE)
    before = state_of(memory)
    with pytest.raises(OSError, match="MADV_POPULATE_READ") as info:
        pin(memory).open()
    assert info.value.errno == errno.EFAULT
    assert any("shorter than its mapping" in note for note in info.value.__notes__)
    assert state_of(memory) == before


def test_memory_that_may_not_be_read_at_all() -> None:
    memory = private(16)
    place = ctypes.c_void_p(address_of(memory) + 7 * PAGE)
    assert ctypes.CDLL(None).mprotect(place, ctypes.c_size_t(PAGE), 0) == 0
    before = state_of(memory)
    with pytest.raises(OSError, match="madvise"):
        pin(memory).open()
    assert state_of(memory) == before


@pytest.mark.parametrize("page", [0, 7, 15])
def test_addresses_that_are_not_mapped(page: int) -> None:
    memory = private(16)
    place = ctypes.c_void_p(address_of(memory) + page * PAGE)
    assert ctypes.CDLL(None).munmap(place, ctypes.c_size_t(PAGE)) == 0
    before = state_of(memory)
    with pytest.raises(OSError, match="is not mapped throughout") as info:
        pin(memory).open()
    assert info.value.errno == errno.ENOMEM
    assert state_of(memory) == before


# what was locked before


@pytest.mark.parametrize("on_fault", [False, True])
def test_what_was_locked_before_stays_as_it_was(on_fault: bool) -> None:
    memory = private(16)
    start = address_of(memory)
    libc.mlock2(start + 4 * PAGE, 4 * PAGE, on_fault=on_fault)
    before = state_of(memory)
    assert {"lo", "lf"} & before[0][5] == ({"lo", "lf"} if on_fault else {"lo"})
    with pin(memory):
        assert locked_pages(memory) == resident_pages(memory) == set(range(16))
        with memoryview(memory) as view, view[6 * PAGE :] as part, pin(part):
            pass
        assert locked_pages(memory) == set(range(16))
    assert state_of(memory) == before
    libc.munlock(start, 16 * PAGE)


class Hold:
    """Pins that come and go, over the same pages, some of which were locked before."""

    PAGES = 12

    def __init__(self, locked_before: set[int]) -> None:
        self.memory = private(self.PAGES)
        self.locked_before = locked_before
        for page in locked_before:
            libc.mlock2(address_of(self.memory) + page * PAGE, PAGE, on_fault=page % 2 == 0)
        self.before = state_of(self.memory)
        self.open: list[tuple[set[int], Pinned]] = []

    def pin(self, start: int, stop: int) -> None:
        with memoryview(self.memory) as view, view[start * PAGE : stop * PAGE] as part:
            self.open.append((set(range(start, stop)), pin(part).open()))

    def leave(self, which: int) -> None:
        self.open.pop(which)[1].close()

    def check(self) -> None:
        expected = set.union(self.locked_before, *(pages for pages, _ in self.open))
        assert locked_pages(self.memory) == expected

    def end(self) -> None:
        while self.open:
            self.leave(0)
        assert state_of(self.memory) == self.before
        libc.munlock(address_of(self.memory), self.PAGES * PAGE)


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_pins_overlap_as_they_like(data: st.DataObject) -> None:
    held = Hold(data.draw(st.sets(st.integers(0, Hold.PAGES - 1), max_size=4)))
    try:
        for _ in range(data.draw(st.integers(1, 10))):
            if held.open and data.draw(st.booleans()):
                held.leave(data.draw(st.integers(0, len(held.open) - 1)))
            else:
                held.pin(*sorted(data.draw(st.tuples(*[st.integers(0, Hold.PAGES)] * 2))))
            held.check()
    finally:
        held.end()


def scenario_everything_is_locked_already() -> None:
    future_and_on_fault = 2 | 4
    assert ctypes.CDLL(None).mlockall(future_and_on_fault) == 0
    memory = mmap.mmap(-1, 16 * PAGE, flags=PRIVATE)
    before = flags_of(memory)
    assert {"lo", "lf"} <= before[0]
    pinned = pin(memory).open()
    assert flags_of(memory) == before
    assert resident_pages(memory) == set(range(16))
    pinned.close()
    assert flags_of(memory) == before


def test_mlockall_is_such_a_lock() -> None:
    in_a_child(scenario_everything_is_locked_already, privileged=True)


# when calls fail, are interrupted or cancelled


class World:
    """Memory of which the beginning is locked, and the end is held by another pin."""

    def __init__(self) -> None:
        self.memory = private(20)
        self.memory[:] = text_of(20)
        libc.mlock2(address_of(self.memory), 3 * PAGE, on_fault=True)
        with memoryview(self.memory) as view, view[15 * PAGE :] as end:
            self.other = pin(end).open()
        self.before = state_of(self.memory)

    def new(self) -> Pinned:
        with memoryview(self.memory) as view, view[2 * PAGE + 9 : 17 * PAGE - 9] as middle:
            return pin(middle)

    def check_held(self) -> None:
        assert locked_pages(self.memory) == set(range(20))
        assert resident_pages(self.memory) >= set(range(2, 20))

    def check_as_before(self) -> None:
        assert state_of(self.memory) == self.before
        assert self.memory[:] == text_of(20)

    def end(self) -> None:
        self.other.close()
        assert locked_pages(self.memory) == set(range(3))
        libc.munlock(address_of(self.memory), 20 * PAGE)
        del self.before  # knows the other pin's buffer
        gc.collect()
        self.memory.close()  # nobody holds it still


def text_of(pages: int) -> bytes:
    return (bytes(range(251)) * (pages * PAGE // 251 + 1))[: pages * PAGE]


@pytest.fixture
def world(small_pieces: None) -> Iterator[World]:
    """Made in a thread, since tests use it under their loops."""
    world = World()
    yield world
    world.end()


CALLS = {"any_locked", "mlock2", "madvise", "munlock"}


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EIO])
def test_whichever_call_fails_all_is_as_before(world: World, number: int) -> None:
    failed = set()
    for at in itertools.count(1):
        pinned = world.new()
        with shim(fails(at, number)) as calls:
            error = raised_by(pinned.open)
            if error is None:
                world.check_held()
                error = raised_by(pinned.close)
                assert locked_pages(world.memory) >= set(range(15, 20))
        pinned.close()  # again, if it failed
        world.check_as_before()
        if error is None:
            break
        assert error.errno == number
        assert f"injected at call {at}" in str(error)
        failed.add(calls.names[at - 1])
    assert failed >= CALLS


def raised_by(call: Callable[[], object]) -> OSError | None:
    try:
        call()
    except OSError as error:
        return error
    return None


def test_whichever_call_is_interrupted_it_goes_on(world: World) -> None:
    interrupted = set()
    for at in itertools.count(1):
        pinned = world.new()
        with shim(fails(at, errno.EINTR)) as calls:
            pinned.open()
            world.check_held()
            pinned.close()
        world.check_as_before()
        if len(calls.names) < at:
            break
        interrupted.add(calls.names[at - 1])
    assert interrupted >= CALLS


@pytest.mark.anyio
async def test_whenever_it_is_cancelled_all_is_as_before(world: World) -> None:
    outcomes = set()
    for at in itertools.count(1):
        pinned = world.new()
        made = 0

        async def holds(pinned: Pinned = pinned) -> None:
            nonlocal made
            async with pinned:
                made += 1
                world.check_held()

        with shim() as calls:
            cancelled = await cancelled_at(at, holds)
        world.check_as_before()
        if len(calls.names) < at:
            assert (made, cancelled) == (1, False)
            break
        outcomes.add((calls.names[at - 1], cancelled, bool(made)))
    for name in CALLS - {"munlock"}:
        assert (name, True, False) in outcomes
    # A cancel at the end finds it closing, and waits for the end of that.
    assert any(name == "munlock" and made for name, _, made in outcomes)


def test_what_cannot_be_undone_is_told_and_stays_noted(world: World) -> None:
    def action(_: int, name: str) -> None:
        if name in ("madvise", "munlock"):
            raise OSError(errno.EIO, f"{name} is broken")

    pinned = world.new()
    with shim(action), pytest.raises(UndoFailed, match="unlock failed") as info:
        pinned.open()
    assert "madvise is broken" in str(info.value.__cause__)
    start = address_of(world.memory)
    assert info.value.ranges == (range(start + 2 * PAGE, start + 17 * PAGE),)
    owners = {each for stretch in pinned_pages().stretches for each in stretch.owners}
    (others,) = [stretch.owners for stretch in world.before[2].stretches]
    (left,) = owners - others
    _locks.of_this_process().let_go(left, start, start + 20 * PAGE)
    world.check_as_before()


def test_a_failing_lock_says_how_much_is_locked_and_what_to_do(world: World) -> None:
    with shim(only("mlock2", errno.ENOMEM)), pytest.raises(OSError, match="broken") as info:
        world.new().open()
    (note,) = [each for each in info.value.__notes__ if "RLIMIT_MEMLOCK" in each]
    assert f"{vm_locked()} bytes are locked" in note
    assert "ulimit -l" in note


def only(wanted: str, number: int) -> Callable[[int, str], None]:
    def action(_: int, name: str) -> None:
        if name == wanted:
            raise OSError(number, f"{name} is broken")

    return action


# two at a time


@pytest.mark.anyio
@pytest.mark.parametrize("first_cancelled", [True, False])
async def test_of_two_tasks_with_overlapping_ranges_one_is_cancelled(
    first_cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever came first, at the moment when both have noted the pages that they share."""
    memory = private(20)
    before = state_of(memory)
    gate = Gate()
    populate = fault_in

    def waits(start: int, stop: int, advice: Advice) -> None:
        gate.chunk(start, stop)
        populate(start, stop, advice)

    monkeypatch.setattr(_pin, "fault_in", waits)
    scopes = [anyio.CancelScope(), anyio.CancelScope()]
    parts = [range(12), range(6, 20)]
    opened: dict[int, Pinned] = {}

    async def opens(which: int) -> None:
        part = parts[which]
        with scopes[which]:
            array = np.frombuffer(memory, np.uint8)[part.start * PAGE : part.stop * PAGE]
            opened[which] = await pin(array, max_threads=1)

    async with Coordinator(max_threads=2), anyio.create_task_group() as tasks:
        tasks.start_soon(opens, 0)
        await gate.entered()
        tasks.start_soon(opens, 1)
        await anyio.wait_all_tasks_blocked()
        scopes[0 if first_cancelled else 1].cancel()
        gate.open()
    (left,) = opened
    assert left == (1 if first_cancelled else 0)
    assert locked_pages(memory) == set(parts[left])
    assert resident_pages(memory) >= set(parts[left])
    await opened[left].aclose()
    assert state_of(memory) == before


def test_threads_that_pin_the_same_pages_all_the_time() -> None:
    memory = private(36)
    libc.mlock2(address_of(memory) + 20 * PAGE, 4 * PAGE, on_fault=True)
    before = state_of(memory)
    start_line = threading.Barrier(4)
    missing: list[set[int]] = []

    def pins(part: range) -> None:
        array = np.frombuffer(memory, np.uint8)[part.start * PAGE : part.stop * PAGE]
        start_line.wait()
        for _ in range(40):
            with pin(array):
                missing.append(set(part) - locked_pages(memory))

    parts = range(20), range(10, 36), range(15, 30), range(36)
    threads = [threading.Thread(target=pins, args=(part,)) for part in parts]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(missing) == 160
    assert not any(missing)
    assert state_of(memory) == before
    libc.munlock(address_of(memory), 36 * PAGE)


def test_one_that_lets_go_while_another_looks_takes_nothing_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = private(8)
    start = address_of(memory)
    with memoryview(memory) as view, view[: 4 * PAGE] as beginning:
        other = pin(beginning).open()
    # One mapping with the other's pages, and none any more without them.
    libc.mlock2(start + 4 * PAGE, 4 * PAGE, on_fault=True)
    locks = _locks.of_this_process()
    owners = list(pinned_pages().stretches[0].owners)

    def look(first: int, last: int) -> list[Mapping]:
        found = mappings_between(first, last)
        while owners:
            locks.let_go(owners.pop(), first, last)
        return found

    monkeypatch.setattr(_locks, "mappings_between", look)
    with pin(memory):
        other.close()
        assert locked_pages(memory) == set(range(8))
    assert locked_pages(memory) == set(range(4, 8))
    libc.munlock(start, 8 * PAGE)


@pytest.mark.anyio
async def test_a_pin_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that populates for long keeps nobody else from pinning, the same pages even."""
    memory = private(20)
    gate = Gate()
    populate = fault_in
    first = [True]

    def waits(start: int, stop: int, advice: Advice) -> None:
        if first.pop() if first else False:
            gate.chunk(start, stop)
        populate(start, stop, advice)

    monkeypatch.setattr(_pin, "fault_in", waits)
    async with anyio.create_task_group() as tasks:

        async def slow() -> None:
            async with pin(memory):
                pass

        tasks.start_soon(slow)
        await gate.entered()
        async with pin(memory):
            assert locked_pages(memory) == resident_pages(memory) == set(range(20))
        assert locked_pages(memory) == set(range(20))
        gate.open()
    assert locked_pages(memory) == set()
