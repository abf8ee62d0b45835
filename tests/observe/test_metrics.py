# SPDX-License-Identifier: MIT
# What is counted of jobs for Prometheus, read as a scrape reads it: in one process, and in several
# whose files are put together.

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

import aioktask
from aioktask import (
    Coordinator,
    CoordinatorClosed,
    Job,
    JobCancelled,
    Overloaded,
    UndoFailed,
    map_ordered_sync,
    run,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.observe import metrics, sampling
from tests.support.alone import sharing_with_nobody
from tests.support.chunks import fail_at_seven, nothing, planted
from tests.support.gates import Gate, eventually, until
from tests.support.told import Ends

metrics.start(None)()  # so that what these tests hear with comes after it
ENDS = Ends()

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    """What a scrape found: values by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


class Scrape:
    """The metrics of one registry, and what a scrape of it says."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def samples(self) -> Samples:
        return read(generate_latest(self.registry).decode())

    def value(self, sample: str, /, **labels: str) -> float:
        """One value, 0 where there is no such time series."""
        return self.samples().get((sample, frozenset(labels.items())), 0.0)

    def ends(self) -> dict[tuple[str, str, str, str], float]:
        """How many jobs ended, by name, kind, end and what became of what they had done."""
        labels = ("name", "kind", "end", "undo")
        return {
            tuple(dict(of)[each] for each in labels): value  # type: ignore[misc]
            for (name, of), value in self.samples().items()
            if name == "aioktask_jobs_total"
        }

    def seconds(self, what: str, name: str, kind: str = "job") -> tuple[float, float]:
        """How many jobs a histogram has, and how many seconds in all."""
        told = f"aioktask_job_{what}_seconds"
        count = self.value(f"{told}_count", name=name, kind=kind)
        return count, self.value(f"{told}_sum", name=name, kind=kind)


@pytest.fixture
def scrape() -> Iterator[Scrape]:
    ENDS.forget()
    scrape = Scrape()
    stop = metrics.start(scrape.registry)
    yield scrape
    stop()


def test_a_job_that_ends_well_is_counted_with_the_times_of_its_report(scrape: Scrape) -> None:
    reports = [run_multithreaded_sync(Job(nothing, 100, chunk=10, name="a")) for _ in range(3)]
    ENDS.wait_for("a", 3)
    assert scrape.ends() == {("a", "job", "finished", "none"): 3}
    for what, told in [
        ("queued", [report.queued for report in reports]),
        ("run", [report.elapsed for report in reports]),
    ]:
        count, seconds = scrape.seconds(what, "a")
        assert count == 3
        assert math.isclose(seconds, sum(told))
    assert scrape.seconds("undo", "a") == scrape.seconds("lent", "a") == (0, 0)


@pytest.mark.parametrize(
    ("undo", "outcome"),
    [(None, "none"), (nothing, "undone"), (planted, "undo_failed")],
    ids=["without undo", "undone", "undo failed"],
)
@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_job_that_ends_badly_is_counted_once_with_what_became_of_what_it_did(
    scrape: Scrape, how: str, undo: Callable[[int, int], None] | None, outcome: str
) -> None:
    gate = Gate()

    def fn(start: int, stop: int) -> None:
        gate.chunk(start, stop)
        if how == "failed" and start == 1:
            raise ValueError("planted")

    job = Job(fn, 8, chunk=1, max_threads=1, undo=undo, name="a")
    with Coordinator() as coordinator:
        handle = coordinator.submit(job)
        gate.wait_entered()
        if how == "cancelled":
            handle.cancel()
        gate.open()
        with pytest.raises((ValueError, JobCancelled, UndoFailed)):
            handle.result()
    ENDS.wait_for("a")
    assert scrape.ends() == {("a", "job", how, outcome): 1}
    assert scrape.seconds("queued", "a")[0] == 1
    assert scrape.seconds("run", "a")[0] == 1
    assert scrape.seconds("undo", "a")[0] == (undo is not None)
    if undo is not None:
        assert scrape.seconds("undo", "a")[1] > 0


def test_the_time_of_an_undo_is_not_that_of_the_work(scrape: Scrape) -> None:
    gate = Gate()
    job = Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=gate.chunk, name="a")
    with Coordinator() as coordinator:
        handle = coordinator.submit(job)
        gate.wait_entered()
        elapsed = handle.progress().elapsed  # of the work, which is over
        gate.open()
        with pytest.raises(ValueError, match="planted"):
            handle.result()
    ENDS.wait_for("a")
    assert math.isclose(scrape.seconds("run", "a")[1], elapsed)


