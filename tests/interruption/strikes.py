# SPDX-License-Identifier: MIT
# Ways to strike at a place in the library: there happens what the library did not ask for.
#
# A place is a line (or a bytecode instruction) of a file below the installed package, and how often
# the main thread has come by. A run that only records tells which places a call has; a run that
# strikes does it at one of them.
#
# What strikes "at" a place does so inside the tracing function, so an exception comes out exactly
# there. That is more than the interpreter does: it looks at signals when a function begins, when a
# loop goes back and when a call of a C function returns, and never between the last line of a
# `with` and its `__exit__` (bpo-29988). Where an exception is about to be handled it would also be
# more than the interpreter bears, see `handles`: there the strike comes one instruction later. What
# strikes "soon" is a signal that is pending from that
# place on, and its handler runs where the interpreter next looks, as for a real one.
"""Strike at any line of the library."""

from __future__ import annotations

import ctypes
import dis
import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import aioktask

LIBRARY = os.path.dirname(os.path.abspath(aioktask.__file__)) + os.sep

STRIKE = signal.SIGALRM


class Alarm(Exception):  # noqa: N818 - as a program would call it
    """What the handler of a strike raises."""


@dataclass(frozen=True, order=True)
class Place:
    """A point that the main thread passes: a line, or an instruction where `offset` is not -1."""

    file: str  # below the package
    line: int
    function: str
    offset: int = -1
    turn: int = 1  # the first, second, ... time that it is passed

    def __str__(self) -> str:
        at = "" if self.offset < 0 else f"+{self.offset}"
        return f"{self.file}:{self.line}{at}:{self.function}#{self.turn}"

    @classmethod
    def parse(cls, text: str) -> Place:
        where, turn = text.rsplit("#", 1)
        file, line, function = where.split(":", 2)
        line, _, offset = line.partition("+")
        return cls(file, int(line), function, int(offset or -1), int(turn))

    @property
    def point(self) -> Place:
        return Place(self.file, self.line, self.function, self.offset)


class Tracer:
    """Sees the main thread pass the library's lines or instructions, from `start` to `stop`."""

    def __init__(self, *, opcodes: bool = False) -> None:
        self.opcodes = opcodes
        self.passed: Counter[Any] = Counter()  # by code and line, or code and offset
        self._event = "opcode" if opcodes else "line"

    def start(self) -> None:
        sys.settrace(self._call)

    def start_in_chunk(self) -> None:
        """Trace this thread from here on, and what of the library it is inside of."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(LIBRARY):
                frame.f_trace = self._call(frame, "call", None)
            frame = frame.f_back
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if self.opcodes:
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == self._event:
            key = (frame.f_code, frame.f_lasti if self.opcodes else frame.f_lineno)
            self.passed[key] += 1
            self.passing(frame, key)
        return self._step

    def passing(self, frame: FrameType, key: tuple[CodeType, int]) -> None:
        """What is done at each place."""

    def place_of(self, frame: FrameType, key: tuple[CodeType, int]) -> Place:
        code = frame.f_code
        offset = key[1] if self.opcodes else -1
        file = code.co_filename.removeprefix(LIBRARY)
        line = frame.f_lineno or code.co_firstlineno
        return Place(file, line, code.co_qualname, offset, self.passed[key])


class Recorder(Tracer):
    """Writes down every place, in order."""

    def __init__(self, *, opcodes: bool = False) -> None:
        super().__init__(opcodes=opcodes)
        self.places: list[Place] = []
        self.exits: set[Place] = set()  # those between a `with` block and its `__exit__`
        self.quiet: set[Place] = set()  # those where memory cannot end

    def passing(self, frame: FrameType, key: tuple[CodeType, int]) -> None:
        place = self.place_of(frame, key)
        self.places.append(place)
        if frame.f_lasti in with_exits(frame.f_code):
            self.exits.add(place.point)
        if not self.opcodes and frame.f_lineno not in allocating_lines(frame.f_code):
            self.quiet.add(place.point)


class Striker(Tracer):
    """Strikes once, at one place."""

    def __init__(self, place: Place, act: Callable[[], object], *, soon: bool = False) -> None:
        super().__init__(opcodes=place.offset >= 0)
        self.place = place
        self.act = act
        self.soon = soon
        self.struck = False
        self.over = False
        self._late: FrameType | None = None  # in which the next instruction is struck

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if code.co_name != self.place.function.rpartition(".")[2]:
            return None
        return super()._call(frame, event, argument)

    def passing(self, frame: FrameType, key: tuple[CodeType, int]) -> None:
        if self.struck or self.over or self.place_of(frame, key) != self.place:
            return
        if frame.f_lasti in handles(frame.f_code):
            self._late = frame
            frame.f_trace_opcodes = True
        else:
            self._strike()

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame is self._late:
            if event != "opcode" or frame.f_lasti in handles(frame.f_code):
                return self._step
            self._late = None
            self._strike()
        return super()._step(frame, event, argument)

    def _strike(self) -> None:
        self.struck = True
        if self.soon:
            # Else the handler would run as the tracing function is called the next time.
            sys.settrace(None)
            _ = _pending.now
        else:
            self.act()


class EveryPlace(Tracer):
    """Does the same harmless thing at every place."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act
        self.last: Place | None = None

    def passing(self, frame: FrameType, key: tuple[CodeType, int]) -> None:
        self.last = self.place_of(frame, key)
        self.act()


