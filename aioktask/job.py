# SPDX-License-Identifier: MIT
# What is asked for (Job, Part) and what comes back (Report, Learned, Progress, Failure, Chunk).
#
# Everything here is a frozen value; nothing here knows of threads. A Job refuses nonsense when it
# is made, so the engine never checks its description again.
"""The description of a job, and what is told about it."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import EllipsisType, GetSetDescriptorType
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    Protocol,
    SupportsIndex,
    TypeVar,
    cast,
    overload,
)

from aioktask.checks import (
    check_arguments,
    check_flag,
    check_function,
    check_labels,
    check_learn,
    check_name,
    check_remember,
    check_undo,
    integer,
    is_async,
    listed,
    name_of,
    nice_value,
)
from aioktask.markup import card
from aioktask.timeline import Timeline

__all__ = [
    "Chunk",
    "Failure",
    "Job",
    "JobPhase",
    "Labels",
    "Learn",
    "Learned",
    "Part",
    "Progress",
    "Remember",
    "Report",
    "Speed",
    "StreamProgress",
    "failure",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ChunkFunction = Callable[[int, int], T]
# What a run finds out about its function while it goes: the chunk size, the number of threads.
Learn = Literal["both", "chunk", "threads", "nothing"]
# Whether what it found out is remembered; "disk" or a directory: across processes.
Remember = bool | str | os.PathLike[str]

# Where a job stands: see `Progress.phase`.
JobPhase = Literal[
    "waiting",
    "running",
    "stopping",
    "undoing",
    "settled",
    "finished",
    "failed",
    "cancelled",
    "overloaded",
    "timed out",
    "undo failed",
]

UndoFunction = Callable[[int, int], object] | Callable[[int, int], Coroutine[Any, Any, object]]


class Labels(Mapping[str, str]):
    """What a program says of a job for whoever looks at it: strings by name, which never change.

    >>> Labels({"request": "7f3a"})["request"]
    '7f3a'
    """

    __slots__ = ("_labels",)

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = check_labels(labels)

    def __getitem__(self, name: str) -> str:
        return self._labels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __hash__(self) -> int:
        return hash(frozenset(self._labels.items()))

    def __repr__(self) -> str:
        return f"Labels({self._labels!r})"


NO_LABELS = Labels({})


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a job bound to a NUMA node.

    Args:
        start: First unit.
        stop: One past the last unit; greater than `start`.
        node: The number of the node, or None for anywhere.
    """

    start: int
    stop: int
    node: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            object.__setattr__(self, name, integer(f"part {name}", getattr(self, name)))
        if self.node is not None:
            object.__setattr__(self, "node", integer("part node", self.node, least=0))
        if self.stop <= self.start:
            raise ValueError(f"a part must not be empty, got {self.start} to {self.stop}")


@dataclass(frozen=True)
class Bound(Generic[T]):
    """A job's functions and result for one run of it: what `Job.bind` returns.

    `undo` stands in for the job's, which says that there is one.
    """

    fn: Callable[[int, int], object]
    value: Callable[[], T] | None = None
    undo: Callable[[int, int], object] | None = None


