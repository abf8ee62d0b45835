# SPDX-License-Identifier: MIT
# The calls that run one job, awaited or in a thread; and `plan`, which says how one would be run.
#
# Both calls hold the lock `Run.attended` as long as they last. An exception may strike in any of
# their lines, from a signal handler or for want of stack or memory; then the call cancels the run
# and sees it to its end. Where a further exception strikes before it can, the keeper finds that
# lock free, and cancels the run.
"""Running a job and waiting until all of it is done, or all of it is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Never, SupportsIndex, TypeVar, TypeVarTuple, Unpack

from aioktask.engine.api.call import Call, checked_call, job_of_call, refuse_keywords
from aioktask.engine.api.interrupts import Interrupts
from aioktask.engine.api.process import current_pool
from aioktask.engine.api.scope import group_in
from aioktask.engine.api.submission import (
    checked_job,
    is_main_thread,
    needed_loop,
    new_run,
    nice_of_waiter,
    see_to_its_end,
)
from aioktask.engine.learning.lessons import Lesson, key_of
from aioktask.engine.learning.pacing import EvenPacing, pacing_of
from aioktask.engine.loops.loop import AsyncWaiter, Loop, refuse_running_loop, running_loop
from aioktask.engine.loops.waiting import CALLS_OF_A_WAIT, wait_until_shielded
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.ranges.plan import (
    Plan,
    make_plan,
    with_even_pieces,
    with_learned,
    with_memory,
)
from aioktask.engine.scheduling.caps import within_share
from aioktask.engine.stack import need_stack
from aioktask.engine.state import waiting
from aioktask.engine.state.current import enclosing_stint, local, refuse_waiting
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.outbox import Source
from aioktask.engine.state.run import Run, gil_advice
from aioktask.engine.state.settings import beginning, learns, remembers
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller
from aioktask.engine.threads.archive import Reading
from aioktask.engine.threads.pool import Pool
from aioktask.job import NO_LABELS, Job, Labels, Report

if TYPE_CHECKING:
    from aioktask.engine.api.coordinator import Coordinator

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How long `plan` waits for what is on disk.
PLAN_SECONDS = 1.0


async def run_multithreaded(
    job: Job[T],
    *,
    coordinator: Coordinator | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - it ends the job, not the wait
) -> Report[T]:
    """Run a job on helper threads and wait until all of it is done, or all of it is undone.

    The event loop (asyncio, uvloop or trio) stays free meanwhile.

    Args:
        job: What to run.
        coordinator: The one whose cap applies and that may cancel the job. By default that of the
            chunk in which, or on behalf of which, this is called, else none.
        timeout: How long the job may take from this call on, in seconds, its undo apart; None for
            any time. One that has not begun by then ends with `Overloaded`; one that runs is
            cancelled and undone, and ends with a `TimeoutError`.

    Returns:
        The report, with `value` what `reduce` made.

    Raises:
        BaseException: What the first failing chunk raised, as it is, with a note that names the job
            and the chunk; `failure` tells the rest. Chunks that were done have been undone if there
            is an `undo`.
        UndoFailed: An undo raised: part of the work is still there.
        JobCancelled: The coordinator ended the job.
        Overloaded: The job could not begin in time, by `timeout` or by what the coordinator or the
            process sets (`max_queued`, `max_wait`): nothing was done.
        TimeoutError: The job was not over in time; what was done has been undone if there is an
            `undo`.
        TypeError: `job` is no Job, or `coordinator` no Coordinator; a function of the job returned
            an awaitable or a generator, so its work was not done; `timeout` is no number.
        ValueError: `timeout` is negative or not finite.
        RuntimeError: No event loop runs here, or the coordinator takes no more jobs.

    **Cancellation.** This is always a checkpoint: in a scope that is cancelled already nothing
    starts. Cancelled while it waits: no new chunk begins, running chunks finish, what was done is
    undone, and then the cancellation goes on; further cancels change nothing. `UndoFailed` takes
    the place of a cancellation, so a timeout does not swallow it.

    **Interruption.** An exception that a signal handler raises in here, in whatever line, ends the
    call as a cancellation does.

    >>> import asyncio
    >>> from aioktask import Job
    >>> job = Job(lambda start, stop: sum(range(start, stop)), 1000, reduce=lambda a, b: a + b)
    >>> asyncio.run(run_multithreaded(job)).value
    499500
    """
    pool = current_pool()
    loop = needed_loop("run_multithreaded()")
    if loop.may_be_cancelled:
        await loop.checkpoint_if_cancelled()
    need_stack(CALLS_OF_A_WAIT)
    outer = enclosing_stint()
    group = group_in(pool, coordinator, outer)
    run = new_run(pool, group, job, loop, parent=outer, owned=True, timeout=timeout)
    nested = outer is not None and outer.run.group is group
    waiter = loop.waiter(
        run.nice if outer is None else MOST_NICE,  # see `nice_of_waiter`
        lost=None if not run.hold else _Abandoned(pool, run),
    )
    try:
        return await _run_owned(pool, loop, run, waiter, job, nested=nested)
    except GeneratorExit:
        raise
    except BaseException as error:
        if not (run.ended or run.refused):  # struck where `_run_owned` could not act
            await _see_to_its_end(pool, loop, run, waiter, job, error)
        raise
    finally:
        run.failure = None  # no call, in which a handler might raise
        del run, waiter  # which the exception's traceback leads to


async def run(
    fn: Callable[[Unpack[Ts]], T],
    *args: *Ts,
    nice: SupportsIndex | None = None,
    name: str | None = None,
    coordinator: Coordinator | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - it ends the call, not the wait
    labels: Mapping[str, str] | None = None,
    **others: Never,
) -> T:
    """Call a function on a helper thread, and wait for what it returns.

    The call is a job of one chunk: it has a share by its nice, keeps to the limits of the process
    and of the coordinator, lends and borrows priority, and finds the caller's context variables.
    Inside it `current_chunk().check_cancelled()` tells whether it is wanted still. A call that
    blocks without using a CPU (a file, DNS, a lock) keeps no helper from others: where something
    waits for one, the process may have one more for it, after about a tenth of a second and within
    `max_blocked` of `configure`. A coordinator's own cap holds all the same.

    Args:
        fn: An ordinary function. Keyword arguments are for this call: use `functools.partial`.
        args: What it is called with.
        nice: -20 (most urgent) to 19, as of a job: where the coordinator, the process or a
            `priority` block has one, that comes in its place. None for 0.
        name: For events, errors and thread names; by default the function's.
        coordinator: As in `run_multithreaded`.
        timeout: How long the call may take from now on, in seconds; None for any time. One that has
            not begun by then ends with `Overloaded`. A function that runs is not stopped: this
            waits until it returns or raises, drops the result, and ends with a `TimeoutError`.
        labels: Of the call, as of a `Job`.
        others: Refused, with the way to pass them to `fn`.

    Returns:
        What `fn` returned, whatever that is.

    Raises:
        BaseException: What `fn` raised, as it is, without a note, since its traceback tells all;
            but a `StopIteration`, `StopAsyncIteration`, `GeneratorExit` or a loop's cancellation,
            which would be misread here, is the cause of a `RuntimeError`. `failure` tells the job.
        JobCancelled: The coordinator ended the call.
        Overloaded: The call could not begin in time: the function was not called.
        TimeoutError: The function returned or raised too late.
        TypeError, ValueError: An argument is not what it may be, `fn` an async or a generator
            function for one.
        RuntimeError: No event loop runs here, or the coordinator takes no more jobs.

    **Cancellation.** This is always a checkpoint. Cancelled before the function is called, it never
    is. Cancelled while the function runs, this waits until that returns or raises, drops the
    result, and then the cancellation goes on.

    **Interruption.** As `run_multithreaded`.

    >>> import asyncio
    >>> asyncio.run(run(pow, 7, 2))
    49
    """
    if others:
        refuse_keywords("run()", fn, others)
    of_nice, of_name = checked_call(fn, nice, name)
    call = Call(fn, args)
    job = job_of_call(call, of_nice, of_name, NO_LABELS if labels is None else Labels(labels))
    del fn, args  # which an exception's traceback would lead to
    try:
        await run_multithreaded(job, coordinator=coordinator, timeout=timeout)
        return call.value
    except GeneratorExit:
        raise  # the call may run still
    except BaseException:
        call.let_go()  # `failure` leads from the exception to the job
        raise
    finally:
        del call, job


async def _run_owned(
    pool: Pool, loop: Loop, run: Run, waiter: AsyncWaiter, job: Job[Any], *, nested: bool
) -> Report[Any]:
    """Submit a run, wait for it, and see it to its end whatever strikes."""
    attended = run.attended
    assert attended is not None
    try:
        with attended:
            pool.submit(run, waiter=waiter, nested=nested)
            await waiter.wait()
            while not pool.commit(run):
                waiter.renew()
                if not (run.over or (run.settled and not run.cancel_asked)):
                    await waiter.wait()
            waiter.left = True  # it waits no more
            return run.result()
    except GeneratorExit:
        pool.cancel(run)
        raise
    except BaseException as error:
        if not run.refused and pool.cancel(run) and run.never_starts:  # nothing to wait for
            waiter.left = True
            run.name_outcome(error, job)
        else:
            await _see_to_its_end(pool, loop, run, waiter, job, error)
        raise
    finally:
        del run, waiter


async def _see_to_its_end(
    pool: Pool, loop: Loop, run: Run, waiter: AsyncWaiter, job: Job[Any], error: BaseException
) -> None:
    """Cancel a run, and see it to its end, whatever strikes meanwhile.

    Raises:
        UndoFailed: Its undo failed.
        BaseException: What a signal handler raised in here, if one did, instead of `error`.
    """
    struck = error
    try:
        while not (run.ended or run.refused):
            try:
                pool.cancel(run)
                if not run.over and waiter not in run.waiters:  # struck before it was submitted
                    pool.post(waiting.add_waiter, run, waiter, None, False)
                await wait_until_shielded(loop, waiter, partial(_has_ended, run))
            except GeneratorExit:
                raise
            except BaseException as another:
                struck = another
        run.raise_failed_undo(struck)
        run.name_outcome(struck, job)
        if struck is not error:
            raise struck from error
    finally:
        del struck, error, run


def _has_ended(run: Run) -> bool:
    return run.ended


def run_multithreaded_sync(
    job: Job[T], *, coordinator: Coordinator | None = None, timeout: float | None = None
) -> Report[T]:
    """Run a job, the calling thread taking chunks too, until all is done or all is undone.

    It is for scripts, and for jobs nested in a chunk, to any depth, since it needs no free helper.

    Args:
        job: What to run. Its `undo` must be a plain function: no loop runs here.
        coordinator: As in `run_multithreaded`.
        timeout: As in `run_multithreaded`.

    Returns:
        The report.

    Raises:
        BaseException: What the first failing chunk raised, as in `run_multithreaded`.
        UndoFailed: An undo raised: part of the work is still there.
        JobCancelled: The coordinator ended the job.
        Overloaded, TimeoutError: As in `run_multithreaded`.
        KeyboardInterrupt: Ctrl-C in the main thread, after the undo. A second one gives up: it
            names what is left, and helpers end the undo in the background.
        RuntimeError: This thread runs an event loop, or the coordinator takes no more jobs; or a
            finalizer or callback calls this inside the engine, where nothing may wait.
        TypeError: `job` is no Job, `coordinator` no Coordinator, `timeout` no number, or the undo
            a coroutine function.
        ValueError: `timeout` is negative or not finite.

    **Interruption.** A signal handler may call it like any other code. What a handler raises in
    here, in whatever line, cancels the job, has it undone, and goes on.

    >>> from aioktask import Job
    >>> run_multithreaded_sync(Job(max, 10, reduce=max, chunk=2)).value
    10
    """
    pool = current_pool()
    refuse_running_loop("run_multithreaded_sync()", "await run_multithreaded(job) instead")
    refuse_waiting("run_multithreaded_sync()")
    stint = local.stint
    group = group_in(pool, coordinator, stint)
    run = new_run(pool, group, job, None, parent=stint, owned=True, timeout=timeout)
    caller = Caller(nice_of_waiter(stint, run), stint, main=is_main_thread())
    nested = stint is not None and stint.run.group is group
    asked: Interrupts | None = None
    try:
        asked = Interrupts(pool, run, caller)  # before it may be struck as it is entered
        with asked:
            return _run_here(pool, run, caller, asked, nested=nested)
    except BaseException as error:
        if asked is not None:
            asked.step_back()
        if not (run.ended or run.refused or (asked is not None and asked.given_up)):
            see_to_its_end(pool, run, caller, error, given_up=lambda: False)
            run.raise_failed_undo(error)
        run.name_outcome(error, job)
        raise
    finally:
        run.failure = None  # no call, in which a handler might raise
        del stint, caller, asked, run


def _run_here(
    pool: Pool, run: Run, caller: Caller, asked: Interrupts, *, nested: bool
) -> Report[Any]:
    """Submit a run, serve it in this thread, and see it to its end whatever strikes."""
    attended = run.attended
    assert attended is not None
    others = local.takes_part
    try:
        # Before anybody knows of the run: a handler that would wait for it is refused from now on.
        local.takes_part = (*others, run)
        with attended, caller.present:
            pool.submit(run, waiter=caller, caller=caller, nested=nested, detects=True)
            pool.take_part(run, caller)
            while not (asked.given_up or asked.cancelled) and not pool.commit(run):
                pool.take_part(run, caller)
            if asked.cancelled:
                pool.cancel(run)
                pool.take_part(run, caller)
            if not asked.cancelled:
                if caller.stints and run.cancelled:
                    _pass_on_cancel(run, caller.stints[0])
                return run.result()
    except BaseException as error:
        # A signal handler raised here: the second Ctrl-C, or one of the application's own.
        if run.ended or run.refused:
            run.raise_failed_undo(error)
            raise
        see_to_its_end(pool, run, caller, error, given_up=lambda: asked.given_up)
        if not asked.given_up:
            run.raise_failed_undo(error)
            raise
    finally:
        local.takes_part = others
    asked.conclude()
    raise AssertionError("an interrupt was asked for, and is not raised")


def _pass_on_cancel(run: Run, stint: Stint) -> None:
    """Raise `ChunkCancelled`, or the run's `UndoFailed`, if the enclosing job wants to end."""
    if stint.run.unwanted():
        run.raise_failed_undo(run.cancellation())
        stint.check_cancelled()