def test_a_job_that_never_began_has_waited_and_not_run(scrape: Scrape) -> None:
    gate = Gate()
    with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="before"))
        gate.wait_entered()
        assert coordinator.submit(Job(nothing, 8, undo=nothing, name="a")).cancel()
        ENDS.wait_for("a")
        gate.open()
    assert scrape.ends()["a", "job", "cancelled", "none"] == 1
    count, seconds = scrape.seconds("queued", "a")
    assert count == 1
    assert seconds > 0
    assert scrape.seconds("run", "a") == (0, 0)


def test_what_time_ended_is_counted_by_whether_it_had_begun(scrape: Scrape) -> None:
    gate, undone = Gate(), Gate()
    undone.open()
    job = Job(gate.chunk, 8, chunk=1, undo=undone.undo, name="a", max_threads=1)
    with Coordinator(max_threads=1, max_queued=1) as coordinator:
        first = coordinator.submit(job, timeout=0.2)
        gate.wait_entered()
        late = coordinator.submit(job, timeout=0.01)
        with pytest.raises(Overloaded):
            coordinator.submit(job)
        with pytest.raises(Overloaded):
            late.result()
        until(lambda: first._run.cancel_asked)
        gate.open()
        with pytest.raises(TimeoutError):
            first.result()
    ENDS.wait_for("a", 3)
    assert scrape.ends() == {
        ("a", "job", "timed_out", "undone"): 1,
        ("a", "job", "overloaded", "none"): 2,
    }
    assert scrape.seconds("queued", "a")[0] == 2, "one never waited"
    assert scrape.seconds("run", "a")[0] == scrape.seconds("undo", "a")[0] == 1


def test_labels_of_jobs_are_none_of_metrics(scrape: Scrape) -> None:
    for request in ("7f3a", "7f3b"):
        labels = {"request": request, "kind": "mine"}
        run_multithreaded_sync(Job(nothing, 4, chunk=1, name="a", labels=labels))
    ENDS.wait_for("a", 2)
    assert scrape.ends() == {("a", "job", "finished", "none"): 2}
    assert "7f3" not in generate_latest(scrape.registry).decode()


@pytest.mark.anyio
async def test_jobs_the_size_of_a_request_are_all_counted(scrape: Scrape) -> None:
    job = Job(nothing, 1, chunk=1, name="short")
    queued = elapsed = 0.0
    for _ in range(100):
        report = await run_multithreaded(job)
        queued, elapsed = queued + report.queued, elapsed + report.elapsed
    with pytest.raises(OSError, match="planted"):
        await run_multithreaded(Job(planted, 1, chunk=1, name="short"))
    ENDS.wait_for("short", 101)
    assert scrape.ends() == {
        ("short", "job", "finished", "none"): 100,
        ("short", "job", "failed", "none"): 1,
    }
    assert scrape.seconds("queued", "short")[1] >= queued
    assert scrape.seconds("run", "short")[0] == 101
    assert scrape.seconds("run", "short")[1] >= elapsed


@pytest.mark.anyio
async def test_calls_and_streams_are_counted_as_what_they_are(scrape: Scrape) -> None:
    def call() -> int:
        return 1

    await run(call, name="a")
    with pytest.raises(ZeroDivisionError):
        await run(divmod, 1, 0, name="a")

    def stream() -> None:
        with map_ordered_sync(abs, range(20), name="a") as results:
            assert list(results) == list(range(20))

    await anyio.to_thread.run_sync(stream)
    ENDS.wait_for("a", 3)
    assert scrape.ends() == {
        ("a", "call", "finished", "none"): 1,
        ("a", "call", "failed", "none"): 1,
        ("a", "stream", "finished", "none"): 1,
    }


