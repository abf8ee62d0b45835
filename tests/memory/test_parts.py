# SPDX-License-Identifier: MIT
# Parts against pages whose nodes the test makes up, and against this machine's own pages.
# tests/guest/test_parts_in_guest.py has them on two nodes, really.

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job, Part, run_multithreaded_sync
from aioktask.memory import _parts, allocate, parts
from aioktask.memory._hugepages import nodes_with_memory
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import Advice

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")

PAGE = mmap.PAGESIZE
MIB, GIB = 1 << 20, 1 << 30
GRAIN = 2 * MIB
NOT_THERE = -errno.ENOENT
HERE = nodes_with_memory()[0]


def address_of(memory: Any) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def addresses(nbytes: int) -> memoryview:
    """Memory that nothing is behind, from a multiple of 2 GiB on where it is large."""
    first = 2 * GIB if nbytes >= GIB // 2 else GRAIN
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    whole = mmap.mmap(-1, nbytes + first, flags=flags)
    skip = -address_of(whole) % first
    return memoryview(whole)[skip : skip + nbytes]


@contextlib.contextmanager
def pages_on(node: Callable[[Any], Any]) -> Iterator[list[int]]:
    """A machine on which `node` tells where pages are, by their addresses; and how many are asked.

    The addresses come as an array.
    """
    asked: list[int] = []

    def nodes_of_pages(pages: Any) -> Any:
        asked.append(len(pages))
        assert (pages % PAGE == 0).all()
        return np.asarray(node(pages.astype(np.int64)), np.int32)

    with mock.patch.object(libc, "nodes_of_pages", nodes_of_pages):
        yield asked


def check(found: tuple[Part, ...], start: int, size: int, most: int = 256) -> None:
    """What holds of any answer."""
    assert Job(print, size, start=start, parts=found).parts == found
    assert len(found) <= most
    for one, other in itertools.pairwise(found):
        assert one.node != other.node


# pages whose nodes are made up


