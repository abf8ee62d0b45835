# SPDX-License-Identifier: MIT
# The archive: the thread that reads lessons from disk, and writes them there.
#
# A file system may take long, or hang, so neither turns nor the keeper ask it anything. Turns say
# what they want to have read (`fetch`) and what was learned (`keep`); both only put that down. The
# thread reads at once, and posts the answer as a command. It writes in quiet moments, which the
# keeper tells it of, and at exit, where the interpreter has no more threads to start: so it stays,
# parked, once something was to be read, and nothing is ever written that was not read for first.
#
# Guarantees: a job fails by nothing that happens here. What a system call refuses, and what is
# found and not used, is told in an event, once for each cause. Exit waits for it no longer than it
# is told to. Relies on the steps of `deque` and `dict` being atomic, with and without the GIL.
"""The thread that keeps lessons on disk."""

from __future__ import annotations

import time
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING

from aioktask.checks import DISK
from aioktask.engine.events import Event, EventKind, show_exception
from aioktask.engine.learning.kept import (
    MOST_BYTES,
    MOST_SECONDS,
    Subject,
    UnfitError,
    decode,
    encode,
    file_name,
    is_file_name,
    others,
    subject_of,
)
from aioktask.engine.learning.lessons import MOST_LESSONS, Key, Lesson
from aioktask.engine.machine import store
from aioktask.engine.machine.identity import describe_machine
from aioktask.engine.machine.os_threads import NAME, start_thread
from aioktask.engine.state import admission
from aioktask.engine.state.current import local
from aioktask.engine.state.outbox import Source
from aioktask.engine.state.workers import Parking

if TYPE_CHECKING:
    from aioktask.engine.threads.pool import Pool

# How many files a directory may have: those written longest ago go first.
MOST_FILES = 1024
# It is tidied when it is first written to, and after so many files.
MOST_UNTIDY = 256

# Writing is spread: so long passes from one time to the next. Where it is never quiet, twice that.
WRITE_SECONDS = 10.0

# How many causes are told of: what comes after would tell a reader no more.
MOST_TOLD = 256