def test_the_nice_of_a_waiter_is_counted_for_as_long_as_the_job_had_it(scrape: Scrape) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 1, nice=10, name="a"))
        gate.wait_entered()

        def wait() -> None:
            with aioktask.priority(0):
                handle.result()

        thread = threading.Thread(target=wait)
        thread.start()
        entry = handle._run.entry
        until(lambda: entry.loan_taken or handle._run.lent == "at a chunk boundary")
        lent = entry.loan_taken  # else no thread may go back to a lower nice here
        gate.open()
        thread.join()
    ENDS.wait_for("a")
    count, seconds = scrape.seconds("lent", "a")
    assert count == lent
    assert (seconds > 0) == lent


def test_names_within_the_limit_are_kept_apart_and_others_are_counted_together() -> None:
    ENDS.forget()
    scrape = Scrape()
    stop = metrics.start(scrape.registry, max_names=3)
    for number in (*range(10), 0):
        run_multithreaded_sync(Job(nothing, 1, name=f"request {number}"))
    for number in range(10):
        ENDS.wait_for(f"request {number}", 2 if number == 0 else 1)
    ends = scrape.ends()
    stop()
    assert {name: count for (name, *_), count in ends.items()} == {
        "request 0": 2,
        "request 1": 1,
        "request 2": 1,
        metrics.OTHER: 7,
    }


def test_a_name_that_is_no_text_for_others_does_not_spoil_the_scrape(scrape: Scrape) -> None:
    name = 'copy of "\udcff"\n\\'
    run_multithreaded_sync(Job(nothing, 1, name=name))
    ENDS.wait_for(name)
    [(told, *_)] = scrape.ends()
    assert told == 'copy of "?"\n\\'


def test_a_second_start_is_refused_while_the_first_one_counts(scrape: Scrape) -> None:
    other = Scrape()
    with pytest.raises(RuntimeError, match="counted already"):
        metrics.start(other.registry)
    assert other.samples() == {}


def test_what_start_returns_ends_that_start_alone() -> None:
    ENDS.forget()
    first, second = Scrape(), Scrape()
    stop_first = metrics.start(first.registry)
    stop_first()
    assert first.samples() == {}
    stop_second = metrics.start(second.registry)
    stop_first()
    run_multithreaded_sync(Job(nothing, 1, name="a"))
    ENDS.wait_for("a")
    assert second.ends() == {("a", "job", "finished", "none"): 1}
    stop_second()
    assert not aioktask.engine.events.routine_is_heard()
    stop_first = metrics.start(first.registry)  # the same registry again
    stop_first()


