# SPDX-License-Identifier: MIT
# What the coordinator decides, on workers that exist in a simulated clock alone.

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask import ChunkCancelled, JobCancelled, UndoFailed, failure
from aioktask.bench.simulated import Simulation, covered_once, nothing
from aioktask.cluster import (
    ClusterFailure,
    ClusterJob,
    Home,
    WorkerLost,
    WorkerPart,
    WorkerStatus,
)
from aioktask.cluster.messages import (
    Began,
    Close,
    Closed,
    Ended,
    Joined,
    Leaves,
    Lost,
    Message,
    Opened,
    OpenFailed,
    Run,
    Stretch,
    Undone,
)
from aioktask.cluster.packing import packed, packed_error
from aioktask.cluster.session import Decision, Orders, Session

SIZE = 10_000_000


def a_job(**options: object) -> ClusterJob[None]:
    return ClusterJob(nothing, SIZE, name="job", **options)  # type: ignore[arg-type]


def rates(seed: int, workers: int, seconds: float) -> list[float]:
    """Rates from 1 to 4 of something, with which all together need so many seconds."""
    rng = random.Random(seed)
    shares = [rng.uniform(1, 4) for _ in range(workers)]
    return [share * SIZE / seconds / sum(shares) for share in shares]


def run_with(sim: Simulation, speeds: list[float]) -> Simulation:
    for number, rate in enumerate(speeds):
        sim.at(0.0, lambda n=number, r=rate: sim.join(f"w{n}", r))  # type: ignore[misc]
    sim.run()
    return sim


@pytest.mark.parametrize("workers", [1, 10, 100, 1000])
def test_workers_of_unlike_speed_end_together(workers: int) -> None:
    sim = run_with(Simulation(a_job()), rates(1, workers, 60.0))
    assert sim.session.phase == "finished"
    assert covered_once([piece for _, piece in sim.done], range(SIZE))
    assert sim.now <= 60.0 * 1.05


@given(st.integers(10, 80), st.integers(0, 2**32), st.floats(20.0, 600.0))
@settings(max_examples=7)
def test_little_time_is_lost_whatever_the_speeds(workers: int, seed: int, seconds: float) -> None:
    sim = run_with(Simulation(a_job()), rates(seed, workers, seconds))
    assert covered_once([piece for _, piece in sim.done], range(SIZE))
    assert sim.now <= seconds * 1.05


def test_messages_grow_with_workers_and_not_with_units() -> None:
    def commands(size: int, workers: int) -> int:
        sim = Simulation(ClusterJob(nothing, size))
        for number in range(workers):
            sim.at(0.0, lambda n=number: sim.join(f"w{n}", size / workers / 60))  # type: ignore[misc]
        sim.run()
        return sim.commands

    assert commands(10**9, 10) <= 1.1 * commands(10**6, 10)
    assert commands(10**9, 100) <= 100 * 60


def test_a_straggler_near_the_end_is_called_back() -> None:
    sim = Simulation(a_job())
    for number in range(10):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 600))  # type: ignore[misc]
    sim.at(30.0, lambda: sim.set_rate("w3", SIZE / 600 / 1000))
    sim.run()
    assert covered_once([piece for _, piece in sim.done], range(SIZE))
    assert sim.now <= 60.0 * 1.10


def test_a_job_that_is_not_idempotent_fails_with_its_worker_and_names_the_units() -> None:
    sim = Simulation(a_job(undo=nothing))
    for number in range(3):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 30))  # type: ignore[misc]
    sim.at(3.0, lambda: sim.lose("w1"))
    sim.run()
    outcome = sim.session.outcome
    assert outcome is not None
    assert isinstance(outcome.error, WorkerLost)
    told = failure(outcome.error)
    assert isinstance(told, ClusterFailure)
    parts = {part.name: part for part in told.workers}
    assert parts["w1"].unknown == told.unknown == tuple(sim.lost_running)
    assert parts["w1"].done  # it is gone, so nobody undoes that
    assert not parts["w1"].undone
    assert parts["w0"].undone
    assert not parts["w0"].done
    done = [piece for name, piece in sim.done if name != "w1"]
    assert sum(map(len, told.undone)) == sum(map(len, done))


def test_a_stretch_that_had_not_begun_is_not_unknown() -> None:
    sim = Simulation(a_job())
    sim.at(0.0, lambda: sim.join("w0", SIZE / 30))
    sim.at(0.0, lambda: sim.join("w1", SIZE / 30))
    sim.at(3.0, lambda: sim.lose("w1"))
    sim.run()
    assert sim.session.outcome is not None
    told = failure(sim.session.outcome.error)  # type: ignore[arg-type]
    assert told.unknown == tuple(sim.lost_running)