@dataclass(frozen=True, init=False, eq=False)
class Job(Generic[T]):
    """A function over a range, and how it may be split.

    `fn` is called as ``fn(start, stop)``, `stop` exclusive, once for each chunk, on helper threads
    and several at a time. The job has `size` units beginning at `start`; whether a unit is a byte,
    a row or an item is the caller's choice, pages never. A job may be run any number of times.

    Args:
        fn: An ordinary function. What it returns is ignored unless there is a `reduce`.
        size: Number of units, 0 or more. A job of size 0 is done when it is submitted.
        start: The first unit. Jobs over memory use the address.
        align: Chunks end on absolute multiples of this, the last one apart.
        min_chunk: The smallest number of units that are worth a call, at least 1. Chunks at the
            edges of the range or of a part, and what is left last, may be smaller.
        chunk: Fixes the chunk size, a multiple of `align` and at least `min_chunk`. Without it the
            size is learned while the job runs, and no chunk is made to last longer than about 10 ms
            (50 while no other job is there, if that is worth a fifth) where `min_chunk` and `align`
            allow that.
        max_threads: The most threads that may work on this job; the calling thread of
            `run_multithreaded_sync` counts as one of them.
        undo: Called as ``undo(start, stop)`` for what was done when the job fails or is cancelled;
            a function, run on the threads that serve the job, several at a time, or a coroutine
            function, run on the loop that was running when the job was submitted, one call at a
            time.
        reduce: Combines what `fn` returned, in a fixed binary tree over the range: the result is
            the same bit for bit on any number of threads. It may change and return its first
            argument.
        initial: The value of an empty range, and the leftmost operand otherwise. Each run uses a
            deep copy of it.
        nice: -20 (most urgent) to 19; the job's share among jobs, by the kernel's weights. Above 0
            it also gives way to other processes.
        parts: Stretches that belong to NUMA nodes; together exactly the range. Helpers are bound to
            a node while they serve its parts, and help others when nothing is left there.
        memory: Bytes that one chunk takes while it runs, beside its input and output, at the most.
            Of the jobs that say so, together, as many chunks run at once as fit into what is left
            of the machine's memory and of the limits of the process's cgroup and those above it,
            one at least; fewer while the kernel tells of memory pressure. Give `chunk` too where
            what a chunk takes depends on its size. An undo is not bounded by it.
        learn: What is found out while the job runs: the "chunk" size, the number of "threads" that
            help it, "both" or "nothing", which leaves padata's rule: four chunks a thread. By
            default what the coordinator or ``AIOKTASK_LEARN`` says, else "both"; with a fixed
            `chunk` "nothing", unless "threads" is asked for here.
        remember: Whether the run begins with what the last one of the same function over the same
            kind of range learned, and leaves what it learned: within this process; with "disk"
            across processes too, in ``$XDG_CACHE_HOME/aioktask`` or ``~/.cache/aioktask``; or in
            another directory, of which this is the absolute path. By default what the coordinator
            or ``AIOKTASK_REMEMBER`` says, else within this process.
        name: For errors, events and thread names, and to tell functions apart in what is
            remembered. By default the function's name.
        labels: Strings by name, such as the number of a request, for whoever looks at the job: they
            go with its events and stand in snapshots. At most 32, of 1,024 characters.
        trace: Whether it is kept which thread was at which part when, for `Report.timeline`. A
            thread's last 1,024 stretches of chunks are. By default what the coordinator or
            ``AIOKTASK_TRACE`` says, else not.

    Raises:
        TypeError: An argument of the wrong kind; a bool or float where an integer is meant; an
            async or generator function as `fn` or `reduce`; a function that cannot be called with
            a chunk's start and stop, or as `reduce` with two values.
        ValueError: A value out of its range, named in the message.

    >>> Job(print, 10, min_chunk=4).name
    'print'
    >>> Job(print, 10, align=0)
    Traceback (most recent call last):
        ...
    ValueError: align must be at least 1, got 0
    """

    fn: Callable[[int, int], object]
    size: int
    start: int
    align: int
    min_chunk: int
    chunk: int | None
    max_threads: int | None
    undo: Callable[[int, int], object] | None
    reduce: Callable[[T, T], T] | None
    initial: T | EllipsisType
    nice: int
    parts: tuple[Part, ...]
    memory: int | None
    learn: Learn | None
    remember: bool | str | None
    name: str
    labels: Labels
    trace: bool | None
    _bind: Callable[[], Bound[T]] | None = field(repr=False)
    # Whether it is one call of a function that knows nothing of ranges: see `engine/api/call.py`.
    single_call: ClassVar[bool] = False

    @overload
    def __init__(
        self: Job[None],
        fn: ChunkFunction[object],
        size: SupportsIndex,
        *,
        start: SupportsIndex = 0,
        align: SupportsIndex = 1,
        min_chunk: SupportsIndex = 1,
        chunk: SupportsIndex | None = None,
        max_threads: SupportsIndex | None = None,
        undo: UndoFunction | None = None,
        nice: SupportsIndex = 0,
        parts: Iterable[Part] | None = None,
        memory: SupportsIndex | None = None,
        learn: Learn | None = None,
        remember: Remember | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        trace: bool | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        fn: ChunkFunction[T],
        size: SupportsIndex,
        *,
        start: SupportsIndex = 0,
        align: SupportsIndex = 1,
        min_chunk: SupportsIndex = 1,
        chunk: SupportsIndex | None = None,
        max_threads: SupportsIndex | None = None,
        undo: UndoFunction | None = None,
        reduce: Callable[[T, T], T],
        initial: T | EllipsisType = ...,
        nice: SupportsIndex = 0,
        parts: Iterable[Part] | None = None,
        memory: SupportsIndex | None = None,
        learn: Learn | None = None,
        remember: Remember | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        trace: bool | None = None,
    ) -> None: ...

    def __init__(
        self,
        fn: Callable[[int, int], object],
        size: SupportsIndex,
        *,
        start: SupportsIndex = 0,
        align: SupportsIndex = 1,
        min_chunk: SupportsIndex = 1,
        chunk: SupportsIndex | None = None,
        max_threads: SupportsIndex | None = None,
        undo: UndoFunction | None = None,
        reduce: Callable[[T, T], T] | None = None,
        initial: T | EllipsisType = ...,
        nice: SupportsIndex = 0,
        parts: Iterable[Part] | None = None,
        memory: SupportsIndex | None = None,
        learn: Learn | None = None,
        remember: Remember | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        trace: bool | None = None,
    ) -> None:
        check_function("fn", fn)
        check_arguments("fn", fn, "start, stop")
        if undo is not None:
            check_undo("undo", undo)
            check_arguments("undo", undo, "start, stop")
        if reduce is not None:
            check_function("reduce", reduce)
            check_arguments("reduce", reduce, "left, right")
        elif initial is not ...:
            raise TypeError("initial is the value of an empty reduce: pass reduce= as well")
        put = functools.partial(object.__setattr__, self)
        put("fn", fn)
        put("size", integer("size", size, least=0))
        put("start", integer("start", start))
        put("align", integer("align", align, least=1))
        put("min_chunk", integer("min_chunk", min_chunk, least=1))
        put("chunk", None if chunk is None else integer("chunk", chunk, least=1))
        put(
            "max_threads",
            None if max_threads is None else integer("max_threads", max_threads, least=1),
        )
        put("undo", undo)
        put("reduce", reduce)
        put("initial", initial)
        put("nice", nice_value("nice", nice))
        put("memory", None if memory is None else integer("memory", memory, least=1))
        put("learn", None if learn is None else check_learn("learn", learn))
        put("remember", None if remember is None else check_remember("remember", remember))
        put("name", name_of(fn) if name is None else check_name(name))
        put("labels", NO_LABELS if labels is None else Labels(labels))
        put("trace", None if trace is None else check_flag("trace", trace))
        put("_bind", None)
        if self.chunk is not None:
            if self.chunk % self.align:
                raise ValueError(
                    f"chunk must be a multiple of align ({self.align}), got {self.chunk}"
                )
            if self.chunk < self.min_chunk:
                raise ValueError(
                    f"chunk must be at least min_chunk ({self.min_chunk}), got {self.chunk}"
                )
            if self.learn in ("both", "chunk"):
                raise ValueError(
                    f"chunk={self.chunk} fixes the size that learn={self.learn!r} would find: "
                    'leave out one of them, or learn="threads"'
                )
        put("parts", _check_parts(parts, self.start, self.stop))
        if reduce is not None and self.size == 0 and initial is ...:
            raise ValueError("reduce over size 0 has no value: pass initial=")

    @property
    def stop(self) -> int:
        """One past the last unit: ``start + size``."""
        return self.start + self.size

    def with_labels(self, labels: Mapping[str, str]) -> Job[T]:
        """A copy of the job with these labels, in place of those that it has.

        For jobs that a function has made, as those of `aioktask.arrays` and `aioktask.memory`.

        Raises:
            TypeError, ValueError: They are not what labels may be: the message names it.
        """
        job = copy.copy(self)
        object.__setattr__(job, "labels", Labels(labels))
        return job

    @property
    def undo_is_async(self) -> bool:
        """Whether `undo` is a coroutine function."""
        return self.undo is not None and is_async(self.undo)

    def over(self, ranges: Iterable[range]) -> tuple[Job[T], ...]:
        """Jobs that are this one over stretches of its range, for what is left of a run.

        There is one for each range, ascending, with all that this job has: the functions, the name,
        nice and limits; parts are cut to the range. Each is a job of its own, with a report, a
        failure and an undo of its own.

        Args:
            ranges: What the jobs are to cover, such as `Failure.remaining`: inside of this job, not
                empty, apart from each other. They begin on multiples of `align`, or where this job
                or one of its parts does, and end anywhere. Where one begins off them, at the end of
                another one, the two become one job: that is how `remaining` and `unknown` meet.

        Raises:
            TypeError: `ranges` is no iterable of ranges; or the job has one value for its whole
                range, by `reduce` or since a function of this library made it.
            ValueError: A range is empty, has a step, overlaps another one, goes beyond the job or
                begins where `align` lets no chunk begin.

        >>> [(job.start, job.stop) for job in Job(print, 100, align=10).over([range(20, 55)])]
        [(20, 55)]
        >>> Job(print, 100).over([range(90, 110)])
        Traceback (most recent call last):
            ...
        ValueError: ranges must lie inside of the job's 0 to 100, got 90 to 110
        """
        if self.reduce is not None or self.binds:
            why = "reduce combines" if self.reduce is not None else "its function is made anew for"
            raise TypeError(
                f"the job {self.name!r} cannot be cut into several: {why} the whole range. Run the "
                "whole job again"
            )
        return tuple(_cut_to(self, each) for each in _checked_ranges(self, ranges))

    @property
    def binds(self) -> bool:
        """Whether each run has functions and a result of its own: see `bind`."""
        return self._bind is not None

    def bind(self) -> Bound[T]:
        """The function and the result of one run: called by the engine once for each run."""
        return Bound(self.fn) if self._bind is None else self._bind()


