# SPDX-License-Identifier: MIT
# What `bench memory` compares: which C loops are tried, and that whoever runs next meets the memory
# that the table says, whatever ran before.

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import run_multithreaded_sync
from aioktask.bench import UnknownOperation, cloops, operations
from aioktask.bench import memory as bench
from aioktask.bench.memory import sweep
from aioktask.bench.operations import Operation, Subject, Tree, fitting, reserved, trees
from aioktask.bench.promises import Result
from aioktask.figures.measure import Contender
from aioktask.memory import residency
from aioktask.memory._kernel import libc
from tests.memory.hugepages import grow_pool

MIB = 1 << 20
HUGE = 2 * MIB
EVERYTHING = operations.operations(quick=True)


def no_part(_offset: int, _length: int) -> None: ...


# which C loops are tried


@given(st.integers(1, 1 << 40), st.integers(1, 200), st.sampled_from([4096, MIB, HUGE]))
def test_the_sweep_goes_from_one_thread_to_all_and_to_even_shares(
    nbytes: int, most: int, least: int
) -> None:
    tried = sweep(nbytes, most, least)
    assert len(set(tried)) == len(tried)
    counts = sorted({threads for threads, _ in tried})
    assert counts[0] == 1
    assert counts[-1] == most
    assert all(2 * few >= many for few, many in itertools.pairwise(counts))
    for threads in counts:
        chunks = [chunk for count, chunk in tried if count == threads]
        assert all(least <= chunk for chunk in chunks)
        assert nbytes <= threads * max(chunks) < nbytes + threads * HUGE
        assert all(4 * small == large for small, large in itertools.pairwise(chunks[:-1]))
        largest = chunks[-2] if len(chunks) > 1 else least
        assert chunks[-1] <= 4 * max(largest, 256 << 10) or largest == 256 * MIB


def test_the_best_is_the_fastest_of_all_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[object, ...]] = []
    fastest = "C loop lock, 2 threads, 4 MiB"

    def times(contenders: Sequence[Contender], *_: Any, **__: Any) -> Mapping[str, Sequence[float]]:
        seen.extend(each.name for each in contenders)
        # Once it was disturbed, and once another was lucky: medians do not mind.
        usual = {each.name: (2.0, 0.1, 2.0) for each in contenders}
        return {**usual, fastest: (1.0, 9.0, 1.0)}

    seen: list[str] = []
    monkeypatch.setattr(bench, "alternate", times)
    monkeypatch.setattr(bench, "max_threads", lambda: 2)
    loops = [cloops.Loop.PIN, cloops.Loop.LOCK]
    subject = Subject(64 * MIB, lambda: None, {}, no_part, loops, 4096, 8192, 7, least=HUGE)
    best = bench._best(subject, lambda *arguments: called.append(arguments), quick=False)
    assert best.name == fastest
    assert len(seen) == 2 * len(sweep(64 * MIB, 2, HUGE))
    best.run()
    assert called == [(cloops.Loop.LOCK, 4096, 64 * MIB, 4 * MIB, 2, 8192, 7)]


# what a user would write


@given(st.integers(1, 1 << 40), st.integers(1, 200))
def test_the_slices_are_even_and_whole_huge_pages_and_all_there_is(
    nbytes: int, threads: int
) -> None:
    called: list[tuple[int, int]] = []
    subject = Subject(nbytes, lambda: None, {}, lambda *part: called.append(part))
    with ThreadPoolExecutor(1) as pool:
        bench.slices(subject, pool, threads).run()
    assert 1 <= len(called) <= threads
    assert [offset for offset, _ in called] == [0, *itertools.accumulate(n for _, n in called)][:-1]
    assert sum(length for _, length in called) == nbytes
    *whole, last = [length for _, length in called]
    assert all(length % HUGE == 0 for length in whole)
    assert len(set(whole)) <= 1
    assert last <= max(whole, default=last)
    assert 0 < last < nbytes / threads + HUGE


