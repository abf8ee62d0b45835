# SPDX-License-Identifier: MIT
# The worker's side alone: a station in this process, obeying what the test sends.

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask import (
    ChunkCancelled,
    Job,
    configure,
    current_chunk,
    run_multithreaded_sync,
    snapshot,
)
from aioktask.cluster import ClusterJob, worker
from aioktask.cluster.messages import (
    Began,
    Cancel,
    Close,
    Closed,
    Ended,
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
from aioktask.cluster.packing import packed_job, unpacked, unpacked_error
from aioktask.cluster.worker import Station
from aioktask.engine.ranges.plan import count_chunks
from aioktask.engine.ranges.tree import Tree
from aioktask.observe.data import snapshot_data
from aioktask.observe.processes import Told
from aioktask.top._view import view_of, view_of_page
from aioktask.web._page.told import Processes
from tests.cluster import work
from tests.support.gates import PATIENCE, Gate, units, until

GATES: dict[int, Any] = {}  # by number, since functions are pickled


class Bench:
    """A station, and what it told."""

    def __init__(self, job: ClusterJob[Any], threads: int = 2) -> None:
        self.told: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.station = Station("w", self.told.put, threads)
        self.leases = 0
        self.station.obey(Open("s", packed_job(job), 0))

    def hear(self, kind: type[Message]) -> Any:
        """The next message, but for news of progress."""
        while True:
            message = self.told.get(timeout=PATIENCE)
            if not isinstance(message, Progressed):
                assert isinstance(message, kind), message
                return message

    def run(self, start: int, stop: int, worker: str = "w") -> str:
        self.leases += 1
        lease = f"l{self.leases}"
        self.send_run(start, stop, lease, worker)
        return lease

    def send_run(self, start: int, stop: int, lease: str, worker: str = "w") -> None:
        self.station.obey(Run("s", Stretch(start, stop, worker, lease), 0.01, 0))

    def wait_inside(self, gate: Gate) -> None:
        """Until a chunk is inside, and what is asked of the stretch reaches its job at once."""
        gate.wait_entered(1)
        doing = self.station._parts["s"]._doing
        assert doing is not None
        until(lambda: doing.handle)

    def close(self) -> None:
        self.station.obey(Close("s"))
        self.hear(Closed)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    GATES[0] = made
    yield made
    made.open()
    del GATES[0]


def through_gate(start: int, stop: int, data: object) -> None:
    GATES[0].chunk(start, stop)


def undo_through_gate(start: int, stop: int, data: object) -> None:
    GATES[0].undo(start, stop)


def test_a_stretch_is_told_as_begun_then_as_done() -> None:
    bench = Bench(ClusterJob(work.count, 100))
    opened = bench.hear(Opened)
    assert (opened.worker, opened.threads >= 1) == ("w", True)
    lease = bench.run(0, 60)
    assert bench.hear(Began).lease == lease
    ended = bench.hear(Ended)
    assert (ended.lease, ended.how, ended.done) == (lease, "done", (range(60),))
    bench.close()


def test_a_lease_is_used_once_and_only_by_its_worker() -> None:
    bench = Bench(ClusterJob(work.count, 100))
    bench.hear(Opened)
    lease = bench.run(0, 50)
    bench.hear(Began)
    bench.hear(Ended)
    bench.send_run(0, 50, lease)  # as by a scheduler that runs it again
    assert bench.hear(Ended).how == "used"
    bench.run(50, 100, worker="another")
    assert bench.hear(Ended).how == "refused"
    bench.close()
    bench.run(50, 100)  # a session that is closed
    assert bench.hear(Ended).how == "refused"


def test_a_stretch_is_called_back_and_its_running_chunks_are_kept(gate: Gate) -> None:
    bench = Bench(ClusterJob(through_gate, 1000, chunk=10, undo=undo_through_gate))
    bench.hear(Opened)
    running, ready = bench.run(0, 500), bench.run(500, 1000)
    bench.hear(Began)
    bench.wait_inside(gate)
    bench.station.obey(Recall("s", ready))
    at_once = bench.hear(Ended)  # what has not begun is free while chunks of another one run
    assert (at_once.lease, at_once.how, at_once.done) == (ready, "recalled", ())
    bench.station.obey(Recall("s", running))
    gate.open()
    ended = bench.hear(Ended)
    assert (ended.lease, ended.how) == (running, "recalled")
    assert [(each.start, each.stop) for each in ended.done] != []
    assert sum(map(len, ended.done)) == 10 * len(gate.done) < 500
    second = bench.hear(Ended)
    assert (second.lease, second.how, second.done) == (ready, "recalled", ())
    bench.station.obey(Undo("s"))
    undone = bench.hear(Undone)
    assert undone.undone == ended.done
    assert sorted(gate.undone) == sorted(gate.done)
    bench.close()


def first_through_gate(start: int, stop: int, data: object) -> None:
    if start == 0:
        GATES[0].chunk(start, stop)
    else:
        time.sleep(0.001)


def test_no_chunk_of_a_stretch_that_is_called_back_begins(gate: Gate) -> None:
    bench = Bench(ClusterJob(first_through_gate, 10_000_000, chunk=10))
    bench.hear(Opened)
    lease = bench.run(0, 10_000_000)
    bench.hear(Began)
    bench.wait_inside(gate)
    bench.station.obey(Recall("s", lease))
    doing = bench.station._parts["s"]._doing
    assert doing is not None
    handle = doing.handle
    assert handle is not None
    until(lambda: doing.skipped or handle.progress().threads == 1, seconds=5.0)
    gate.open()
    ended = bench.hear(Ended)
    assert ended.how == "recalled"
    assert sum(map(len, ended.done)) < 5_000_000
    assert not set(ended.done[0]) & {unit for each in doing.skipped for unit in each}
    bench.close()


def ask(start: int, stop: int, data: object) -> None:
    GATES[0].chunk(start, stop)
    current_chunk().check_cancelled()


def test_chunks_of_a_stretch_that_is_called_back_are_wanted_still(gate: Gate) -> None:
    bench = Bench(ClusterJob(ask, 1000, chunk=10))
    bench.hear(Opened)
    lease = bench.run(0, 1000)
    bench.hear(Began)
    bench.wait_inside(gate)
    bench.station.obey(Recall("s", lease))
    gate.open()
    ended = bench.hear(Ended)
    assert ended.unknown == ()
    assert sum(map(len, ended.done)) == 10 * len(gate.done)
    bench.close()


def test_a_stretch_is_seen_as_a_part_and_what_its_chunks_run_is_not(gate: Gate) -> None:
    def within(start: int, stop: int) -> None:
        gate.chunk(start, stop)

    GATES[1] = lambda: run_multithreaded_sync(Job(within, 1, name="within"))
    bench = Bench(ClusterJob(run_within, 10, undo=undo_nothing, chunk=10, name="whole"))
    bench.hear(Opened)
    bench.run(0, 10)
    gate.wait_entered()
    seen = snapshot_data(snapshot())
    parts = {each["name"]: each["part"] for each in seen["jobs"]}
    assert (parts["whole"], parts["within"]) == (True, False)
    told = Told(os.getpid(), {**seen, "command": "", "advice": []})
    page = Processes()
    page.hear([told], 0.0)
    for shown in (view_of([told]), view_of_page(page.message(0.0))):
        names = [each.name for each in (*shown.jobs, *shown.ended)]
        assert "within" in names
        assert "whole" not in names
        assert dict(shown.processes[0].counts)["running"] == names.count("within")
    gate.open()
    bench.hear(Began)
    bench.hear(Ended)
    bench.station.obey(Undo("s"))
    bench.hear(Undone)
    ended = {each.name: each.part for each in snapshot().ended}
    assert ended == {**ended, "whole": True, "undo of whole": True, "within": False}
    bench.close()
    del GATES[1]


def run_within(start: int, stop: int, data: object) -> None:
    GATES[1]()


def undo_nothing(start: int, stop: int, data: object) -> None:
    pass


def test_the_failure_of_a_stretch_is_told_where_the_job_is_awaited_and_not_as_an_error_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    import aioktask.observe  # noqa: F401  # what logs events

    with caplog.at_level(logging.INFO, "aioktask"):
        bench = Bench(ClusterJob(work.fail_late, 1000, chunk=10, name="fails in parts"))
        bench.hear(Opened)
        bench.run(0, 1000)
        bench.hear(Began)
        error = unpacked_error(bench.hear(Ended).errors[0], "w")
        bench.close()
    lines = [each for each in caplog.records if "fails in parts" in each.getMessage()]
    assert max(each.levelno for each in lines if "job_failed" in each.getMessage()) == logging.INFO
    whole = "\n".join(error.__notes__)
    assert whole.count("raised in the chunk") == 1
    assert "in fail_late" in whole
    assert "doing.py" not in whole
    assert "handle.py" not in whole


def test_a_recall_that_comes_before_its_stretch_holds() -> None:
    bench = Bench(ClusterJob(work.count, 100))
    bench.hear(Opened)
    bench.station.obey(Recall("s", "l1"))
    assert bench.hear(Ended).how == "recalled"
    bench.run(0, 100)
    assert bench.hear(Ended).how == "recalled"
    bench.close()


def test_after_a_cancel_nothing_begins() -> None:
    bench = Bench(ClusterJob(work.count, 100))
    bench.hear(Opened)
    bench.station.obey(Cancel("s"))
    bench.run(0, 100)
    ended = bench.hear(Ended)
    assert (ended.how, ended.done) == ("cancelled", ())
    bench.close()


def fail_at_50(start: int, stop: int, data: object) -> None:
    if start <= 50 < stop:
        current_chunk().advance(50)
        raise OSError(28, "planted")


def test_what_a_failed_chunk_had_done_is_in_the_ledger(gate: Gate) -> None:
    job = ClusterJob(fail_at_50, 100, chunk=20, max_threads=1, undo=undo_through_gate)
    bench = Bench(job, threads=1)
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    ended = bench.hear(Ended)
    assert (ended.how, ended.chunk) == ("failed", range(40, 60))
    assert ended.done == (range(50),)
    assert ended.unknown == (range(50, 60),)
    assert isinstance(unpacked_error(ended.errors[0], "w"), OSError)
    bench.station.obey(Undo("s"))
    assert bench.hear(Undone).undone == (range(50),)
    assert sorted(gate.undone)[-1] == (40, 50)
    bench.close()


def undo_but_not_30(start: int, stop: int, data: object) -> None:
    if start <= 30 < stop:
        raise ValueError("stays")


def test_an_undo_that_raises_keeps_its_part_alone() -> None:
    bench = Bench(ClusterJob(work.count, 100, chunk=20, undo=undo_but_not_30))
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    bench.hear(Ended)
    bench.station.obey(Undo("s"))
    undone = bench.hear(Undone)
    assert undone.kept == (range(20, 40),)
    assert undone.undone == (range(20), range(40, 100))
    assert [str(unpacked_error(each, "w")) for each in undone.errors] == ["stays"]
    bench.close()


def undoes_later(start: int, stop: int, data: object) -> Any:
    return (each for each in range(start, stop))


def test_an_undo_that_does_its_work_later_has_not_undone() -> None:
    bench = Bench(ClusterJob(work.count, 100, undo=undoes_later, name="later"))
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    bench.hear(Ended)
    bench.station.obey(Undo("s"))
    told = bench.hear(Undone)
    assert (told.undone, told.kept) == ((), (range(100),))
    assert "undo of the job 'later' returned a generator" in str(
        unpacked_error(told.errors[0], "w")
    )
    bench.close()


def awaits_later(start: int, stop: int, data: object) -> Any:
    return (each for each in range(start, stop))


def combines_later(left: int, right: int) -> Any:
    return (each for each in (left, right))


def test_a_reduce_that_does_its_work_later_is_refused() -> None:
    bench = Bench(ClusterJob(work.count, 100, reduce=combines_later, chunk=50, name="later"))
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    error = bench.hear(Ended).errors[0]
    assert "reduce of the job 'later' returned a generator" in str(unpacked_error(error, "w"))
    bench.close()


def test_a_value_of_a_reduce_that_is_work_to_be_done_is_refused() -> None:
    bench = Bench(ClusterJob(awaits_later, 100, reduce=work.add, chunk=100, name="later"))
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    (error,) = bench.hear(Ended).errors
    assert "fn of the job 'later' returned a generator" in str(unpacked_error(error, "w"))
    bench.close()


def test_a_setup_that_raises_is_told_and_the_session_is_gone() -> None:
    bench = Bench(ClusterJob(work.count, 100, setup=work.fail_in_setup))
    assert isinstance(unpacked_error(bench.hear(OpenFailed).error, "w"), ValueError)
    bench.run(0, 10)
    assert bench.hear(Ended).how == "refused"


def test_whoever_is_abandoned_undoes_and_closes(gate: Gate) -> None:
    closed = threading.Event()
    GATES[1] = closed
    try:
        job = ClusterJob(
            through_gate,
            1000,
            chunk=10,
            undo=undo_through_gate,
            setup=_nothing,
            close=_set_closed,
        )
        bench = Bench(job)
        bench.hear(Opened)
        bench.run(0, 1000)
        bench.wait_inside(gate)
        leaving = threading.Thread(target=bench.station.abandon)
        leaving.start()
        gate.open()
        leaving.join(PATIENCE)
        assert closed.is_set()
        assert sorted(gate.undone) == sorted(gate.done) != []
    finally:
        del GATES[1]


def _nothing() -> None:
    return None


def _set_closed(data: object) -> None:
    GATES[1].set()


def test_progress_is_told_while_a_stretch_runs(gate: Gate) -> None:
    bench = Bench(ClusterJob(_every_second, 100, chunk=10, max_threads=1), threads=1)
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    bench.wait_inside(gate)
    until(lambda: not bench.told.empty())
    message = bench.told.get()
    assert isinstance(message, Progressed)
    assert message.done == 50
    gate.open()
    assert bench.hear(Ended).how == "done"
    bench.close()


def _every_second(start: int, stop: int, data: object) -> None:
    if start == 50:
        GATES[0].chunk(start, stop)


@given(
    size=st.integers(1, 3000),
    start=st.integers(0, 100),
    chunk=st.integers(1, 70),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=30)
def test_nodes_of_any_stretches_in_any_order_make_the_value_of_one_machine(
    size: int, start: int, chunk: int, cuts: list[int], order: Any
) -> None:
    job = ClusterJob(work.sines, size, start=start, chunk=chunk, reduce=work.add, initial=0.1)
    here = Job(
        lambda a, b: work.sines(a, b, None),
        size,
        start=start,
        chunk=chunk,
        reduce=work.add,
        initial=0.1,
    )
    edges = sorted(
        {start, job.stop, *(min((start // chunk + cut) * chunk, job.stop) for cut in cuts)}
    )
    edges = [edge for edge in edges if edge >= start]
    bench = Bench(job)
    bench.hear(Opened)
    tree = Tree(count_chunks(job.start, job.stop, chunk))
    stretches = list(itertools.pairwise(edges))
    order.shuffle(stretches)
    for first, last in stretches:
        bench.run(first, last)
        bench.hear(Began)
        for level, index, value in unpacked(bench.hear(Ended).nodes):
            offered = level, index, value
            while (both := tree.offer(*offered)) is not None:
                offered = both[0], both[1], both[2] + both[3]
    bench.close()
    assert tree.value() == run_multithreaded_sync(here).value


def count_through_gate(start: int, stop: int, data: object) -> int:
    GATES[0].chunk(start, stop)
    return stop - start


def test_who_leaves_tells_the_values_of_what_it_did(gate: Gate) -> None:
    job = ClusterJob(count_through_gate, 1000, chunk=10, reduce=int.__add__)
    bench = Bench(job)
    bench.hear(Opened)
    bench.run(0, 1000)
    bench.hear(Began)
    bench.wait_inside(gate)
    leaving = threading.Thread(target=bench.station.abandon)
    leaving.start()
    part = bench.station._parts["s"]
    until(lambda: part._asked.cancelled)
    gate.open()
    ended = bench.hear(Ended)
    leaving.join(PATIENCE)
    assert ended.how == "cancelled"
    done = sum(map(len, ended.done))
    assert done > 0
    assert sum(value for _, _, value in unpacked(ended.nodes)) == done


def test_a_worker_that_leaves_opens_nothing_and_goes_on_with_what_it_has() -> None:
    bench = Bench(ClusterJob(work.count, 10))
    bench.hear(Opened)
    bench.station.leave()
    bench.station.obey(Open("late", packed_job(ClusterJob(work.count, 10)), 0))
    bench.station.obey(Run("late", Stretch(0, 10, "w", "l"), 0.01, 0))
    ended = bench.hear(Ended)
    assert (ended.session, ended.how) == ("late", "refused")
    bench.run(0, 10)
    bench.hear(Began)
    assert bench.hear(Ended).how == "done"
    bench.close()


def test_a_station_says_whether_it_could_undo_in_time(gate: Gate) -> None:
    bench = Bench(ClusterJob(through_gate, 1000, chunk=10, undo=undo_through_gate))
    bench.hear(Opened)
    bench.run(0, 1000)
    bench.wait_inside(gate)
    assert not bench.station.abandon(0.01)
    gate.open()
    assert bench.station.abandon(PATIENCE)


def test_no_call_of_a_function_is_undone_in_halves(gate: Gate) -> None:
    gate.open()
    job = ClusterJob(through_gate, 1 << 16, min_chunk=1 << 12, undo=undo_through_gate)
    bench = Bench(job)
    bench.hear(Opened)
    bench.run(0, 1 << 16)
    bench.hear(Began)
    bench.hear(Ended)
    assert [start for start, _ in gate.done if start % (1 << 12)] == []
    bench.station.obey(Undo("s"))
    bench.hear(Undone)
    edges = {start for start, _ in gate.done}
    assert all(any(start <= edge < stop for start, stop in gate.undone) for edge in edges)
    assert not [start for start, _ in gate.undone if start % (1 << 12)]
    bench.close()


def refuse_to_add(a: int, b: int) -> int:
    raise ArithmeticError("no sum")


def test_what_ran_before_a_reduce_raised_is_undone(gate: Gate) -> None:
    gate.open()
    job = ClusterJob(
        count_through_gate,
        100,
        chunk=10,
        max_threads=1,
        undo=undo_through_gate,
        reduce=refuse_to_add,
    )
    bench = Bench(job)
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    ended = bench.hear(Ended)
    assert ended.how == "failed"
    assert ended.unknown == ()
    bench.station.obey(Undo("s"))
    bench.hear(Undone)
    assert units(gate.undone) == units(gate.done) != []
    bench.close()


def late_gate(start: int, stop: int) -> None:
    """The second chunk of 10 waits at the gate."""
    if start == 10:
        GATES[0].chunk(start, stop)


def fail_late(start: int, stop: int, data: object) -> None:
    late_gate(start, stop)
    if start == 10:
        raise ArithmeticError("no sum")


def advance_and_fail_late(start: int, stop: int, data: object) -> None:
    late_gate(start, stop)
    if start == 10:
        current_chunk().advance(stop)
        raise ArithmeticError("no sum")


def count_late(start: int, stop: int, data: object) -> int:
    late_gate(start, stop)
    return stop - start


@pytest.mark.parametrize(
    ("fn", "reduce", "unknown"),
    [
        (fail_late, None, (range(10, 20),)),
        (advance_and_fail_late, None, ()),
        (count_late, refuse_to_add, ()),
    ],
)
@pytest.mark.parametrize("asked", ["recall", "cancel", "leave"])
def test_what_the_last_chunk_inside_raises_is_told_however_its_stretch_ends(
    gate: Gate, fn: Any, reduce: Any, unknown: tuple[range, ...], asked: str
) -> None:
    bench = Bench(ClusterJob(fn, 1000, chunk=10, reduce=reduce), threads=1)
    bench.hear(Opened)
    lease = bench.run(0, 1000)
    bench.hear(Began)
    bench.wait_inside(gate)
    if asked == "recall":
        bench.station.obey(Recall("s", lease))
    elif asked == "cancel":
        bench.station.obey(Cancel("s"))
    else:
        bench.station.abandon(0.0)
    gate.open()
    ended = bench.hear(Ended)
    assert ended.how == ("failed" if asked == "recall" else "cancelled")
    assert [str(unpacked_error(each, "w")) for each in ended.errors] == ["no sum"]
    assert ended.chunk == range(10, 20)
    assert ended.done == ((range(10),) if unknown else (range(20),))
    assert ended.unknown == unknown
    if asked != "leave":
        bench.close()


def ask_and_add(a: int, b: int) -> int:
    current_chunk().check_cancelled()
    return a + b


def count_late_and_ask(start: int, stop: int, data: object) -> int:
    late_gate(start, stop)
    current_chunk().advance(stop)
    current_chunk().check_cancelled()
    return stop - start


@pytest.mark.parametrize(
    ("fn", "reduce"), [(count_late, ask_and_add), (count_late_and_ask, int.__add__)]
)
def test_a_value_that_is_lacking_since_its_chunk_asked_is_told_as_an_error(
    gate: Gate, fn: Any, reduce: Any
) -> None:
    bench = Bench(ClusterJob(fn, 1000, chunk=10, reduce=reduce), threads=1)
    bench.hear(Opened)
    bench.run(0, 1000)
    bench.hear(Began)
    bench.wait_inside(gate)
    bench.station.abandon(0.0)
    gate.open()
    ended = bench.hear(Ended)
    assert (ended.how, ended.done) == ("cancelled", (range(20),))
    assert [type(unpacked_error(each, "w")) for each in ended.errors] == [ChunkCancelled]


class Stuck(BaseException):
    """What no `except Exception` sees."""


class Stays:
    """A value that cannot be sent."""

    def __reduce__(self) -> Any:
        raise Stuck("stays here")


def make_what_stays(start: int, stop: int, data: object) -> Stays:
    GATES[0].chunk(start, stop)
    return Stays()


def first_of(a: Any, b: Any) -> Any:
    return a


def test_what_is_done_is_undone_though_its_value_cannot_be_sent(gate: Gate) -> None:
    gate.open()
    job = ClusterJob(make_what_stays, 40, chunk=10, reduce=first_of, undo=undo_through_gate)
    bench = Bench(job)
    bench.hear(Opened)
    bench.run(0, 40)
    bench.hear(Began)
    ended = bench.hear(Ended)
    assert (ended.how, ended.done, ended.unknown) == ("failed", (range(40),), ())
    assert [type(unpacked_error(each, "w")) for each in ended.errors] == [Stuck]
    bench.station.obey(Undo("s"))
    assert bench.hear(Undone).undone == (range(40),)
    assert units(gate.undone) == units(gate.done)
    bench.close()


def through_gate_of_half(start: int, stop: int, data: object) -> None:
    GATES[start // 500].chunk(start, stop)


def test_the_nice_that_came_last_holds_for_what_was_sent_before_it(gate: Gate) -> None:
    GATES[1] = second = Gate()
    try:
        bench = Bench(ClusterJob(through_gate_of_half, 1000, chunk=100))
        bench.hear(Opened)
        bench.run(0, 500)
        bench.run(500, 1000)
        bench.wait_inside(gate)
        bench.station.obey(Renice("s", 7))
        gate.open()
        second.wait_entered(1)
        doing = bench.station._parts["s"]._doing
        assert doing is not None
        until(lambda: doing.handle is not None and doing.handle.nice == 7)
        second.open()
        for kind in (Began, Ended, Began, Ended):
            bench.hear(kind)
        bench.close()
    finally:
        second.open()
        del GATES[1]


class Mute(Exception):  # noqa: N818 - it is one that says nothing
    """One that can neither say what it is nor be pickled."""

    def __str__(self) -> str:
        raise ValueError("mute")

    def __reduce__(self) -> Any:
        raise ValueError("stays here")


def fail_mutely(start: int, stop: int, data: object) -> None:
    raise Mute


def test_an_exception_that_cannot_say_what_it_is_is_told_all_the_same() -> None:
    bench = Bench(ClusterJob(fail_mutely, 10))
    bench.hear(Opened)
    bench.run(0, 10)
    bench.hear(Began)
    ended = bench.hear(Ended)
    assert ended.how == "failed"
    assert "Mute" in str(unpacked_error(ended.errors[0], "w"))
    bench.close()


def refuse(*_: object, **__: object) -> Any:
    raise RuntimeError("can't start new thread")


def test_a_stretch_that_cannot_be_submitted_has_failed_and_nothing_of_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(ClusterJob(work.count, 100))
    bench.hear(Opened)
    monkeypatch.setattr(bench.station.coordinator, "submit", refuse)
    bench.run(0, 100)
    bench.hear(Began)
    ended = bench.hear(Ended)
    assert (ended.how, ended.done, ended.unknown) == ("failed", (), ())
    assert "new thread" in str(unpacked_error(ended.errors[0], "w"))
    bench.close()


def test_an_undo_that_cannot_be_submitted_keeps_all_of_its_part(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    gate.open()
    bench = Bench(ClusterJob(work.count, 100, undo=undo_through_gate))
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    bench.hear(Ended)
    monkeypatch.setattr(bench.station.coordinator, "submit", refuse)
    bench.station.obey(Undo("s"))
    undone = bench.hear(Undone)
    assert (undone.undone, undone.kept) == ((), (range(100),))
    assert gate.undone == []
    bench.close()


def test_whatever_strikes_a_session_its_stretch_is_told_as_failed_and_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(ClusterJob(work.count, 100))
    bench.hear(Opened)
    monkeypatch.setattr(worker, "do", refuse)
    bench.run(0, 100)
    bench.hear(Began)
    ended = bench.hear(Ended)
    assert (ended.how, ended.unknown) == ("failed", (range(100),))
    bench.close()


def test_a_stretch_that_is_struck_as_it_is_told_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(ClusterJob(work.count, 100))
    bench.hear(Opened)
    struck: list[Message] = []

    def tell(message: Message) -> None:
        if isinstance(message, Ended) and not struck:
            struck.append(message)
            raise MemoryError("planted")
        bench.told.put(message)

    monkeypatch.setattr(bench.station, "tell", tell)
    bench.run(0, 100)
    bench.hear(Began)
    ended = bench.hear(Ended)
    assert (ended.how, ended.done, ended.unknown) == ("failed", (range(100),), ())
    bench.close()


def test_what_an_undo_is_struck_at_is_unknown_and_not_undone_again(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    gate.open()
    bench = Bench(ClusterJob(work.count, 100, undo=undo_through_gate))
    bench.hear(Opened)
    bench.run(0, 100)
    bench.hear(Began)
    bench.hear(Ended)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "Job", refuse)
        bench.station.obey(Undo("s"))
        undone = bench.hear(Undone)
    assert (undone.undone, undone.kept, undone.unknown) == ((), (), (range(100),))
    assert bench.station.abandon(PATIENCE)
    again = bench.hear(Undone)
    assert (again.undone, again.kept, again.unknown, again.errors) == ((), (), (), ())
    assert gate.undone == []


def test_a_session_without_a_thread_is_told_as_one_that_could_not_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        bench = Bench(ClusterJob(work.count, 100))
    assert "new thread" in str(unpacked_error(bench.hear(OpenFailed).error, "w"))
    bench.run(0, 10)
    assert bench.hear(Ended).how == "refused"


def test_no_limit_of_the_process_refuses_a_stretch() -> None:
    configure(max_queued=0, max_wait=0.001)
    try:
        bench = Bench(ClusterJob(work.count, 100), threads=1)
    finally:
        configure(max_queued=None, max_wait=None)
    assert bench.station.coordinator.scope()[1].tunables.keys() >= {"max_queued", "max_wait"}
    bench.hear(Opened)
    bench.close()


def undo_and_refuse(start: int, stop: int, data: object) -> None:
    GATES[0].undo(start, stop)
    if start == 20:
        raise ValueError("stays")


def test_an_undo_that_raised_is_not_called_again_where_the_worker_is_abandoned(gate: Gate) -> None:
    bench = Bench(ClusterJob(work.count, 40, chunk=20, undo=undo_and_refuse))
    bench.hear(Opened)
    bench.run(0, 40)
    bench.hear(Began)
    bench.hear(Ended)
    bench.station.obey(Undo("s"))
    assert bench.hear(Undone).kept == (range(20, 40),)
    assert bench.station.abandon(PATIENCE)
    again = bench.hear(Undone)
    assert (again.undone, again.kept, again.errors) == ((), (range(20, 40),), ())
    assert sorted(gate.undone) == [(0, 20), (20, 40)]