@given(st.data())
def test_with_the_page_as_grain_parts_are_the_runs_of_pages(data: st.DataObject) -> None:
    nodes = data.draw(st.lists(st.sampled_from([0, 1, 5, NOT_THERE]), min_size=1, max_size=40))
    memory = addresses(len(nodes) * PAGE)
    start = address_of(memory)
    with pages_on(lambda pages: np.take(nodes, (pages - start) // PAGE)):
        found = parts(memory, grain=PAGE)
    check(found, start, len(memory))
    each = [part.node for part in found for _ in range(part.start, part.stop, PAGE)]
    assert each == [None if node == NOT_THERE else node for node in nodes]


@given(st.data())
def test_parts_cover_the_range_wherever_the_buffer_is_cut(data: st.DataObject) -> None:
    count = 64
    nodes = data.draw(st.lists(st.sampled_from([0, 1, NOT_THERE]), min_size=count, max_size=count))
    memory = addresses(count * PAGE)
    start = address_of(memory)
    first = data.draw(st.integers(0, len(memory)))
    unit = data.draw(st.one_of(st.none(), st.integers(1, 9 * PAGE)))
    most_units = (len(memory) - first) // (unit or 1)
    size = data.draw(st.integers(0, most_units))
    grain = data.draw(st.integers(1, 16)) * PAGE
    most = data.draw(st.sampled_from([1, 2, 3, 256]))
    with (
        memory[first : first + size * (unit or 1)] as part,
        pages_on(lambda pages: np.take(nodes, (pages - start) // PAGE)),
    ):
        found = parts(part, unit=unit, grain=grain, most=most)
    check(found, start + first if unit is None else 0, size, most)


@given(st.data())
def test_a_unit_above_the_grain_is_where_two_thirds_of_it_are(data: st.DataObject) -> None:
    pages = data.draw(st.integers(2, 9))
    units = data.draw(st.integers(1, 6))
    unit = pages * PAGE - data.draw(st.integers(0, PAGE - 1))
    count = -(-unit * units // PAGE)
    nodes = data.draw(st.lists(st.sampled_from([0, 1, NOT_THERE]), min_size=count, max_size=count))
    memory = addresses(count * PAGE)
    start = address_of(memory)
    with (
        memory[: units * unit] as part,
        pages_on(lambda pages: np.take(nodes, (pages - start) // PAGE)),
    ):
        found = parts(part, unit=unit, grain=PAGE)
    expected = []
    for first in range(0, units * unit, unit):
        there = np.repeat(nodes, PAGE)[first : first + unit]
        holds = [node for node in (0, 1) if 3 * (there == node).sum() >= 2 * unit]
        expected.append(holds[0] if holds else None)
    assert [part.node for part in found for _ in range(part.start, part.stop)] == expected


def test_a_buffer_on_two_nodes_has_a_part_on_each() -> None:
    memory = addresses(16 * GRAIN)
    start = address_of(memory)
    middle = start + 5 * GRAIN
    with pages_on(lambda pages: pages >= middle) as asked:
        assert parts(memory) == (Part(start, middle, 0), Part(middle, start + 16 * GRAIN, 1))
    assert asked == [len(memory) // PAGE]


def test_an_edge_within_a_grain_goes_to_who_has_most_of_it() -> None:
    memory = addresses(4 * GRAIN)
    start = address_of(memory)

    def edges(middle: int) -> tuple[Part, ...]:
        with pages_on(lambda pages: pages >= start + middle):
            return parts(memory)

    first, second = start + GRAIN, start + 2 * GRAIN
    stop = start + 4 * GRAIN
    assert edges(GRAIN + GRAIN // 4) == (Part(start, first, 0), Part(first, stop, 1))
    assert edges(2 * GRAIN - GRAIN // 4) == (Part(start, second, 0), Part(second, stop, 1))
    assert edges(GRAIN + GRAIN // 2) == (
        Part(start, first, 0),
        Part(first, second, None),
        Part(second, stop, 1),
    )


def test_an_edge_within_a_unit_is_moved_to_the_nearest_boundary_of_one() -> None:
    memory = addresses(12 * PAGE)
    start = address_of(memory)
    with pages_on(lambda pages: pages >= start + 9 * PAGE):
        # Grains end after pages 4 and 8, units after pages 3, 6 and 9.
        assert parts(memory, unit=3 * PAGE, grain=4 * PAGE) == (Part(0, 3, 0), Part(3, 4, 1))


def test_a_few_pages_elsewhere_are_no_part() -> None:
    memory = addresses(8 * GRAIN)
    start = address_of(memory)
    with pages_on(lambda pages: np.where((pages - start) // PAGE % 100 < 7, NOT_THERE, 1)):
        assert parts(memory) == (Part(start, start + 8 * GRAIN, 1),)


def test_a_little_at_either_end_is_no_part() -> None:
    memory = addresses(4 * GRAIN)
    with memory[GRAIN - 9 * PAGE : 2 * GRAIN + 9 * PAGE] as part:
        start, stop = address_of(part), address_of(part) + len(part)
        inside = lambda pages: (pages >= start + 9 * PAGE) & (pages < stop - 9 * PAGE)  # noqa: E731
        with pages_on(inside):
            assert parts(part) == (Part(start, stop, 1),)


@pytest.mark.parametrize("nbytes", [GIB // 2, 2 * GIB, 3 * GIB + 5 * PAGE, 600 * GIB])
@pytest.mark.parametrize("turn", [PAGE, 4 * PAGE, GRAIN])
@pytest.mark.parametrize("among", [2, 3, 4])
def test_memory_that_is_spread_over_nodes_in_turn_belongs_anywhere(
    nbytes: int, turn: int, among: int
) -> None:
    memory = addresses(nbytes)
    start = address_of(memory)
    with pages_on(lambda pages: pages // turn % among) as asked:
        assert parts(memory, most=32) == (Part(start, start + nbytes, None),)
    assert sum(asked) <= max(_parts.MOST_ASKED, nbytes // GRAIN + 1)


@given(st.integers(1, 40), st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_of_large_memory_some_pages_are_asked_and_the_edges_are_found(
    grains: int, lengths: list[int]
) -> None:
    """Blocks of whole grains, so that what is not asked is like what is."""
    memory = addresses(sum(lengths) * grains * GRAIN)
    start = address_of(memory)
    edges = start + np.cumsum([0, *lengths]) * grains * GRAIN
    with pages_on(lambda pages: (np.searchsorted(edges, pages, "right") - 1) % 2) as asked:
        found = parts(memory)
    assert found == tuple(
        Part(int(first), int(last), index % 2)
        for index, (first, last) in enumerate(itertools.pairwise(edges))
    )
    assert sum(asked) <= _parts.MOST_ASKED


def test_of_very_large_memory_a_page_of_each_grain_is_asked() -> None:
    memory = addresses(1 << 40)
    with pages_on(lambda pages: np.zeros(len(pages))) as asked:
        assert parts(memory, unit=GIB) == (Part(0, 1024, 0),)
    assert asked == [(1 << 40) // GRAIN]


def test_a_limit_on_the_number_makes_the_grain_coarser() -> None:
    whole = addresses(80 * GRAIN)
    first = -address_of(whole) % (16 * GRAIN)  # so that no coarser grain is cut by an end
    memory = whole[first : first + 64 * GRAIN]
    start, stop = address_of(memory), address_of(memory) + 64 * GRAIN
    # Node 0, with every eighth grain on node 1: eight grains together are on node 0 for the most.
    with pages_on(lambda pages: (pages - start) // GRAIN % 8 == 7):
        assert len(parts(memory)) == 16
        assert len(parts(memory, most=16)) == 16
        assert parts(memory, most=15) == (Part(start, stop, 0),)


# this machine's own pages


def memory_of(pages: int) -> memoryview:
    """Memory in small pages of which none is there."""
    memory = addresses(pages * PAGE)
    libc.madvise(address_of(memory), len(memory), Advice.MADV_NOHUGEPAGE)
    return memory


def told(buffer: Any, **options: Any) -> tuple[Part, ...]:
    """`parts`, where the kernel tells."""
    try:
        return parts(buffer, **options)
    except PermissionError:
        pytest.skip("several nodes, and no permission to ask")


def one_node() -> None:
    if len(nodes_with_memory()) > 1:
        pytest.skip("several nodes: tests/guest/test_parts_in_guest.py looks at those")
    page = memory_of(1)
    page[0] = 1
    try:
        libc.nodes_of_pages(np.array([address_of(page)], np.uintp))
    except OSError as error:
        pytest.skip(f"the kernel does not tell nodes: {error}")


def test_memory_that_was_never_touched_belongs_anywhere() -> None:
    one_node()
    memory = memory_of(1000)
    start = address_of(memory)
    assert parts(memory) == (Part(start, start + len(memory), None),)
    assert memory[5 * PAGE] == 0  # read, so the page of zeros
    assert parts(memory, grain=PAGE) == (Part(start, start + len(memory), None),)


def test_pages_that_were_touched_are_told_from_those_that_were_not() -> None:
    one_node()
    memory = memory_of(100)
    start, stop = address_of(memory), address_of(memory) + len(memory)
    memory[30 * PAGE : 60 * PAGE] = b"x" * 30 * PAGE
    first, last = start + 30 * PAGE, start + 60 * PAGE
    expected = Part(start, first, None), Part(first, last, HERE), Part(last, stop, None)
    assert parts(memory, grain=PAGE) == expected
    rows = tuple(
        Part((part.start - start) * 4 // PAGE, (part.stop - start) * 4 // PAGE, part.node)
        for part in expected
    )
    assert parts(memory, grain=PAGE, unit=PAGE // 4) == rows


def test_an_allocated_region_is_one_part() -> None:
    one_node()
    with allocate(8 * MIB, populate=True) as region:
        assert parts(region.buffer) == (Part(region.address, region.address + 8 * MIB, HERE),)
        assert parts(region.ndarray(np.float64), unit=8) == (Part(0, MIB, HERE),)


@pytest.mark.parametrize(
    "buffer",
    [
        np.ones((300, 500)),
        np.asfortranarray(np.ones((300, 500))),
        np.ones(5000, "datetime64[s]"),
        np.ones(5000, [("a", "i2"), ("b", "f8")]),
        np.broadcast_to(np.uint8(1), ()),
        b"x" * 70_000,
        bytearray(b"x" * 70_000),
        array.array("d", range(9000)),
        memoryview(b"x" * 70_000)[5:60_001],
        b"x",
    ],
    ids=lambda each: type(each).__name__,
)
def test_any_memory_is_looked_at(buffer: Any) -> None:
    nbytes = memoryview(buffer).nbytes if not isinstance(buffer, np.ndarray) else buffer.nbytes
    held = np.frombuffer(buffer, np.uint8) if not isinstance(buffer, np.ndarray) else buffer
    check(told(buffer), held.ctypes.data, nbytes)
    check(told(buffer, unit=1, grain=PAGE), 0, nbytes)


def test_pages_of_a_file_are_told_once_they_are_touched() -> None:
    one_node()
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 20 * PAGE)
        file.flush()
        with mmap.mmap(file.fileno(), 20 * PAGE, access=mmap.ACCESS_READ) as memory:
            start = address_of(memory)
            memory[:]
            assert parts(memory) == (Part(start, start + 20 * PAGE, HERE),)


def test_a_job_with_the_parts_that_were_found_does_every_row_once() -> None:
    rows = np.zeros((1000, 700))
    rows[:500] = 1

    def add(start: int, stop: int) -> None:
        rows[start:stop] += 1

    found = told(rows, unit=rows.strides[0], grain=PAGE)
    run_multithreaded_sync(Job(add, len(rows), parts=found))
    assert (rows == np.repeat([2, 1], 500)[:, None]).all()


# what it takes and refuses


def test_a_buffer_of_no_bytes_has_no_parts() -> None:
    for buffer in b"", np.zeros((0, 3)):
        assert parts(buffer) == parts(buffer, unit=7) == ()
        assert Job(print, 0, parts=parts(buffer)).size == 0


def test_what_has_no_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="parts needs an object with the buffer protocol"):
        parts([1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="references to Python objects"):
        parts(np.array([None]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gaps"):
        parts(np.zeros(6)[::2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": 0}, "unit must be at least 1, got 0"),
        ({"unit": -8}, "unit must be at least 1, got -8"),
        ({"unit": 7}, "unit must divide the buffer's 100 bytes, got 7"),
        ({"unit": 200}, "unit must divide the buffer's 100 bytes, got 200"),
        ({"grain": 0}, "grain must be at least 1, got 0"),
        ({"grain": PAGE + 1}, rf"grain must be a multiple of the page \({PAGE}\), got {PAGE + 1}"),
        ({"most": 0}, "most must be at least 1, got 0"),
    ],
)
def test_values_out_of_their_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts(bytes(100), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["unit", "grain", "most"])
@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_what_is_no_integer_is_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        parts(bytes(100), **{name: value})
    assert parts(bytes(100), unit=np.int64(100)) is not None


def test_the_buffer_is_let_go() -> None:
    memory = bytearray(PAGE)
    told(memory)
    memory.clear()


# what fails


def refuse(number: int) -> mock._patch[Any]:
    error = OSError(number, os.strerror(number))
    return mock.patch.object(libc, "nodes_of_pages", side_effect=error)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_where_nobody_may_ask_the_only_node_has_all(number: int) -> None:
    memory = memory_of(3)
    start = address_of(memory)
    with refuse(number), mock.patch.object(_parts, "nodes_with_memory", return_value=(2,)):
        assert parts(memory) == (Part(start, start + 3 * PAGE, 2),)


@pytest.mark.parametrize(
    ("number", "nodes"),
    [(errno.EPERM, (0, 1)), (errno.ENOSYS, (0, 1)), (errno.ENOMEM, (0, 1)), (errno.ENOMEM, (0,))],
)
def test_a_call_that_fails_is_an_error(number: int, nodes: tuple[int, ...]) -> None:
    with refuse(number), mock.patch.object(_parts, "nodes_with_memory", return_value=nodes):
        with pytest.raises(OSError, match=os.strerror(number)) as info:
            parts(b"x")
    assert info.value.errno == number


def test_a_call_that_is_interrupted_is_made_again() -> None:
    with mock.patch.object(libc, "nodes_of_pages") as call:
        call.side_effect = [InterruptedError(errno.EINTR, "injected"), np.array([3], np.int32)]
        assert [part.node for part in parts(b"x")] == [3]


def test_elsewhere_than_on_linux_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="parts asks the kernel of Linux") as info:
        parts(b"x")
    assert info.value.errno == errno.ENOSYS
