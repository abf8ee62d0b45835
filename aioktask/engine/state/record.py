# SPDX-License-Identifier: MIT
# What is told of a run: figures while it goes and when it succeeded, and what is left when it did
# not.
#
# The functions read a run and do not change it: most in turns, `progress`, `what_is_left` and
# `report_of_one_chunk` without the lock, too.
"""Reports, progress and failures of runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from aioktask.engine.learning.pacing import learned_with_given_size
from aioktask.engine.machine.imported import imported
from aioktask.engine.raised import told_of_error
from aioktask.engine.ranges.undo import merge, subtract
from aioktask.errors import UndoFailed, name_of_class
from aioktask.job import (
    OVER_PHASES,
    Failure,
    JobPhase,
    Labels,
    Progress,
    Report,
    StreamProgress,
    eta_of,
    set_failure,
    told_within,
)
from aioktask.status import Kind
from aioktask.timeline import Timeline

if TYPE_CHECKING:
    from aioktask.engine.state.growth import Tally
    from aioktask.engine.state.run import Run
    from aioktask.engine.state.stint import Stint
    from aioktask.engine.state.terms import Expiry


def report(run: Run) -> Report[Any]:
    """The report of a run that succeeded."""
    first = run.first_claim
    return Report(
        value=run.value,
        peak_threads=run.peak_threads,
        chunks=run.chunks_done,
        queued=(first - run.submitted_at) / 1e9 if first else 0.0,
        elapsed=max(run.last_chunk - first, 0) / 1e9 if first else 0.0,
        cpu_time=sum([cpu for _, cpu in run.used]) / 1e9,
        busy=tuple(sorted([wall / 1e9 for wall, _ in run.used], reverse=True)),
        learned=run.sweep.pacing.learned(
            run.sweep.claims.chunk, min(run.threads_planned, run.limit)
        ),
        lent=run.lent,
        timeline=timeline(run),
    )


def report_of_one_chunk(
    run: Run, stint: Stint, value: object, now: int, cpu: int, threads: int
) -> Report[Any]:
    """The report of a run whose one chunk passed the lane.

    Args:
        run: The run.
        stint: Of the helper that walked it.
        value: What the run made.
        now: When the chunk ended, in ns.
        cpu: Its CPU time, in ns.
        threads: How many there could have been.
    """
    first = stint.entered_at
    elapsed = (now - first) / 1e9
    told: Report[Any] = object.__new__(Report)
    told.__dict__.update(  # a frozen class sets its fields one by one, in three times the time
        value=value,
        peak_threads=1,
        chunks=1,
        queued=(first - run.submitted_at) / 1e9,
        elapsed=elapsed,
        cpu_time=cpu / 1e9,
        busy=(elapsed,),
        learned=learned_with_given_size(run.only_chunk, threads, False),
        lent="no",
        timeline=None,
    )
    return told


def lent_seconds(run: Run) -> dict[str, float]:
    """For an event: how long one of its threads had the nice of a waiter, if one had."""
    lent = run.lent_ns
    if run.lent_since:
        lent += perf_counter_ns() - run.lent_since
    return {"lent": lent / 1e9} if lent else {}


def figures_of_failure(run: Run) -> dict[str, object]:
    """For the event of a run that failed or was cancelled: what the report of others says.

    `undoing` is the time that the undo took, which is there only where there was something to undo;
    `why` says of a run that was cancelled since a time had passed whether it was "timed out", or
    "overloaded" where no chunk of it had begun.
    """
    first, now = run.first_claim, perf_counter_ns()
    figures: dict[str, object] = {
        "elapsed": max(run.last_chunk - first, 0) / 1e9 if first else 0.0,
        "queued": ((first or now) - run.submitted_at) / 1e9,
        "chunks": run.chunks_done,
        "threads": run.peak_threads,
        **lent_seconds(run),
    }
    if run.undo_began:
        figures["undoing"] = (now - run.undo_began) / 1e9
    expiry: Expiry | None = run.decisions.get("expiry")
    if run.error is None and expiry is not None:
        figures["why"] = "timed out" if expiry.overloaded is None else "overloaded"
    return figures


# How often `progress` reads again where a turn changes what it reads. The thread of that turn may
# have lost its CPU, for longer than anybody should wait who only looks.
READS = 32


def progress(run: Run) -> Progress:
    """Where a run stands, the chunks that were walked of a stretch included.

    May be called on any thread, without the lock: `Run.version` is odd while a turn changes what is
    read here, and another number afterwards. The phase is read first, so of a run that it says is
    over all is counted. Where a turn stands still half-way, the walks under way are left out but
    for what was seen of them before, so no count goes back, and none is too high.
    """
    for _ in range(READS):
        version = run.version
        phase = phase_of(run)
        done, undone, chunks, threads = _read_progress(run)
        if run.version == version and not version & 1:
            _most_seen(run, (done, undone, chunks))
            break
    else:
        done, undone, chunks, threads = _read_progress(run, walks=False)
        done, undone, chunks = _most_seen(run, (done, undone, chunks))
    report = run.report
    if phase in ("settled", "finished") and run.growth is None:
        done = run.size
        chunks = chunks if report is None else report.chunks
    elapsed = _elapsed(run) if report is None else report.elapsed
    eta: float | None = None
    if phase in OVER_PHASES:
        eta, threads = 0.0, 0
    elif phase == "running":
        eta = eta_of(run.size - done, done, elapsed)
    elif phase == "undoing":
        failed = _units(piece for piece, _ in run.undo_errors)
        lasts = (perf_counter_ns() - run.undo_began) / 1e9
        eta = eta_of(done - undone - failed, undone, lasts)
    return Progress(
        done=done,
        size=run.size,
        threads=threads,
        chunks=chunks,
        elapsed=elapsed,
        rate=done / elapsed if elapsed > 0 else 0.0,
        phase=phase,
        undone=undone,
        eta=eta,
    )


def phase_of(run: Run) -> JobPhase:
    """Where a run stands, as programs are told."""
    phase = run.phase.value  # once: a turn may go on to the next one meanwhile
    if phase == "done":
        return "finished" if run.failure is None else how_it_failed(run)
    if run.never_starts:
        return how_it_failed(run)
    if phase == "undo":
        return "undoing"
    if run.stopping or run.cancel_asked:
        return "stopping"
    if phase == "settled":
        return "finished" if run.ended else "settled"  # ended: its owner has the result
    return "running" if run.first_claim else "waiting"


def _most_seen(run: Run, figures: tuple[int, int, int]) -> tuple[int, int, int]:
    """The most that was seen of each: units done, units undone and chunks, these figures included.

    Many may look at once, and a finalizer between any two steps of a look. So nothing is read,
    compared and written back, which might undo what another look wrote meanwhile: figures are added
    to a set, each in one step, and taken out once larger ones are in it.
    """
    seen: set[tuple[int, int, int]] = run.decisions.setdefault("seen", set())
    seen.add(figures)
    found = seen.copy()
    most = (
        max([done for done, _, _ in found]),
        max([undone for _, undone, _ in found]),
        max([chunks for _, _, chunks in found]),
    )
    seen.add(most)
    for each in found:
        if each != most:
            seen.discard(each)
    return most


def _read_progress(run: Run, *, walks: bool = True) -> tuple[int, int, int, int]:
    """Units done, units undone, chunks and threads; `walks` counts what walks have come to."""
    done, undone, chunks = run.done_units, run.undone_units, run.chunks_done
    threads = walked = 0
    undoing = run.undoing
    for stint in list(run.stints.values()):
        if not stint.live:
            continue
        threads += 1
        position = stint.chunk_start
        if walks and position > stint.stretch_start:
            walked += position - stint.stretch_start
            if not undoing:
                chunks += stint.chunks_up_to(position)
    told = run.failure
    # A run that passed the lane was counted nowhere before it came to be undone.
    if told is not None:  # it is over
        undone = _units(told.undone)
        return max(done, undone), undone, chunks, threads
    if undoing:
        return max(done, _units(run.to_undo)), undone + walked, chunks, threads
    return done + walked, undone, chunks, threads


def _units(ranges: Iterable[range]) -> int:
    """How many units the ranges have: perhaps more than `len` can tell."""
    return sum([each.stop - each.start for each in ranges])


def _elapsed(run: Run) -> float:
    """Seconds from the first claim to the last chunk; until now where chunks are left."""
    if not run.first_claim:
        return 0.0
    end = perf_counter_ns() if run.working and run.unfinished else run.last_chunk
    return max(end - run.first_claim, 0) / 1e9


def timeline(run: Run) -> Timeline | None:
    """Which thread was at which part of the run when, until now, if that is kept. Any thread."""
    trace = run.trace
    if trace is not None:
        return trace.timeline(run, perf_counter_ns())
    told: Report[Any] | Failure | None = run.report or run.failure
    return None if told is None else told.timeline


def stream_progress(run: Run) -> StreamProgress:
    """Where a run stands whose range grows, by the items. On any thread."""
    assert run.growth is not None
    told, tally = progress(run), run.growth.tally()
    phase, elapsed = told.phase, told.elapsed
    eta: float | None = None
    if told.over:
        phase, eta = _how_a_stream_ended(phase, tally), 0.0
    elif tally.failed or tally.raised:
        phase = "stopping"
    elif phase == "waiting" and tally.done:  # the thread of the sync form takes items without units
        phase = "running"
    elif tally.size is not None and phase == "running":
        eta = eta_of(tally.size - tally.done, tally.done, elapsed)
    rate = tally.done / elapsed if elapsed > 0 else 0.0
    return StreamProgress(
        tally.done, tally.size, told.threads, elapsed, rate, phase, eta, tally.errors
    )


def _how_a_stream_ended(how: JobPhase, tally: Tally) -> JobPhase:
    """How, where its run ended like this."""
    # Who leaves by an exception cancels; and all may be done before the consumer has it.
    if tally.failed and how in ("finished", "cancelled"):
        return "failed"
    return "failed" if tally.raised and how == "finished" else how


class Ended(NamedTuple):
    """What is kept of a run that is over, for a while.

    Times are in ns, of the clock that `submitted_at` is of. Nothing in it refers to the run.
    """

    number: int
    kind: Kind
    name: str
    labels: Labels
    nice: int
    how: JobPhase
    submitted_at: int
    first_claim: int
    last_chunk: int
    ended_at: int
    done: int
    size: int | None  # None of a stream whose source did not come to its end
    chunks: int
    threads: int
    undone: int
    group: int  # the number of its group
    error: str  # what was raised, in words; empty where nothing was
    error_chunk: range | None  # that raised it
    errors: int  # for how many items of a stream `fn` raised
    part: bool  # whether it was a part of a job of another process


def kind_of(run: Run) -> Kind:
    """Whether it is a job, a stream or a call."""
    if run.growth is not None:
        return "stream"
    return "call" if run.job.single_call else "job"


def ended(run: Run, now: int) -> tuple[Any, ...]:
    """The items of an `Ended` for a run that is over now, or as good as that."""
    told = run.failure
    how = "finished" if run.report is not None and not run.stopping else how_it_failed(run)
    done: int = run.done_units
    size: int | None = run.size
    last_chunk = run.last_chunk
    errors = 0
    if run.growth is not None:
        tally = run.growth.tally()
        done, size = tally.done, tally.size
        last_chunk = now  # a calling thread may have been at an item until now
        how = _how_a_stream_ended(how, tally)
        errors = tally.errors
    # Else nothing was raised, or a stream was left before that came up.
    error, chunk = why_it_fails(run) if how in ("failed", "undo failed") else ("", None)
    return (
        run.number,
        kind_of(run),
        run.name,
        run.labels,
        run.nice,
        how,
        run.submitted_at,
        run.first_claim,
        last_chunk,
        now,
        done,
        size,
        run.chunks_done,
        run.peak_threads,
        0 if told is None else _units(told.undone),
        run.group.number,
        error,
        chunk,
        errors,
        run.is_part,
    )


def why_it_fails(run: Run) -> tuple[str, range | None]:
    """What was raised, in words, and by which chunk; empty and None where nothing was. Any thread.

    Of a run whose undo raised it is that, since it says why part of the run is still done.
    """
    undo_errors = run.undo_errors
    if undo_errors:
        where, error = undo_errors[0]
        return told_of_error(error), where
    raised = run.error
    if raised is not None:
        return told_of_error(raised), None if run.job.single_call else run.error_chunk
    return ("" if run.growth is None else run.growth.tally().error), None


def ended_in_lane(run: Run, last_chunk: int, now: int) -> tuple[Any, ...]:
    """The items of an `Ended` for a run of one chunk that passed the lane, and ended well.

    A plain tuple, since one is made for every short job.
    """
    size = run.size
    return (
        run.number,
        "call" if run.job.single_call else "job",
        run.name,
        run.labels,
        run.nice,
        "finished",
        run.submitted_at,
        run.first_claim,
        last_chunk,
        now,
        size,
        size,
        1,
        1,
        0,
        run.group.number,
        "",
        None,
        0,
        run.is_part,
    )


def how_it_failed(run: Run) -> JobPhase:
    """How a run ended that did not end well."""
    if run.undo_failed:
        return "undo failed"
    if run.error is not None:
        return "failed"
    expiry: Expiry | None = run.decisions.get("expiry")
    if expiry is None:
        return "cancelled"
    return "timed out" if expiry.overloaded is None else "overloaded"


def failure(run: Run) -> Failure:
    """The failure of a run that failed or was cancelled, after its undo."""
    undone = run.job.undo is not None and not run.broken
    kept = merge(piece for piece, _ in run.undo_errors)
    return Failure(
        job=run.job,
        chunk=run.error_chunk,
        errors=run.errors,
        done=kept if undone or run.broken else run.to_undo,
        undone=merge(piece for each in run.to_undo for piece in subtract(each, kept) if undone),
        unknown=run.unknown,
        inner=None if run.error is None else told_within(run.error, run.number),
        timeline=timeline(run),
    )


def undo_failed(run: Run, told: Failure, cause: BaseException) -> UndoFailed:
    """The exception of a run whose undo raised."""
    failed = UndoFailed(
        f"undo of the job {run.name!r} failed, so part of it is still done",
        [error for _, error in run.undo_errors],
        told.done,
    )
    failed.__cause__ = cause
    set_failure(failed, told, run.parent_number)
    return failed


def left(run: Run) -> tuple[range, ...]:
    """The ranges that may be done and are not undone yet."""
    sweep = run.sweep  # once: a turn may go on to the undo meanwhile
    free = [range(*each) for each in list(sweep.claims.free)]
    if not sweep.undoes:
        return subtract(range(run.job.start, run.job.stop), free)
    kept = [piece for piece, _ in run.undo_errors]
    walking = [range(each.stretch_start, each.stretch_stop) for each in list(run.stints.values())]
    return merge([*kept, *walking, *free])


def what_is_left(run: Run) -> str:
    """The message for a caller that gives up waiting for the run."""
    ranges = ", ".join(f"{each.start} to {each.stop}" for each in left(run)) or "nothing"
    return f"gave up waiting for the job {run.name!r}; may be done and not undone yet: {ranges}"


def raisable(error: BaseException, raiser: str = "the job's function") -> BaseException:
    """`error`, or a RuntimeError in its place where it would be misread when a waiter raises it.

    A StopIteration, StopAsyncIteration or GeneratorExit would end the waiter's coroutine or
    iterator, and a loop's cancellation would read as one of the waiter.
    """
    trio = imported("trio")
    misread: tuple[type[BaseException], ...] = (
        StopIteration,
        StopAsyncIteration,
        GeneratorExit,
        asyncio.CancelledError,
    )
    if trio is not None:
        misread = (*misread, trio.Cancelled)
    if not issubclass(type(error), misread):  # an instance might say that it is another's
        return error
    wrapped = RuntimeError(f"{raiser} raised {name_of_class(type(error))}")
    wrapped.__cause__ = error
    return wrapped