def plan(job: Job[Any], *, coordinator: Coordinator | None = None) -> Plan:
    """Say how a job would be run now, without running it.

    Where an earlier run of the function left what it learned, the numbers are those that this run
    would begin with. Else they are those of padata's rule, which learning changes during the run. A
    note tells of a range of a few chunks that its threads share evenly.
    Where the function was found to hold the GIL, a note names the ways there are. What is kept on
    disk is read for this, and waited for, at most a second; but in the thread of a running loop
    only what was read by now is known.

    Args:
        job: The job.
        coordinator: Whose cap applies.

    Raises:
        TypeError: `job` is no Job, or `coordinator` no Coordinator.

    >>> from aioktask import Job
    >>> plan(Job(print, 100, chunk=30, max_threads=1)).chunks
    4
    """
    pool = current_pool()
    group = group_in(pool, coordinator, None)
    adapter = pool.adapter
    adapter.refresh()
    cap, share, tunables = adapter.cap, adapter.share, adapter.tunables
    caps = [(cap.threads, f"the process: {cap.reason}")]
    if (left := within_share(cap, share)) is not cap:
        caps.append((left.threads, f"{left.reason} {tunables.share!r}"))
    if coordinator is not None and coordinator.max_threads is not None:
        most = coordinator.max_threads
        caps.append((most, f"the coordinator's max_threads={most}"))
    made = _as_learned(pool, job, group, make_plan(checked_job(job), caps))
    if job.memory is None:
        return made
    room, reason = adapter.room_for_chunks(job.memory)
    return made if room is None else with_memory(made, room, reason)