class _Pending:
    """A look at `now` makes the signal pending, and Python's handler does not run before the return
    to the traced code: an attribute is no place where the interpreter looks for signals."""

    _as_parameter_ = 0
    now = property(functools.partial(ctypes.pythonapi.PyErr_SetInterruptEx, int(STRIKE)))


_pending = _Pending()


@functools.cache
def handles(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions with which the handling of an exception begins.

    The interpreter unwinds what is raised there as if the instruction had been carried out: it
    takes a wrong value off the stack, and keeps the exception that was handled for ever. Only a
    tracing function can raise there.
    """
    steps = dis.get_instructions(code)
    return frozenset(step.offset for step in steps if step.opname == "PUSH_EXC_INFO")


@functools.cache
def with_exits(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions that call `__exit__` at the normal end of a `with`.

    Where a value is returned from inside the block, it is put aside first.
    """
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PRECALL")]
    found: set[int] = set()
    for index in range(len(steps) - 3):
        nones, call = steps[index : index + 3], steps[index + 3]
        if call.opname.startswith("CALL") and all(
            step.opname.startswith("LOAD") and step.argval is None for step in nones
        ):
            first = index
            while first and steps[first - 1].opname in ("NOP", "SWAP"):
                first -= 1
            found.update(range(steps[first].offset, call.offset + 1))
    return frozenset(found)


# Instructions that never allocate: among the others are some that seldom do.
_QUIET = [
    "CACHE",
    "COPY",
    "EXTENDED_ARG",
    "IS_OP",
    "LOAD_CONST",
    "LOAD_FAST",
    "LOAD_GLOBAL",
    "LOAD_ATTR",
    "NOP",
    "POP_EXCEPT",
    "POP_TOP",
    "PRECALL",
    "PUSH_EXC_INFO",
    "PUSH_NULL",
    "RERAISE",
    "RESUME",
    "RETURN_VALUE",
    "STORE_ATTR",
    "STORE_FAST",
    "SWAP",
    "DELETE_FAST",
    "CHECK_EXC_MATCH",
    "BEFORE_WITH",
    "LOAD_METHOD",
    "LOAD_DEREF",
    "COPY_FREE_VARS",
]
# Nor do these methods of a lock.
_QUIET_METHODS = ("release", "acquire", "locked")


@functools.cache
def allocating_lines(code: CodeType) -> frozenset[int]:
    """The lines of it where memory may end: a call, or anything that makes an object.

    In a line like `try:` or `return out` it cannot, and there an exception would come between the
    steps of a `with`, or between a value and who gets it.
    """
    found: set[int] = set()
    method = ""
    for step in dis.get_instructions(code):
        line = step.positions.lineno if step.positions is not None else None
        if step.opname in ("LOAD_METHOD", "LOAD_ATTR"):
            method = str(step.argval)
        quiet = step.opname in _QUIET or "JUMP" in step.opname
        quiet = quiet or (step.opname.startswith("CALL") and method in _QUIET_METHODS)
        if step.opname.startswith("CALL"):
            method = ""
        if line is not None and not quiet:
            found.add(line)
    return frozenset(found)