def test_where_not_all_was_heard_what_was_sent_is_unknown_too() -> None:
    sim = Simulation(a_job())
    sim.at(0.0, lambda: sim.join("w0", SIZE / 30))
    sim.at(0.0, lambda: sim.join("w1", SIZE / 30))
    sim.at(3.0, lambda: sim.lose("w1", all_heard=False))
    sim.run()
    assert sim.session.outcome is not None
    told = failure(sim.session.outcome.error)  # type: ignore[arg-type]
    assert sum(map(len, told.unknown)) > sum(map(len, sim.lost_running))


def test_a_worker_with_nothing_in_hand_is_let_go() -> None:
    sim = Simulation(a_job())
    for number in range(3):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 30))  # type: ignore[misc]
    sim.at(0.001, lambda: sim.lose("w2"))  # before it has its data
    sim.run()
    assert sim.session.phase == "finished"


def test_a_cancel_undoes_what_is_done() -> None:
    sim = Simulation(a_job(undo=nothing))
    for number in range(3):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 30))  # type: ignore[misc]
    sim.at(3.0, lambda: sim.cancel(JobCancelled("by the test")))
    sim.run()
    assert sim.session.outcome is not None
    error = sim.session.outcome.error
    assert isinstance(error, JobCancelled)
    told = failure(error)
    assert not told.done
    assert sum(map(len, told.undone)) == sum(len(piece) for _, piece in sim.done) > 0
    assert sim.session.progress(sim.now).phase == "cancelled"


def test_a_worker_that_dies_in_the_undo_makes_it_fail_and_its_units_unknown() -> None:
    sim = Simulation(a_job(undo=nothing), latency=0.5)
    for number in range(3):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 60))  # type: ignore[misc]
    sim.at(10.0, lambda: sim.cancel(JobCancelled("by the test")))
    sim.at(11.2, lambda: sim.lose("w1"))  # Undo is on its way
    sim.run()
    assert sim.session.outcome is not None
    error = sim.session.outcome.error
    assert isinstance(error, UndoFailed)
    told = failure(error)
    assert error.ranges == told.unknown != ()
    assert isinstance(told, ClusterFailure)
    assert {part.name for part in told.workers if part.unknown} == {"w1"}


def test_the_last_worker_ends_the_job_unless_another_may_come() -> None:
    sim = Simulation(a_job(idempotent=True))
    sim.at(0.0, lambda: sim.join("w0", SIZE / 30))
    sim.at(3.0, lambda: sim.lose("w0"))
    sim.run()
    assert sim.session.outcome is not None
    assert isinstance(sim.session.outcome.error, WorkerLost)

    sim = Simulation(a_job(idempotent=True), may_join=True)
    sim.at(0.0, lambda: sim.join("w0", SIZE / 30))
    sim.at(3.0, lambda: sim.lose("w0"))
    sim.at(20.0, lambda: sim.join("w1", SIZE / 30))
    sim.run()
    assert sim.session.phase == "finished"


def test_stretches_go_home_and_elsewhere_only_when_a_home_is_far_behind() -> None:
    half = SIZE // 2
    homes = [Home(0, half, "left"), Home(half, SIZE, "right")]

    def units_away(left_rate: float) -> int:
        sim = Simulation(a_job(homes=homes))
        sim.at(0.0, lambda: sim.join("a", left_rate, "left"))
        sim.at(0.0, lambda: sim.join("b", half / 30, "right"))
        sim.run()
        assert covered_once([piece for _, piece in sim.done], range(SIZE))
        return sum(len(piece) for name, piece in sim.done if (piece.start < half) != (name == "a"))

    assert units_away(half / 30) == 0
    assert units_away(half / 300) > half // 4


def test_who_is_at_home_nowhere_takes_from_a_home_only_when_that_is_far_behind() -> None:
    half = SIZE // 2
    homes = [Home(0, half, "left"), Home(half, SIZE, "right")]

    def units_of_others(others: int) -> int:
        sim = Simulation(a_job(homes=homes))
        for name, host in (("a", "left"), ("b", "right")):
            sim.at(0.0, lambda n=name, h=host: sim.join(n, half / 30, h))  # type: ignore[misc]
        for number in range(others):
            sim.at(0.0, lambda n=number: sim.join(f"c{n}", half / 30, "far"))  # type: ignore[misc]
        sim.run()
        return sum(len(piece) for name, piece in sim.done if name.startswith("c"))

    assert units_of_others(1) == 0
    assert units_of_others(6) > half // 4


