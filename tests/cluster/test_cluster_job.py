# SPDX-License-Identifier: MIT
# What a ClusterJob refuses, and what is refused before anything is sent.

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioktask import Job, arrays, run_multithreaded_sync
from aioktask.cluster import (
    ClusterFailure,
    ClusterJob,
    Home,
    WorkerPart,
    WorkerStatus,
    run_in_processes,
)
from aioktask.cluster.job import checked_cluster_job
from aioktask.cluster.packing import (
    packed,
    packed_error,
    packed_job,
    unpacked_error,
    unpacked_job,
)
from tests.cluster import work
from tests.cluster.ledger import Ledger


class Method:
    def of_two(self, start: int, stop: int) -> None:
        pass


def with_more(start: int, stop: int, data: object, *, more: bytes) -> None:
    pass


async def a_coroutine(start: int, stop: int, data: object) -> None:
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": -1}, "size must be at least 0, got -1"),
        ({"size": 2.5}, "size must be an integer, got 2.5"),
        ({"size": 2**63, "chunk": 2**62}, "size must be at most .* make a job of each part"),
        ({"align": 0}, "align must be at least 1, got 0"),
        ({"chunk": 3, "align": 2}, "chunk must be a multiple of align"),
        ({"nice": 20}, "nice must be from -20 to 19, got 20"),
        ({"max_threads": 0}, "max_threads must be at least 1"),
        ({"idempotent": 1}, "idempotent must be True or False, got 1"),
        ({"fn": a_coroutine}, "got the async a_coroutine"),
        ({"fn": None}, "fn must be callable"),
        ({"setup": 5}, "setup must be callable"),
        ({"undo": a_coroutine}, "undo"),
        ({"close": print}, "pass setup="),
        ({"initial": 5}, "pass reduce="),
        ({"size": 0, "reduce": max}, "pass initial="),
        ({"labels": {"a": 1}}, "labels must be strings"),
        ({"name": 7}, "name must be a string"),
        ({"homes": [(0, 10)]}, "homes must be Home values"),
        ({"homes": [Home(0, 60, "a"), Home(50, 70, "b")]}, "apart from each other"),
        ({"homes": [Home(90, 101, "a")]}, "inside of 0 to 100"),
    ],
)
def test_nonsense_is_refused_when_the_job_is_made(options: dict[str, Any], message: str) -> None:
    options = {"fn": work.count, "size": 100, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        ClusterJob(options.pop("fn"), options.pop("size"), **options)


@pytest.mark.parametrize(
    ("options", "wanted", "got"),
    [
        (
            {"fn": lambda start, stop: None},
            r"fn is called as fn\(start, stop, data\)",
            "does not fit",
        ),
        (
            {"undo": lambda start, stop: None},
            r"undo is called as undo\(start, stop, data\)",
            "does not fit",
        ),
        ({"setup": lambda folder: None}, r"setup is called as setup\(\)", "folder"),
        (
            {"setup": list, "close": lambda: None},
            r"close is called as close\(data\)",
            "does not fit",
        ),
        ({"fn": Method().of_two}, r"fn is called as fn\(start, stop, data\)", "does not fit"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused_when_the_job_is_made(
    options: dict[str, Any], wanted: str, got: str
) -> None:
    given = {"fn": work.count, **options}
    with pytest.raises(TypeError, match=f"{wanted}.*{got}"):
        ClusterJob(given.pop("fn"), 10, **given)


def test_functions_that_may_be_called_so_are_taken() -> None:
    partial = functools.partial(work.stay, "folder")
    for fn in (lambda *given: None, lambda start, stop, data=None, *, more=1: None, partial, print):
        assert ClusterJob(fn, 10, setup=dict, close=repr).size == 10


def test_threads_refuse_it_with_the_functions_that_run_it() -> None:
    with pytest.raises(TypeError, match=r"run_in_processes.*run_on_cluster"):
        run_multithreaded_sync(ClusterJob(work.count, 10))  # type: ignore[arg-type]


def test_what_is_left_makes_jobs_of_their_own_with_all_else_as_it_was() -> None:
    homes = [Home(0, 40, "a"), Home(60, 100, "b")]
    job = ClusterJob(
        work.count, 100, align=10, setup=dict, undo=work.undo_nothing, nice=5, homes=homes
    )
    first, last = job.over([range(30, 45), range(90, 100)])
    assert [(each.start, each.stop, each.size) for each in (first, last)] == [
        (30, 45, 15),
        (90, 100, 10),
    ]
    assert (first.fn, first.setup, first.undo) == (job.fn, job.setup, job.undo)
    assert (first.name, first.nice, first.align) == ("count", 5, 10)
    assert first.homes == (Home(30, 40, "a"),)
    assert last.homes == (Home(90, 100, "b"),)
    assert packed_job(last)
    for wrong in ([range(35, 40)], [range(90, 110)]):
        with pytest.raises(ValueError, match="ranges must"):
            job.over(wrong)
    with pytest.raises(TypeError, match="reduce combines the whole range"):
        ClusterJob(work.pid, 10, reduce=work.union).over([range(5)])


def test_homes_that_are_asked_for_are_cut_to_what_is_left() -> None:
    def at(workers: Sequence[WorkerStatus]) -> list[Home]:
        return [Home(0, 40, "a"), Home(40, 100, "b")]

    (rest,) = ClusterJob(work.count, 100, homes=at).over([range(30, 50)])
    assert callable(rest.homes)
    assert list(rest.homes(())) == [Home(30, 40, "a"), Home(40, 50, "b")]


def test_a_home_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        Home(5, 5, "a")
    with pytest.raises(ValueError, match="must name a worker"):
        Home(0, 5, [])
    with pytest.raises(TypeError, match="names of workers"):
        Home(0, 5, [1])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "job", [Job(print, 10), arrays.fill(np.zeros(10), 1.0)], ids=["plain", "in place"]
)
def test_a_job_of_one_process_is_refused_with_the_reason(job: Job[Any]) -> None:
    with pytest.raises(TypeError, match="a worker would only get a copy"):
        checked_cluster_job(job)
    with pytest.raises(TypeError, match="a worker would only get a copy"):
        ClusterJob(job, 10)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="a ClusterJob is needed, got 7"):
        checked_cluster_job(7)


@pytest.mark.anyio
async def test_what_cannot_be_sent_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = threading.Lock()

    def fn(start: int, stop: int, data: object) -> None:
        with lock:
            pass

    def never(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("aioktask.cluster.processes.ProcessCarrier.begin", never)
    with pytest.raises(TypeError, match=r"fn of the job .*because of the variable 'lock', a lock"):
        await run_in_processes(ClusterJob(fn, 10))


def test_a_large_job_is_refused_with_what_it_captured() -> None:
    table = np.zeros((512, 512))
    small = np.zeros(4000)

    def fn(start: int, stop: int, data: object) -> None:
        table[start:stop] = small[0]

    with pytest.raises(ValueError, match="Open the data in setup") as caught:
        packed_job(ClusterJob(fn, 512, name="big"))
    text = str(caught.value)
    assert "the job 'big' is 2.0 MiB as bytes" in text
    first, second = text.index("'table'"), text.index("'small'")
    assert first < second
    assert "shape (512, 512) and dtype float64 of 2.0 MiB" in text
    with pytest.raises(ValueError, match=r"of 2.0 MiB\. Open"):  # nothing small is named
        packed_job(
            ClusterJob(functools.partial(with_more, more=bytes(1 << 21)), 9, undo=work.undo_nothing)
        )


def test_a_large_argument_of_a_partial_and_an_attribute_of_an_object_are_named() -> None:
    with pytest.raises(ValueError, match=r"more=, an? .*of 2.0 MiB"):
        packed_job(ClusterJob(functools.partial(with_more, more=bytes(1 << 21)), 10))
    ledger = Ledger(Path("/nowhere"))
    ledger.ballast = bytes(1 << 21)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"self.ballast, a bytes of 2.0 MiB"):
        packed_job(ledger.job())


class Untold(Exception):  # noqa: N818 - it is one that says nothing
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Shy:
    """What cannot be sent, and has no attribute that can be asked for."""

    def __call__(self, start: int, stop: int, data: object) -> None:
        pass

    def __reduce__(self) -> Any:
        raise Untold

    def __getattr__(self, name: str) -> Any:
        raise (AttributeError if name.startswith("_") else RuntimeError)(name)


class ShyOfAttributes(Shy):
    @property
    def __dict__(self) -> Any:
        raise RuntimeError("nothing here")


def partial_of_shy() -> Any:
    return functools.partial(work.count_with, Shy())


@pytest.mark.parametrize("made", [Shy, ShyOfAttributes, partial_of_shy])
def test_a_job_is_refused_whatever_its_objects_answer(made: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="fn of the job 'shy' cannot be sent to another process"):
        packed_job(ClusterJob(made(), 10, name="shy"))


def test_a_value_is_refused_whatever_it_answers() -> None:
    with pytest.raises(TypeError, match="a Shy cannot be sent to another process"):
        packed(Shy())


def test_a_job_arrives_with_its_functions_and_numbers() -> None:
    job = ClusterJob(lambda a, b, d: a + b, 100, start=5, chunk=10, reduce=max, initial=3)
    kit = unpacked_job(packed_job(job))
    assert kit.fn(1, 2, None) == 3
    assert (kit.start, kit.size, kit.chunk, kit.leaf, kit.initial) == (5, 100, 10, 10, 3)


def test_without_cloudpickle_a_lambda_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    packed_job(ClusterJob(work.count, 10))
    with pytest.raises(TypeError, match="need cloudpickle"):
        packed_job(ClusterJob(lambda a, b, d: None, 10))


@pytest.mark.parametrize("error", [StopIteration(1), GeneratorExit()])
def test_an_exception_that_a_waiter_would_misread_is_wrapped(error: BaseException) -> None:
    found = unpacked_error(packed_error(error), "w")
    assert isinstance(found, RuntimeError)
    assert type(found.__cause__) is type(error)


def test_a_failure_can_be_pickled_and_keeps_its_workers() -> None:
    import pickle

    part = WorkerPart("w", "h", done=(range(5),))
    told = ClusterFailure(
        ClusterJob(work.count, 10), None, (), (range(5),), (), (), workers=(part,)
    )
    found = pickle.loads(pickle.dumps(told))
    assert isinstance(found, ClusterFailure)
    assert found.workers == (part,)
    assert found.remaining == (range(5, 10),)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_a_cluster_of_dask_is_refused_with_what_there_is_instead() -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    from aioktask.cluster import run_on_cluster

    with pytest.raises(TypeError, match=r"needs asyncio .* this is trio. There run_in_processes"):
        await run_on_cluster(ClusterJob(work.count, 9), None)  # type: ignore[arg-type]


def test_without_dask_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import aioktask.cluster

    monkeypatch.delitem(sys.modules, "aioktask.cluster.dask", raising=False)
    monkeypatch.delitem(vars(aioktask.cluster), "run_on_cluster", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'aioktask\[dask\]'"):
        aioktask.cluster.run_on_cluster  # noqa: B018
