# SPDX-License-Identifier: MIT
# Dropping files from the page cache, as the kernel tells by mincore(2).

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import run_multithreaded, run_multithreaded_sync
from aioktask.files import Evicted, Tally, _evict, _tally, evict
from aioktask.memory._kernel import libc
from tests.support.meanwhile import Scene, play_at_each_line
from tests.support.open_files import open_files
from tests.support.pieces import run_in_pieces

PAGE = mmap.PAGESIZE
SIZES = (0, 1, PAGE, PAGE + 1, 5 * PAGE - 7)


def cached(path: Path) -> int:
    """How many pages of a file are in the page cache."""
    size = path.stat().st_size
    if size == 0:
        return 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        array = np.frombuffer(view, np.uint8)
        pages = int((libc.mincore(array.ctypes.data, size) & 1).sum())
        del array
    return pages


def descriptors() -> int:
    return len(open_files())


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a file system whose pages can be dropped, which those in memory are not."""
    for place in (Path(tempfile.gettempdir()), Path(__file__).parent, Path("/scratch")):
        if not os.access(place, os.W_OK):
            continue
        with tempfile.TemporaryDirectory(dir=place) as directory:
            probe = Path(directory, "probe")
            probe.write_bytes(b"x" * PAGE)
            with probe.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if cached(probe) == 0:
                probe.unlink()
                yield Path(directory)
                return
    pytest.skip("no disk file system here drops pages")


def written(directory: Path) -> list[Path]:
    paths = [directory / f"file-{size}" for size in SIZES]
    for path, size in zip(paths, SIZES, strict=True):
        path.write_bytes(os.urandom(size))
    return paths


@pytest.mark.anyio
async def test_dirty_files_are_written_and_dropped(disk: Path) -> None:
    paths = written(disk)
    content = [path.read_bytes() for path in paths]
    assert [cached(path) for path in paths] == [0, 1, 1, 2, 5]
    tally = Tally()
    before = descriptors()
    report = await run_multithreaded(evict(paths, tally=tally))
    assert report.value == Evicted(len(SIZES), sum(SIZES))
    assert [cached(path) for path in paths] == [0] * len(SIZES)
    assert tally.nbytes == sum(SIZES)
    assert tally.files == len(SIZES) - 1  # of the empty one there was nothing to do
    assert descriptors() == before
    assert [path.read_bytes() for path in paths] == content


def test_descriptors_and_one_path_will_do(disk: Path) -> None:
    path = written(disk)[-1]
    with path.open("rb") as file:
        run_multithreaded_sync(evict(file.fileno()))
        assert cached(path) == 0
        path.read_bytes()
        run_multithreaded_sync(evict([file.fileno(), path]))
        assert cached(path) == 0
        os.fstat(file.fileno())  # it is the caller's, and open
    path.read_bytes()
    run_multithreaded_sync(evict(str(path)))
    assert cached(path) == 0


def test_without_writing_back_dirty_pages_stay(disk: Path) -> None:
    path = written(disk)[-1]
    run_multithreaded_sync(evict(path, write_back=False))
    assert cached(path) == 5
    run_multithreaded_sync(evict(path))
    assert cached(path) == 0


@given(st.lists(st.integers(0, 5 * PAGE), max_size=8), st.sampled_from([PAGE, 3 * PAGE]))
def test_every_byte_of_every_file_is_asked_for_once(sizes: list[int], chunk: int) -> None:
    asked: dict[int, list[tuple[int, int]]] = {}

    def drop(file: Any, start: int, nbytes: int, **options: Any) -> None:
        asked.setdefault(file, []).append((start, start + nbytes))

    with mock.patch.multiple(_evict, _drop=drop, _size_of=lambda file: sizes[file]):
        tally = Tally()
        job = evict(range(len(sizes)), tally=tally)
        run_in_pieces(job, chunk, 1)
    for file, size in enumerate(sizes):
        pieces = sorted(asked.get(file, []))
        assert [edge for piece in pieces for edge in piece] == (
            [0, *(edge for start, _ in pieces[1:] for edge in (start, start)), size] if size else []
        )
        assert all(start % PAGE == 0 for start, _ in pieces)
    assert tally.nbytes == sum(sizes)
    assert tally.files == sum(size > 0 for size in sizes)


@pytest.mark.parametrize("call", ["open", "fdatasync", "posix_fadvise"])
def test_any_call_may_fail_and_the_tally_tells_what_is_done(disk: Path, call: str) -> None:
    paths = written(disk)
    before = descriptors()
    real: Callable[..., Any] = getattr(os, call)
    for at in range(1, len(SIZES)):
        made = 0

        def fails(*arguments: Any, at: int = at) -> Any:
            nonlocal made
            made += 1
            if made == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments)

        tally = Tally()
        with mock.patch.object(_evict.os, call, fails):
            with pytest.raises(OSError, match="Input/output error") as info:
                run_multithreaded_sync(evict(paths, tally=tally, max_threads=1))
        assert info.value.filename == str(paths[at])
        assert tally.nbytes == sum(SIZES[:at])
        assert descriptors() == before


def test_a_finalizer_may_count_in_any_line_of_who_counts() -> None:
    def begin() -> Scene:
        tally = Tally()

        def check() -> None:
            assert (tally.files, tally.directories, tally.nbytes) == (3, 5, 7)
            assert repr(tally) == "Tally(files=3, directories=5, nbytes=7)"

        return Scene(lambda: tally.add(1, 2, 3), lambda: tally.add(2, 3, 4), check)

    play_at_each_line(begin, _tally)


@pytest.mark.parametrize("as_given", [str, os.fsencode, Path])
def test_a_relative_path_begins_where_the_job_was_made(
    disk: Path, monkeypatch: pytest.MonkeyPatch, as_given: Callable[[str], Any]
) -> None:
    for place in ("a", "b"):
        (disk / place).mkdir()
        (disk / place / "file").write_bytes(b"x" * PAGE)
    monkeypatch.chdir(disk / "a")
    job = evict(as_given("file"))
    monkeypatch.chdir(disk / "b")
    run_multithreaded_sync(job)
    assert cached(disk / "a" / "file") == 0
    assert cached(disk / "b" / "file") == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_any_more_is_an_error_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    job = evict(path)
    path.unlink()
    make(path)
    before = descriptors()
    with pytest.raises(OSError, match="no regular file any more") as info:
        run_multithreaded_sync(job)
    assert (info.value.errno, info.value.filename) == (errno.ESTALE, str(path))
    assert descriptors() == before


def test_a_file_that_is_gone_when_the_job_runs_is_told_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    monkeypatch.chdir(tmp_path)
    job = evict("link")
    (tmp_path / "file").unlink()
    with pytest.raises(FileNotFoundError) as info:
        run_multithreaded_sync(job)
    assert (info.value.errno, info.value.filename) == (errno.ENOENT, str(tmp_path / "link"))


@pytest.mark.parametrize("given", ["", b"", "nowhere", b"nowhere", 10_000])
def test_what_cannot_be_looked_at_is_told_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"No such file|Bad file") as info:
        evict([given])
    assert info.value.errno == (errno.EBADF if isinstance(given, int) else errno.ENOENT)
    assert info.value.filename == given


def test_a_path_that_begins_nowhere_is_told_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory is gone, and ".." of it still leads somewhere."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as info:
        evict("../file")
    assert (info.value.errno, info.value.filename) == (errno.ENOENT, "../file")


def test_what_is_no_file_is_refused_when_the_job_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        evict(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="regular files"):
        evict([tmp_path])
    with pytest.raises(ValueError, match="null"):
        evict("a\0b")
    with pytest.raises(TypeError):
        evict([1.5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="Tally"):
        evict([], tally=5)  # type: ignore[arg-type]
    assert run_multithreaded_sync(evict([])).value == Evicted(0, 0)