def job_that_makes(
    job: Job[None], bind: Callable[[], Bound[T]], fn: Callable[..., object] | None = None
) -> Job[T]:
    """The job, with a result of its own for each run.

    For the modules that stand on the engine: `bind` is called when the job is submitted and
    returns the function of that run, and a function for `Report.value`, called once when every
    chunk is done.

    Args:
        job: Just made: it is changed.
        bind: See above.
        fn: What is called by the functions of all runs, in whatever way: the job has it in place
            of its own, and learns under it.
    """
    object.__setattr__(job, "_bind", bind)
    if fn is not None:
        object.__setattr__(job, "fn", fn)
    return cast("Job[T]", job)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast chunks of one size were.

    Attributes:
        chunk: Units.
        speed: Units a second, relative to the chunk size that the run ended with.
        samples: How many stretches of such chunks that rests on; earlier runs count.
    """

    chunk: int
    speed: float
    samples: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run found out about its function, or what was fixed where it did not look.

    Attributes:
        chunk: Units of a chunk when the run ended; of a reduce the leaf.
        threads: How many threads help; the most there could be where that was not looked into.
        rate: Units a second of one thread at that chunk size; 0 where it was not measured.
        settled: Whether the search over chunk sizes had ended.
        remembered: Whether the run began with what an earlier one left.
        holds_gil: Whether more threads were no help because the function holds the GIL.
        curve: The sizes that were tried, ascending.
    """

    chunk: int
    threads: int
    rate: float = 0.0
    settled: bool = False
    remembered: bool = False
    holds_gil: bool = False
    curve: tuple[Speed, ...] = ()


