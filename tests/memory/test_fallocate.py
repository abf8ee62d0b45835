# SPDX-License-Identifier: MIT
# fallocate on real file systems: what has storage afterwards, and that a run that fails, is
# interrupted or cancelled leaves the file's size, storage and bytes as they were.

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import UndoFailed, run_multithreaded, run_multithreaded_sync
from aioktask.job import Job
from aioktask.memory import _fallocate_run
from aioktask.memory._extents import END, Ranges, by_cachestat, by_fiemap, gaps
from aioktask.memory._fallocate import fallocate
from aioktask.memory._kernel import libc
from aioktask.memory._populate import kernel_can_populate
from tests.memory.filesystems import TMPFS, block_of, has_extents, mounted, storage
from tests.memory.hugepages import HUGE, POOL
from tests.memory.sweep import cancelled_at, fails, shim
from tests.support.open_files import open_files
from tests.support.pieces import run_in_pieces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fallocate(2) of Linux")

PAGE = libc.PAGE
MIB = 1 << 20
KEEP = libc.FALLOC_FL_KEEP_SIZE
PUNCH = libc.FALLOC_FL_PUNCH_HOLE | KEEP

# Folders to work in: the first two are there for everybody.
PLACES = ["shm", "tmp", "tmpfs", "huge tmpfs", "huge tmpfs within size", "ext4", "xfs", "btrfs"]


@pytest.fixture(autouse=True, scope="module")
def _kernel_was_asked() -> None:
    """Once a process: that call is none of a run, so tests that fail the k-th must not meet it."""
    kernel_can_populate()


@contextlib.contextmanager
def folder_on(place: str) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        where = "/dev/shm" if place == "shm" else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=where)))
        if place in ("ext4", "xfs", "btrfs"):
            yield stack.enter_context(mounted(place, folder))
        elif "tmpfs" in place:
            huge = {"tmpfs": "never", "huge tmpfs": "always"}.get(place, "within_size")
            yield stack.enter_context(mounted("tmpfs", folder, f"size=24m,huge={huge}"))
        else:
            if place == "tmp" and not has_extents(folder):
                pytest.skip(f"the file system of {folder} has no FIEMAP")
            yield folder


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    with folder_on(request.param) as folder:
        yield folder


@pytest.fixture(scope="module")
def shm() -> Iterator[Path]:
    with folder_on("shm") as folder:
        yield folder


@dataclass
class Layout:
    """What was done to a file before: steps of ("write" | "allocate" | "punch", start, nbytes)."""

    steps: list[tuple[str, int, int]] = field(default_factory=list)
    size: int | None = None  # in the end

    @contextlib.contextmanager
    def file(self, folder: Path) -> Iterator[int]:
        file = os.open(folder, os.O_TMPFILE | os.O_RDWR)
        try:
            for number, (what, start, nbytes) in enumerate(self.steps, 1):
                if what == "write":
                    os.pwrite(file, bytes([number]) * nbytes, start)
                else:
                    libc.fallocate(file, KEEP if what == "allocate" else PUNCH, start, nbytes)
            end = os.fstat(file).st_size
            if self.size is not None and self.size > end:
                os.ftruncate(file, self.size)
            yield file
        finally:
            os.close(file)


