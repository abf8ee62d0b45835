# SPDX-License-Identifier: MIT
# Who asks all processes for the page: one thread, while somebody looks, for all browsers together.
#
# Guarantees: no loop's thread asks, waits or builds a message; a message is built once, twice a
# second at most, whoever reads it; a process that hangs delays nobody by more than its part of that
# time; one whose answer cannot be read is told as such, beside all others; without readers nothing
# is asked, and the thread ends. Whatever it ends by, the next reader begins another one, and there
# are never two. What a process served while it did not answer is asked for once it does.
#
# A browser gets the timeline's marks as they come, so it must miss no message. A reader that missed
# one, or is new, asks for all marks, which come with the next message.
"""The gathering of messages."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import anyio

from aioktask.engine.loops.loop import running_loop
from aioktask.observe.courtesy import Courtesy
from aioktask.observe.processes import UNREADABLE, ask_all, unreadable
from aioktask.web._page.marks import Mark, Marks
from aioktask.web._page.told import Processes

__all__ = ["EVERY", "Gatherer", "Message", "Reader"]

# How often, in seconds, and how long processes may take for an answer.
EVERY = 0.5
ANSWER_SECONDS = 0.45

# The timeline: so far back, in seconds, and so many marks at most.
TIMELINE_SECONDS = 300.0
MOST_MARKS = 10_000

# What is asked for beside what is new, for entries that were about to be told.
OVERLAP_SECONDS = 0.25


@dataclass(frozen=True)
class Message:
    """What all processes told at one moment.

    Attributes:
        number: Counts messages.
        state: What there is to see, as JSON in one line.
        marks: All marks of the timeline as JSON in one line, for a reader that asked for them.
    """

    number: int
    state: bytes
    marks: bytes | None


class Reader:
    """One who waits for messages, on a loop."""

    def __init__(self) -> None:
        loop = running_loop()
        assert loop is not None
        self._loop = loop
        self._event = anyio.Event()
        self._newest: Message | None = None
        self.last = 0  # the number of the message that it had last
        self.wants_marks = True

    def give(self, message: Message) -> None:
        """Have it find this message. On the gatherer's thread."""
        self._newest = message
        self._loop.post(self._wake, None)

    def _wake(self) -> None:
        self._event.set()

    async def next(self, seconds: float) -> Message | None:
        """The newest message, once there is one that it has not had; None after that time.

        **Cancellation** leaves the message for the next call.
        """
        with anyio.move_on_after(seconds):
            while True:
                found = self._newest
                if found is not None and found.number > self.last:
                    if found.marks is None and found.number != self.last + 1:
                        self.wants_marks = True  # those in the messages between are missing
                    self.last = found.number
                    return found
                self._event = anyio.Event()
                if self._newest is found:
                    await self._event.wait()
        return None


class Gatherer:
    """Asks all processes, again and again, while there are readers."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._began = -math.inf  # when the last message was begun, by `time.monotonic`
        self._changed = threading.Condition()  # guards the two below
        self._readers: set[Reader] = set()
        self._thread: threading.Thread | None = None
        # The thread's own.
        self._processes = Processes()
        self._marks = Marks(TIMELINE_SECONDS, MOST_MARKS)
        self._asked_at = 0.0
        # Of each process, the last time when it was asked and answered.
        self._heard_at: dict[int, float] = {}
        self._number = 0

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """A reader for as long as the block runs.

        Raises:
            RuntimeError: The system has no thread for it.
        """
        if self._pid != os.getpid():  # a fork's child has no thread
            self._begin()
        reader = Reader()
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._gather, name="aioktask page", daemon=True)
                thread.start()  # it waits for what is held here
                self._thread = thread
            self._readers.add(reader)
        try:
            yield reader
        finally:
            with self._changed:
                self._readers.discard(reader)
                self._changed.notify()

    def _gather(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        with self._changed:
            if self._thread is threading.current_thread():  # it had not given up its place yet
                self._thread = None

    def _turn(self) -> bool:
        """Build a message, give it to all, and wait; false, and no thread any more, without any."""
        if not self._rest(self._began + EVERY):  # of a thread before this one, perhaps
            return False
        self._began = began = time.monotonic()
        with self._changed:
            waiting = [each for each in self._readers if each.wants_marks]
            for each in waiting:
                each.wants_marks = False
        message = self._build(with_marks=bool(waiting))
        if message.marks is None:
            for each in waiting:
                each.wants_marks = True  # they come with a later one
        with self._changed:
            readers = list(self._readers)
        without = replace(message, marks=None)
        for each in readers:
            each.give(message if each in waiting else without)
        return self._rest(max(began + EVERY, time.monotonic() + 0.05))

    def _rest(self, until: float) -> bool:
        """Wait until then; false, and no thread any more, where there are no readers.

        Both are decided under one hold of the lock: a reader that comes later begins a thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._readers, max(until - time.monotonic(), 0.0))
            if self._readers:
                return True
            self._thread = None
            return False

    def _build(self, *, with_marks: bool) -> Message:
        self._number += 1
        try:
            data = self._ask()
            data["number"] = self._number
            state = _encoded_by_rows(data)
        except Exception as error:  # whatever it is, those who look are told
            told = {"error": f"{type(error).__name__}: {error}", "number": self._number}
            state = _encoded(told)
        marks = None
        if with_marks:
            with suppress(Exception):  # they are wanted again
                marks = _encoded_list([_told(each) for each in self._marks.all()])
        return Message(self._number, state, marks)

    def _ask(self) -> dict[str, Any]:
        began = time.perf_counter()
        before, known = self._asked_at, self._heard_at

        def request(pid: int) -> dict[str, object]:
            back = began - known.get(pid, before) + OVERLAP_SECONDS
            return {"do": "snapshot", "history": min(back, TIMELINE_SECONDS)}

        answers = ask_all(request, seconds=ANSWER_SECONDS)
        self._asked_at = began
        self._heard_at = {
            each.pid: known.get(each.pid, before) if each.answer is None else began
            for each in answers
        }
        now = time.perf_counter()
        fresh: list[Mark] = []
        for place, each in enumerate(answers):
            if each.answer is not None:
                try:
                    fresh += self._marks.add(each.pid, each.answer.get("history", ()))
                except UNREADABLE as error:
                    answers[place] = unreadable(each.pid, error)
        self._processes.hear(answers, now)
        self._marks.forget(now)
        data = self._processes.message(now)
        data["marks"] = [_told(each) for each in fresh]
        return data


def _told(mark: Mark) -> list[Any]:
    """A mark as JSON has it, by position; times to a tenth of a millisecond."""
    return [*mark[:6], round(mark.start, 4), round(mark.stop, 4), *mark[8:]]


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _encoded_by_rows(data: dict[str, Any]) -> bytes:
    """JSON, made row by row: one call would hold the GIL for all of it."""
    parts: list[bytes] = []
    for name, value in data.items():
        encoded = _encoded_list(value) if isinstance(value, list) else _encoded(value)
        parts.append(_encoded(name) + b":" + encoded)
    return b"{" + b",".join(parts) + b"}"


def _encoded_list(values: list[Any]) -> bytes:
    return b"[" + b",".join(_in_turns(values)) + b"]"


def _in_turns(values: list[Any]) -> Iterator[bytes]:
    courtesy = Courtesy()
    for each in values:
        courtesy()
        yield _encoded(each)