def test_stretches_of_a_reduce_are_made_of_whole_leaves() -> None:
    job = ClusterJob(lambda a, b, d: 0, 100_003, start=7, reduce=int.__add__, chunk=10)
    homes = [Home(15, 5003, "x")]
    job = ClusterJob(lambda a, b, d: 0, 100_003, start=7, reduce=int.__add__, chunk=10, homes=homes)
    sim = Simulation(job)
    from aioktask.cluster.plan import FreeRange, Rates, Taker

    free = FreeRange(job.start, job.stop, job.grain, homes)
    edges = []
    while (taken := free.take(Taker(frozenset({"x"})), 333, lambda: Rates(()))) is not None:
        edges += [taken.start, taken.stop]
    assert all(edge % 10 == 0 for edge in edges if edge not in (job.start, job.stop))
    assert sim.session.job.leaf == 10


def settled(**options: object) -> Simulation:
    """A session with an owner in which all is done."""
    sim = Simulation(a_job(undo=nothing, **options), owned=True)
    sim.at(0.0, lambda: sim.join("w0", SIZE / 10))
    sim.run(ends=False)
    assert sim.session.phase == "settled"
    return sim


def test_an_owner_that_cancels_when_all_is_done_has_all_undone() -> None:
    sim = settled()
    sim.cancel(JobCancelled("by its owner"))
    sim.go_on()
    assert sim.session.outcome is not None
    assert failure(sim.session.outcome.error).undone == (range(SIZE),)  # type: ignore[arg-type]


def test_an_owner_that_commits_has_all_done_and_a_cancel_is_too_late() -> None:
    sim = settled()
    assert sim.decision.decide("finished")
    sim.apply(sim.session.commit(sim.now))
    sim.cancel(JobCancelled("too late"))
    sim.go_on()
    assert sim.session.outcome is not None
    assert sim.session.outcome.report is not None


def test_homes_may_be_told_by_a_function_when_workers_are_there() -> None:
    def homes(workers: Sequence[WorkerStatus]) -> list[Home]:
        return [Home(0, SIZE, workers[0].name)]

    sim = Simulation(a_job(homes=homes))
    for number in range(2):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 5))  # type: ignore[misc]
    sim.run()
    assert {name for name, _ in sim.done} == {"w0"}


def test_a_function_that_cannot_tell_homes_fails_the_job() -> None:
    def homes(workers: Sequence[WorkerStatus]) -> list[Home]:
        raise ZeroDivisionError("no homes")

    sim = Simulation(a_job(homes=homes))
    sim.at(0.0, lambda: sim.join("w0", SIZE / 30))
    sim.run()
    assert sim.session.outcome is not None
    assert isinstance(sim.session.outcome.error, ZeroDivisionError)


def test_few_long_units_are_shared_though_the_first_worker_was_sent_two() -> None:
    sim = Simulation(ClusterJob(nothing, 10))
    for number in range(10):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", 1 / 10))  # type: ignore[misc]
    sim.run()
    assert covered_once([piece for _, piece in sim.done], range(10))
    assert sim.now < 12.0


def three(sim: Simulation, seconds: float = 30.0) -> Simulation:
    """Three equal workers, which need about so long together."""
    for number in range(3):
        rate = SIZE / seconds / 3
        sim.at(0.0, lambda n=number, r=rate: sim.join(f"w{n}", r))  # type: ignore[misc]
    return sim


def error_of(sim: Simulation) -> BaseException:
    outcome = sim.session.outcome
    assert outcome is not None
    assert outcome.error is not None
    return outcome.error


def parts_of(error: BaseException) -> dict[str, WorkerPart]:
    told = failure(error)
    assert isinstance(told, ClusterFailure)
    return {part.name: part for part in told.workers}


def test_what_a_worker_did_that_may_have_undone_it_unseen_is_unknown() -> None:
    sim = three(Simulation(a_job(undo=nothing)))
    sim.at(10.0, lambda: sim.lose("w1", may_undo=True))
    sim.run()
    error = error_of(sim)
    assert isinstance(error, WorkerLost)
    part = parts_of(error)["w1"]
    assert part.done == ()
    had = {unit for name, piece in sim.done if name == "w1" for unit in (piece.start, piece[-1])}
    assert had
    assert all(any(unit in each for each in part.unknown) for unit in had)