def _as_learned(pool: Pool, job: Job[Any], group: RunGroup, made: Plan) -> Plan:
    """The plan by what is known of the job's function, or by the size of its range."""
    tunables = pool.adapter.tunables
    pacing = pacing_of(job, made.threads, learns(job, group, tunables), None)
    if isinstance(pacing, EvenPacing):
        return with_even_pieces(made, pacing.piece)
    lesson = _lesson(pool, job, made.threads, group)
    if lesson is None:
        return made
    begins = beginning(job, made.threads, group, tunables, lesson)
    advice = gil_advice() if begins.holds_gil else ""
    return with_learned(made, job, begins.chunk, begins.level, advice)


def _lesson(pool: Pool, job: Job[Any], threads: int, group: RunGroup) -> Lesson | None:
    """What is remembered of the job, in this process or on disk.

    A loop's thread does not wait for the disk: it gets what was read by now.
    """
    tunables, lessons = pool.adapter.tunables, pool.state.lessons
    wanted = learns(job, group, tunables)
    where = wanted != "nothing" and remembers(job, group, tunables)
    if not where or not pacing_of(job, threads, wanted, None).learns:
        return None
    key = key_of(job, threads)
    lesson = lessons.get(key)
    if lesson is not None or not isinstance(where, str) or lessons.knows(where, key):
        return lesson
    reading = Reading(Source(where, key, 0))
    pool.archive.fetch(reading)
    if running_loop() is None and not (local.inside or pool.state.closing):
        reading.parking.wait(PLAN_SECONDS)
    return reading.found


class _Abandoned:
    """Cancels a run whose owner will not take the result, since a loop dropped its wake-up."""

    __slots__ = ("_pool", "_run")

    def __init__(self, pool: Pool, run: Run) -> None:
        self._pool = pool
        self._run = run

    def __call__(self) -> None:
        self._pool.cancel(self._run)
