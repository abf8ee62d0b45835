# SPDX-License-Identifier: MIT
# What is asked of a cluster (ClusterJob, Home) and what comes back (ClusterReport, ClusterFailure,
# WorkerLost, ClusterSnapshot).
#
# Frozen values, as in `aioktask.job`. A ClusterJob refuses nonsense when it is made; that it can be
# sent is found out when it is submitted, by `packing`.
"""The description of a job for several processes, and what is told about it."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, ClassVar, Generic, SupportsIndex, TypeVar, cast, overload

from aioktask.checks import (
    check_arguments,
    check_flag,
    check_function,
    check_name,
    integer,
    is_async,
    listed,
    name_of,
    nice_value,
)
from aioktask.engine.ranges.plan import leaf_size, undo_grain
from aioktask.job import NO_LABELS, Failure, Job, Labels, LeftBehind, Progress, Report
from aioktask.status import WorkerStatus

__all__ = [
    "ClusterFailure",
    "ClusterJob",
    "ClusterReport",
    "ClusterSnapshot",
    "Home",
    "WorkerLost",
    "WorkerPart",
    "WorkerStatus",
    "files_by_host",
]

# Units: of more, ranges have no length.
LARGEST_SIZE = sys.maxsize

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Home:
    """Where the data of a stretch of the range is.

    Args:
        start: The first unit.
        stop: One past the last unit; greater than `start`.
        where: Names of workers or of hosts, any of which has it.
    """

    start: int
    stop: int
    where: frozenset[str]

    def __init__(self, start: SupportsIndex, stop: SupportsIndex, where: str | Iterable[str]):
        names = frozenset([where] if isinstance(where, str) else listed("where", where))
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"where must be names of workers or hosts, got {name!r}")
        put = functools.partial(object.__setattr__, self)
        put("start", integer("home start", start))
        put("stop", integer("home stop", stop))
        put("where", names)
        if self.stop <= self.start:
            raise ValueError(f"a home must not be empty, got {self.start} to {self.stop}")
        if not names:
            raise ValueError(f"where must name a worker or a host, got none for {self.start}")


@dataclass(frozen=True, init=False, eq=False)
class ClusterJob(Generic[T]):
    """A function over a range whose chunks run in other processes, on this machine or others.

    `fn` is called as ``fn(start, stop, data)``, on a helper thread of a worker process, several at
    a time. The functions travel by pickle, so what they close over is **copied**: a write into an
    array that `fn` captured is lost. What `fn` works on is `data`, which `setup()` makes once in
    each worker: it opens a memmap, a Zarr group, a database, shared memory.

    What `fn` did has to outlast its worker from the moment when it returns.

    Args:
        fn: An ordinary function of three arguments. What it returns is ignored unless there is a
            `reduce`.
        size: Number of units, 0 to 2**63 - 1.
        setup: Called without arguments once in each worker, before its first chunk; what it returns
            is `data`. Without it `data` is None. Where it raises, the job fails.
        close: Called as ``close(data)`` in each worker in which `setup` returned, when the job is
            over there: after the last chunk and after the undo. Where it raises after all is done,
            the job ends with that exception, and `failure` says that all is done.
        undo: Called as ``undo(start, stop, data)`` for what was done when the job fails or is
            cancelled, on the worker that did it; an ordinary function.
        reduce: Combines what `fn` returned, in the fixed tree that `aioktask.Job` has: on machines
            that compute alike the value is the one of a single machine, bit for bit.
        initial: The value of an empty range, and the leftmost operand otherwise.
        start: The first unit.
        align: Chunks and stretches end on absolute multiples of this, the last one apart.
        min_chunk: The smallest number of units that are worth a call, at least 1.
        chunk: Fixes the chunk size, a multiple of `align` and at least `min_chunk`.
        max_threads: The most threads for this job in each worker.
        nice: -20 (most urgent) to 19: the job's share in each worker.
        idempotent: Whether it does no harm to do a unit twice. Then what a worker that died may
            have done is done again elsewhere; else the job fails. So does one with a `reduce` and
            an `undo`, where that worker may have undone what is in the value.
        homes: Where the data is: `Home` values that do not overlap, or a function that gets the
            workers (`WorkerStatus`) and returns such values. Units without a home are at home
            anywhere.
        name: For errors and in lists; by default the function's name.
        labels: Strings by name, for whoever looks at the job.

    Raises:
        TypeError: An argument of the wrong kind; an async or generator function, or one that does
            not take the arguments that it is called with.
        ValueError: A value out of its range, named in the message.

    >>> ClusterJob(lambda start, stop, data: stop - start, 10, reduce=int.__add__, name="sum").size
    10
    >>> ClusterJob(print, 10, align=0)
    Traceback (most recent call last):
        ...
    ValueError: align must be at least 1, got 0
    """

    # For errors of what runs other kinds of jobs.
    runs_by: ClassVar[str] = "run_in_processes or run_on_cluster, of aioktask.cluster"

    fn: Callable[[int, int, Any], object]
    size: int
    setup: Callable[[], object] | None
    close: Callable[[Any], object] | None
    undo: Callable[[int, int, Any], object] | None
    reduce: Callable[[T, T], T] | None
    initial: T | EllipsisType
    start: int
    align: int
    min_chunk: int
    chunk: int | None
    max_threads: int | None
    nice: int
    idempotent: bool
    homes: tuple[Home, ...] | Callable[[Sequence[WorkerStatus]], Iterable[Home]]
    name: str
    labels: Labels
    # A job of one machine over the same range: it checked the numbers, and tells how to cut.
    shape: Job[Any] = field(repr=False)

    @overload
    def __init__(
        self: ClusterJob[None],
        fn: Callable[[int, int, D], object],
        size: SupportsIndex,
        *,
        setup: Callable[[], D] | None = None,
        close: Callable[[D], object] | None = None,
        undo: Callable[[int, int, D], object] | None = None,
        start: SupportsIndex = 0,
        align: SupportsIndex = 1,
        min_chunk: SupportsIndex = 1,
        chunk: SupportsIndex | None = None,
        max_threads: SupportsIndex | None = None,
        nice: SupportsIndex = 0,
        idempotent: bool = False,
        homes: Iterable[Home] | Callable[[Sequence[WorkerStatus]], Iterable[Home]] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        fn: Callable[[int, int, D], T],
        size: SupportsIndex,
        *,
        setup: Callable[[], D] | None = None,
        close: Callable[[D], object] | None = None,
        undo: Callable[[int, int, D], object] | None = None,
        reduce: Callable[[T, T], T],
        initial: T | EllipsisType = ...,
        start: SupportsIndex = 0,
        align: SupportsIndex = 1,
        min_chunk: SupportsIndex = 1,
        chunk: SupportsIndex | None = None,
        max_threads: SupportsIndex | None = None,
        nice: SupportsIndex = 0,
        idempotent: bool = False,
        homes: Iterable[Home] | Callable[[Sequence[WorkerStatus]], Iterable[Home]] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None: ...

    def __init__(
        self,
        fn: Callable[[int, int, Any], object],
        size: SupportsIndex,
        *,
        setup: Callable[[], Any] | None = None,
        close: Callable[[Any], object] | None = None,
        undo: Callable[[int, int, Any], object] | None = None,
        reduce: Callable[[T, T], T] | None = None,
        initial: T | EllipsisType = ...,
        start: SupportsIndex = 0,
        align: SupportsIndex = 1,
        min_chunk: SupportsIndex = 1,
        chunk: SupportsIndex | None = None,
        max_threads: SupportsIndex | None = None,
        nice: SupportsIndex = 0,
        idempotent: bool = False,
        homes: Iterable[Home] | Callable[[Sequence[WorkerStatus]], Iterable[Home]] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        refuse_plain_job(fn, "fn")
        called = {
            "fn": (fn, "start, stop, data"),
            "setup": (setup, ""),
            "close": (close, "data"),
            "undo": (undo, "start, stop, data"),
        }
        for what, (function, arguments) in called.items():
            if function is not None or what == "fn":
                check_function(what, function)
                check_arguments(what, function, arguments)
        if close is not None and setup is None:
            raise TypeError("close is called with what setup returns: pass setup= as well")
        _check_block_units(setup, homes)
        put = functools.partial(object.__setattr__, self)
        name = name_of(fn) if name is None else check_name(name)
        # All that has numbers is checked, and told, as for a job of one machine.
        options: dict[str, Any] = {} if reduce is None else {"reduce": reduce, "initial": initial}
        if reduce is None and initial is not ...:
            raise TypeError("initial is the value of an empty reduce: pass reduce= as well")
        shape: Job[Any] = Job(
            LeftBehind("fn", name),
            size,
            start=start,
            align=align,
            min_chunk=min_chunk,
            chunk=chunk,
            max_threads=max_threads,
            undo=None if undo is None else LeftBehind("undo", name),
            nice=nice_value("nice", nice),
            name=name,
            labels=labels,
            **options,
        )
        if shape.size > LARGEST_SIZE:
            raise ValueError(
                f"size must be at most 2**63 - 1 on workers, got {shape.size}: make a job of each "
                "part, with start= and size="
            )
        if reduce is not None:
            object.__setattr__(shape, "reduce", LeftBehind("reduce", name))
            object.__setattr__(shape, "initial", ...)
        put("shape", shape)
        for copied in ("size", "start", "align", "min_chunk", "chunk", "max_threads", "nice"):
            put(copied, getattr(shape, copied))
        put("fn", fn)
        put("setup", setup)
        put("close", close)
        put("undo", undo)
        put("reduce", reduce)
        put("initial", initial)
        put("idempotent", check_flag("idempotent", idempotent))
        put("name", name)
        put("labels", NO_LABELS if labels is None else shape.labels)
        if is_async(homes):  # a generator function returns values that can be iterated over
            raise TypeError(
                "homes is called by the coordinator's own thread and must be an ordinary function, "
                f"got the async {name_of(homes)}"
            )
        put("homes", homes if callable(homes) else checked_homes(homes, self.start, self.stop))

    def over(self, ranges: Iterable[range]) -> tuple[ClusterJob[T], ...]:
        """Jobs that are this one over stretches of its range, for what is left of a run.

        There is one for each range, ascending, with all that this job has; homes are cut to it.

        Args:
            ranges: What the jobs are to cover, such as `Failure.remaining`: see `Job.over`.

        Raises:
            TypeError: `ranges` is no iterable of ranges; or the job has a `reduce`, and so one
                value for its whole range.
            ValueError: A range is empty, has a step, overlaps another one, goes beyond the job or
                begins where `align` lets no chunk begin.

        >>> job = ClusterJob(lambda start, stop, data: None, 100, align=10)
        >>> [(each.start, each.stop) for each in job.over([range(20, 55)])]
        [(20, 55)]
        """
        return tuple(self._over(shape) for shape in self.shape.over(ranges))

    def _over(self, shape: Job[Any]) -> ClusterJob[T]:
        one = copy.copy(self)
        put = functools.partial(object.__setattr__, one)
        put("shape", shape)
        put("start", shape.start)
        put("size", shape.size)
        homes = self.homes
        if callable(homes):
            put("homes", functools.partial(_homes_found_within, homes, one.start, one.stop))
        else:
            put("homes", _homes_within(homes, one.start, one.stop))
        return one

    def without_functions(self) -> ClusterJob[Any]:
        """The numbers and the name alone, for other processes."""
        bare = copy.copy(self)
        put = functools.partial(object.__setattr__, bare)
        for what in ("fn", "setup", "close", "undo", "reduce"):
            if getattr(self, what) is not None:
                put(what, LeftBehind(what, self.name))
        put("initial", ...)
        put("homes", ())
        return bare

    @property
    def stop(self) -> int:
        """One past the last unit: ``start + size``."""
        return self.start + self.size

    @property
    def leaf(self) -> int:
        """Units of a leaf of the reduce: what every machine would cut alike."""
        return leaf_size(self.shape)

    @property
    def grain(self) -> int:
        """What stretches end on absolute multiples of."""
        return self.leaf if self.reduce is not None else undo_grain(self.shape)


def _check_block_units(setup: object, homes: object) -> None:
    """Refuse that the blocks of an array are the units on one side alone.

    Raises:
        ValueError: They are.
    """
    here, there = (getattr(each, "block_units", None) for each in (setup, homes))
    if here is not None and there is not None and here != there:
        raise ValueError(
            f"blocks_of(units={here!r}) and homes_of(units={there!r}) are of one job, whose units "
            "are either: pass both the same units="
        )


def _homes_within(homes: Iterable[Home], start: int, stop: int) -> tuple[Home, ...]:
    """The homes, cut to a part of the range."""
    cut = [(max(each.start, start), min(each.stop, stop), each.where) for each in homes]
    return tuple(Home(*each) for each in cut if each[0] < each[1])


def _homes_found_within(
    homes: Callable[[Sequence[WorkerStatus]], Iterable[Home]],
    start: int,
    stop: int,
    workers: Sequence[WorkerStatus],
) -> tuple[Home, ...]:
    return _homes_within(homes(workers), start, stop)


def checked_homes(homes: object, start: int, stop: int) -> tuple[Home, ...]:
    """The homes, ascending and inside of the range.

    Raises:
        TypeError, ValueError: They are not what they may be.
    """
    found = listed("homes", cast("Iterable[Home]", homes))
    for home in found:
        if not isinstance(home, Home):
            raise TypeError(f"homes must be Home values, got {home!r}")
    ordered = sorted(found, key=lambda home: home.start)
    reached = start
    for home in ordered:
        if home.start < reached or home.stop > stop:
            wrong = f"inside of {start} to {stop} and apart from each other"
            raise ValueError(f"homes must lie {wrong}, got {home.start} to {home.stop}")
        reached = home.stop
    return tuple(ordered)


def files_by_host(files: Mapping[str, Iterable[str]]) -> tuple[tuple[str, ...], tuple[Home, ...]]:
    """Files as the units of a job, and the hosts that have them as its homes.

    Args:
        files: By the name of each host, paths of the files that it has; a file that several hosts
            have may stand at each of them.

    Returns:
        All files, once each, those of one host beside each other: the units of a job over
        ``len()`` of them. And `Home` values for its ``homes=``.

    Raises:
        TypeError: A path is no string.

    >>> paths, homes = files_by_host({"node1": ["a", "b"], "node2": ["b", "c"]})
    >>> paths
    ('a', 'b', 'c')
    >>> [(home.start, home.stop, sorted(home.where)) for home in homes]
    [(0, 1, ['node1']), (1, 2, ['node1', 'node2']), (2, 3, ['node2'])]
    """
    hosts: dict[str, list[str]] = {}
    for host, paths in files.items():
        if isinstance(paths, str):
            raise TypeError(f"files of {host!r} must be several paths, got the string {paths!r}")
        for path in paths:
            if not isinstance(path, str):
                raise TypeError(f"files must be paths as strings, got {path!r} for {host!r}")
            hosts.setdefault(path, []).append(host)
    beside: dict[frozenset[str], list[str]] = {}
    for path, names in hosts.items():
        beside.setdefault(frozenset(names), []).append(path)
    units: list[str] = []
    homes: list[Home] = []
    for where, paths in beside.items():
        homes.append(Home(len(units), len(units) + len(paths), where))
        units += paths
    return tuple(units), tuple(homes)


def refuse_plain_job(given: object, what: str = "job") -> None:
    """Refuse a job of one process, with the reason.

    Raises:
        TypeError: `given` is an `aioktask.Job`.
    """
    if not isinstance(given, Job):
        return
    kind = "is one of memory or arrays, which" if given.binds else "has a function that"
    raise TypeError(
        f"{what} must be a ClusterJob, got the Job {given.name!r}: that {kind} works on memory of "
        "this process, of which a worker would only get a copy. Write "
        "ClusterJob(fn, size, setup=...), with fn(start, stop, data) and a setup that opens the "
        "data in each worker"
    )


def checked_cluster_job(job: object) -> ClusterJob[Any]:
    """`job`, if it is a ClusterJob.

    Raises:
        TypeError: It is something else; of a job of one process the message says why.
    """
    refuse_plain_job(job)
    if not isinstance(job, ClusterJob):
        raise TypeError(f"a ClusterJob is needed, got {job!r}")
    return job


class WorkerLost(Exception):  # noqa: N818 - what happened to the worker, and so to the job
    """A worker was gone before what it had in hand was told, so the job could not go on.

    `failure` of this tells, worker by worker, what is done, undone and unknown. With
    ``ClusterJob(idempotent=True)`` other workers do it again instead.

    Attributes:
        worker: Its name.
    """

    def __init__(self, message: str, worker: str) -> None:
        super().__init__(message, worker)
        self.worker = worker

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class WorkerPart:
    """What one worker did of a job, or in a failure, where its units stand.

    Attributes:
        name: Of the worker.
        host: Of its machine.
        done: What it has done and not undone, ascending.
        undone: What it has undone.
        unknown: What it may have done: the worker was lost meanwhile, or a chunk failed there.
        stretches: How many stretches it was given and began.
        chunks: How many chunks it did.
        busy: Seconds in stretches.
        cpu_time: CPU time of its helpers in them, in seconds.
        threads: The most threads that worked on one.
        lost: Why the worker is gone; empty where it is not.
    """

    name: str
    host: str
    done: tuple[range, ...] = ()
    undone: tuple[range, ...] = ()
    unknown: tuple[range, ...] = ()
    stretches: int = 0
    chunks: int = 0
    busy: float = 0.0
    cpu_time: float = 0.0
    threads: int = 0
    lost: str = ""

    @property
    def units(self) -> int:
        """How many units it has done and not undone."""
        return sum(map(len, self.done))


@dataclass(frozen=True)
class ClusterReport(Report[T_co]):
    """What a finished job tells, as an `aioktask.Report`, and which workers did what.

    `busy` has the time of each worker, the longest first; `peak_threads` adds up the workers'.

    Attributes:
        workers: Every worker that took part, or was there to.
    """

    workers: tuple[WorkerPart, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterFailure(Failure):
    """What `aioktask.failure` tells of a job that failed on a cluster.

    Attributes:
        job: The job, a `ClusterJob`: `job.over` makes jobs of what is left. A failure that was
            pickled has it without functions.
        workers: Where the units of each worker stand.
    """

    job: ClusterJob[Any]  # type: ignore[assignment]  # which reads as a Job does
    workers: tuple[WorkerPart, ...] = ()

    def __reduce__(self) -> tuple[type[Failure], tuple[object, ...]]:
        told = (self.chunk, self.errors, self.done, self.undone, self.unknown, self.inner)
        job = self.job.without_functions()
        return ClusterFailure, (job, *told, self.timeline, self.workers)


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """What there is to see of a coordinator at one moment.

    Attributes:
        workers: Those that there are.
        jobs: Those that are not over, the oldest first: name, where it stands, and its workers.
    """

    workers: tuple[WorkerStatus, ...]
    jobs: tuple[tuple[str, Progress, tuple[WorkerStatus, ...]], ...]