def test_without_an_undo_what_a_lost_worker_did_stays_done() -> None:
    sim = three(Simulation(a_job(idempotent=True)))
    sim.at(10.0, lambda: sim.lose("w1", may_undo=True))
    sim.run()
    assert sim.session.phase == "finished"
    assert covered_once([piece for _, piece in sim.done], range(SIZE))


def test_an_idempotent_job_does_again_what_may_have_been_undone_unseen() -> None:
    sim = three(Simulation(a_job(undo=nothing, idempotent=True)))
    sim.at(10.0, lambda: sim.lose("w1", may_undo=True))
    sim.run()
    assert sim.session.phase == "finished"
    assert any(name == "w1" for name, _ in sim.done)
    assert covered_once([piece for name, piece in sim.done if name != "w1"], range(SIZE))
    outcome = sim.session.outcome
    assert outcome is not None
    assert outcome.report is not None
    assert sum(part.units for part in outcome.report.workers) == SIZE
    assert sim.session.progress(sim.now).done == SIZE


def test_an_idempotent_reduce_fails_where_values_that_it_has_may_be_undone() -> None:
    job = ClusterJob(
        lambda a, b, d: 0, SIZE, reduce=int.__add__, undo=nothing, idempotent=True, chunk=1000
    )
    sim = three(Simulation(job))
    sim.at(10.0, lambda: sim.lose("w1", may_undo=True))
    sim.run()
    assert isinstance(error_of(sim), WorkerLost)


def test_a_worker_that_leaves_has_its_units_done_elsewhere_once() -> None:
    sim = three(Simulation(a_job(undo=nothing)))
    sim.at(10.0, lambda: sim.leave("w1"))
    sim.run()
    assert sim.session.phase == "finished"
    assert any(name == "w1" for name, _ in sim.done)
    assert covered_once([piece for name, piece in sim.done if name != "w1"], range(SIZE))


def test_the_last_worker_that_leaves_ends_the_job_unless_another_may_come() -> None:
    sim = Simulation(a_job(undo=nothing))
    sim.at(0.0, lambda: sim.join("w0", SIZE / 30))
    sim.at(10.0, lambda: sim.leave("w0"))
    sim.run()
    assert isinstance(error_of(sim), WorkerLost)


def test_a_worker_that_leaves_before_it_was_told_to_close_makes_the_job_fail() -> None:
    sim = settled()
    assert sim.decision.decide("finished")
    sim.leave("w0")
    sim.apply(sim.session.commit(sim.now))
    sim.go_on()
    error = error_of(sim)
    assert isinstance(error, WorkerLost)
    assert failure(error).undone == (range(SIZE),)
    assert failure(error).done == ()


def test_a_worker_that_is_lost_before_it_closed_makes_what_it_may_have_undone_unknown() -> None:
    sim = settled()
    assert sim.decision.decide("finished")
    sim.apply(sim.session.commit(sim.now))
    sim.lose("w0", may_undo=True)
    sim.go_on()
    error = error_of(sim)
    assert isinstance(error, WorkerLost)
    assert failure(error).unknown == (range(SIZE),)


def test_a_worker_that_leaves_when_all_is_done_fails_a_job_that_is_not_committed() -> None:
    sim = settled()
    sim.leave("w0")
    sim.go_on()
    assert isinstance(error_of(sim), WorkerLost)
    assert failure(error_of(sim)).undone == (range(SIZE),)
    assert not sim.decision.decide("finished")


def test_an_owner_that_cancels_when_all_is_done_is_told_of_an_undo_that_failed() -> None:
    sim = settled()
    sim.workers["w0"].undo_raises = True
    sim.cancel(JobCancelled("by its owner"))
    sim.go_on()
    error = error_of(sim)
    assert isinstance(error, UndoFailed)
    assert error.ranges == (range(SIZE),)
    assert [str(each) for each in error.exceptions] == ["stays"]


def test_a_worker_that_dies_in_the_undo_is_told_beside_the_one_that_was_lost_first() -> None:
    sim = three(Simulation(a_job(undo=nothing)))
    sim.at(3.0, lambda: sim.lose("w1"))
    sim.at(3.007, lambda: sim.lose("w2"))  # Undo is on its way
    sim.run()
    error = error_of(sim)
    assert isinstance(error, WorkerLost)
    assert error.worker == "w1"
    others = [each for each in failure(error).errors if isinstance(each, WorkerLost)]
    assert [each.worker for each in others] == ["w2"]
    assert "while it undid" in str(others[0])