def test_a_slice_that_fails_fails_the_call() -> None:
    def refused(_offset: int, _length: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    subject = Subject(8 * MIB, lambda: None, {}, refused)
    with ThreadPoolExecutor(2) as pool, pytest.raises(OSError, match="no memory"):
        bench.slices(subject, pool, 2).run()


@pytest.mark.parametrize(("seconds", "limits"), [(0.0099, []), (0.0101, [0.95, 1.0])])
def test_nothing_is_promised_of_what_one_call_does_in_less_than_10_ms(
    seconds: float, limits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def times(contenders: Sequence[Contender], rounds: int) -> Mapping[str, Sequence[float]]:
        return {each.name: (seconds,) * rounds for each in contenders}

    monkeypatch.setattr(bench, "alternate", times)
    subject = Subject(8 * MIB, lambda: None, {"one call": lambda: None}, no_part)
    result = Result("memory", quick=False)
    operation = EVERYTHING[0]
    with asyncio.Runner() as runner:
        bench._compare(result, operation, subject, "no compiler", runner, 3)
    assert [each.limit for each in result.promises] == limits
    [table] = result.tables
    assert bool(table.notes) is not bool(limits)


# the memory that the table says


@contextmanager
def subject_of(operation: Operation) -> Iterator[Subject]:
    """Alone with the pool of huge pages; skips what cannot be done here, with the reason."""
    with grow_pool(0):
        subject = operation.subject()
        try:
            found = subject.__enter__()
        except OSError as error:
            pytest.skip(f"{operation.name}: {error}")
        try:
            yield found
        finally:
            del found
            subject.__exit__(None, None, None)


def at(address: int, nbytes: int) -> Any:
    return (ctypes.c_char * nbytes).from_address(address)


def resident(subject: Subject) -> int:
    return run_multithreaded_sync(residency(at(subject.address, subject.nbytes))).value.resident


def ways(subject: Subject, runner: asyncio.Runner) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everybody who takes part; of the C loops one chunk size each."""
    yield bench.OURS, bench._awaited(subject.ours, runner)
    yield from subject.plain.items()
    with ThreadPoolExecutor(2) as pool:
        shared = bench.slices(subject, pool, 2)
        yield shared.name, shared.run
        del shared
    try:
        loop = cloops.compile_loop()
    except cloops.NoCompiler:
        return
    for kind in subject.loops:
        call = functools.partial(loop, kind, subject.address, subject.nbytes, 4 * MIB, 2)
        yield f"C {kind.name}", functools.partial(call, subject.source, subject.file)


def done(operation: Operation, subject: Subject) -> bool:
    """Whether all of it is done, as the kernel and the bytes tell."""
    word = operation.name.split(",")[0].split()[0]
    if word in ("populate", "pin"):
        return resident(subject) == subject.nbytes
    if word == "release":
        return resident(subject) == 0
    if word == "fill":
        blocks = Path(f"/proc/self/fd/{subject.file}").stat()
        return blocks.st_size == blocks.st_blocks * 512 == subject.nbytes
    content = np.frombuffer(at(subject.address, subject.nbytes), np.uint8)
    if word == "clear":
        return not content.any()
    return bool((content == np.frombuffer(at(subject.source, subject.nbytes), np.uint8)).all())


def soiled(operation: Operation, subject: Subject) -> None:
    """As it is before a run, and not what it should become."""
    if subject.before is not None:
        subject.before()
    if operation.name == "clear":
        ctypes.memset(subject.address, 0x55, subject.nbytes)
    if operation.name == "copy":
        ctypes.memset(subject.address, 0x55, subject.nbytes)
        ctypes.memset(subject.source, 0xAA, subject.nbytes)


@pytest.mark.parametrize("operation", EVERYTHING, ids=lambda each: each.name)
def test_all_that_are_compared_do_all_of_the_work(operation: Operation) -> None:
    with subject_of(operation) as subject, asyncio.Runner() as runner:
        for name, call in ways(subject, runner):
            soiled(operation, subject)
            assert not done(operation, subject)
            call()
            assert done(operation, subject), name
        del subject, call  # they hold the memory


@pytest.mark.parametrize(
    "operation",
    [each for each in EVERYTHING if "transparent" in each.name],
    ids=lambda each: each.name,
)
def test_no_c_loop_leaves_small_pages_where_huge_ones_were(operation: Operation) -> None:
    """The next one would be measured on other memory than the table says."""
    try:
        loop = cloops.compile_loop()
    except cloops.NoCompiler as reason:
        pytest.skip(str(reason))
    with subject_of(operation) as subject:
        assert subject.before is not None
        memory = at(subject.address, subject.nbytes)
        for kind in subject.loops:
            for threads, chunk in sweep(subject.nbytes, 2, subject.least):
                subject.before()
                loop(kind, subject.address, subject.nbytes, chunk, threads)
                subject.before()
                libc.madvise(subject.address, subject.nbytes, libc.Advice.MADV_POPULATE_WRITE)
                told = run_multithreaded_sync(residency(memory)).value
                assert told.huge + told.maybe_huge == told.nbytes, (kind, threads, chunk)
        subject.before()


# the pool of huge pages


class Pool:
    """A pool of which the kernel has so many pages; `/` leads to its files."""

    def __init__(self, pages: int, surplus: int, most: int) -> None:
        self.pages = pages
        self.surplus = surplus
        self.most = most
        self.written: list[int] = []

    def __truediv__(self, name: str) -> Any:
        return self if name == "nr_hugepages" else Surplus(self)

    def read_text(self) -> str:
        return f"{self.pages + self.surplus}\n"

    def write_text(self, text: str) -> None:
        self.written.append(int(text))
        self.pages, self.surplus = min(int(text), self.most), 0


class Surplus:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def read_text(self) -> str:
        return f"{self.pool.surplus}\n"


@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_the_pool_is_as_it_was_afterwards(
    error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(3, 2, 100)
    monkeypatch.setattr(operations, "POOL", pool)
    with suppress(OSError, KeyboardInterrupt):
        with reserved(10 * MIB + 1):
            assert pool.pages == 9
            if error is not None:
                raise error
        assert error is None
    assert pool.pages == 3
    assert pool.written == [9, 3]


def test_a_kernel_with_too_few_huge_pages_has_as_many_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Pool(3, 0, 7)
    monkeypatch.setattr(operations, "POOL", pool)
    with pytest.raises(OSError, match="too few huge pages for 10 MiB"):
        with reserved(10 * MIB):
            raise AssertionError("there were too few")
    assert pool.written == [8, 3]


def test_what_cannot_be_done_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refused() -> Iterator[Subject]:
        raise PermissionError(errno.EACCES, "may not", "nr_hugepages")
        yield

    @contextmanager
    def none(quick: bool, runs: int, only: str) -> Iterator[list[Tree]]:
        yield []

    monkeypatch.setattr(bench, "operations", lambda quick: [Operation("fill", refused)])
    monkeypatch.setattr(bench, "trees", none)
    result = bench.run(quick=True, progress=lambda name: None)
    [table] = result.tables
    [row] = table.rows
    assert "may not" in str(row[0])
    assert "nr_hugepages" in str(row[0])
    assert not result.promises


@pytest.mark.parametrize("name", ["clear", operations.tree_kinds(quick=True)[-1].name])
def test_only_what_is_asked_for_is_measured(name: str) -> None:
    found = bench.run(quick=True, progress=lambda name: None, only=name)
    assert [table.title.split(", ")[0] for table in found.tables] == [name]


def test_an_operation_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UnknownOperation, match="'nonsense' is in none of these names: populate, 4"):
        bench.run(quick=True, progress=lambda name: None, only="nonsense")


@given(st.integers(0, 1 << 42), st.integers(1, 1 << 40))
def test_memory_that_is_taken_leaves_half_of_what_there_is(available: int, wanted: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "available_memory", lambda: available)
        found = fitting(wanted)
        assert found <= available // 2
        assert found == wanted or 2 * found + 1 > available // 2
        patch.setattr(operations, "available_memory", lambda: None)
        assert fitting(wanted) == wanted


# trees


def test_a_tree_is_made_anew_and_removed(tmp_path: Path) -> None:
    tree = Tree("", tmp_path, 3, 4)
    tree.make_stock(1)
    for _ in range(2):  # from what was made before, then without any
        tree.make()
        assert not tree.stock
        made = sorted(str(each.relative_to(tree.path)) for each in tree.path.glob("*/*"))
        assert made == [f"{directory}/{file}" for directory in range(3) for file in range(4)]
        assert len(list(tree.path.iterdir())) == 3
        (tree.path / "1" / "2").unlink()
        (tree.path / "left").touch()
    with asyncio.Runner() as runner:
        bench._awaited(tree.ours, runner)()
    assert not list(tmp_path.iterdir())


def test_trees_are_gone_after_an_interrupt() -> None:
    with suppress(KeyboardInterrupt), trees(quick=True, runs=2) as found:
        found[0].make()
        raise KeyboardInterrupt
    assert len(found) >= 2
    assert all(each.stock or each is found[0] for each in found)
    assert not any(each.parent.exists() for each in found)
