# SPDX-License-Identifier: MIT
# What a lesson is on disk: the name of its file, the text in it, and how that is checked.
#
# Pure: lessons and bytes in, bytes and lessons out. A file is JSON, and it is read as something
# that an enemy may have written: it has exactly the fields that are expected, each number is finite
# and in its range, and what sizes depend on (the grain, the threads, the class of the size) is that
# of the job. So the worst that a file can do is to make the first chunks of a run ill sized. It
# never makes an object of any other kind, and what does not fit is refused whole.
#
# There is a file for each lesson, so that writers need neither a lock nor a merge: two processes
# that write the same one have learned the same thing, and either answer will do. Names have three
# parts, of the function and what it runs over, of its code, and of the machine: a function that was
# changed is seen by its first and last part, and finds its old lesson again if it is changed back.
"""Lessons as files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from types import CodeType
from typing import Any, NoReturn, cast

from aioktask.engine.learning.curve import Curve
from aioktask.engine.learning.lessons import TOO_OFTEN, Key, Lesson
from aioktask.engine.learning.scaling import MOST_CLOCK_NS, MOST_PAUSE, Scaling
from aioktask.engine.learning.scores import KEPT_SAMPLES, LEAST_SPEED, MOST_NOISE, MOST_SPEED
from aioktask.engine.learning.sizing import Sizes

__all__ = [
    "MOST_BYTES",
    "MOST_SECONDS",
    "Entry",
    "Subject",
    "UnfitError",
    "decode",
    "encode",
    "entry_of",
    "file_name",
    "is_file_name",
    "others",
    "subject_of",
]

VERSION = 1

# A lesson is about 1 KiB; what is longer is none.
MOST_BYTES = 1 << 14
# Names that are longer are not kept, nor are sizes of more bits.
MOST_NAME = 500
MOST_BITS = 256

# After half a year nobody knows what the machine is like.
MOST_SECONDS = 180 * 24 * 3600

# Rates are units a nanosecond, speeds of a size relative to another one.
_RATES = (1e-12, 1e100)
_SPEEDS = (LEAST_SPEED, MOST_SPEED)

_FILE_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{16}\.json")


class UnfitError(ValueError):
    """A file that is not used, and why."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a lesson is about.

    Attributes:
        function: The module and qualified name of the job's function.
        code: A hash of its code, with that of the functions in it and of those it closes over.
        job: The job's name.
        align: Of the job.
        grain: Units that all its chunks are multiples of.
        bits: Of its size: sizes are alike to within a power of two.
        threads: The most that the job could have.
        machine: Where it was learned, and by which Python.
    """

    function: str
    code: str
    job: str
    align: int
    grain: int
    bits: int
    threads: int
    machine: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file tells about itself.

    Attributes:
        subject: What its lesson is about.
        when: When it was written, in seconds since 1970.
        chunk: Units of a chunk, where that was learned.
        level: How many threads help, where that was learned.
    """

    subject: Subject
    when: float
    chunk: int | None
    level: int | None


# What a lesson is about.


def subject_of(key: Key, machine: str) -> Subject | None:
    """What a lesson under this key is about; None where it cannot be kept on disk.

    That is so for callables without code, of which another process could not tell whether they
    are still the same.
    """
    (module, *parts), job, align, grain, bits, threads = cast("tuple[Any, ...]", key)
    codes = [each for each in parts if type(each) is CodeType]
    if not codes:
        return None
    function = f"{module}.{codes[0].co_qualname}"
    if max(len(job), len(function), len(machine)) > MOST_NAME or bits > MOST_BITS:
        return None
    if max(align, grain).bit_length() > MOST_BITS:
        return None
    return Subject(function, _hash_of(parts), job, align, grain, bits, threads, machine)


def _hash_of(parts: Iterable[object]) -> str:
    found = hashlib.sha256()
    for part in _told(tuple(parts)):
        found.update(part)
    return found.hexdigest()


