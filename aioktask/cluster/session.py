# SPDX-License-Identifier: MIT
# One job on the workers of a coordinator: what follows from each message.
#
# Pure: a message and the time in, commands out; no thread, lock, loop or clock. README.md beside
# this file has the states. Guarantees that a unit is sent again only where it cannot have been
# begun, was given back, or the job is idempotent; and that the session is over only when every
# worker has said where its units stand, or is lost. Relies on the carrier for saying once that a
# worker joined, once that it is lost, and nothing of it after that.
"""What a coordinator decides about a job."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from aioktask.cluster.fate import Fate, Rules, of_cut_short, of_leaving, of_lost
from aioktask.cluster.job import (
    ClusterJob,
    Home,
    WorkerLost,
    checked_homes,
)
from aioktask.cluster.members import Member, Sent
from aioktask.cluster.messages import (
    Began,
    Cancel,
    Close,
    Closed,
    Command,
    Ended,
    Joined,
    Leaves,
    Limit,
    Lost,
    Message,
    Open,
    Opened,
    OpenFailed,
    Progressed,
    Recall,
    Renice,
    Run,
    Stretch,
    Undo,
    Undone,
)
from aioktask.cluster.packing import unpacked, unpacked_error
from aioktask.cluster.plan import FreeRange, Rates, fair_units, shortest, worth_recalling
from aioktask.cluster.reducing import Reducing
from aioktask.cluster.standing import Decision, Outcome, Standing
from aioktask.engine.ranges.undo import merge, subtract
from aioktask.engine.state.record import raisable
from aioktask.errors import ChunkCancelled, UndoFailed
from aioktask.job import set_failure
from aioktask.timeline import Stretch as Drawn

__all__ = ["Decision", "Orders", "Outcome", "Session"]

Orders = list[tuple[str, Command]]  # to which worker, what

# Workers tell of a stretch about so often, in seconds; all of them together this often a second.
TELL_EVERY = 0.25
TELLS_A_SECOND = 500
# A job whose last worker is gone waits so long for another one, where one may come, in seconds.
PATIENCE = 60.0


class Session(Standing):
    """One job.

    Args:
        name: Of the session, on all workers.
        job: What to run.
        packed: The same for workers.
        decision: How it ends, which others may decide too.
        now: In seconds, on the clock that `hear` is told.
        may_join: Whether workers may come that are not there yet.
        owned: Whether it is not over, and may be cancelled still, until `commit`.
        outside: What functions of the program are called within: others may read meanwhile.
    """

    def __init__(
        self,
        name: str,
        job: ClusterJob[Any],
        packed: bytes,
        *,
        decision: Decision,
        now: float,
        may_join: bool = False,
        owned: bool = False,
        outside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(job, decision, now)
        self.name = name
        self.max_threads = job.max_threads
        self._packed = packed
        self._may_join = may_join
        self._owned = owned
        self._outside = outside
        self._homeless_since = now
        self._leases = 0
        self._losses: list[WorkerLost] = []
        self._reducing: Reducing | None = None
        self._all_done = job.size == 0
        if job.reduce is not None and job.size:
            self._reducing = Reducing(job.start, job.size, job.leaf, job.reduce, name=job.name)

    # What happens.

    def start(
        self,
        now: float,
        workers: Iterable[Joined],
        lost: Lost | None = None,
        may_join: bool = True,
    ) -> Orders:
        """Begin.

        Args:
            now: The time.
            workers: Those that there are.
            lost: The last one that was.
            may_join: Whether others may come still, where they may at all.
        """
        if self.over:
            return []
        self._may_join = self._may_join and may_join
        self._homeless_since = now
        orders: Orders = []
        for joined in workers:
            orders += self._joined(joined)
        if not (self._members or self._may_join or self._all_done):
            orders += self._fail(self._no_worker(lost), now)
        return orders + self._after(now)

    def hear(self, message: Message, now: float) -> Orders:
        """What follows from a message."""
        if self.over:
            return []
        if isinstance(message, Joined):
            return self._joined(message)
        if isinstance(message, Lost) and not message.worker:
            self._may_join = False
            if self._runs():
                return self._fail(self._no_worker(message), now) + self._after(now)
            return []
        member = self._members.get(message.worker)
        if member is None or member.state == "lost":
            return []
        orders: Orders
        if isinstance(message, Began):
            orders = self._began(member, message, now)
        elif isinstance(message, Progressed):
            orders = self._progressed(member, message, now)
        elif isinstance(message, Ended):
            orders = self._ended(member, message, now)
        elif isinstance(message, Opened):
            orders = self._opened(member, message, now)
        elif isinstance(message, OpenFailed):
            self._members.gone(member, "closed")
            orders = []
            if not self._all_done:  # else it has nothing of the job
                orders = self._fail(self._told_by(member, message.error), now)
        elif isinstance(message, Lost):
            orders = self._lost(member, message, now)
        elif isinstance(message, Leaves):
            member.leaves = True
            orders = []
        elif isinstance(message, Undone):
            orders = self._undone_there(member, message, now)
        else:
            orders = self._closed(member, message, now)
        return orders + self._after(now)

    def end(self, error: BaseException, now: float) -> Orders:
        """Stop and undo, since that was decided."""
        if self.over or self._closing or self._error is not None:
            return []
        return self._stop(error, now) + self._after(now)

    def ruin(self, error: BaseException, *, reached: bool = True) -> Orders:
        """End at once, since a step of this session raised, or its workers were let go of.

        Nobody hears what becomes of it: so what was told is told on, but where a worker may undo
        it, and that and what workers have in hand is unknown.

        Args:
            error: What its waiters are given.
            reached: Whether workers can be told that they stop, undo and close.
        """
        kept = self._decision.how == "finished" and reached
        self._decision.decide("failed")
        self.over = True  # first: whatever is raised below, nobody waits for it any more
        self.phase = "failed"
        self.outcome = Outcome(None, error)
        error = raisable(error, "a step of the coordinator")
        self.outcome = Outcome(None, error)
        orders: Orders = []
        for member in self._members.present():
            if not kept:
                orders += [(member.name, Cancel(self.name)), (member.name, Undo(self.name))]
            orders.append((member.name, Close(self.name)))
            doubtful = [each.stretch.range for each in member.sent]
            member.sent.clear()
            if self.job.undo is not None and not kept:
                doubtful += member.done
                member.done = ()
            left = [piece for each in merge(doubtful) for piece in subtract(each, member.done)]
            member.unknown = merge((*member.unknown, *left))
        set_failure(error, self._failure([*self._errors, *self._undo_errors]))
        return orders

    def commit(self, now: float) -> Orders:
        """What is done stays done: the owner of a session that had settled decided that."""
        if self.over or self._closing:
            return []
        return self._close() + self._after(now)

    def renice(self, nice: int) -> Orders:
        """From now on this is the job's nice."""
        self.nice = nice
        return [(each.name, Renice(self.name, nice)) for each in self._members.present()]

    def limit(self, threads: int) -> Orders:
        """From now on so many threads at most serve it in each worker."""
        self.max_threads = threads
        return [(each.name, Limit(self.name, threads)) for each in self._members.present()]

    def tick(self, now: float) -> Orders:
        """What follows from the time: stragglers are called back, no worker is waited for long."""
        if self.over:
            return []
        orders = self._call_back(now)
        if self._deserted() and now - self._homeless_since >= PATIENCE:
            orders += self._fail(self._no_worker(), now)
        return orders + self._after(now)

    def next_look(self) -> float | None:
        """In how many seconds `tick` may find something; None where only messages can."""
        if self.over or self._closing:
            return None
        if self._deserted():
            return PATIENCE / 10
        waits = self.phase in ("waiting", "running") and self._members.any_idle()
        # Of many workers less often: a look takes longer, and what they have in hand as well.
        return shortest(self._members.there) if waits else None

    # Workers.

    def _joined(self, joined: Joined) -> Orders:
        if self._closing or self._all_done or self.phase not in ("waiting", "running"):
            return []
        self._members.join(joined)
        return [(joined.worker, Open(self.name, self._packed, self.nice))]

    def _opened(self, member: Member, message: Opened, now: float) -> Orders:
        member.threads, member.pid = message.threads, message.pid
        if member.state != "opening":
            return []
        member.state = "open"
        if self.phase not in ("waiting", "running"):
            return []
        if self._free is None:
            try:
                homes = self._homes()
            except BaseException as error:  # of a function of the program's
                return self._fail(raisable(error), now)
            self._free = FreeRange(self.job.start, self.job.stop, self.job.grain, homes)
        self._members.hunger(member)
        return self._feed(now)

    def _homes(self) -> Sequence[Home]:
        homes = self.job.homes
        if not callable(homes):
            return homes
        workers = self.workers()
        with self._outside():
            return checked_homes(homes(workers), self.job.start, self.job.stop)

    def _lost(self, member: Member, message: Lost, now: float) -> Orders:
        closed = member.state == "closed"
        self._members.gone(member, "lost")
        member.lost = message.reason
        if closed:  # it had said that it is through
            return []
        begun = [each for each in member.sent if each.began_at is not None or not message.all_heard]
        ready = [each for each in member.sent if each not in begun]
        undoing, member.undoing = member.undoing, False
        fate = of_lost(
            self._rules(),
            [each.stretch.range for each in begun],
            [each.stretch.range for each in ready],
            member.done,
            may_undo=message.may_undo,
            undoing=undoing,
            leaves=member.leaves,
            closes=self._closing and self.job.close is not None,
        )
        return self._befalls(member, fate, now)

    def _rules(self) -> Rules:
        return Rules(
            undo=self.job.undo is not None,
            idempotent=self.job.idempotent,
            reduce=self._reducing is not None,
            runs=self._runs(),
            fails=self._error is not None,
        )

    def _befalls(self, member: Member, fate: Fate, now: float) -> Orders:
        """What follows from what became of the units of a worker that is gone."""
        member.sent.clear()
        member.done = fate.done
        member.undone = merge((*member.undone, *fate.undone))
        member.unknown = merge((*member.unknown, *fate.unknown))
        self._doubtful = merge((*self._doubtful, *fate.doubtful))
        self._done -= sum(map(len, fate.redone))
        self._undone += sum(map(len, fate.undone))
        orders: Orders = []
        if fate.when:
            error = self._worker_lost(member, fate)
            if fate.undo_failed:
                self._undo_errors.append(error)
            else:
                orders += self._fail(error, now)
        return orders + self._go_on_without(fate.free, now)

    def _go_on_without(self, again: Sequence[range], now: float) -> Orders:
        """What follows where a worker is gone, and these units of its are to be done elsewhere."""
        orders: Orders = []
        if again and self._free is not None and self._runs():
            self._free.give_back(merge(again))
            orders += self._feed(now)
        if not self._members.there:
            self._homeless_since = now
            if not self._may_join and self._runs():
                orders += self._fail(self._no_worker(), now)
        return orders

    def _told_by(self, member: Member, error: bytes) -> BaseException:
        """What a worker raised. To make it anew may run code of its class, for any time."""
        with self._outside():
            raised = unpacked_error(error, member.name)
        self._raised.append((raised, member.name))
        return raised

    def _worker_lost(self, member: Member, fate: Fate) -> WorkerLost:
        text = f"the worker {member.name!r} {member.lost} {fate.when}"
        if fate.where:
            text += ": " + ", ".join(f"{each.start} to {each.stop}" for each in fate.where)
        if fate.redoable:
            text += "; with ClusterJob(idempotent=True) other workers do them again"
        error = self._loss(text, member.name)
        self._raised.append((error, member.name))
        return error

    def _no_worker(self, lost: Lost | None = None) -> WorkerLost:
        gone = [
            Lost(each.name, each.lost, all_heard=True, may_undo=False)
            for each in self._members
            if each.lost
        ]
        last = gone[-1] if gone else lost
        if last is None:
            return self._loss(f"no worker came for the job {self.job.name!r}", "")
        who = f"the worker {last.worker!r}" if last.worker else "workers"
        text = f"no worker is left for the job {self.job.name!r}: {who} {last.reason}"
        return self._loss(text, last.worker)

    def _loss(self, text: str, worker: str) -> WorkerLost:
        """An error of this session's own: a chunk may raise one of another job's."""
        error = WorkerLost(text, worker)
        self._losses.append(error)
        return error

    def _fails_by_loss(self) -> bool:
        """Whether what it fails with is that a worker of its own was lost."""
        return any(each is self._error for each in self._losses)

    def _deserted(self) -> bool:
        return self._runs() and not self._members.there

    # Stretches.

    def _feed(self, now: float) -> Orders:
        """Stretches for all who have less than two."""
        free = self._free
        if free is None or self.phase not in ("waiting", "running"):
            return []
        orders: Orders = []
        rates = self._members.rates()
        for most in (1, 2):  # nobody gets a second one while another has none
            for member in self._members.hungry():
                if not free.units:
                    return orders
                while len(member.sent) < most:
                    order = self._next_stretch(member, free, rates, now)
                    if order is None:
                        break
                    orders.append((member.name, order))
                if len(member.sent) == 2:
                    self._members.sated(member)
        return orders

    def _next_stretch(
        self, member: Member, free: FreeRange, rates: Callable[[], Rates], now: float
    ) -> Run | None:
        """A stretch for a worker, that has it from now on; None where it should take nothing."""
        workers = self._members.there
        units = fair_units(
            free.units,
            member.taker.rate,
            self._members.total_rate,
            self._members.measured,
            workers,
            self.job.grain,
        )
        taken = free.take(member.taker, units, rates)
        if taken is None:
            return None
        if self.unknown_homes is None and (where := free.home_of(taken.start)):
            known = self._members.known
            if where.isdisjoint(known):
                self.unknown_homes = free.unknown(known), frozenset(known)
        self._leases += 1
        stretch = Stretch(taken.start, taken.stop, member.name, f"{self.name}.{self._leases}")
        every = max(TELL_EVERY, workers / TELLS_A_SECOND)
        member.sent.append(Sent(stretch, now, every))
        return Run(self.name, stretch, every, self.nice, self.max_threads)

    def _began(self, member: Member, message: Began, now: float) -> Orders:
        sent = member.sent_as(message.lease)
        if sent is not None:
            sent.began_at = sent.told_at = now
            member.stretches += 1
            if self.phase == "waiting":
                self.phase = "running"
            if self._first_at is None:
                self._first_at = now
        return []

    def _progressed(self, member: Member, message: Progressed, now: float) -> Orders:
        sent = member.sent_as(message.lease)
        if sent is not None:
            passed = now - sent.told_at
            if passed > 0:
                sent.pace = (message.done - sent.done) / passed
            sent.done, sent.told_at, sent.threads = message.done, now, message.threads
            sent.waits_for = message.waits_for
        return []

    def _ended(self, member: Member, message: Ended, now: float) -> Orders:
        sent = member.sent_as(message.lease)
        if sent is None or message.how == "used":  # what became of it is told by another message
            return []
        if sent.began_at is not None:
            self._draw(self._drawn_of(member, sent, now, sum(map(len, message.done))))
        if message.how in ("cancelled", "refused"):  # asked for, or the worker leaves
            self._members.sated(member)
        done, unknown = merge(message.done), merge(message.unknown)
        units = sum(map(len, done))
        member.done = merge((*member.done, *done))
        self._surely(done)
        cut_short = None
        if unknown and message.how == "cancelled":
            cut_short = of_cut_short(self._rules(), unknown)
            self._doubtful = merge((*self._doubtful, *cut_short.doubtful))
            unknown = cut_short.unknown
        member.unknown = merge((*member.unknown, *unknown))
        member.sent.remove(sent)  # now: nothing of it is forgotten where that above raises
        member.chunks += message.chunks
        member.busy += message.seconds
        member.cpu_time += message.cpu_time
        member.most_threads = max(member.most_threads, message.threads)
        self._done += units
        self._chunks += message.chunks
        self._last_at = now
        self._members.measure(member, units, message.seconds)
        orders: Orders = []
        raised = [self._told_by(member, each) for each in message.errors]
        if self._error is not None:  # so a chunk that asked whether it is wanted was to stop
            raised = [each for each in raised if not issubclass(type(each), ChunkCancelled)]
        for error in raised:
            orders += self._fail(error, now)
        if raised and self._error is raised[0]:
            self._chunk = message.chunk
        if message.nodes and self._reducing is not None and self._error is None:
            try:
                with self._outside():
                    self._reducing.take(unpacked(message.nodes))
            except BaseException as error:  # of a function of the program's
                orders += self._fail(raisable(error), now)
        if self.phase in ("waiting", "running") and self._free is not None:
            left = subtract(sent.stretch.range, (*done, *unknown))
            if unknown and not raised:
                orders += self._fail(self._why_cut_short(member, cut_short), now)
            else:
                self._free.give_back(left)
                if member.state == "open" and message.how not in ("cancelled", "refused"):
                    self._members.hunger(member)
                orders += self._feed(now)
        return orders

    def _why_cut_short(self, member: Member, fate: Fate | None) -> BaseException:
        """What a chunk stands for that raised nothing and is not done, where the job runs."""
        if fate is not None:  # it asked whether it is wanted, and the worker leaves
            member.lost = "left the cluster"
            return self._worker_lost(member, fate)
        # It raised ChunkCancelled by itself.
        return RuntimeError(f"a chunk of the job {self.job.name!r} stopped by itself")

    def _surely(self, done: Sequence[range]) -> None:
        """These are done, whatever became of them on a worker that is gone."""
        if self._doubtful:
            self._doubtful = merge(
                piece for each in self._doubtful for piece in subtract(each, done)
            )

    def _call_back(self, now: float) -> Orders:
        """Where workers are idle: the stretches of those that would end last."""
        idle = self._members.idle()
        free = self._free
        if not idle or free is None or not self._runs():
            return []
        late = []
        for member in self._members:
            if member.sent and not all(each.recalled for each in member.sent):
                left = member.seconds_left(now)
                if worth_recalling(left, self._members.there):
                    late.append((left, member))
        late.sort(key=lambda each: each[0], reverse=True)
        orders: Orders = []
        names = frozenset[str]().union(*(each.taker.names for each in idle))
        rates = self._members.rates()
        called = 0
        for left, member in late:
            if called == len(idle):
                break
            # Who is idle since all that is left is at home elsewhere would not take it either.
            if not free.any_takes(names, member.sent[-1].stretch.range, left, rates):
                continue
            called += 1
            for sent in member.sent:
                if not sent.recalled:
                    sent.recalled = True
                    orders.append((member.name, Recall(self.name, sent.stretch.lease)))
        return orders

    def _draw_undo(self, member: Member, undone: Sequence[range], now: float) -> None:
        end = now - self._submitted_at
        begin = end if self._undo_from is None else self._undo_from - self._submitted_at
        for each in undone:
            piece = Drawn(
                member.number, begin, end, each.start, each.stop, 0, "undo", self.nice, False
            )
            self._draw(piece)

    def _draw(self, stretch: Drawn) -> None:
        self._drawn_in_all += 1
        self._drawn.append(stretch)

    # The end.

    def _fail(self, error: BaseException, now: float) -> Orders:
        if self._error is not None:
            self._errors.append(error)
        elif not self._closing and self._decision.decide("failed"):
            return self._stop(error, now)
        elif self._decision.how == "finished":
            # All was done, and a part is so no more. Who was told to close undoes nothing now.
            self._error = error
        else:  # a cancel came first, and is on its way
            self._errors.append(error)
        return []

    def _stop(self, error: BaseException, now: float) -> Orders:
        """No stretch begins any more, and chunks that run are the last ones."""
        self._error = error
        self._all_done = False
        self.phase = "stopping"
        self._last_at = self._last_at or now
        if self._free is not None:
            self._free.drop()
        self._members.all_sated()
        return [(each.name, Cancel(self.name)) for each in self._members.present()]

    def _after(self, now: float) -> Orders:
        """What follows where the last message was the last one that the phase waited for."""
        orders: Orders = []
        members = list(self._members)
        if not self._closing and self.phase in ("waiting", "running"):
            if not self._all_done:
                nothing_free = self._free is not None and not self._free.units
                self._all_done = nothing_free and not any(each.sent for each in members)
            if self._all_done and self._owned:
                self.phase = "settled"
            elif self._all_done and self._decision.decide("finished"):
                orders += self._close()
        if self.phase == "stopping" and not any(each.sent for each in members):
            self.phase = "undoing"
            self._undo_from = now
            if self.job.undo is not None:
                for each in members:
                    if each.done and each.there:
                        each.undoing = True
                        self._undo_until = now
                        orders.append((each.name, Undo(self.name)))
        undoing = self.phase == "undoing" and not self._closing
        if undoing and not any(each.undoing for each in members):
            orders += self._close()
        # Not for one that makes its data still: it closes that when it is through, and has nothing.
        if self._closing and not any(each.state == "open" for each in members):
            self._conclude(now)
        return orders

    def _undone_there(self, member: Member, message: Undone, now: float) -> Orders:
        errors = [self._told_by(member, each) for each in message.errors]
        asked, member.undoing = member.undoing, False
        self._draw_undo(member, message.undone, now)
        self._undo_errors += errors
        member.undo_raised = member.undo_raised or bool(errors)
        member.half_undone = merge((*member.half_undone, *message.unknown))
        member.unknown = merge((*member.unknown, *message.unknown))
        self._undo_until = now
        if asked:
            member.done = merge(message.kept)
            member.undone = merge((*member.undone, *message.undone))
            self._undone += sum(map(len, message.undone))
            return []
        # A worker that leaves undoes first, since nobody could later. It begins nothing more, and
        # said so of all that it had begun.
        self._members.gone(member, "lost")
        member.lost = "left the cluster"
        ready = [each.stretch.range for each in member.sent]
        raised = bool(errors)
        fate = of_leaving(self._rules(), ready, message.kept, message.undone, undo_raised=raised)
        return self._befalls(member, fate, now)

    def _close(self) -> Orders:
        self._closing = True
        self._members.all_sated()
        return [(each.name, Close(self.name)) for each in self._members.present()]

    def _closed(self, member: Member, message: Closed, now: float) -> Orders:
        self._members.gone(member, "closed")
        if message.error:
            return self._fail(self._told_by(member, message.error), now)
        return []

    def _conclude(self, now: float) -> None:
        self.over = True
        error = self._error
        if error is None:
            self.phase = "finished"
            self.outcome = Outcome(self._report(self._value(), now), None)
            return
        left = merge(piece for each in self._members for piece in self._not_undone(each))
        if not self._fails_by_loss():
            left = merge((*left, *self._doubtful))
        if self.job.undo is not None and left and not self._all_done:
            self.phase = "undo failed"
            causes = self._undo_errors or [error]
            told = self._failure(self._errors)
            name = self.job.name
            text = f"undo of the job {name!r} failed, so part of it is still done, or may be"
            with self._outside():  # it tells of causes that are no Exception
                failed = UndoFailed(text, causes, left)
            failed.__cause__ = error
            set_failure(failed, told)
            self.outcome = Outcome(None, failed)
            return
        how = self._decision.how
        self.phase = "failed"
        if how in ("cancelled", "timed out", "overloaded"):
            self.phase = how
        set_failure(error, self._failure([*self._errors, *self._undo_errors]))
        self.outcome = Outcome(None, error)

    def _value(self) -> Any:
        if self.job.reduce is None:
            return None
        with self._outside():
            reducing = self._reducing
            return copy.deepcopy(self.job.initial) if reducing is None else reducing.value()

    def _not_undone(self, member: Member) -> tuple[range, ...]:
        """What a worker's undo should have undone, and did not, or perhaps not.

        Of a job that failed because a worker was lost, that error says as much, unless a call of
        the undo raised.
        """
        if not member.lost:
            return merge((*member.done, *member.half_undone))
        if self._fails_by_loss() and not member.undo_raised:
            return ()
        return merge((*member.done, *member.unknown))