def test_units_of_a_lease_that_was_used_are_not_free() -> None:
    sim = three(Simulation(a_job()))

    def run_again() -> None:
        order = sim.workers["w0"].order
        assert order is not None
        sim._hear(Ended("s", "w0", order.stretch.lease, "used"))

    sim.at(10.0, run_again)
    sim.run()
    assert covered_once([piece for _, piece in sim.done], range(SIZE))


def test_nothing_is_called_back_for_a_worker_that_would_not_take_it() -> None:
    sim = Simulation(a_job(homes=[Home(0, SIZE, "left")]))
    sim.at(0.0, lambda: sim.join("a", SIZE / 5, "left"))
    sim.at(0.0, lambda: sim.join("b", SIZE / 5, "far"))
    sim.run()
    assert {name for name, _ in sim.done} == {"a"}
    assert sim.recalls == 0


def test_one_of_two_equal_workers_helps_with_a_long_home_of_the_other() -> None:
    sim = Simulation(a_job(homes=[Home(0, SIZE, "left")]))
    sim.at(0.0, lambda: sim.join("a", SIZE / 100, "left"))
    sim.at(0.0, lambda: sim.join("b", SIZE / 100, "far"))
    sim.run()
    assert covered_once([piece for _, piece in sim.done], range(SIZE))
    assert sim.now < 75


@pytest.mark.parametrize("redone", [False, True])
def test_what_a_lost_worker_may_have_undone_is_unknown_until_others_have_done_it_again(
    redone: bool,
) -> None:
    sim = Simulation(a_job(idempotent=True, undo=nothing))
    for number in range(2):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 100))  # type: ignore[misc]
    sim.at(10.0, lambda: sim.lose("w0", may_undo=True))
    if not redone:
        sim.at(10.1, lambda: sim.cancel(JobCancelled("cancelled")))
    sim.run()
    outcome = sim.session.outcome
    assert outcome is not None
    if redone:
        assert outcome.report is not None
        return
    assert isinstance(outcome.error, UndoFailed)
    told = failure(outcome.error)
    assert outcome.error.ranges == told.unknown
    lost = sum(len(units) for name, units in sim.done if name == "w0")
    assert sum(map(len, told.unknown)) >= lost > 0


def test_units_of_a_worker_that_leaves_are_done_again_only_where_it_told_of_its_undo() -> None:
    def ends(*, leaves: bool) -> BaseException | None:
        sim = Simulation(a_job(idempotent=True, undo=nothing))
        for number in range(2):
            sim.at(0.0, lambda n=number: sim.join(f"w{n}", SIZE / 100))  # type: ignore[misc]
        if leaves:
            sim.at(10.0, lambda: sim.apply(sim.session.hear(Leaves("w0"), sim.now)))
        sim.at(11.0, lambda: sim.lose("w0", may_undo=True))
        sim.run()
        assert sim.session.outcome is not None
        return sim.session.outcome.error

    assert ends(leaves=False) is None
    assert isinstance(ends(leaves=True), WorkerLost)


def test_what_a_worker_that_leaves_has_in_hand_is_not_done_again_where_it_may_be_undone() -> None:
    session = Simulation(a_job(idempotent=True, undo=nothing)).session
    session.start(0.0, [Joined("leaves", "here"), Joined("stays", "here")])
    orders = session.hear(Opened(session.name, "leaves", 1, 7), 0.0)
    run = next(command for _, command in orders if isinstance(command, Run))
    session.hear(Began(session.name, "leaves", run.stretch.lease), 0.1)
    session.hear(Leaves("leaves"), 0.2)
    session.hear(Lost("leaves", "is gone", all_heard=False, may_undo=True), 0.3)
    assert session.parts()[0].unknown[0].start == run.stretch.start
    assert session.phase != "running"