def _told(value: object) -> Iterator[bytes]:
    """Tell a constant, or code, so that no two that differ are told alike, in any process.

    Not told is where code stands: lines and files may move.
    """
    kind = type(value)
    if kind is CodeType:
        code = cast("CodeType", value)
        yield b"code("
        parts: tuple[object, ...] = (
            *(code.co_name, code.co_code, code.co_consts, code.co_names, code.co_varnames),
            *(code.co_cellvars, code.co_freevars, code.co_flags, code.co_argcount),
            *(code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable),
        )
        for each in parts:
            yield from _told(each)
        yield b")"
    elif kind is tuple:
        yield b"tuple("
        for each in cast("tuple[object, ...]", value):
            yield from _told(each)
        yield b")"
    elif kind is frozenset:  # which each process has in an order of its own
        items = cast("frozenset[object]", value)
        yield b"set("
        yield from sorted(b"".join(_told(each)) for each in items)
        yield b")"
    else:
        text = value if isinstance(value, bytes) else _text(value).encode("utf-8", "surrogatepass")
        yield b"%s:%d:%s;" % (kind.__name__.encode(), len(text), text)


def _text(value: object) -> str:
    if type(value) is str:
        return value
    if type(value) is int:
        return hex(value)  # `str` refuses long ones
    return repr(value)


# Names of files.


