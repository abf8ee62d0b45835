# SPDX-License-Identifier: MIT
# Work that serves first what is asked for: the kernel's deferred initialisation of struct pages,
# where a boot goes on as soon as the first pages are there, and an allocation that needs more has
# its section done at once.
#
# The range is cut into sections. Each section is one run of the engine, of one chunk: so whoever
# needs a section waits for exactly that run, with all that waiting for a run brings (any loop or
# thread, priority, cycles found, a helper in place of a blocked one). Runs are submitted a few at
# a time, as many as there may be threads: the helper that ends one submits the next, and sections
# that somebody waits for go before the others.
#
# One lock guards the state. A section that is done stays so: `ensure` asks for no more than that.
"""`OnDemand`: a job whose parts can be used while the rest is still being done."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from types import TracebackType
from typing import SupportsIndex

from aioktask.checks import integer
from aioktask.engine.coordinator import Coordinator, Handle
from aioktask.engine.frame import enclosing_run
from aioktask.engine.priority import submitted_nice, waiter_nice
from aioktask.engine.process import max_threads
from aioktask.engine.wakeup import refuse_running_loop
from aioktask.errors import JobCancelled
from aioktask.job import Job, Progress
from aioktask.ondemand._sections import Sections

__all__ = ["OnDemand"]

# So many sections by default: a request waits for 1/256 of the whole, and each costs the engine
# some 100 us, which is little beside a section of a job that is worth deferring.
SECTIONS = 256


class OnDemand:
    """A job over a range that is used while it is being done.

    Use it with ``async with``, or in a thread without a loop with plain ``with``. The range is cut
    into sections; a first stretch is done on entering, the rest in the background, in order. Who
    needs a stretch now calls `ensure`: its sections go to the front, and only they are waited for.

    The job's function is called once for each section, on a helper. A section that raises is
    failed: who ensures it gets the exception, and the other sections go on. Leaving normally waits
    for all and raises what `wait` raises. Leaving by an exception, or by a cancellation, ends it:
    no further section begins, those that run finish, then the exception goes on.

    Args:
        job: What to do, without `undo` and `reduce`. Its `nice` is that of the background, its
            `max_threads` the most helpers for all sections together; its `min_chunk`, `align` and
            `chunk` count only for the default of `section`.
        section: Units of a section, a multiple of the job's `align`. By default the job's `chunk`,
            else 1/256 of the range, but at least `min_chunk`, rounded up to `align`. Sections end
            on absolute multiples of it, those at the ends of the range may be shorter.
        first: How many units, from the job's start on, are done before it is entered.

    Raises:
        TypeError: `job` is no Job; an argument is no integer.
        ValueError: The job has an `undo` (sections may be in use by the time it would run), a
            `reduce` or another result, or parts; `section` or `first` is out of range.

    >>> import asyncio
    >>> import numpy as np
    >>> from aioktask import Job, OnDemand
    >>> squares = np.zeros(1000, np.int64)
    >>> def initialise(start, stop):
    ...     squares[start:stop] = np.arange(start, stop) ** 2
    >>> async def main():
    ...     async with OnDemand(Job(initialise, 1000, min_chunk=50)) as table:
    ...         await table.ensure(700, 710)
    ...         return int(squares[705])
    >>> asyncio.run(main())
    497025
    """

    def __init__(
        self,
        job: Job[None],
        *,
        section: SupportsIndex | None = None,
        first: SupportsIndex = 0,
    ) -> None:
        self._fn = _function_of(job)
        self._job = job
        self._first = integer("first", first, least=0)
        if self._first > job.size:
            raise ValueError(f"first must be at most the job's size {job.size}, got {self._first}")
        self._coordinator = Coordinator(job.max_threads)
        self._lock = threading.Lock()  # guards what follows
        self._sections = Sections(job.start, job.stop, _section_of(job, section))
        self._running: dict[int, Handle[None]] = {}
        self._failed: dict[int, Handle[None]] = {}
        self._units_done = 0
        self._chunks_done = 0
        self._state = "new"
        self._context: Context | None = None  # of the background: that of who entered
        self._nice = job.nice
        self._began = self._ended = 0.0

    def __repr__(self) -> str:
        with self._lock:
            left, total = sum(self._sections.left), self._sections.count
            return (
                f"<OnDemand {self._job.name!r}: {self._state}, {total - left} of {total} sections>"
            )

    @property
    def job(self) -> Job[None]:
        """The job."""
        return self._job

    @property
    def failed(self) -> tuple[range, ...]:
        """The sections that raised, ascending, in the units of the job."""
        with self._lock:
            return tuple(range(*self._sections.bounds(index)) for index in sorted(self._failed))

    def progress(self) -> Progress:
        """Where it stands; `threads` are the sections that are being done."""
        with self._lock:
            done, chunks, threads = self._units_done, self._chunks_done, len(self._running)
            ended = self._ended or time.perf_counter()
            elapsed = ended - self._began if self._began else 0.0
        rate = done / elapsed if elapsed else 0.0
        return Progress(done, self._job.size, threads, chunks, elapsed, rate)

    # waiting

    async def ensure(self, start: SupportsIndex, stop: SupportsIndex) -> None:
        """Wait until the units from start to stop are done, which go before all others.

        They are done at the caller's priority: the nice of the job in whose chunk it waits, else of
        the `priority` block that it is in, else the job's own. Where they are done already this
        returns at once, without a turn of the loop, after about a microsecond.

        Raises:
            BaseException: What the job's function raised for one of these sections.
            JobCancelled: It was left by an exception before they were done.
            TypeError, ValueError: start and stop are no integers, or not within the job's range.
            RuntimeError: It was not entered yet.

        **Cancellation** only detaches the caller: the sections are done all the same.
        """
        if self._is_done(start, stop):
            return
        wanted = self._wanted(start, stop)
        self._urge(wanted)
        for index in wanted:
            while (handle := self._to_wait_for(index)) is not None:
                await handle.until_over()
            self._check(index)

    def ensure_sync(self, start: SupportsIndex, stop: SupportsIndex) -> None:
        """`ensure` for a thread that runs no event loop; also inside a chunk of any job.

        Raises:
            DeadlockError: The section would wait for itself: it is what the calling chunk does, or
                waits for that.
            RuntimeError: This thread runs an event loop: await `ensure`. Otherwise as `ensure`.
        """
        refuse_running_loop("OnDemand.ensure_sync()", "await ensure() instead")
        if self._is_done(start, stop):
            return
        wanted = self._wanted(start, stop)
        self._urge(wanted)
        for index in wanted:
            while (handle := self._to_wait_for(index)) is not None:
                handle.until_over_in_thread()
            self._check(index)

    async def wait(self) -> None:
        """Wait until every section is done or has failed.

        Raises:
            BaseException: What the first failed section of the range raised; `failed` names all.
            JobCancelled: It was left by an exception before.

        **Cancellation** only detaches the caller.
        """
        self._check_entered()
        while (handle := self._any_running()) is not None:
            await handle.until_over()
        self._check_all()

    def wait_sync(self) -> None:
        """`wait` for a thread that runs no event loop."""
        refuse_running_loop("OnDemand.wait_sync()", "await wait() instead")
        self._check_entered()
        while (handle := self._any_running()) is not None:
            handle.until_over_in_thread()
        self._check_all()

    # entering and leaving

    async def __aenter__(self) -> OnDemand:
        self._enter()
        try:
            await self.ensure(self._job.start, self._job.start + self._first)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                await self.wait()
            except BaseException as raised:
                await self._end(raised)
                raise
        await self._end(error)

    def __enter__(self) -> OnDemand:
        refuse_running_loop("entering OnDemand", "use `async with`")
        self._enter()
        try:
            self.ensure_sync(self._job.start, self._job.start + self._first)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait_sync()
        finally:
            for handle in self._stop():
                handle.cancel()
                handle.until_over_in_thread()

    async def _end(self, error: BaseException | None) -> None:
        """Begin nothing more, and see what runs to its end, across cancels."""
        left = self._stop()
        if isinstance(error, GeneratorExit):  # the loop is gone, and nobody can wait
            for handle in left:
                handle.cancel_soon()
            return
        cancelled = None
        for handle in left:
            handle.cancel()
        for handle in left:
            cancelled = cancelled or await handle.until_over_shielded()
        if cancelled is not None:  # it came while this waited, and must not be lost
            raise cancelled

    def _enter(self) -> None:
        with self._lock:
            if self._state != "new":
                raise RuntimeError(f"this OnDemand is {self._state}: make a new one for each use")
            self._state = "open"
            self._context = copy_context()
            self._nice = submitted_nice(self._job.nice)
            self._began = time.perf_counter()
            self._start_more()

    def _stop(self) -> list[Handle[None]]:
        with self._lock:
            self._state = "closed"
            self._ended = self._ended or time.perf_counter()
            return list(self._running.values())

    # the sections

    def _is_done(self, start: SupportsIndex, stop: SupportsIndex) -> bool:
        """What most calls ask, in as few steps as can be; False also where more must be checked."""
        if type(start) is not int or type(stop) is not int:
            return False
        sections = self._sections
        if not sections.start <= start < stop <= sections.stop:
            return False
        length, first = sections.section, sections.first
        with self._lock:
            return sections.left.find(1, start // length - first, -(-stop // length) - first) < 0

    def _wanted(self, start: SupportsIndex, stop: SupportsIndex) -> range:
        first, last = integer("start", start), integer("stop", stop)
        if not self._job.start <= first <= last <= self._job.stop:
            raise ValueError(
                f"start and stop must be within {self._job.start} to {self._job.stop}, "
                f"got {first} to {last}"
            )
        self._check_entered()
        return self._sections.covering(first, last)

    def _check_entered(self) -> None:
        if self._state == "new":
            raise RuntimeError("this OnDemand was not entered yet: use `async with` or `with`")

    def _urge(self, wanted: range) -> None:
        """Put the sections to the front, at the caller's priority."""
        nice = self._nice_of_caller()
        with self._lock:
            for index in wanted:
                if self._sections.is_queued(index):
                    self._sections.urge(index, nice)
            self._start_more()
            # What runs is in the way of what is queued still: it has the caller's priority too.
            waits = any(map(self._sections.is_queued, wanted))
            lent = [
                handle
                for index, handle in self._running.items()
                if (waits or index in wanted) and handle.nice > nice
            ]
        for handle in lent:
            handle.renice(nice)

    def _nice_of_caller(self) -> int:
        outer = enclosing_run()
        return waiter_nice(None if outer is None else outer.entry.nice, self._nice)

    def _to_wait_for(self, index: int) -> Handle[None] | None:
        """The run to wait for; None when the section is done, has failed, or never will be done.

        A section whose turn has not come is begun now: whoever has the lower nice is served first,
        and the job's `max_threads` counts for all. In a chunk it needs no free helper, as the
        chunk's own thread makes room for one while it waits.
        """
        nice = self._nice_of_caller()
        with self._lock:
            self._reap()
            if self._state == "open" and self._sections.is_queued(index):
                self._start(index, nice)
            handle = self._running.get(index) or self._failed.get(index)
        return None if handle is None or handle.done() else handle

    def _any_running(self) -> Handle[None] | None:
        with self._lock:
            self._reap()
            self._start_more()
            return next(iter(self._running.values()), None)

    def _reap(self) -> None:
        """Runs that ended without their chunk, at the interpreter's exit say. With the lock."""
        for index, handle in list(self._running.items()):
            if handle.done():
                self._failed[index] = self._running.pop(index)
                self._state = "closed"

    def _check(self, index: int) -> None:
        """Raise what there is to raise of a section that nobody runs any more."""
        with self._lock:
            if not self._sections.left[index]:
                return
            handle = self._failed.get(index)
        if handle is not None:
            handle.result(0)
        raise JobCancelled(f"the job {self._job.name!r} was ended before this section was done")

    def _check_all(self) -> None:
        with self._lock:
            index = self._sections.left.find(1)
            index = min(self._failed, default=index)
        if index >= 0:
            self._check(index)

    def _start_more(self) -> None:
        """Submit as many sections as may run now. With the lock."""
        cap = max_threads()
        if self._job.max_threads is not None:
            cap = min(cap, self._job.max_threads)
        while self._state == "open" and len(self._running) < cap:
            found = self._sections.next()
            if found is None:
                return
            index, nice = found
            self._start(index, self._nice if nice is None else nice)

    def _start(self, index: int, nice: int) -> None:
        """Submit a section. With the lock."""
        start, stop = self._sections.bounds(index)
        job = Job(
            functools.partial(self._run, index),
            stop - start,
            start=start,
            chunk=self._sections.section,  # so it is one chunk
            max_threads=1,
            nice=nice,
            name=self._job.name,
        )
        assert self._context is not None
        try:
            handle = self._context.copy().run(self._coordinator.submit, job)
        except RuntimeError:  # the interpreter exits
            self._state = "closed"
            return
        if handle.nice != nice:  # a `priority` block around the background
            handle.renice(nice)
        self._sections.take(index)
        self._running[index] = handle

    def _run(self, index: int, start: int, stop: int) -> None:
        """The chunk of a section, on a helper."""
        done = False
        try:
            self._fn(start, stop)
            done = True
        finally:
            with self._lock:
                handle = self._running.pop(index)
                if done:
                    self._sections.left[index] = 0
                    self._units_done += stop - start
                    self._chunks_done += 1
                else:
                    self._failed[index] = handle
                self._start_more()
                if not self._running:
                    self._ended = time.perf_counter()


def _function_of(job: Job[None]) -> Callable[[int, int], object]:
    if not isinstance(job, Job):
        raise TypeError(f"OnDemand needs a Job, got {job!r}")
    if job.undo is not None:
        raise ValueError(
            f"OnDemand takes no job with undo, and {job.name!r} has one: sections are in use while "
            "others are still being done"
        )
    bound = job.bind()
    if job.reduce is not None or bound.value is not None:
        raise ValueError(
            f"OnDemand takes no job with a result, and {job.name!r} has one: sections are used one "
            "by one. Run the job by run_multithreaded"
        )
    if job.parts:
        raise ValueError(f"OnDemand takes no job with parts, and {job.name!r} has some")
    return bound.fn


def _section_of(job: Job[None], section: SupportsIndex | None) -> int:
    """How many units a section has."""
    if section is None:
        wanted = job.chunk or max(job.min_chunk, -(-job.size // SECTIONS), 1)
        return -(-wanted // job.align) * job.align
    units = integer("section", section, least=1)
    if units % job.align:
        raise ValueError(f"section must be a multiple of align ({job.align}), got {units}")
    return units