@pytest.mark.parametrize("first", ["closed", "failed"])
@pytest.mark.parametrize("owned", [False, True])
def test_a_setup_that_raises_once_all_is_done_fails_nothing(*, owned: bool, first: str) -> None:
    session = Session("s", a_job(), b"", decision=Decision(), now=0.0, owned=owned)
    session.start(0.0, [Joined("ready", "here"), Joined("late", "here")])
    ready, now = (session.name, "ready"), 0.0
    failed = OpenFailed(session.name, "late", packed_error(OSError("setup")))
    orders = session.hear(Opened(*ready, 1, 1), now)
    while not session._all_done:
        runs = [order for _, order in orders if isinstance(order, Run)]
        assert runs
        now, orders = now + 1.0, []
        for run in runs:
            lease, done = run.stretch.lease, (run.stretch.range,)
            session.hear(Began(*ready, lease), now)
            orders += session.hear(Ended(*ready, lease, "done", done=done, seconds=1.0), now)
    if owned:
        assert session.phase == "settled"
        session.hear(failed, now)
        session.commit(now)
        session.hear(Closed(*ready), now)
    else:
        last = [failed, Closed(*ready)] if first == "failed" else [Closed(*ready), failed]
        for message in last:
            session.hear(message, now)
    assert session.over
    assert session.outcome is not None
    assert session.outcome.error is None
    assert session.outcome.report is not None


def test_a_worker_that_makes_its_data_is_not_waited_for_at_the_end() -> None:
    session = Simulation(a_job()).session
    ready, late = Joined("ready", "here"), Joined("late", "here")
    session.start(0.0, [ready, late])
    now = 0.0
    orders = session.hear(Opened(session.name, "ready", 1, 1), now)
    while not session.over:
        assert orders
        now += 1.0
        following = []
        for _, order in orders:
            if isinstance(order, Run):
                stretch = order.stretch
                session.hear(Began(session.name, "ready", stretch.lease), now)
                ended = Ended(
                    *(session.name, "ready", stretch.lease, "done"),
                    done=(stretch.range,),
                    seconds=1.0,
                )
                following += session.hear(ended, now)
            elif isinstance(order, Close) and _ == "ready":
                following += session.hear(Closed(session.name, "ready"), now)
        orders = following
    assert session.outcome is not None
    assert session.outcome.report is not None
    assert session.hear(Opened(session.name, "late", 1, 2), now) == []


@pytest.mark.parametrize("redone", [False, True])
def test_a_chunk_cut_short_on_a_worker_that_leaves_is_unknown_until_others_have_done_it(
    redone: bool,
) -> None:
    job = ClusterJob(nothing, 100, chunk=100, undo=nothing, idempotent=True)
    decision = Decision()
    session = Session("s", job, b"", decision=decision, now=0.0)

    def stretch_for(worker: str, orders: Orders) -> Stretch:
        ours = [order for name, order in orders if name == worker and isinstance(order, Run)]
        return ours[0].stretch

    session.start(0.0, [Joined("a", "here"), Joined("b", "here")])
    given = stretch_for("a", session.hear(Opened("s", "a", 1, 1), 0.0))
    assert given.range == range(100)
    session.hear(Opened("s", "b", 1, 2), 0.0)
    session.hear(Began("s", "a", given.lease), 0.1)
    cut = Ended("s", "a", given.lease, "cancelled", unknown=(given.range,))
    orders = session.hear(cut, 0.2) + session.hear(Undone("s", "a", (), (), ()), 0.3)
    if redone:
        again = stretch_for("b", orders)
        session.hear(Began("s", "b", again.lease), 0.4)
        session.hear(Ended("s", "b", again.lease, "done", done=(again.range,)), 0.5)
        session.hear(Closed("s", "b"), 0.6)
        assert session.outcome is not None
        assert session.outcome.report is not None
        return
    assert decision.decide("cancelled")
    session.end(JobCancelled("by the test"), 0.4)
    again = stretch_for("b", orders)
    session.hear(Ended("s", "b", again.lease, "cancelled"), 0.5)
    session.hear(Closed("s", "b"), 0.6)
    assert session.outcome is not None
    error = session.outcome.error
    assert isinstance(error, UndoFailed)
    assert error.ranges == failure(error).unknown == (range(100),)


def test_where_workers_are_idle_the_session_looks_less_often_the_more_there_are() -> None:
    def looks_every(workers: int) -> float | None:
        session = Simulation(ClusterJob(nothing, 1)).session
        session.start(0.0, [Joined(f"w{number}", "here") for number in range(workers)])
        for number in range(workers):
            session.hear(Opened("s", f"w{number}", 1, 1), 0.0)
        return session.next_look()

    assert looks_every(2) == 0.05
    assert looks_every(400) == pytest.approx(0.4)