# So much of a value is shown.
_MOST_SHOWN = 200


def _shortened(value: object) -> str:
    """The value's repr, or its beginning; in place of one that fails, what it is."""
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Report(Generic[T_co]):
    """What a finished job tells. All times are in seconds.

    Attributes:
        value: What `reduce` made of the chunks' values, or what the function that made the job says
            of it, such as an array; None of a job that has neither.
        peak_threads: The most threads that worked on the job at one moment.
        chunks: How many chunks there were.
        queued: From submit to the first claim of a chunk.
        elapsed: From the first claim to the end of the last chunk; an undo is not counted.
        cpu_time: CPU time of all helpers while they served the job.
        busy: The wall time that each helper served the job, the longest first.
        learned: The chunk size and number of threads that the run came to.
        lent: How a helper came to the priority of somebody more urgent who waited: "at once" or "at
            a chunk boundary", because this process may not lower a thread's nice; else "no".
        timeline: Which thread was at which part when, where the job has `trace`; else None.
    """

    value: T_co
    peak_threads: int
    chunks: int
    queued: float
    elapsed: float
    cpu_time: float
    busy: tuple[float, ...]
    learned: Learned
    lent: Literal["no", "at once", "at a chunk boundary"]
    timeline: Timeline | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows; of the value a short form, whatever that is."""
        learned = self.learned
        figures = [
            ("value", _shortened(self.value)),
            ("elapsed", f"{self.elapsed:.3g} s, after {self.queued:.3g} s in the queue"),
            ("threads", f"{self.peak_threads} at most, {self.cpu_time:.3g} s of CPU time"),
            ("chunks", f"{self.chunks:,}, of {learned.chunk:,} in the end"),
        ]
        return card("Report", figures=figures)


# The phases in which nothing changes any more.
OVER_PHASES: frozenset[JobPhase] = frozenset(
    ("finished", "failed", "cancelled", "overloaded", "timed out", "undo failed")
)


def eta_of(left: int, done: int, elapsed: float) -> float | None:
    """Seconds that `left` units take, where `done` took so long; None where that is not known.

    >>> eta_of(30, 10, 2.0), eta_of(30, 0, 2.0), eta_of(0, 0, 0.0)
    (6.0, None, 0.0)
    """
    if left <= 0:
        return 0.0
    return left * elapsed / done if done > 0 and elapsed > 0 else None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands at one moment.

    Attributes:
        done: Units that were done, those that were undone since among them. Units in the chunks
            that run at the moment are not counted.
        size: Units in all.
        threads: Threads that work on the job now.
        chunks: Chunks that are done.
        elapsed: Seconds since the first claim, up to the last chunk's end; 0 before the first.
        rate: Units a second since the first claim; 0 before anything is done.
        phase: "waiting" until the first chunk begins, then "running"; "stopping" where no further
            chunk begins and some have not ended; "undoing"; "settled" where all is done and who
            waits for it could still cancel. Of one that is over how it ended: "finished", "failed",
            "cancelled", "overloaded" (it did not begin in time), "timed out", or "undo failed".
            Unless it is that, whatever was done by then is undone, if the job has an `undo`.
        undone: Units that were undone, those in the calls of `undo` that run not counted.
        eta: Seconds until the job is over, or until its undo is, at the rate that was measured
            since that began; None where nothing was measured yet, 0 when it is over.
    """

    done: int
    size: int
    threads: int
    chunks: int
    elapsed: float
    rate: float
    phase: JobPhase = "waiting"
    undone: int = 0
    eta: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing changes any more."""
        return self.phase in OVER_PHASES


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """Where a stream stands at one moment.

    Attributes:
        done: Items that `fn` is done with, whether or not the consumer has them.
        size: Items in all; None until the source has come to its end.
        threads: Threads that work on the stream now.
        elapsed: Seconds since the first item was begun; 0 before.
        rate: Items a second since then; 0 before anything is done, and while no time is counted:
            the sync form's thread may be done with items before the stream is taken in.
        phase: As a job's, with nothing to undo: "failed" by what `fn` or the source raised;
            "cancelled" also where its scope was left before the last value.
        eta: Seconds until the last item is done, at that rate; None while the source has not come
            to its end or nothing was measured, 0 when the stream is over.
        failed: For how many of those `fn` raised, as far as the consumer has come; the one that
            ends the stream counts at once.
    """

    done: int
    size: int | None
    threads: int
    elapsed: float
    rate: float
    phase: JobPhase = "waiting"
    eta: float | None = None
    failed: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing changes any more."""
        return self.phase in OVER_PHASES