class Reading:
    """A wish to know what is on disk for a function.

    Attributes:
        source: Where, and what for.
        parking: Opened when the answer is there.
        found: The answer.
    """

    __slots__ = ("found", "parking", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.parking = Parking()
        self.found: Lesson | None = None


class Archive:
    """The archive of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parking = Parking()
        self._wanted: deque[Reading] = deque()
        # By directory and key, so that of one function the last lesson is written. None for one
        # that turned out to be wrong, whose file goes.
        self._unwritten: dict[tuple[str, Key], tuple[Source, Lesson | None]] = {}
        self._ended = Parking()
        self._untidy: dict[str, int] = {}  # the thread's own, as is the next
        self._told: set[tuple[object, ...]] = set()
        self._running = False
        self._writes = self._stops = False
        self._write_at = 0.0  # the keeper's own

    # On any thread, in any line.

    def fetch(self, reading: Reading) -> None:
        """Have this read; the answer is posted (`admission.lesson_read`), and then `parking` opens.

        Where there is no thread for that, the answer is that nothing is there.
        """
        self._wanted.append(reading)
        if self._running:
            self._parking.unpark()
            return
        try:
            self._pool.keeper.soon(self._start)
        except RuntimeError:
            self._without_thread()

    def keep(self, source: Source, lesson: Lesson | None) -> None:
        """Have this lesson written some time, or its file removed where there is none any more."""
        question = source.directory, source.key
        if question in self._unwritten or len(self._unwritten) < MOST_LESSONS:
            self._unwritten[question] = source, lesson

    # On the keeper.

    def look(self, *, quiet: bool) -> bool:
        """Have the thread write, if it is time to; whether something is still to be written.

        Args:
            quiet: Whether no job runs.
        """
        if not self._unwritten or not self._running:
            return False
        now = time.monotonic()
        if now >= self._write_at + (0.0 if quiet else WRITE_SECONDS):
            self._write_at = now + WRITE_SECONDS
            self._writes = True
            self._parking.unpark()
        return True

    def _start(self) -> None:
        """Start the thread: here, since it inherits the keeper's nice and CPUs."""
        if self._running or self._stops:
            self._parking.unpark()
            return
        self._running = True
        try:
            start_thread(self._serve, f"{NAME} archive")
        except BaseException as error:
            self._running = False
            self._without_thread()
            if not isinstance(error, RuntimeError):
                raise

    def _without_thread(self) -> None:
        """Answer that nothing is there, since the system has no thread to look."""
        while (reading := self._next()) is not None:
            self._answer(reading)

    def _next(self) -> Reading | None:
        """Take what is to be answered next, if anything: several threads may do so at a time."""
        try:
            return self._wanted.popleft()
        except IndexError:
            return None

    # At exit.

    def close(self, seconds: float) -> None:
        """Have all written that is to be, and wait for that, at most so many seconds."""
        self._stops = True
        if not self._running:
            return
        self._parking.unpark()
        self._ended.wait(seconds)

    # On the thread itself.

    def _serve(self) -> None:
        stops = False
        while not (stops or self._pool.dead):
            # Without the thread nothing would ever be read again, so nothing but this ends it.
            try:
                local.inside = True
                while not self._stops and (reading := self._next()) is not None:
                    self._read(reading)
                stops = self._stops
                if self._writes or stops:
                    self._writes = False
                    self._write()
                if not stops:
                    self._parking.wait()
            except BaseException:
                show_exception()
        self._ended.unpark()

    def _machine(self) -> str:
        return describe_machine(len(self._pool.adapter.topology.cpus))

    def _read(self, reading: Reading) -> None:
        source = reading.source
        try:
            subject = subject_of(source.key, self._machine())
            if subject is not None:
                reading.found = self._found(source, subject)
        except BaseException as error:
            self._tell(EventKind.NOT_REMEMBERED, source, error)
        finally:
            self._answer(reading)
            self._pool.tell()

    def _answer(self, reading: Reading) -> None:
        directory, key, _ = reading.source
        self._pool.post(admission.lesson_read, None, directory, key, reading.found)
        reading.parking.unpark()

    def _found(self, source: Source, subject: Subject) -> Lesson | None:
        """The lesson about this on disk, if there is one that may be used."""
        path = _path(source.directory)
        name = file_name(subject)
        try:
            with store.opened(path) as directory:
                data = store.read(directory, name, MOST_BYTES)
                changed = data is None and any(others(subject, store.names(directory)))
        except FileNotFoundError:  # there is no directory yet
            return None
        if changed:
            why = f"the code of {subject.function} was changed since it was learned"
            self._tell(EventKind.NOT_REMEMBERED, source, UnfitError(why))
        return None if data is None else decode(data, subject, time.time())

    def _write(self) -> None:
        """Write what there is to write, directory by directory."""
        todo: dict[str, list[tuple[Source, Lesson | None]]] = {}
        for question in list(self._unwritten):
            each = self._unwritten.pop(question, None)
            if each is not None:
                todo.setdefault(question[0], []).append(each)
        for directory, lessons in todo.items():
            try:
                self._write_to(_path(directory), lessons)
            except BaseException as error:
                self._tell(EventKind.NOT_KEPT, lessons[0][0], error)
        if todo:
            self._pool.tell()

    def _write_to(self, path: str, lessons: list[tuple[Source, Lesson | None]]) -> None:
        machine = self._machine()
        with store.opened(path, make=True) as directory:
            for source, lesson in lessons:
                subject = subject_of(source.key, machine)
                if subject is None:
                    continue
                try:
                    if lesson is None:
                        store.remove(directory, file_name(subject))
                    else:
                        data = encode(subject, lesson, time.time())
                        store.write(directory, file_name(subject), data)
                except (OSError, ValueError) as error:
                    self._tell(EventKind.NOT_KEPT, source, error)
            untidy = self._untidy.get(path, MOST_UNTIDY) + len(lessons)
            if untidy >= MOST_UNTIDY:
                store.tidy(directory, is_file_name, MOST_FILES, MOST_SECONDS)
                untidy = 0
            self._untidy[path] = untidy

    def _tell(self, kind: EventKind, source: Source, error: BaseException) -> None:
        """Have it told that a file or directory is not used, and why, once for each cause."""
        # A cause of a directory is told once, whichever function met it first.
        about = source.directory if isinstance(error, OSError) else source.key
        cause = (kind, about, error.errno if isinstance(error, OSError) else str(error))
        if cause in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told.add(cause)
        details = {"directory": _named(source.directory), "error": error}
        job = source.key[1]
        assert isinstance(job, str)
        self._pool.news.append((Context(), Event(kind, job, source.run, details, False)))


def _path(directory: str) -> str:
    return store.default_directory() if directory == DISK else directory


def _named(directory: str) -> str:
    """The path, for a reader; as it was asked for where there is none, since no home is known."""
    try:
        return _path(directory)
    except OSError:
        return directory