class Talk:
    """A session, and what each worker was told: the test says what workers say."""

    def __init__(self, job: ClusterJob[object], *workers: str) -> None:
        self.decision = Decision()
        self.session = Session("s", job, b"", decision=self.decision, now=0.0)
        self.orders = self.session.start(0.0, [Joined(each, "here") for each in workers])
        self.now = 0.0
        for worker in workers:
            self.say(Opened("s", worker, 1, 1))

    def say(self, message: Message) -> None:
        self.now += 0.1
        self.orders += self.session.hear(message, self.now)

    def stretches(self, worker: str) -> list[Stretch]:
        """Those that this worker was sent and has not told of."""
        member = self.session._members.get(worker)
        assert member is not None
        return [each.stretch for each in member.sent]

    def begun(self, worker: str) -> Stretch:
        """The worker begins its next stretch."""
        stretch = self.stretches(worker)[0]
        self.say(Began("s", worker, stretch.lease))
        return stretch

    def done(self, worker: str) -> Stretch:
        """The worker does its next stretch."""
        stretch = self.begun(worker)
        self.say(Ended("s", worker, stretch.lease, "done", (stretch.range,), seconds=0.1))
        return stretch

    def stop(self, *workers: str) -> None:
        """What these workers were sent and have not begun, they will not begin."""
        for worker in workers:
            for stretch in self.stretches(worker):
                self.say(Ended("s", worker, stretch.lease, "cancelled"))

    @property
    def error(self) -> BaseException:
        assert self.session.outcome is not None
        assert self.session.outcome.error is not None
        return self.session.outcome.error


PLANTED = packed_error(ArithmeticError("no sum"))


@pytest.mark.parametrize("how", ["recalled", "cancelled", "failed"])
def test_what_a_chunk_raised_fails_the_job_however_its_stretch_ended(how: Any) -> None:
    talk = Talk(ClusterJob(nothing, 100, chunk=1, undo=nothing), "a", "b")
    stretch, chunk = talk.begun("a"), range(0, 1)
    talk.say(Ended("s", "a", stretch.lease, how, (stretch.range,), errors=(PLANTED,), chunk=chunk))
    talk.stop("a", "b")
    talk.say(Undone("s", "a", (stretch.range,), (), ()))
    for worker in ("a", "b"):
        talk.say(Closed("s", worker))
    assert type(talk.error) is ArithmeticError
    told = failure(talk.error)
    assert (told.chunk, told.errors) == (chunk, ())
    assert told.undone == (stretch.range,)


def test_what_chunks_raise_after_a_cancel_is_among_the_errors() -> None:
    talk = Talk(ClusterJob(nothing, 100, chunk=1), "a")
    stretch = talk.begun("a")
    assert talk.decision.decide("cancelled")
    asked = packed_error(ChunkCancelled("it asked"))
    errors = (PLANTED, asked)  # the second one did what it was to do
    raised = Ended("s", "a", stretch.lease, "cancelled", unknown=(range(1),), errors=errors)
    talk.session.end(JobCancelled("by the test"), 1.0)
    talk.say(raised)
    talk.stop("a")
    talk.say(Closed("s", "a"))
    assert type(talk.error) is JobCancelled
    assert [type(each) for each in failure(talk.error).errors] == [ArithmeticError]


def test_what_a_chunk_raises_while_a_cancel_is_on_its_way_is_told_once() -> None:
    talk = Talk(ClusterJob(nothing, 100, chunk=1), "a")
    stretch = talk.begun("a")
    assert talk.decision.decide("cancelled")
    talk.say(Ended("s", "a", stretch.lease, "failed", unknown=(range(1),), errors=(PLANTED,)))
    talk.session.end(JobCancelled("by the test"), 1.0)
    talk.stop("a")
    talk.say(Closed("s", "a"))
    assert [type(each) for each in failure(talk.error).errors] == [ArithmeticError]


def test_there_is_no_value_where_that_of_a_leaf_never_came() -> None:
    talk = Talk(ClusterJob(lambda a, b, d: 0, 100, chunk=50, reduce=int.__add__), "a")
    first = talk.begun("a")
    nodes = packed([(0, 0, 50)])
    talk.say(Ended("s", "a", first.lease, "done", (first.range,), nodes=nodes))
    talk.done("a")
    assert talk.orders[-1] == ("a", Close("s"))
    with pytest.raises(RuntimeError, match="not all leaves"):
        talk.say(Closed("s", "a"))
    assert talk.session.outcome is None


STAYS = packed_error(OSError("stays"))
LOST = packed_error(WorkerLost("a worker of another job was lost", "z"))