def content(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def state(file: int) -> dict[str, Any]:
    """All that a run that fails must leave alone."""
    return {"size": os.fstat(file).st_size, "storage": storage(file), "content": content(file)}


def check_allocated(file: int, before: dict[str, Any], offset: int, nbytes: int) -> None:
    block = block_of(file)
    wanted = set(range(offset // block, -(-(offset + nbytes) // block)))
    size = max(before["size"], offset + nbytes)
    found = set(storage(file))
    assert set(before["storage"]) | wanted <= found
    assert os.fstat(file).st_size == size
    assert content(file) == before["content"].ljust(size, b"\0")


# Data, a preallocated stretch, a hole in it, and preallocation beyond the end.
MIXED = Layout(
    [
        ("write", 3 * PAGE - 100, 5000),
        ("allocate", 6 * PAGE, 4 * PAGE),
        ("punch", 7 * PAGE, PAGE),
        ("write", 14 * PAGE, 17),
        ("allocate", 20 * PAGE, 2 * PAGE),
        ("allocate", 40 * PAGE, 3 * PAGE),
    ]
)
OFFSET, NBYTES = PAGE + 300, 28 * PAGE + 11
LAYOUTS = {
    "empty": Layout(),
    "sparse": Layout(size=50 * PAGE),
    "mixed": MIXED,
    "mixed, long": Layout(MIXED.steps, size=60 * PAGE),
    "all there": Layout([("write", 0, 50 * PAGE)]),
    "all preallocated": Layout([("allocate", 0, 50 * PAGE)]),
}


@pytest.mark.parametrize("chunk", [PAGE, None])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_the_range_has_storage_and_the_data_is_unchanged(
    place: Path, layout: Layout, chunk: int | None
) -> None:
    with layout.file(place) as file:
        before = state(file)
        job = fallocate(file, NBYTES, offset=OFFSET, chunk=chunk)
        assert (job.start, job.size) == (OFFSET, NBYTES)
        assert run_multithreaded_sync(job).value is None
        check_allocated(file, before, OFFSET, NBYTES)
        # It may be run again, and then finds all there.
        run_multithreaded_sync(job)
        check_allocated(file, before, OFFSET, NBYTES)


@pytest.mark.parametrize("layout", [Layout(), MIXED], ids=["empty", "mixed"])
def test_pieces_in_any_order_several_at_a_time(place: Path, layout: Layout) -> None:
    with layout.file(place) as file:
        before = state(file)
        job = fallocate(file, NBYTES, offset=OFFSET, chunk=PAGE)
        run_in_pieces(job, PAGE, 3)
        check_allocated(file, before, OFFSET, NBYTES)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_undone_in_pieces_in_any_order_after_all_was_done(place: Path, layout: Layout) -> None:
    with layout.file(place) as file:
        before = state(file)
        job = fallocate(file, NBYTES, offset=OFFSET, chunk=2 * PAGE)
        bound = job.bind()
        assert bound.undo is not None
        edges = [job.start, *range(2 * PAGE, job.stop, 2 * PAGE), job.stop]
        pieces = list(itertools.pairwise(edges))
        random.Random(3).shuffle(pieces)
        for piece in pieces:
            bound.fn(*piece)
        check_allocated(file, before, OFFSET, NBYTES)
        random.Random(4).shuffle(pieces)
        for piece in pieces:
            bound.undo(*piece)
            bound.undo(*piece)  # does no harm
        assert state(file) == before


# what fails


def attempt(
    job: Job[None], action: Callable[[int, str], object] = lambda number, name: None
) -> tuple[OSError | None, list[str]]:
    """Run it with `action` at each system call; the error, if any, and the calls."""
    with shim(action) as calls:
        try:
            run_multithreaded_sync(job)
        except OSError as error:
            return error, calls.names
    return None, calls.names


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_any_call_that_fails_leaves_the_file_as_it_was(place: Path, layout: Layout) -> None:
    for at in itertools.count(1):
        with layout.file(place) as file:
            before = state(file)
            job = fallocate(file, NBYTES, offset=OFFSET, chunk=8 * PAGE)
            error, calls = attempt(job, fails(at))
            if error is None:
                assert at > max(len(calls), 4)
                return
            assert (error.errno, "injected" in str(error)) == (errno.EIO, True)
            assert state(file) == before, f"{calls[at - 1]}, call {at}"
            # And the job can still be run.
            run_multithreaded_sync(job)
            check_allocated(file, before, OFFSET, NBYTES)


@pytest.mark.parametrize("layout", [Layout(), MIXED], ids=["empty", "mixed"])
def test_a_call_that_is_interrupted_is_made_again(place: Path, layout: Layout) -> None:
    at, calls = 1, 1
    while at <= calls:
        with layout.file(place) as file:
            before = state(file)
            with shim(fails(at, errno.EINTR)) as made:
                job = fallocate(file, NBYTES, offset=OFFSET, chunk=8 * PAGE)
                run_multithreaded_sync(job)
            check_allocated(file, before, OFFSET, NBYTES)
        calls = len(made.names)
        at += 1


@pytest.mark.anyio
@pytest.mark.parametrize("layout", [Layout(), MIXED], ids=["empty", "mixed"])
async def test_a_cancel_at_any_call_leaves_the_file_as_it_was(place: Path, layout: Layout) -> None:
    cancelled = at = 1
    while cancelled:
        with layout.file(place) as file:
            before = state(file)
            job = fallocate(file, NBYTES, offset=OFFSET, chunk=8 * PAGE)
            cancelled = await cancelled_at(at, functools.partial(run_multithreaded, job))
            if cancelled:
                assert state(file) == before, f"call {at}"
            else:
                check_allocated(file, before, OFFSET, NBYTES)
        at += 1
    assert at > 4


def some_layout(data: st.DataObject) -> Layout:
    place = st.one_of(st.integers(0, 40 * PAGE), st.integers(0, 40).map(lambda n: n * PAGE))
    step = st.tuples(st.sampled_from(["write", "allocate", "punch"]), place, st.integers(1, 60_000))
    return Layout(data.draw(st.lists(step, max_size=6)), data.draw(st.none() | place))


@given(st.data())
@hypothesis.settings(max_examples=60)
def test_whatever_was_there_and_wherever_it_fails(place: Path, data: st.DataObject) -> None:
    layout = some_layout(data)
    with layout.file(place) as file:
        before = state(file)
        offset = data.draw(st.integers(0, 45 * PAGE), "offset")
        nbytes = data.draw(st.integers(1, 30 * PAGE), "nbytes")
        chunk = PAGE * data.draw(st.integers(1, 12), "pages in a chunk")
        job = fallocate(file, nbytes, offset=offset, chunk=chunk)
        at = data.draw(st.integers(1, 80), "call")
        number = data.draw(st.sampled_from([errno.ENOSPC, errno.EIO, errno.EINTR]))
        error, _ = attempt(job, fails(at, number))
        if error is None:
            check_allocated(file, before, offset, nbytes)
        else:
            assert error.errno == number
            assert state(file) == before


def test_a_file_system_that_is_full_half_way(place: Path, request: pytest.FixtureRequest) -> None:
    if "shm" in request.node.name or "[tmp]" in request.node.name:
        pytest.skip("is not filled: it is everybody's")
    nbytes, grown = 28 * PAGE, 0
    with MIXED.file(place) as file, Layout().file(place) as ballast:
        before = state(file)
        blocks = os.fstat(file).st_blocks
        fill_up(ballast)
        while True:
            error, _ = attempt(fallocate(file, nbytes, offset=PAGE, chunk=PAGE))
            if error is None:
                break
            assert error.errno == errno.ENOSPC
            assert "are free on this file system" in str(error.__notes__)
            assert state(file) == before
            assert os.fstat(file).st_blocks == blocks
            # A page more at a time: it is full at another chunk.
            grown += 1
            os.ftruncate(ballast, os.fstat(ballast).st_size - PAGE)
            os.fsync(ballast)
        assert grown > 1
        check_allocated(file, before, PAGE, nbytes)


def fill_up(file: int) -> None:
    for step in (8 * MIB, MIB, 64 << 10, PAGE, 1024):
        with pytest.raises(OSError, match="No space left"):
            lengthen_for_ever(file, step)


def lengthen_for_ever(file: int, step: int) -> NoReturn:
    while True:
        libc.fallocate(file, 0, os.fstat(file).st_size, step)


# tmpfs before Linux 6.5, where the pages that were never written can only be counted


@pytest.mark.parametrize("number", [errno.EIO, errno.EINTR])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("where", ["shm", "huge tmpfs"])
def test_on_a_tmpfs_whose_pages_cannot_be_found(
    where: str, layout: Layout, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fallocate_run, "knows_cachestat", lambda file: False)
    with folder_on(where) as folder:
        for at in itertools.count(1):
            with layout.file(folder) as file:
                before = state(file)
                os.lseek(file, 5, os.SEEK_SET)
                job = fallocate(file, NBYTES, offset=OFFSET, chunk=8 * PAGE)
                error, calls = attempt(job, fails(at, number))
                if error is None:
                    check_allocated(file, before, OFFSET, NBYTES)
                else:
                    assert error.errno == number
                    assert state(file) == before, f"{calls[at - 1]}, call {at}"
                assert os.lseek(file, 0, os.SEEK_CUR) == 5
            if at > len(calls):
                break


def test_a_cancel_after_the_last_chunk_where_pages_are_counted(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fallocate_run, "knows_cachestat", lambda file: False)
    layout = Layout([step for step in MIXED.steps if step[1] < OFFSET + NBYTES])
    with layout.file(shm) as file:
        before = state(file)
        job = fallocate(file, NBYTES, offset=OFFSET, chunk=PAGE)
        bound = job.bind()
        bound.fn(job.start, job.stop)
        check_allocated(file, before, OFFSET, NBYTES)
        assert bound.undo is not None
        bound.undo(job.start, job.stop)
        assert state(file) == before


@pytest.mark.parametrize("at", range(1, 10))
def test_a_huge_page_that_was_taken_for_one_page_is_given_back(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the first 2 MiB there is a page already, so a huge one is taken in the second alone.
    monkeypatch.setattr(_fallocate_run, "knows_cachestat", lambda file: False)
    layout = Layout([("allocate", 0, PAGE)], 8 * MIB)
    with folder_on("huge tmpfs") as folder, layout.file(folder) as file:
        before = state(file)
        job = fallocate(file, 8 * PAGE, offset=2 * MIB + 4 * PAGE, chunk=PAGE)
        error, _ = attempt(job, fails(at))
        assert error is not None
        assert state(file) == before


# hugetlbfs


@contextlib.contextmanager
def huge_file(pages: list[int], size: int, folder: Path | None = None) -> Iterator[int]:
    """A file of hugetlbfs that has these pages, every second of them written, and this size."""
    if folder is None:
        file = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    else:
        file = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    try:
        os.ftruncate(file, size)
        for page in pages:
            libc.fallocate(file, KEEP, page * HUGE, HUGE)
            if page % 2 and page * HUGE < size:
                with libc.map_file(file, HUGE, page * HUGE) as memory:
                    memory[:4] = b"page"
        yield file
    finally:
        os.close(file)


def huge_state(file: int) -> dict[str, Any]:
    size = os.fstat(file).st_size
    starts = [os.pread(file, 4, page) for page in range(0, size, HUGE)]
    return {"size": size, "blocks": os.fstat(file).st_blocks, "starts": starts}


def pages_of(file: int) -> list[int]:
    """The pages that a file of hugetlbfs has; it has none afterwards."""
    found = []
    for page in range(40):
        before = os.fstat(file).st_blocks
        libc.fallocate(file, PUNCH, page * HUGE, HUGE)
        if os.fstat(file).st_blocks < before:
            found.append(page)
    assert os.fstat(file).st_blocks == 0
    return found


HUGE_FILES = {
    "empty": ([], 0),
    "sparse": ([], 9 * HUGE),
    "with pages": ([0, 1, 3, 4], 5 * HUGE),
    "preallocated beyond": ([1, 4, 5], 2 * HUGE),
}


def free_pages() -> tuple[int, int]:
    """Huge pages that are free, and those of them that are reserved."""
    free, reserved = ((POOL / f"{name}_hugepages").read_text() for name in ("free", "resv"))
    return int(free), int(reserved)


@pytest.mark.parametrize("chunk", [HUGE, 2 * HUGE, None])
@pytest.mark.parametrize(("pages", "size"), HUGE_FILES.values(), ids=list(HUGE_FILES))
def test_huge_pages_are_there_and_the_old_ones_unchanged(
    pages: list[int], size: int, chunk: int | None, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(10)
    with huge_file(pages, size) as file:
        starts = {page: start for page, start in enumerate(huge_state(file)["starts"]) if page}
        run_multithreaded_sync(fallocate(file, 6 * HUGE, offset=HUGE, chunk=chunk))
        assert os.fstat(file).st_size == max(size, 7 * HUGE)
        after = huge_state(file)["starts"]
        assert {page: after[page] for page in starts} == starts
        assert not any(b"".join(after[page] for page in range(1, 7) if page not in starts))
        assert pages_of(file) == sorted({*pages, *range(1, 7)})


@pytest.mark.parametrize("number", [errno.EIO, errno.EINTR])
@pytest.mark.parametrize(("pages", "size"), HUGE_FILES.values(), ids=list(HUGE_FILES))
def test_any_call_that_fails_leaves_huge_pages_as_they_were(
    pages: list[int], size: int, number: int, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(10)
    for at in itertools.count(1):
        with huge_file(pages, size) as file:
            before, available = huge_state(file), free_pages()
            job = fallocate(file, 6 * HUGE, offset=HUGE, chunk=2 * HUGE)
            error, calls = attempt(job, fails(at, number))
            if error is None:
                assert pages_of(file) == sorted({*pages, *range(1, 7)})
            else:
                assert error.errno == number
                assert (huge_state(file), free_pages()) == (before, available)
                assert pages_of(file) == pages
        if at > len(calls):
            break
    assert at > 4


@pytest.mark.anyio
@pytest.mark.parametrize(("pages", "size"), HUGE_FILES.values(), ids=list(HUGE_FILES))
async def test_a_cancel_at_any_call_leaves_huge_pages_as_they_were(
    pages: list[int], size: int, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(10)
    cancelled = at = 1
    while cancelled:
        with huge_file(pages, size) as file:
            before = huge_state(file)
            job = fallocate(file, 6 * HUGE, offset=HUGE, chunk=2 * HUGE)
            cancelled = await cancelled_at(at, functools.partial(run_multithreaded, job))
            if cancelled:
                assert huge_state(file) == before
                assert pages_of(file) == pages
        at += 1
    assert at > 4


@pytest.mark.parametrize(("pages", "size"), HUGE_FILES.values(), ids=list(HUGE_FILES))
@pytest.mark.parametrize("missing", range(1, 6))
def test_a_pool_that_runs_out_half_way(
    missing: int, pages: list[int], size: int, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(10)
    with huge_file(pages, size) as file, huge_file([], 0) as ballast:
        wanted = 6 - len(set(pages) & set(range(1, 7)))
        if missing > wanted:
            pytest.skip(f"needs only {wanted} pages")
        libc.fallocate(ballast, 0, 0, (free_pages()[0] - wanted + missing) * HUGE)
        before, available = huge_state(file), free_pages()
        with pytest.raises(OSError, match=r"huge pages? of 2 MiB: the pool has \d+") as info:
            run_multithreaded_sync(fallocate(file, 6 * HUGE, offset=HUGE, chunk=HUGE))
        assert info.value.errno == errno.ENOSPC
        assert (huge_state(file), free_pages()) == (before, available)
        assert pages_of(file) == pages


def test_a_mount_of_huge_pages_that_is_full(
    tmp_path: Path, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(10)
    with mounted("hugetlbfs", tmp_path, f"size={4 * HUGE},pagesize={HUGE}") as folder:
        with huge_file([], 0, folder) as file:
            available = free_pages()
            with pytest.raises(OSError, match="or the size= of the mount") as info:
                run_multithreaded_sync(fallocate(file, 6 * HUGE, chunk=HUGE))
            assert info.value.errno == errno.ENOSPC
            assert (os.fstat(file).st_size, os.fstat(file).st_blocks) == (0, 0)
            assert free_pages() == available
            run_multithreaded_sync(fallocate(file, 4 * HUGE, chunk=HUGE))
            assert pages_of(file) == [0, 1, 2, 3]


@pytest.mark.parametrize("at", range(1, 5))
def test_huge_pages_of_a_file_that_cannot_be_read_or_populated(
    at: int, huge_pages: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge_pages(10)
    with huge_file([], 0) as file:
        if at % 2:
            writing = os.open(f"/proc/self/fd/{file}", os.O_WRONLY)
        else:
            monkeypatch.setattr(_fallocate_run, "kernel_can_populate", lambda: False)
            writing = os.dup(file)
        try:
            with shim(fails(at)), contextlib.suppress(OSError):
                run_multithreaded_sync(fallocate(writing, 6 * HUGE, chunk=2 * HUGE))
            assert huge_state(file) == {"size": 0, "blocks": 0, "starts": []}
            run_multithreaded_sync(fallocate(writing, 6 * HUGE, chunk=2 * HUGE))
            assert pages_of(file) == [0, 1, 2, 3, 4, 5]
        finally:
            os.close(writing)


def test_only_an_empty_file_of_huge_pages_is_filled_by_several_threads(
    huge_pages: Callable[[int], None],
) -> None:
    huge_pages(2)
    with huge_file([], HUGE) as file:
        job = fallocate(file, 6 * HUGE)
        assert (job.max_threads, job.align, job.min_chunk) == (None, HUGE, 32 * MIB)
        assert fallocate(file, 6 * HUGE, max_threads=3).max_threads == 3
    with huge_file([0], HUGE) as file:
        assert fallocate(file, 6 * HUGE, max_threads=3).max_threads == 1
        for start, nbytes in [(1, HUGE), (0, HUGE + PAGE)]:
            with pytest.raises(ValueError, match=f"multiples of its page, {HUGE} bytes"):
                fallocate(file, nbytes, offset=start)


# what is refused, and what is held


def test_options_pass_through(shm: Path) -> None:
    with Layout().file(shm) as file:
        job = fallocate(file, 10)
        assert (job.name, job.nice, job.max_threads) == ("memory.fallocate", 0, 1)
        assert (job.align, job.min_chunk, job.chunk) == (PAGE, 32 * MIB, None)
        job = fallocate(file, 10, chunk=3 * PAGE, nice=5, max_threads=2, name="mine")
        assert (job.name, job.nice, job.max_threads) == ("mine", 5, 1)
        assert (job.min_chunk, job.chunk) == (1, 3 * PAGE)
        with pytest.raises(ValueError, match=rf"multiple of align \({PAGE}\), got 1000"):
            fallocate(file, 10, chunk=1000)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nbytes": -1}, ValueError, "nbytes must be at least 0"),
        ({"offset": -1}, ValueError, "offset must be at least 0"),
        ({"nbytes": 1.5}, TypeError, "nbytes must be an integer"),
        ({"offset": True}, TypeError, "offset must be an integer"),
        ({"offset": 1 << 63}, ValueError, "must be below 2"),
        ({"max_threads": 0}, ValueError, "max_threads must be at least 1"),
    ],
)
def test_a_range_that_is_none_is_refused(
    shm: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Layout().file(shm) as file, pytest.raises(error, match=message):
        fallocate(file, **{"nbytes": 10, **arguments})


def test_no_bytes_are_a_job_that_does_nothing(shm: Path) -> None:
    with MIXED.file(shm) as file:
        before = state(file)
        run_multithreaded_sync(fallocate(file, 0, offset=1 << 40))
        assert state(file) == before


def test_what_is_no_file_that_can_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    for wrong in (str(path), path, None, True):
        with pytest.raises(TypeError, match="needs an open file or its descriptor"):
            fallocate(wrong, 10)  # type: ignore[arg-type]
    with path.open("rb") as file, pytest.raises(OSError, match="open for writing") as info:
        fallocate(file, 10)
    assert info.value.errno == errno.EBADF
    with pytest.raises(ValueError, match="closed"):
        fallocate(file, 10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fallocate(1 << 20, 10)
    pipe = os.pipe()
    try:
        with pytest.raises(ValueError, match="needs a regular file"):
            fallocate(pipe[1], 10)
    finally:
        os.close(pipe[0])
        os.close(pipe[1])


def test_an_open_file_object_is_taken(shm: Path) -> None:
    with tempfile.TemporaryFile(dir=shm) as file:
        file.write(b"hello")
        file.flush()
        run_multithreaded_sync(fallocate(file, 3 * PAGE))
        assert file.tell() == 5
        assert content(file.fileno()) == b"hello".ljust(3 * PAGE, b"\0")


def test_a_file_is_not_taken_for_another_one_that_got_its_number(shm: Path) -> None:
    with Layout().file(shm) as file, Layout().file(shm) as other:
        job = fallocate(file, 10 * PAGE)
        os.dup2(other, file)
        with pytest.raises(OSError, match="another file's by now") as info:
            run_multithreaded_sync(job)
        assert info.value.errno == errno.EBADF
        assert state(other) == {"size": 0, "storage": [], "content": b""}


@pytest.mark.parametrize("at", [3, 4, 1000])
def test_a_file_that_is_closed_meanwhile_is_kept_open(shm: Path, at: int) -> None:
    with MIXED.file(shm) as file:
        before = state(file)
        closing = os.dup(file)
        job = fallocate(closing, NBYTES, offset=OFFSET, chunk=8 * PAGE)

        def close(call: int, name: str) -> None:
            nonlocal closing
            if closing >= 0:
                os.close(closing)
                closing = -1
            fails(at)(call, name)

        descriptors = len(open_files()) - 1
        with shim(close), contextlib.suppress(OSError):
            run_multithreaded_sync(job)
        if at == 1000:
            check_allocated(file, before, OFFSET, NBYTES)
        else:
            assert state(file) == before
        assert len(open_files()) == descriptors


def test_a_file_system_without_fallocate_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a ramfs needs root")
    with mounted("ramfs", tmp_path) as folder:
        with Layout().file(folder) as file:
            with pytest.raises(OSError, match="fallocate") as info:
                run_multithreaded_sync(fallocate(file, 10 * PAGE))
            assert info.value.errno == errno.EOPNOTSUPP
            assert "os.posix_fallocate" in str(info.value.__notes__)
            assert os.fstat(file).st_size == 0
        with Layout([("write", 0, 10)]).file(folder) as file:
            with pytest.raises(OSError, match="does not tell which ranges") as info:
                run_multithreaded_sync(fallocate(file, 10 * PAGE))
            assert info.value.errno == errno.EOPNOTSUPP
            assert content(file) == bytes([1]) * 10


@pytest.mark.parametrize("at", range(4))
def test_a_file_system_that_punches_no_holes(
    shm: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = libc.fallocate

    def fallocate_(file: int, mode: int, offset: int, nbytes: int) -> None:
        if mode == PUNCH:
            raise OSError(errno.EOPNOTSUPP, "no holes")
        made.append(offset)
        if len(made) > at:
            raise OSError(errno.ENOSPC, "full")
        real(file, mode, offset, nbytes)

    with Layout().file(shm) as file:
        monkeypatch.setattr(libc, "fallocate", fallocate_)
        error, _ = attempt(fallocate(file, 4 * PAGE, chunk=PAGE))
        assert error is not None
        assert "there still" not in str(error.__notes__)
        assert state(file) == {"size": 0, "storage": [], "content": b""}


def test_an_undo_that_fails_is_told_and_the_rest_is_taken_back(shm: Path) -> None:
    with MIXED.file(shm) as file:
        before = state(file)
        job = fallocate(file, NBYTES, offset=OFFSET, chunk=4 * PAGE)
        punched: list[int] = []

        real = libc.fallocate

        def fallocate_(file: int, mode: int, offset: int, nbytes: int) -> None:
            if mode == PUNCH:
                punched.append(offset)
                if len(punched) == 2:
                    raise OSError(errno.EIO, "no hole today")
            elif offset >= 20 * PAGE:
                raise OSError(errno.ENOSPC, "full")
            real(file, mode, offset, nbytes)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(libc, "fallocate", fallocate_)
            with pytest.raises(UndoFailed) as info:
                run_multithreaded_sync(job)
        assert info.value.__cause__ is not None
        assert "full" in str(info.value.__cause__)
        assert len(info.value.ranges) == 1
        assert os.fstat(file).st_size == before["size"]
        assert len(storage(file)) > len(before["storage"])
        assert content(file) == before["content"]


def test_a_chunk_that_cannot_take_back_says_so(shm: Path) -> None:
    with MIXED.file(shm) as file:
        job = fallocate(file, NBYTES, offset=OFFSET)
        with pytest.MonkeyPatch.context() as patch:

            def refuse(file: int, mode: int, offset: int, nbytes: int) -> None:
                raise OSError(errno.ENOSPC if mode == KEEP else errno.EIO, "refused")

            patch.setattr(libc, "fallocate", refuse)
            with pytest.raises(OSError, match="refused") as info:
                run_multithreaded_sync(job)
        assert info.value.errno == errno.ENOSPC
        assert any("may be there still" in note for note in info.value.__notes__)


# how the ranges are found


integers = st.integers(0, 60)
pairs = st.tuples(integers, integers).filter(lambda pair: pair[0] < pair[1])


@given(st.lists(st.tuples(st.booleans(), pairs), max_size=12), pairs)
def test_ranges_are_a_set(steps: list[tuple[bool, tuple[int, int]]], last: Any) -> None:
    model: set[int] = set()
    ranges = Ranges()
    for adds, (start, stop) in steps:
        between = set(range(start, stop))
        if adds:
            ranges.add(start, stop)
            model |= between
        else:
            taken = ranges.take(start, stop)
            assert all(first < end for first, end in taken)
            assert {n for pair in taken for n in range(*pair)} == model & between
            model -= between
        flat = [edge for pair in ranges for edge in pair]
        assert flat == sorted(set(flat))  # they do not touch, and none is empty
        assert {n for pair in ranges for n in range(*pair)} == model
        assert bool(ranges) == bool(model)
    holes = {n for pair in gaps(ranges, *last, 1) for n in range(*pair)}
    assert holes == set(range(*last)) - model


@given(st.lists(pairs, max_size=5), pairs)
def test_gaps_are_whole_blocks_with_nothing_in_them(found: Any, within: Any) -> None:
    start, stop = within[0] * 5, within[1] * 5
    ranges = list(Ranges(found))
    holes = list(gaps(ranges, start, stop, 5))
    assert all(edge % 5 == 0 for pair in holes for edge in pair)
    there = {n // 5 for pair in ranges for n in range(*pair)}
    wanted = set(range(within[0], within[1])) - there
    assert {n // 5 for pair in holes for n in range(*pair)} == wanted


@given(st.data())
@hypothesis.settings(max_examples=40)
def test_storage_is_found_between_any_two_offsets(place: Path, data: st.DataObject) -> None:
    layout = some_layout(data)
    with layout.file(place) as file:
        block = block_of(file)
        start = data.draw(st.integers(0, 40)) * PAGE
        stop = data.draw(st.integers(start // PAGE + 1, 50).map(lambda n: n * PAGE) | st.just(END))
        if libc.fstatfs(file)[0] == TMPFS:
            found = by_cachestat(file, start, stop)
        else:
            found = by_fiemap(file, start, stop, sync=data.draw(st.booleans()))
        blocks = {n for pair in found for n in range(pair[0] // block, -(-pair[1] // block))}
        assert blocks == {n for n in storage(file) if start <= n * block < stop}


def test_many_extents_are_read_in_several_calls(place: Path) -> None:
    many = 700
    layout = Layout(
        [("allocate", 2 * number * PAGE, PAGE) for number in range(many)], 2 * many * PAGE
    )
    with layout.file(place) as file:
        if len(storage(file)) * block_of(file) != many * PAGE:
            pytest.skip("this file system allocates more than it is asked for")
        if libc.fstatfs(file)[0] != TMPFS:
            assert len(list(by_fiemap(file, 0, END, sync=False))) == many
        before = state(file)
        job = fallocate(file, 2 * many * PAGE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_fallocate_run.FallocateRun, "_lengthen", late)
            error, calls = attempt(job)
        assert "late" in str(error)
        assert calls.count("fallocate") == 1 + many
        assert state(file) == before


def late(self: object) -> None:
    raise OSError(errno.EIO, "late")