def test_a_registry_that_has_such_a_name_is_left_as_it_was() -> None:
    scrape = Scrape()
    own = Counter("aioktask_job_run_seconds", "The application's.", registry=scrape.registry)
    before = scrape.samples()
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.start(scrape.registry)
    assert scrape.samples() == before
    scrape.registry.unregister(own)
    metrics.start(scrape.registry)()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"registry": "default"}, TypeError, "registry must be a CollectorRegistry or None"),
        ({"max_names": 0}, ValueError, "max_names must be at least 1, got 0"),
        ({"max_names": 1.5}, TypeError, "max_names must be an integer, got 1.5"),
        ({"buckets": 5}, TypeError, "buckets must be an iterable, got 5"),
        ({"buckets": (2, 1)}, ValueError, "sorted"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_anything_begins(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metrics.start(**{"registry": None, **arguments})
    assert not aioktask.engine.events.routine_is_heard()


# What there is at one moment.


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Samples at each look of the keeper, and no other process that changes the limit."""
    monkeypatch.setattr(sampling, "SECONDS", 0.0)
    with sharing_with_nobody():
        yield


def test_a_job_that_a_closed_coordinator_refuses_is_counted_as_refused(scrape: Scrape) -> None:
    with Coordinator() as coordinator:
        coordinator.drain()
        with pytest.raises(CoordinatorClosed):
            coordinator.submit(Job(nothing, 1, name="a"))
        ENDS.wait_for("a")
    assert scrape.ends() == {("a", "job", "refused", "none"): 1}


@pytest.mark.max_threads(2)
def test_gauges_say_what_jobs_and_helpers_there_are(scrape: Scrape, often: None) -> None:
    gate = Gate()

    def found() -> tuple[float, ...]:
        return (
            scrape.value("aioktask_helpers", state="working"),
            scrape.value("aioktask_jobs_open", phase="running"),
            scrape.value("aioktask_jobs_open", phase="waiting"),
            scrape.value("aioktask_helpers_limit", decided_by="user"),
        )

    with Coordinator(max_threads=1) as coordinator:
        for _ in range(3):
            coordinator.submit(Job(gate.chunk, 1, name="a"))
        gate.wait_entered()
        until(lambda: found() == (1, 1, 2, 2))
        gate.open()
    until(lambda: found() == (0, 0, 0, 2))
    assert scrape.value("aioktask_helpers", state="idle") >= 1


def test_the_limit_stands_under_what_decides_it_and_nowhere_else(
    scrape: Scrape, often: None
) -> None:
    gate = Gate()

    def limits() -> dict[str, float]:
        return {
            dict(labels)["decided_by"]: value
            for (name, labels), value in scrape.samples().items()
            if name == "aioktask_helpers_limit"
        }

    before = aioktask.max_threads()
    with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="a"))
        until(lambda: list(limits().values()) == [before])
        [decided_by] = limits()
        aioktask.set_max_threads(before + 1)
        try:
            until(lambda: limits() == {decided_by: 0, "user": before + 1})
        finally:
            aioktask.set_max_threads(None)
            gate.open()
    assert decided_by in ("cpus", "affinity", "quota")


@pytest.mark.anyio
async def test_loops_in_which_coordinators_were_entered_are_told_by_their_kind(
    scrape: Scrape, often: None, anyio_backend: Any
) -> None:
    kind = "trio" if anyio_backend[0] == "trio" else "asyncio"
    if anyio_backend[1].get("use_uvloop"):
        kind = "uvloop"
    gate = Gate()
    async with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="a"))
        await gate.entered()
        await eventually(lambda: scrape.value("aioktask_loop_late_seconds", loop=kind) > 0)
        gate.open()
    ENDS.wait_for("a")
    await eventually(lambda: scrape.value("aioktask_loop_late_seconds", loop=kind) == 0)


def test_after_the_end_no_more_samples_are_taken(often: None) -> None:
    taken = threading.Semaphore(0)
    sampler = sampling.Sampler(lambda sample: taken.release())
    gate = Gate()
    with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1))
        sampler.see_to_it()
        sampler.see_to_it()
        assert taken.acquire(timeout=30)
        sampler.ended = True
        assert not sampler.look()
        gate.open()


IDLE = """
from aioktask import *
from aioktask.engine.api.process import current_pool
from aioktask.observe.sampling import Sampler

samples = []
sampler = Sampler(samples.append)
assert not current_pool().state.busy
assert not sampler.look()
assert (samples[0].working, samples[0].idle, samples[0].running) == (0, 0, 0)

def fn(start, stop):
    assert sampler.look()

with Coordinator() as coordinator:
    coordinator.submit(Job(fn, 1)).result()
assert (samples[1].working, samples[1].idle, samples[1].running) == (1, 0, 1)
"""


def test_samples_end_where_there_are_neither_jobs_nor_helpers() -> None:
    """A process that has nothing to do is not to be woken."""
    subprocess.run([sys.executable, "-W", "error", "-c", IDLE], timeout=100, check=True)


# Several processes, each of which writes into files of its own.

WORKER = """
import os, sys
from aioktask import Job, run_multithreaded_sync
from aioktask.observe import metrics
from tests.support.gates import until
from tests.support.told import Ends

metrics.start()
ends = Ends()
name, jobs = sys.argv[1], int(sys.argv[2])
limits = metrics._metrics.limit._values
sampled = lambda: any(each._value.get() for each in list(limits.values()))
for _ in range(jobs):
    run_multithreaded_sync(Job(lambda start, stop: None, 4, chunk=1, name=name))
ends.wait_for(name, jobs)
until(sampled)  # by the keeper, within a second
print("counted", flush=True)
sys.stdin.read()  # until the test closes it, or kills this process
"""


def environment(directory: Path) -> dict[str, str]:
    return {
        **os.environ,
        "AIOKTASK_SHARE": "off",
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
        "PYTHONPATH": str(Path(aioktask.__file__).parents[1]),
    }


def scraped(directory: Path) -> Samples:
    """What any of the workers would answer a scrape."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))
    return read(generate_latest(registry).decode())


def test_the_counts_of_several_processes_add_up_also_when_one_is_killed(tmp_path: Path) -> None:
    def worker(name: str, jobs: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKER, name, str(jobs)],
            env=environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    workers = [worker("a", 3), worker("a", 4), worker("b", 5)]
    try:
        for each in workers:
            assert each.stdout is not None
            assert each.stdout.readline() == "counted\n"

        def jobs(name: str) -> float:
            labels = {"name": name, "kind": "job", "end": "finished", "undo": "none"}
            return scraped(tmp_path)["aioktask_jobs_total", frozenset(labels.items())]

        def limits() -> float:
            found = scraped(tmp_path).items()
            return sum(value for (name, _), value in found if name == "aioktask_helpers_limit")

        assert (jobs("a"), jobs("b")) == (7, 5)
        assert limits() == 3 * aioktask.max_threads()
        killed = workers[1]
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        mark_process_dead(killed.pid, str(tmp_path))
        assert (jobs("a"), jobs("b")) == (7, 5), "what it did was done"
        assert limits() == 2 * aioktask.max_threads(), "it has no helpers any more"
    finally:
        for each in workers:
            each.communicate("", timeout=30)


FORKED = """
import os, sys
from aioktask import Job, run_multithreaded_sync, set_max_threads
from aioktask.observe import metrics
from tests.support.gates import until
from tests.support.told import Ends

metrics.start()
ends = Ends()
set_max_threads(2)

def some(jobs):
    for _ in range(jobs):
        run_multithreaded_sync(Job(lambda start, stop: None, 4, chunk=1, name="a"))
    ends.wait_for("a", jobs)

some(2)
until(lambda: metrics._metrics.limit._values)  # the keeper of this process looks now and then
children = []
for jobs in (3, 4):
    child = os.fork()
    if not child:
        ends.forget()
        some(jobs)
        until(lambda: metrics._metrics.limit._values["user"]._value.get())
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_workers_that_are_forked_after_the_start_count_each_for_itself(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", FORKED], env=environment(tmp_path), timeout=60, check=True
    )
    labels = {"name": "a", "kind": "job", "end": "finished", "undo": "none"}
    assert scraped(tmp_path)["aioktask_jobs_total", frozenset(labels.items())] == 9
    assert len(list(tmp_path.glob("counter_*.db"))) == 3


FORKED_WHILE_COUNTING = """
import os, threading
from aioktask import Job, run_multithreaded_sync
from aioktask.observe import metrics

metrics.start()
hear, inside, forks, counted = metrics._metrics.hear, threading.Event(), threading.Event(), []

def slow(event):
    inside.set()
    assert forks.wait(60)
    hear(event)
    counted.append(event)

metrics._metrics.hear = slow
os.register_at_fork(before=forks.set)  # the last one is called first
thread = threading.Thread(
    target=run_multithreaded_sync, args=(Job(lambda start, stop: None, 4, chunk=1),)
)
thread.start()
assert inside.wait(60)
child = os.fork()
if not child:
    os._exit(0 if counted else 3)
thread.join()
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_waits_for_what_is_being_counted() -> None:
    """Or the child would have the client's locks as they were, and nobody to let go of them."""
    subprocess.run([sys.executable, "-c", FORKED_WHILE_COUNTING], timeout=100, check=True)


def test_the_library_alone_imports_neither_metrics_nor_traces() -> None:
    program = (
        "import sys\n"
        "from aioktask import *\n"
        "run_multithreaded_sync(Job(print, 0))\n"
        "wanted = ('prometheus_client', 'opentelemetry')\n"
        "print(*[each for each in sys.modules if each.startswith(wanted)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("module", "package"), [("metrics", "prometheus-client"), ("traces", "opentelemetry-api")]
)
def test_where_the_package_is_missing_the_error_says_what_to_install(
    module: str, package: str
) -> None:
    program = (
        "import sys\n"
        "sys.modules['prometheus_client'] = sys.modules['opentelemetry'] = None\n"
        "try:\n"
        f"    import aioktask.observe.{module}\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    assert f"needs {package}" in done.stdout
    assert "pip install 'aioktask[metrics]'" in done.stdout
