# SPDX-License-Identifier: MIT
# Where a session stands, and what is told of that: reports, failures, states, progress, timelines.
#
# What is here only reads; the session, which is a `Standing` too, alone changes it. Relies on
# whoever reads on another thread than the session's to have the driver's lock.
"""How one job on workers stands."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aioktask.cluster.job import ClusterFailure, ClusterJob, ClusterReport, WorkerPart
from aioktask.cluster.members import Member, Members, Sent
from aioktask.cluster.plan import FreeRange
from aioktask.engine.ranges.undo import merge
from aioktask.job import JobPhase, Learned, Progress, eta_of
from aioktask.status import WorkerStatus
from aioktask.timeline import Stretch as Drawn
from aioktask.timeline import Timeline, TracedThread

__all__ = ["Decision", "Outcome", "Standing"]

# So many stretches are kept for a timeline, the last ones.
MOST_DRAWN = 4096

How = Literal["finished", "failed", "cancelled", "timed out", "overloaded"]


class Decision:
    """How a job ends. Decided once, in one step, on any thread: a `dict.setdefault`."""

    __slots__ = ("_decided",)

    def __init__(self) -> None:
        self._decided: dict[str, tuple[How]] = {}

    def decide(self, how: How) -> bool:
        """Whether this is how it ends: True for the first who asks, with what he asked for."""
        mine = (how,)  # an object of its own: two may ask for the same
        return self._decided.setdefault("end", mine) is mine

    @property
    def how(self) -> How | None:
        return self._decided.get("end", (None,))[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended.

    Attributes:
        report: Where all is done.
        error: Else what is raised.
    """

    report: ClusterReport[Any] | None
    error: BaseException | None