def test_an_undo_that_raises_on_a_worker_that_leaves_makes_the_undo_fail() -> None:
    talk = Talk(ClusterJob(nothing, 100, chunk=1, undo=nothing), "a", "b")
    stretch = talk.done("a")
    talk.stop("a")
    talk.say(Undone("s", "a", (), (stretch.range,), (STAYS,)))
    talk.stop("b")
    talk.say(Closed("s", "b"))
    assert isinstance(talk.error, UndoFailed)
    assert talk.error.ranges == failure(talk.error).done == (stretch.range,)
    assert [type(each) for each in talk.error.exceptions] == [OSError]
    cause = talk.error.__cause__
    assert isinstance(cause, WorkerLost)
    assert str(cause).endswith(
        "and its undo raised, so part of what it had done is done still: 0 to 1"
    )


def test_what_an_undo_was_struck_at_is_unknown_and_makes_the_undo_fail() -> None:
    talk = Talk(ClusterJob(nothing, 100, chunk=1, undo=nothing), "a")
    stretch = talk.done("a")
    failing = talk.begun("a")
    talk.say(Ended("s", "a", failing.lease, "failed", errors=(PLANTED,)))
    talk.stop("a")
    talk.say(Undone("s", "a", (), (), (STAYS,), (stretch.range,)))
    talk.say(Closed("s", "a"))
    assert isinstance(talk.error, UndoFailed)
    told = failure(talk.error)
    assert talk.error.ranges == told.unknown == (stretch.range,)
    assert (told.done, told.undone) == ((), ())


def test_an_undo_that_raises_is_told_where_a_worker_was_lost_first_and_its_own_goes_too() -> None:
    talk = Talk(ClusterJob(nothing, 100, chunk=1, undo=nothing), "a", "b")
    stretch = talk.done("a")
    talk.begun("b")
    talk.say(Lost("b", "was killed", all_heard=True, may_undo=False))
    talk.stop("a")
    talk.say(Undone("s", "a", (), (stretch.range,), (STAYS,)))
    talk.say(Undone("s", "a", (), (stretch.range,), ()))  # it leaves, and has undone what it can
    assert isinstance(talk.error, UndoFailed)
    assert stretch.range in talk.error.ranges
    assert isinstance(talk.error.__cause__, WorkerLost)


@pytest.mark.parametrize("raised", [PLANTED, LOST])
def test_a_worker_that_dies_in_the_undo_makes_it_fail_whatever_a_chunk_raised(
    raised: bytes,
) -> None:
    talk = Talk(ClusterJob(nothing, 100, chunk=1, undo=nothing), "a", "b")
    stretch, bad = talk.done("a"), talk.begun("b")
    talk.say(Ended("s", "b", bad.lease, "failed", unknown=(bad.range,), errors=(raised,)))
    talk.stop("a", "b")
    talk.say(Lost("a", "was killed", all_heard=True, may_undo=False))
    talk.say(Closed("s", "b"))
    assert isinstance(talk.error, UndoFailed)
    assert talk.error.ranges == (stretch.range,)


REDUCES = {"reduce": int.__add__}
HINT = "; with ClusterJob(idempotent=True) other workers do them again"


@pytest.mark.parametrize(
    ("options", "how", "told"),
    [
        ({}, "dies", f"'a' was killed with units that nobody knows of: 0 to 1{HINT}"),
        ({}, "cut short", f"'a' left the cluster with units that nobody knows of: 0 to 1{HINT}"),
        (REDUCES, "cut short", "'a' left the cluster with units that nobody knows of: 0 to 1"),
        (REDUCES, "leaves", "'a' left the cluster and undid what it had done: 0 to 1"),
    ],
)
def test_who_is_told_of_a_lost_worker_is_told_of_units_and_of_what_would_help(
    options: Any, how: str, told: str
) -> None:
    talk = Talk(ClusterJob(lambda a, b, d: 0, 100, chunk=1, undo=nothing, **options), "a", "b")
    if how == "leaves":
        first = talk.begun("a")
        nodes = packed([(0, 0, 1)])
        talk.say(Ended("s", "a", first.lease, "done", (first.range,), nodes=nodes))
        talk.stop("a")
        talk.say(Undone("s", "a", (first.range,), (), ()))
    else:
        begun = talk.begun("a")
        if how == "dies":
            talk.say(Lost("a", "was killed", all_heard=True, may_undo=False))
        else:
            talk.say(Ended("s", "a", begun.lease, "cancelled", unknown=(begun.range,)))
            talk.stop("a")
            talk.say(Undone("s", "a", (), (), ()))
    talk.stop("b")
    talk.say(Closed("s", "b"))
    assert str(talk.error) == f"the worker {told}"
