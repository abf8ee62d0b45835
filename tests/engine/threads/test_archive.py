# SPDX-License-Identifier: MIT
# The archive without its pool: when it writes, what it keeps and tells, and that nobody waits for a
# disk that hangs. With real processes: tests/process/test_learned_on_disk.py.

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.events import Event, EventKind
from aioktask.engine.learning.kept import decode, file_name, is_file_name, subject_of
from aioktask.engine.learning.lessons import MOST_LESSONS, Key, Lesson, key_of
from aioktask.engine.machine import store
from aioktask.engine.state import admission
from aioktask.engine.state.outbox import Source
from aioktask.engine.threads import archive as archive_module
from aioktask.engine.threads.archive import (
    MOST_FILES,
    MOST_TOLD,
    WRITE_SECONDS,
    Archive,
    Reading,
)
from tests.support.gates import PATIENCE

pytestmark = pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="directories of POSIX")


def work(start: int, stop: int) -> None: ...


def key(name: str = "job") -> Key:
    return key_of(Job(work, 1000, name=name), 2)


class Keeper:
    """Does errands at once, or has no thread to do them."""

    def __init__(self) -> None:
        self.has_threads = True

    def soon(self, errand: Callable[[], None]) -> None:
        if not self.has_threads:
            raise RuntimeError("can't start new thread")
        errand()


class Pool:
    """What an archive asks of its pool, and what it said to that."""

    dead = False
    adapter = SimpleNamespace(topology=SimpleNamespace(cpus=range(2)))

    def __init__(self) -> None:
        self.keeper = Keeper()
        self.posted: list[tuple[Any, ...]] = []
        self.news: deque[tuple[object, Event]] = deque()

    def post(self, *command: Any) -> None:
        self.posted.append(command)

    def tell(self) -> None:
        pass


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def archive(pool: Pool) -> Iterator[Archive]:
    archive = Archive(pool)  # type: ignore[arg-type]
    yield archive
    archive.close(PATIENCE)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lessons")


def names(place: str) -> list[str]:
    return [name for name in os.listdir(place) if is_file_name(name)]


def read(archive: Archive, source: Source) -> Lesson | None:
    """What it answers."""
    reading = Reading(source)
    archive.fetch(reading)
    assert reading.parking.wait(PATIENCE)
    return reading.found


def write(archive: Archive) -> None:
    """Have it write all, now: as its own thread does."""
    archive._write()


def test_what_is_kept_is_read_again_and_the_last_lesson_of_a_function_holds(
    archive: Archive, pool: Pool, place: str
) -> None:
    source = Source(place, key(), 1)
    assert read(archive, source) is None
    for speed in (1.0, 2.0, 3.0):
        archive.keep(source, Lesson(None, None, speed))
    write(archive)
    assert len(names(place)) == 1
    assert read(archive, source) == Lesson(None, None, 3.0)
    assert pool.posted[-1] == (
        admission.lesson_read,
        None,
        place,
        key(),
        Lesson(None, None, 3.0),
    )
    archive.keep(source, None)  # it turned out to be wrong
    write(archive)
    assert names(place) == []
    assert read(archive, source) is None
    assert not pool.news


