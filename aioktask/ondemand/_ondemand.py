# SPDX-License-Identifier: MIT
# Work that serves first what is asked for: the kernel's deferred initialisation of struct pages,
# where a boot goes on as soon as the first pages are there, and an allocation that needs more has
# its section done at once.
"""`OnDemand`: a job whose parts can be used while the rest is still being done."""

from __future__ import annotations

from types import TracebackType
from typing import SupportsIndex

from aioktask.checks import integer, optional
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.loops.loop import refuse_running_loop
from aioktask.engine.loops.waiting import CALLS_OF_LEAVING
from aioktask.engine.stack import need_stack
from aioktask.engine.state.current import local, refuse_waiting
from aioktask.job import ChunkFunction, Job, Progress
from aioktask.ondemand._sections import Request, Sections
from aioktask.ondemand._work import Work

__all__ = ["OnDemand"]

# So many sections by default: a request waits for 1/256 of the whole, and each costs the engine
# some 60 us, which is little beside a section of a job that is worth deferring.
SECTIONS = 256


class OnDemand:
    """A job over a range that is used while it is being done.

    Use it with ``async with``, or in a thread without a loop with plain ``with``. The range is cut
    into sections; a first stretch is done on entering, the rest in the background, in order. Who
    needs a stretch now calls `ensure`: its sections go to the front, and only they are waited for.

    The job's function is called once for each section, on a helper or in the chunk that ensures it,
    with the context variables of who entered. A section that raises has failed for good: who
    ensures it gets the exception, and the other sections go on. Leaving normally waits for all and
    raises what `wait` raises. Leaving by an exception, or by a cancellation, ends it: no further
    section begins, those that run finish (`check_cancelled` tells them), then the exception goes
    on. Sections that are done can be ensured after that too, the others raise `JobCancelled`.

    Args:
        job: What to do, without `undo` and `reduce`. Its `nice` is that of the background. Its
            `min_chunk`, `align` and `chunk` count only for the default of `section`.
        section: Units of a section, a multiple of the job's `align`. By default the job's `chunk`,
            else 1/256 of the range, but at least `min_chunk`, rounded up to `align`. Sections end
            on absolute multiples of it; those at the ends of the range may be shorter.
        first: How many units, from the job's start on, are done before it is entered.
        coordinator: Whose cap applies, and who may end it: when that is left by an exception or
            shut down with `cancel`. The job's `max_threads` then bounds the background and each
            request apart. By default all of them together are bounded by `max_threads`.

    Raises:
        TypeError: `job` is no Job; another argument is of the wrong kind.
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
        coordinator: Coordinator | None = None,
    ) -> None:
        fn = _function_of(job)
        self._first = integer("first", first, least=0)
        if self._first > job.size:
            raise ValueError(f"first must be at most the job's size {job.size}, got {self._first}")
        self._job = job
        self._sections = Sections(job.start, job.stop, _section_of(job, section))
        given = optional("coordinator", coordinator, Coordinator)
        scope = Coordinator(job.max_threads) if given is None else given
        self._work = Work(job, fn, self._sections, scope)
        self._entered = False
        # For those who ask for what is there already.
        self._start, self._stop = job.start, job.stop
        self._lock, self._all_done = self._work.lock, self._sections.all_done

    def __repr__(self) -> str:
        with self._lock:
            done, closed = self._sections.done_count(), self._work.closed
        state = "closed" if closed else "open" if self._entered else "new"
        return f"<OnDemand {self._job.name!r}: {state}, {done} of {self._sections.count} sections>"

    @property
    def job(self) -> Job[None]:
        """The job."""
        return self._job

    @property
    def failed(self) -> tuple[range, ...]:
        """The sections that raised, ascending, in the units of the job."""
        return self._work.failed()

    def progress(self) -> Progress:
        """Where it stands: `chunks` are sections done, `threads` sections that are being done."""
        return self._work.progress()

    # Waiting.

    async def ensure(self, start: SupportsIndex, stop: SupportsIndex) -> None:
        """Wait until the units from start to stop are done, which go before all others.

        They are done at the caller's priority: the nice of the job in whose chunk it waits, else of
        the `priority` block that it is in, else the job's own. Where they are done already this
        returns at once, after less than a microsecond, and is no checkpoint: as with a lock that is
        free, the loop's turn does not end. Otherwise it is one.

        Raises:
            BaseException: What the first failed one of these sections raised, as it is.
            JobCancelled: It was ended before they were done.
            Overloaded: Its coordinator has too many jobs that wait (`max_queued`, `max_wait`). The
                sections are done all the same, in their usual order.
            TypeError, ValueError: start and stop are no integers, or not within the job's range.
            RuntimeError: It was not entered yet.

        **Cancellation** only detaches the caller: its sections fall back to their usual order.
        """
        if self._are_done(start, stop):
            return
        request = self._request(start, stop)
        try:
            urgent = self._work.ask(request, takes_part=False)
            if urgent is not None:
                await urgent.until_over()
            for index in request.sections:
                while (handle := self._work.left_of(index, urgent)) is not None:
                    await handle.until_over()
        finally:
            request.withdrawn = True

    def ensure_sync(self, start: SupportsIndex, stop: SupportsIndex) -> None:
        """`ensure` for a thread that runs no event loop.

        In a chunk of any job, the calling thread does what nobody has begun, so no free helper is
        needed.

        Raises:
            DeadlockError: The section would wait for itself: it is what the calling chunk does, or
                waits for that.
            RuntimeError: This thread runs an event loop: await `ensure`. Otherwise as `ensure`.
        """
        refuse_running_loop("OnDemand.ensure_sync()", "await ensure() instead")
        if self._are_done(start, stop):
            return
        request = self._request(start, stop)
        try:
            urgent = self._work.ask(request, takes_part=local.stint is not None)
            if urgent is not None:
                urgent.until_over_in_thread()
            for index in request.sections:
                while (handle := self._work.left_of(index, urgent)) is not None:
                    handle.until_over_in_thread()
        finally:
            request.withdrawn = True

    async def wait(self) -> None:
        """Wait until every section is done or has failed.

        Raises:
            BaseException: What the first failed section of the range raised; `failed` names all.
            JobCancelled: It was ended before.
            RuntimeError: It was not entered yet.

        **Cancellation** only detaches the caller.
        """
        self._check_entered()
        for handle in self._work.under_way():  # the background first: after it none begins
            await handle.until_over()
        for handle in self._work.under_way():
            await handle.until_over()
        while (last := self._work.left_of_all()) is not None:
            await last.until_over()

    def wait_sync(self) -> None:
        """`wait` for a thread that runs no event loop.

        Raises:
            DeadlockError: In a section's own chunk, or in one that a section waits for.
            RuntimeError: This thread runs an event loop: await `wait`. Otherwise as `wait`.
        """
        refuse_running_loop("OnDemand.wait_sync()", "await wait() instead")
        refuse_waiting("OnDemand.wait_sync()")
        self._check_entered()
        for handle in self._work.under_way():
            handle.until_over_in_thread()
        for handle in self._work.under_way():
            handle.until_over_in_thread()
        while (last := self._work.left_of_all()) is not None:
            last.until_over_in_thread()

    # Entering and leaving.

    async def __aenter__(self) -> OnDemand:
        need_stack(CALLS_OF_LEAVING)
        self._enter()
        try:
            await self.ensure(self._start, self._start + self._first)
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
        try:
            if error is None:
                await self.wait()
        except BaseException as raised:
            error = raised
            raise
        finally:
            if isinstance(error, GeneratorExit):  # the loop is gone, and nobody can wait
                self._work.stop_soon()
            else:
                await self._end()

    async def _end(self) -> None:
        """Begin nothing more, and see what runs to its end, across cancels and what strikes."""
        first: BaseException | None = None
        while True:
            try:
                for handle in self._work.stop():
                    cancelled = await handle.until_over_shielded()
                    first = first or cancelled
                break
            except GeneratorExit:
                raise
            except BaseException as struck:  # a signal handler raised in here
                first = struck
        if first is not None:  # it came while this waited, and must not be lost
            raise first

    def __enter__(self) -> OnDemand:
        refuse_running_loop("entering OnDemand", "use `async with`")
        refuse_waiting("entering OnDemand")
        self._enter()
        try:
            self.ensure_sync(self._start, self._start + self._first)
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
            for handle in self._work.stop():
                handle.until_over_in_thread()

    def _enter(self) -> None:
        with self._lock:
            if self._entered:
                raise RuntimeError("this OnDemand was entered already: make a new one for each use")
            self._entered = True
        try:
            self._work.begin()
        except BaseException:
            self._entered = False
            raise

    # The caller's range.

    def _are_done(self, start: SupportsIndex, stop: SupportsIndex) -> bool:
        """Whether these units are done: the way of those who ask for what is there, so short."""
        if type(start) is not int or type(stop) is not int:
            start, stop = integer("start", start), integer("stop", stop)
        if not self._start <= start <= stop <= self._stop:
            raise ValueError(
                f"start and stop must be within {self._start} to {self._stop}, "
                f"got {start} to {stop}"
            )
        if not self._entered:
            self._check_entered()
        with self._lock:
            return self._all_done(start, stop)

    def _check_entered(self) -> None:
        if not self._entered:
            raise RuntimeError("this OnDemand was not entered yet: use `async with` or `with`")

    def _request(self, start: SupportsIndex, stop: SupportsIndex) -> Request:
        sections = self._sections.covering(integer("start", start), integer("stop", stop))
        return Request(sections, self._work.nice_of_caller())


def _function_of(job: Job[None]) -> ChunkFunction[object]:
    if not isinstance(job, Job):
        raise TypeError(f"OnDemand needs a Job, got {job!r}")
    if job.undo is not None:
        raise ValueError(
            f"OnDemand takes no job with undo, and {job.name!r} has one: sections may be in use "
            "while others are still being done"
        )
    bound = job.bind()
    if job.reduce is not None or bound.value is not None:
        raise ValueError(
            f"OnDemand takes no job with a result, and {job.name!r} has one: sections may be in "
            "use before it is there. Run the job by run_multithreaded"
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