class LeftBehind:
    """Stands for a function of a job that came from another process, with a pickled `Failure`.

    Raises:
        RuntimeError: It is called.
    """

    def __init__(self, what: str, job: str) -> None:
        self.what = what
        self.job = job

    def __repr__(self) -> str:
        return f"<{self.what} of the job {self.job!r}, left behind>"

    def __call__(self, *args: object) -> NoReturn:
        raise RuntimeError(
            f"{self.what} of the job {self.job!r} was left behind in the process where the job "
            "failed: a pickled Failure goes without functions"
        )


def _without_functions(job: Job[Any]) -> Job[Any]:
    """The numbers and the name of a job, with nothing that only its process has."""
    bare = copy.copy(job)
    put = functools.partial(object.__setattr__, bare)
    for what in ("fn", "undo", "reduce"):
        if getattr(job, what) is not None:
            put(what, LeftBehind(what, job.name))
    put("initial", ...)
    put("_bind", None)
    return bare


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of a job that failed or was cancelled: see `failure`.

    `done`, `undone` and `unknown` are ascending, do not overlap, and together are all that any
    chunk touched; what is in none of them was never started.

    A failure can be pickled, whatever the job works on: its job goes without functions and without
    `initial`, and what stands in their place says so when it is called.

    Attributes:
        job: The job.
        chunk: The chunk whose exception was the first, or None when the job was cancelled.
        errors: The exceptions of other chunks, in the order in which they came.
        done: What is done still: all that was done when there is no `undo`, else what an undo that
            failed was called for.
        undone: What was done and has been undone.
        unknown: The part of failed chunks for which `advance` was not called: whether it is done is
            known to the chunk's function only.
        inner: When the exception came from a nested job, the failure of that job.
        timeline: Which thread was at which part when, the undo included, where the job has `trace`;
            else None.
    """

    job: Job[Any]
    chunk: range | None
    errors: tuple[BaseException, ...]
    done: tuple[range, ...]
    undone: tuple[range, ...]
    unknown: tuple[range, ...]
    inner: Failure | None = None
    timeline: Timeline | None = None

    @property
    def remaining(self) -> tuple[range, ...]:
        """What is not done, ascending: what no chunk touched and what was undone.

        What is `unknown` is not among it: add that knowingly, where to do it twice does no harm.
        `job.over(remaining)` makes jobs of it.
        """
        remaining = []
        reached = self.job.start
        for each in sorted((*self.done, *self.unknown), key=lambda each: each.start):
            if reached < each.start:
                remaining.append(range(reached, each.start))
            reached = max(reached, each.stop)
        if reached < self.job.stop:
            remaining.append(range(reached, self.job.stop))
        return tuple(remaining)

    def __reduce__(self) -> tuple[type[Failure], tuple[object, ...]]:
        told = (self.chunk, self.errors, self.done, self.undone, self.unknown, self.inner)
        return Failure, (_without_functions(self.job), *told, self.timeline)

    def __copy__(self) -> Failure:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Failure:
        return self


def failure(exc: BaseException) -> Failure:
    """What is known beside the exception that a job raised.

    Args:
        exc: An exception that came out of a job: of a chunk, a `JobCancelled`, an `UndoFailed` or a
            cancellation. The TimeoutError of `asyncio.timeout` has that as its ``__cause__``.

    Raises:
        LookupError: No job raised it; the message says so where one raised its cause or context.
        TypeError: `exc` is no exception.
    """
    if not isinstance(exc, BaseException):
        raise TypeError(f"exc must be an exception, got {exc!r}")
    found = told_of(exc)
    if found is None:
        raise LookupError(f"{type(exc).__name__} was not raised by a job of aioktask{_behind(exc)}")
    return found


# So far along the causes of an exception `failure` looks for one to name.
_MOST_BEHIND = 8


def _behind(exc: BaseException) -> str:
    """Where it stands, if a job raised what this exception was raised from, as by a timeout."""
    name, each = "error", exc
    for _ in range(_MOST_BEHIND):
        link, found = "__cause__", each.__cause__
        if found is None:
            link, found = "__context__", each.__context__
        if found is None:
            break
        name, each = f"{name}.{link}", found
        if told_of(each) is not None:
            kind = type(each).__name__
            return f", but the {kind} behind it was: failure({name}) tells of that"
    return ""


class _Attributes(dict[str, Any]):
    """The ``__dict__`` of an exception that a job raised, which also knows its failure.

    The failure is no item of it, so the exception is pickled, copied and shown as it would be
    without, and arrives where there is no aioktask.

    Attributes:
        told: What `failure` tells; of a job of which no chunk began the job alone, since a crowd of
            them may be cancelled at once, and few are asked about.
        parent: The number of the run that the failed job is nested in, or 0.
    """

    __slots__ = ("parent", "told")

    told: Failure | Job[Any]
    parent: int

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


# The descriptor of every exception's ``__dict__``, whatever its class makes of that name and of the
# setting of attributes.
_attributes: GetSetDescriptorType = vars(BaseException)["__dict__"]


def told_of(exc: BaseException) -> Failure | None:
    """What `set_failure` attached last, if anything."""
    found = _attributes.__get__(exc)
    if type(found) is not _Attributes:
        return None
    told = found.told
    return told if isinstance(told, Failure) else Failure(told, None, (), (), (), ())


def told_within(exc: BaseException, run: int) -> Failure | None:
    """What `set_failure` attached last, if it is of a job that was nested in this run."""
    found = _attributes.__get__(exc)
    return told_of(exc) if type(found) is _Attributes and found.parent == run else None


def set_failure(exc: BaseException, told: Failure | Job[Any], parent: int = 0) -> None:
    """Attach `told` to `exc`, for `failure`; `parent` is the run that its job is nested in, or 0.

    Of a job of which no chunk began, the job is enough.

    The exception's class has no say in it, and whoever pickles or copies it sees nothing of it.
    """
    found = _attributes.__get__(exc)
    if type(found) is not _Attributes:
        found = _Attributes(found)
        _attributes.__set__(exc, found)
    found.told, found.parent = told, parent


class ChunkOwner(Protocol):
    """Who knows what happens to a chunk: the part in the job of the thread that it runs on."""

    def advance(self, start: int, stop: int, upto: int) -> None: ...

    def check_cancelled(self) -> None: ...


class Chunk:
    """The chunk that the calling thread works on: what `current_chunk()` returns.

    Attributes:
        start: The first unit.
        stop: One past the last unit.
    """

    __slots__ = ("_owner", "start", "stop")

    def __init__(self, start: int, stop: int, owner: ChunkOwner) -> None:
        self.start = start
        self.stop = stop
        self._owner = owner

    def __repr__(self) -> str:
        return f"Chunk({self.start}, {self.stop})"

    def advance(self, upto: SupportsIndex) -> None:
        """Say that everything below `upto` is done, so that undo covers it if this chunk fails.

        Args:
            upto: From the chunk's start, which says that nothing is done yet, to its stop; never
                below that of an earlier call.

        Raises:
            TypeError: `upto` is no integer.
            ValueError: `upto` is outside of the chunk, or below that of an earlier call.
            RuntimeError: The chunk is over.
        """
        self._owner.advance(self.start, self.stop, integer("upto", upto))

    def check_cancelled(self) -> None:
        """Raise `ChunkCancelled` if the job, or a job that it is nested in, wants no more work.

        That is so after a cancel and after the failure of another chunk.
        """
        self._owner.check_cancelled()


def _check_parts(parts: Iterable[Part] | None, start: int, stop: int) -> tuple[Part, ...]:
    if parts is None:
        return ()
    given = []
    for part in listed("parts", parts):
        if not isinstance(part, Part):
            raise TypeError(f"parts must be Part objects, got {part!r}")
        given.append(part)
    ordered = tuple(sorted(given, key=lambda part: part.start))
    reached = start
    for part in ordered:
        if part.start != reached:
            wrong = "overlap" if part.start < reached else "leave a gap"
            raise ValueError(
                f"parts must cover {start} to {stop} exactly: they {wrong} at "
                f"{min(part.start, reached)}"
            )
        reached = part.stop
    if reached != stop:
        wrong = "go beyond the range" if reached > stop else "leave a gap"
        raise ValueError(
            f"parts must cover {start} to {stop} exactly: they {wrong} at {min(reached, stop)}"
        )
    return ordered


def _checked_ranges(job: Job[Any], ranges: Iterable[range]) -> list[range]:
    """The ranges that jobs over a part of this one's range are to have, ascending: see `Job.over`.

    Raises:
        TypeError, ValueError: One of them is not what it may be.
    """
    given = listed("ranges", ranges)
    for each in given:
        if not isinstance(each, range):
            raise TypeError(f"ranges must be range objects, got {each!r}")
        if each.step != 1 or not each:
            raise ValueError(f"ranges must have a step of 1 and not be empty, got {each!r}")
        if each.start < job.start or each.stop > job.stop:
            raise ValueError(
                f"ranges must lie inside of the job's {job.start} to {job.stop}, "
                f"got {each.start} to {each.stop}"
            )
    edges = {job.start, *(part.start for part in job.parts)}
    checked: list[range] = []
    for each in sorted(given, key=lambda each: each.start):
        before = checked[-1] if checked else None
        if before is not None and each.start < before.stop:
            raise ValueError(
                f"ranges must not overlap: {before.start} to {before.stop} and "
                f"{each.start} to {each.stop} do"
            )
        if each.start % job.align == 0 or each.start in edges:
            checked.append(each)
        elif before is not None and each.start == before.stop:
            checked[-1] = range(before.start, each.stop)
        else:
            below = max(each.start - each.start % job.align, job.start)
            raise ValueError(
                f"ranges must begin on multiples of align ({job.align}), or where the job or a "
                f"part of it does, got {each.start} to {each.stop}: begin at {below}"
            )
    return checked


def _cut_to(job: Job[T], piece: range) -> Job[T]:
    """The job over this piece of its range alone."""
    one = copy.copy(job)
    vars(one).pop("_facts", None)  # what the engine keeps with a job follows from its range
    put = functools.partial(object.__setattr__, one)
    put("start", piece.start)
    put("size", piece.stop - piece.start)
    parts = []
    for part in job.parts:
        start, stop = max(part.start, piece.start), min(part.stop, piece.stop)
        if start < stop:
            parts.append(Part(start, stop, part.node))
    put("parts", tuple(parts))
    return one