class Standing:
    """How one job stands.

    Attributes:
        job: The job.
        nice: As it was asked for last.
        phase: As in `Progress`.
        over: Whether all is said.
        outcome: How it ended, once it is over.
        unknown_homes: The names of homes that no worker has, once others are given their units;
            and by which names there are workers.
    """

    def __init__(self, job: ClusterJob[Any], decision: Decision, now: float) -> None:
        self.job = job
        self.nice = job.nice
        self.phase: JobPhase = "waiting"
        self.over = False
        self.outcome: Outcome | None = None
        self.unknown_homes: tuple[frozenset[str], frozenset[str]] | None = None
        self._decision = decision
        self._members = Members()
        self._free: FreeRange | None = None  # cut by homes when the first worker has its data
        self._closing = False
        # When what happened, on the clock of the session.
        self._submitted_at = now
        self._first_at: float | None = None
        self._last_at: float | None = None
        self._undo_from: float | None = None
        self._undo_until: float | None = None
        # Units, chunks, and what is drawn of them.
        self._done = 0
        self._undone = 0
        self._chunks = 0
        self._drawn: deque[Drawn] = deque(maxlen=MOST_DRAWN)
        self._drawn_in_all = 0
        # What workers that are gone may have done or begun, until another one has done it again.
        self._doubtful: tuple[range, ...] = ()
        # The first error, with the chunk that raised it, the further ones, and those of undo.
        self._error: BaseException | None = None
        self._chunk: range | None = None
        self._errors: list[BaseException] = []
        self._raised: list[tuple[BaseException, str]] = []  # in which worker each was
        self._undo_errors: list[BaseException] = []

    def _runs(self) -> bool:
        """Whether stretches may be sent still."""
        return self.phase in ("waiting", "running") and not self._closing

    def _report(self, value: Any, now: float) -> ClusterReport[Any]:
        parts = self.parts()
        first = now if self._first_at is None else self._first_at
        last = first if self._last_at is None else self._last_at
        chunks = max(self._chunks, 1)
        return ClusterReport(
            value=value,
            peak_threads=sum(each.threads for each in parts),
            chunks=self._chunks,
            queued=first - self._submitted_at,
            elapsed=last - first,
            cpu_time=sum(each.cpu_time for each in parts),
            busy=tuple(sorted((each.busy for each in parts), reverse=True)),
            learned=Learned(
                chunk=-(-self.job.size // chunks), threads=max(sum(p.threads for p in parts), 1)
            ),
            lent="no",
            workers=parts,
        )

    def _failure(self, errors: Sequence[BaseException]) -> ClusterFailure:
        parts = self.parts()
        return ClusterFailure(
            job=self.job,
            chunk=self._chunk,
            errors=tuple(errors),
            done=merge(piece for each in parts for piece in each.done),
            undone=merge(piece for each in parts for piece in each.undone),
            unknown=merge((*self._doubtful, *(piece for each in parts for piece in each.unknown))),
            workers=parts,
        )

    def parts(self) -> tuple[WorkerPart, ...]:
        """What each worker did."""
        return tuple(
            WorkerPart(
                name=each.name,
                host=each.host,
                done=each.done,
                undone=each.undone,
                unknown=each.unknown,
                stretches=each.stretches,
                chunks=each.chunks,
                busy=each.busy,
                cpu_time=each.cpu_time,
                threads=each.most_threads,
                lost=each.lost,
            )
            for each in self._members
        )

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The workers as they stand."""
        return tuple(
            WorkerStatus(
                name=each.name,
                host=each.host,
                pid=each.pid,
                threads=each.threads,
                state=each.state,
                running=each.running,
                units=sum(map(len, each.done)),
                rate=each.taker.rate or 0.0,
                working=sum(sent.threads for sent in each.sent),
                waits_for=self._worker_waits_for(each),
                lost=each.lost,
            )
            for each in self._members
        )

    def _worker_waits_for(self, member: Member) -> str:
        if self.over or not member.there:
            return ""
        if member.state == "opening":
            if self.job.setup is None:
                return "its process, which has not said that it is there"
            return "its data: setup() has not returned"
        if self._closing:
            return "close() to return" if self.job.close is not None else "its goodbye to come"
        if member.undoing:
            return ""
        if member.running is not None:
            return member.sent[0].waits_for
        if member.sent:
            return "its stretch to begin"
        if not self._runs():
            return "the other workers"
        return "units: others have them, or they are at home elsewhere"

    def waits_for(self) -> str:
        """What the job waits for, in words; empty where it waits for nothing."""
        there = self._members.present()
        if self.phase == "settled":
            return "whoever awaits it to take the result"
        if self._closing:
            return "" if self.over else "its workers to close their data"
        if self.phase == "stopping":
            return "the chunks that run to end"
        if self.phase not in ("waiting", "running"):
            return ""
        if not there:
            return "a worker to come"
        if self._free is None:
            what = "its process" if self.job.setup is None else "its data, as setup() returns"
            return f"the first of {len(there)} workers to have {what}"
        if self.phase == "waiting":
            return "its first chunk to begin"
        if any(each.threads for member in there for each in member.sent):
            return ""
        told = Counter(each.waits_for for member in there for each in member.sent)
        del told[""]
        if not told:
            return ""
        why, many = told.most_common(1)[0]
        return f"{why}, in " + (
            "its worker" if len(there) == 1 else f"{many} of {len(there)} workers"
        )

    def queued(self, now: float) -> float:
        """How long it has waited for its first chunk, or did, in seconds."""
        first = now if self._first_at is None else self._first_at
        return max(first - self._submitted_at, 0.0)

    def first_ago(self, now: float) -> float | None:
        """How long ago its first chunk began, in seconds; None where it has not."""
        return None if self._first_at is None else max(now - self._first_at, 0.0)

    def why_it_fails(self) -> tuple[BaseException | None, range | None]:
        """What was raised, and by which chunk; None where nothing was, or none did.

        Of a job whose undo raised it is that, since it says why part of the job is still done.
        """
        if self._undo_errors:
            return self._undo_errors[0], None
        how = self._decision.how
        if how in ("cancelled", "timed out", "overloaded") and self.phase != "undo failed":
            return None, None
        if self._error is not None:
            return self._error, self._chunk
        return None if self.outcome is None else self.outcome.error, None

    def worker_of(self, error: BaseException | None) -> str:
        """The worker that raised it, or that was lost; empty where none was."""
        return next((name for raised, name in self._raised if raised is error), "")

    @property
    def chunks(self) -> int:
        """How many chunks were done."""
        return self._chunks

    @property
    def peak_threads(self) -> int:
        """The most threads that worked on it, of all workers together."""
        return sum(each.most_threads for each in self._members)

    @property
    def undoing_seconds(self) -> float:
        """How long the undo took, or has taken as far as workers told."""
        if self._undo_from is None or self._undo_until is None:
            return 0.0
        return max(self._undo_until - self._undo_from, 0.0)

    def timeline(self, now: float) -> Timeline:
        """Which worker was at which stretches when, until now."""
        running = [
            self._drawn_of(member, each, now, each.done)
            for member in self._members
            for each in member.sent
            if each.began_at is not None
        ]
        stretches = sorted((*self._drawn, *running), key=lambda each: each.start)
        seen = {each.thread for each in stretches}
        end = self._undo_until or self._last_at
        return Timeline(
            name=self.job.name,
            size=self.job.size,
            seconds=(end if self.over and end is not None else now) - self._submitted_at,
            threads=tuple(
                TracedThread(each.number, each.name)
                for each in self._members
                if each.number in seen
            ),
            stretches=tuple(stretches),
            marks=(),
            lost=self._drawn_in_all - len(self._drawn),
        )

    def _drawn_of(self, member: Member, sent: Sent, now: float, done: int) -> Drawn:
        assert sent.began_at is not None
        first = sent.stretch.start
        begin, end = sent.began_at - self._submitted_at, now - self._submitted_at
        return Drawn(member.number, begin, end, first, first + done, 0, "work", self.nice, False)

    def progress(self, now: float) -> Progress:
        """Where the job stands."""
        members = self._members
        done = self._done + sum(each.done for member in members for each in member.sent)
        end = now if self.phase in ("waiting", "running") else self._last_at or now
        elapsed = 0.0 if self._first_at is None else max(end - self._first_at, 0.0)
        eta = eta_of(self.job.size - done, done, elapsed)
        if self.over:
            eta = 0.0
        elif self._undo_from is not None:
            eta = eta_of(done - self._undone, self._undone, now - self._undo_from)
        return Progress(
            done=done,
            size=self.job.size,
            threads=sum(each.threads for member in members for each in member.sent),
            chunks=self._chunks,
            elapsed=elapsed,
            rate=done / elapsed if elapsed > 0 else 0.0,
            phase=self.phase,
            undone=self._undone,
            eta=eta,
        )