def _short(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def file_name(subject: Subject) -> str:
    """The name of the file for a lesson about this."""
    about = _short(
        *(subject.function, subject.job, subject.align, subject.grain),
        *(subject.bits, subject.threads),
    )
    return f"{about}-{subject.code[:16]}-{_short(subject.machine)}.json"


def is_file_name(name: str) -> bool:
    """Whether a file of this name is one of ours."""
    return _FILE_NAME.fullmatch(name) is not None


def others(subject: Subject, names: Iterable[str]) -> Iterator[str]:
    """Of the names of files, those of lessons about the same function when its code was another."""
    own = file_name(subject)
    about, _, machine = own.split("-")
    for name in names:
        if name != own and is_file_name(name) and name.split("-")[::2] == [about, machine]:
            yield name


# The text in them.


def encode(subject: Subject, lesson: Lesson, when: float) -> bytes:
    """The text of the file for a lesson.

    Args:
        subject: What the lesson is about.
        lesson: It was made by a run, or came from `decode`.
        when: Now, in seconds since 1970.

    Raises:
        UnfitError: It has a number that no file may have.
    """
    told = {
        "version": VERSION,
        "when": when,
        "subject": asdict(subject),
        "speed": lesson.speed,
        "slow_runs": lesson.slow_runs,
        "sizes": None if lesson.sizes is None else lesson.sizes.kept(),
        "scaling": None if lesson.scaling is None else lesson.scaling.kept(),
    }
    data = json.dumps(told).encode() + b"\n"
    decode(data, subject, when)  # what would be refused is better not written
    return data


def decode(data: bytes, subject: Subject, now: float) -> Lesson:
    """The lesson in a file about this.

    Args:
        data: What the file has, at most MOST_BYTES of it.
        subject: What the lesson should be about.
        now: In seconds since 1970.

    Raises:
        UnfitError: It is damaged, too old, of another version, or about something else.
    """
    told = _parsed(data)
    found, when = _about(told)
    if found != subject:
        differing = [
            name for name, value in asdict(subject).items() if told["subject"][name] != value
        ]
        raise UnfitError(f"it is about something else: {', '.join(differing)} differ")
    if now - when > MOST_SECONDS:
        raise UnfitError("it is more than half a year old")
    return _lesson(told, subject)


def entry_of(data: bytes) -> Entry:
    """What a file tells about itself; it may be about anything.

    Raises:
        UnfitError: It is damaged, or of another version.
    """
    told = _parsed(data)
    subject, when = _about(told)
    lesson = _lesson(told, subject)
    chunk = None if lesson.sizes is None else lesson.sizes.chunk
    level = None if lesson.scaling is None else lesson.scaling.level
    return Entry(subject, when, chunk, level)


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > MOST_BYTES:
        raise UnfitError(f"it is damaged: longer than {MOST_BYTES} bytes")
    try:
        told = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one too
        raise UnfitError(f"it is damaged: {error}") from None
    if not isinstance(told, dict):
        raise UnfitError("it is damaged: no object")
    version = told.get("version")
    if type(version) is not int or version != VERSION:
        raise UnfitError("it is of another version")
    return _fields(
        "the file", told, {"version", "when", "subject", "speed", "slow_runs", "sizes", "scaling"}
    )


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _about(told: dict[str, Any]) -> tuple[Subject, float]:
    """What the lesson is about, and when it was written."""
    subject = _fields("subject", told["subject"], set(Subject.__dataclass_fields__))
    for name in ("function", "code", "job", "machine"):
        if type(subject[name]) is not str or len(subject[name]) > MOST_NAME:
            raise UnfitError(f"it is damaged: {name} is no text of at most {MOST_NAME} characters")
    for name, most in (
        *(("align", 1 << MOST_BITS), ("grain", 1 << MOST_BITS)),
        *(("bits", MOST_BITS), ("threads", 1 << 20)),
    ):
        _integer(name, subject[name], 1, most)
    return Subject(**subject), _number("when", told["when"], (0, 1e12))


def _lesson(told: dict[str, Any], subject: Subject) -> Lesson:
    sizes = told["sizes"]
    scaling = told["scaling"]
    return Lesson(
        None if sizes is None else _sizes(sizes, subject),
        None if scaling is None else _scaling(scaling, subject),
        _number("speed", told["speed"], (0, _RATES[1])),
        _integer("slow_runs", told["slow_runs"], 0, TOO_OFTEN - 1),
    )


def _sizes(told: object, subject: Subject) -> Sizes:
    flags = "climbed", "settled"
    kept = _fields("sizes", told, {"size", "rate", "best", "noise", "uneven", "scores", *flags})
    size = _integer("size", kept["size"], 1, (1 << subject.bits) - 1)
    if size.bit_length() != subject.bits:
        raise UnfitError(f"it is damaged: size is not one of {subject.bits} bits")
    top = Curve(size, subject.grain, subject.threads).top
    best = _integer("best", kept["best"], 0, top)
    _number("rate", kept["rate"], _RATES)
    for name in flags:
        _flag(name, kept[name])
    _number("noise", kept["noise"], (0, MOST_NOISE))
    _number("uneven", kept["uneven"], (0, 1))
    scores = kept["scores"]
    if type(scores) is not list or len(scores) > top:
        raise UnfitError("it is damaged: scores is no list of the other sizes")
    seen = {best}
    for score in scores:
        if type(score) is not list or len(score) != 3:
            raise UnfitError("it is damaged: a score is a number, a speed and a count")
        number, speed, count = score
        _integer("the number of a size", number, 0, top)
        if number in seen:
            raise UnfitError("it is damaged: a size has two scores")
        seen.add(number)
        _number("the speed of a size", speed, _SPEEDS)
        _integer("a count", count, 1, KEPT_SAMPLES)
    return Sizes.of_kept(kept, subject.grain, subject.threads)


_FLAGS = ("holds_gil", "downwards", "urged")
_CLOCKS = ("served_ns", "waited_ns", "busy_ns", "system_ns", "elapsed_ns")


def _scaling(told: object, subject: Subject) -> Scaling:
    kept = _fields("scaling", told, {"level", "pause", "pause_left", *_FLAGS, *_CLOCKS})
    _integer("level", kept["level"], 1, subject.threads)
    _integer("pause", kept["pause"], 1, MOST_PAUSE)
    _integer("pause_left", kept["pause_left"], 0, MOST_PAUSE)
    for name in _FLAGS:
        _flag(name, kept[name])
    for name in _CLOCKS:
        _number(name, kept[name], (-MOST_CLOCK_NS, MOST_CLOCK_NS))
    return Scaling.of_kept(kept, subject.threads)


# Checks. The values themselves are not shown: they may be long, or not fit for a terminal.


def _fields(what: str, told: object, names: set[str]) -> dict[str, Any]:
    if type(told) is not dict or told.keys() != names:
        raise UnfitError(f"it is damaged: {what} has not the fields {', '.join(sorted(names))}")
    return told


def _integer(what: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise UnfitError(f"it is damaged: {what} is no integer in its range")
    return value


def _number(what: str, value: object, limits: tuple[float, float]) -> float:
    least, most = limits
    if type(value) not in (int, float):
        raise UnfitError(f"it is damaged: {what} is no number")
    number = cast("float", value)
    if not least <= number <= most or not math.isfinite(number):
        raise UnfitError(f"it is damaged: {what} is out of its range")
    return number


def _flag(what: str, value: object) -> None:
    if type(value) is not bool:
        raise UnfitError(f"it is damaged: {what} is neither true nor false")