def test_it_reads_and_writes_on_a_thread_of_its_own(
    archive: Archive, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    written = threading.Event()
    opened, put = store.opened, store.write

    def open_here(*args: Any, **how: Any) -> Any:
        threads.add(threading.current_thread().name)
        return opened(*args, **how)

    def write_here(*args: Any) -> None:
        put(*args)
        written.set()

    monkeypatch.setattr(store, "opened", open_here)
    monkeypatch.setattr(store, "write", write_here)
    assert not archive._running  # before anything is asked for there is none
    source = Source(place, key(), 1)
    read(archive, source)
    archive.keep(source, Lesson(None, None, 1.0))
    archive.look(quiet=True)
    assert written.wait(PATIENCE)
    assert threads == {"aioktask archive"}


@pytest.mark.parametrize("refuses", ["the keeper", "the archive"])
def test_without_a_thread_the_answer_is_that_nothing_is_there(
    refuses: str, archive: Archive, pool: Pool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    if refuses == "the keeper":
        pool.keeper.has_threads = False
    else:
        monkeypatch.setattr(archive_module, "start_thread", refuse)
    assert read(archive, Source(place, key(), 1)) is None
    assert pool.posted == [(admission.lesson_read, None, place, key(), None)]
    assert not archive.look(quiet=True)  # and so nothing is written that was not read for


# When it writes.


@given(st.lists(st.tuples(st.sampled_from([0.1, 1.0, 7.0]), st.booleans()), max_size=120))
def test_it_writes_every_ten_seconds_where_it_is_quiet_and_every_twenty_where_it_never_is(
    looks: list[tuple[float, bool]],
) -> None:
    now, wrote, began = 1000.0, -1000.0, False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_module, "time", SimpleNamespace(monotonic=lambda: now))
        archive = Archive(Pool())  # type: ignore[arg-type]
        archive._running = True
        archive.keep(Source("/nowhere", key(), 1), Lesson(None, None, 1.0))
        for seconds, quiet in looks:
            now += seconds
            assert archive.look(quiet=quiet)
            writes, archive._writes = archive._writes, False
            # The sum of such steps is a little off.
            if writes and began:
                assert now - wrote > (WRITE_SECONDS if quiet else 2 * WRITE_SECONDS) - 0.01
            if not writes and began:
                assert now - wrote < (WRITE_SECONDS if quiet else 2 * WRITE_SECONDS) + 0.01
            if writes:
                wrote, began = now, True


def test_where_nothing_is_to_be_written_nobody_is_woken(archive: Archive) -> None:
    archive._running = True
    assert not archive.look(quiet=True)
    assert not archive._writes
    archive._running = False


def test_it_holds_no_more_lessons_than_a_process_does(archive: Archive) -> None:
    for number in range(MOST_LESSONS + 10):
        archive.keep(Source("/nowhere", (number,), 1), Lesson(None, None, 1.0))
    assert len(archive._unwritten) == MOST_LESSONS
    archive.keep(Source("/nowhere", (0,), 1), None)  # one that it has is replaced all the same
    assert archive._unwritten["/nowhere", (0,)][1] is None
    archive._unwritten.clear()


def test_when_it_writes_what_is_old_or_too_much_goes(archive: Archive, place: str) -> None:
    os.makedirs(place, 0o700)
    for number in range(MOST_FILES + 5):
        name = f"{number:016x}-{0:016x}-{0:016x}.json"
        Path(place, name).touch()
        os.utime(Path(place, name), (0, 0) if number < 3 else (10**9, 10**9 + number))
    Path(place, "notes.txt").touch()
    now = 10**9 + 100.0
    with pytest.MonkeyPatch.context() as patch:
        for module in (archive_module, store):
            patch.setattr(module, "time", SimpleNamespace(time=lambda: now))
        archive.keep(Source(place, key(), 1), Lesson(None, None, 1.0))
        write(archive)
    left = names(place)
    subject = subject_of(key(), archive._machine())
    assert subject is not None
    assert file_name(subject) in left
    assert len(left) == MOST_FILES
    assert Path(place, "notes.txt").exists()
    assert all(int(name[:16], 16) >= 3 for name in left if name != file_name(subject))


# What it tells.


def told(pool: Pool) -> list[tuple[EventKind, str, object]]:
    return [(event.kind, event.job, event.details["directory"]) for _, event in pool.news]


def test_a_refusal_of_a_directory_is_told_once_whichever_function_meets_it(
    archive: Archive, pool: Pool, place: str
) -> None:
    os.makedirs(place, 0o700)
    os.chmod(place, 0o777)
    for number in range(5):
        assert read(archive, Source(place, key(f"job {number}"), number)) is None
        archive.keep(Source(place, key(f"job {number}"), number), Lesson(None, None, 1.0))
        write(archive)
    assert told(pool) == [
        (EventKind.NOT_REMEMBERED, "job 0", place),
        (EventKind.NOT_KEPT, "job 0", place),
    ]
    errors = [event.details["error"] for _, event in pool.news]
    assert [getattr(error, "errno", None) for error in errors] == [errno.EPERM] * 2
    os.chmod(place, 0o700)


def test_a_file_that_is_not_used_is_told_once_for_each_function(
    archive: Archive, pool: Pool, place: str
) -> None:
    sources = [Source(place, key(f"job {number}"), number) for number in range(2)]
    for source in sources:
        archive.keep(source, Lesson(None, None, 1.0))
    write(archive)
    for name in names(place):
        Path(place, name).write_bytes(b"")
    for source in sources * 3:
        assert read(archive, source) is None
    assert sorted(told(pool)) == sorted(
        (EventKind.NOT_REMEMBERED, f"job {number}", place) for number in range(2)
    )


def test_no_more_causes_are_told_than_a_reader_reads(archive: Archive, pool: Pool) -> None:
    for number in range(MOST_TOLD + 10):
        source = Source(f"/nowhere/{number}", key(), 1)
        archive._tell(EventKind.NOT_KEPT, source, PermissionError(errno.EACCES, "no"))
    assert len(pool.news) == MOST_TOLD


@pytest.mark.parametrize("home", ["/home/of/somebody", ""])
def test_the_directory_of_the_users_caches_is_told_by_its_path(
    home: str, archive: Archive, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", home))
    archive._tell(EventKind.NOT_KEPT, Source("disk", key(), 1), OSError(errno.EIO, "no"))
    [(_, _, directory)] = told(pool)
    assert directory == (f"{home}/.cache/aioktask" if home else "disk")


def test_one_file_that_cannot_be_written_keeps_no_other_from_it(
    archive: Archive, pool: Pool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = store.write

    def refuse(directory: int, name: str, data: bytes) -> None:
        if b'"job 1"' in data:
            raise OSError(errno.EIO, "no", name)
        put(directory, name, data)

    monkeypatch.setattr(store, "write", refuse)
    for number in range(3):
        source = Source(place, key(f"job {number}"), number)
        archive.keep(source, Lesson(None, None, 1.0))
    write(archive)
    assert told(pool) == [(EventKind.NOT_KEPT, "job 1", place)]
    assert len(names(place)) == 2
    for number in (0, 2):
        subject = subject_of(key(f"job {number}"), archive._machine())
        assert subject is not None
        data = Path(place, file_name(subject)).read_bytes()
        assert decode(data, subject, archive_module.time.time()).speed == 1.0


# The end.


def test_the_end_waits_for_a_directory_that_hangs_as_long_as_it_is_told(
    pool: Pool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    opened = store.opened

    def hang(*args: Any, **how: Any) -> Any:
        hangs.set()
        assert goes_on.wait(PATIENCE)
        return opened(*args, **how)

    monkeypatch.setattr(store, "opened", hang)
    archive = Archive(pool)  # type: ignore[arg-type]
    archive.fetch(Reading(Source(place, key(), 1)))
    assert hangs.wait(PATIENCE)
    archive.keep(Source(place, key(), 1), Lesson(None, None, 1.0))
    archive.close(0.001)
    assert not archive._ended.wait(0)
    goes_on.set()
    archive.close(PATIENCE)  # now all is written that was to be
    assert len(names(place)) == 1


def test_a_wish_after_the_end_has_no_thread_started(archive: Archive, place: str) -> None:
    archive.close(PATIENCE)
    archive.fetch(Reading(Source(place, key(), 1)))
    assert not archive._running
