# SPDX-License-Identifier: MIT
# Programs that take an executor, each really run on a coordinator's: Dask's threaded scheduler, a
# Dask worker, joblib with a scikit-learn estimator, Zarr on a loop of its own. They change
# what all of a process has (how exceptions are pickled, threads that stay), so each of these tests
# runs in a process of its own: test_executor_consumers.py starts it.

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aioktask import Coordinator
from aioktask.engine.machine.os_threads import EngineThread

# What these packages themselves warn of is theirs.
pytestmark = [
    pytest.mark.max_threads(2),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    with Coordinator() as entered:
        yield entered


def on_a_helper(value: int = 0) -> tuple[int, bool]:
    return value, isinstance(threading.current_thread(), EngineThread)


def test_dask_threaded(coordinator: Coordinator) -> None:
    threaded = pytest.importorskip("dask.threaded")
    dask = pytest.importorskip("dask")
    executor = coordinator.executor()
    graph = {f"x{each}": (on_a_helper, each) for each in range(20)}
    found = threaded.get(graph, list(graph), pool=executor)
    assert list(found) == [(each, True) for each in range(20)]
    with dask.config.set(pool=executor):
        assert dask.compute(*[dask.delayed(on_a_helper)(each) for each in range(20)]) == tuple(
            (each, True) for each in range(20)
        )
    failing = {"x": (divmod, 1, 0)}
    with pytest.raises(ZeroDivisionError):
        threaded.get(failing, "x", pool=executor)


def test_a_dask_worker(coordinator: Coordinator) -> None:
    distributed = pytest.importorskip("distributed")
    executor = coordinator.executor()

    async def main() -> list[Any]:
        async with (
            distributed.Scheduler(port=0, dashboard_address="127.0.0.1:0") as scheduler,
            distributed.Worker(
                scheduler.address, executor={"default": executor}, nthreads=2, dashboard=False
            ),
            distributed.Client(scheduler.address, asynchronous=True) as client,
        ):
            futures = client.map(on_a_helper, range(20), pure=False)
            return list(await client.gather(futures))

    assert asyncio.run(main()) == [(each, True) for each in range(20)]


@pytest.mark.parametrize("given", [False, True])
def test_joblib(coordinator: Coordinator, given: bool) -> None:
    joblib = pytest.importorskip("joblib")
    import aioktask.joblib  # noqa: F401 - it registers the backend

    options = {"coordinator": coordinator} if given else {}
    with joblib.parallel_backend("aioktask", n_jobs=2, **options):
        calls = [joblib.delayed(on_a_helper)(each) for each in range(50)]
        assert joblib.Parallel()(calls) == [(each, True) for each in range(50)]
        assert joblib.Parallel(require="sharedmem")(calls) == [(each, True) for each in range(50)]
        assert joblib.Parallel(batch_size=7)(calls) == [(each, True) for each in range(50)]
        stream = joblib.Parallel(return_as="generator")(calls)
        assert list(stream) == [(each, True) for each in range(50)]
        with pytest.raises(ZeroDivisionError):
            joblib.Parallel()(joblib.delayed(divmod)(1, each - 5) for each in range(50))
        assert joblib.Parallel()(calls) == [(each, True) for each in range(50)]

        def nested(number: int) -> list[Any]:
            return list(
                joblib.Parallel()(joblib.delayed(on_a_helper)(each) for each in (number, 9))
            )

        assert joblib.Parallel()(joblib.delayed(nested)(each) for each in range(4)) == [
            [(each, True), (9, True)] for each in range(4)
        ]


def test_joblib_begins_no_batch_beside_one_that_was_aborted() -> None:
    pytest.importorskip("joblib")
    from types import SimpleNamespace

    from aioktask.joblib import AioktaskBackend

    begun, ends = threading.Event(), threading.Event()
    backend = AioktaskBackend()
    backend.configure(2, SimpleNamespace(n_jobs=2))

    def call() -> None:
        begun.set()
        assert ends.wait(60)

    running = backend.submit(call)
    assert begun.wait(60)
    abort = threading.Thread(target=backend.abort_everything)
    abort.start()
    abort.join(0.1)  # which it would do now, if it did not wait
    waits = abort.is_alive()
    ends.set()
    abort.join(60)
    assert waits
    assert running.done()
    assert backend.submit(lambda: 3).result(60) == 3
    backend.terminate()


@pytest.mark.max_threads(4)
def test_joblib_keeps_to_n_jobs() -> None:
    joblib = pytest.importorskip("joblib")
    import aioktask.joblib  # noqa: F401

    at_work = most = 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        hashlib.sha256(bytes(1 << 20))  # without the GIL, so that others could come meanwhile
        with lock:
            at_work -= 1

    # With a single job joblib does all itself.
    with joblib.parallel_backend("aioktask", n_jobs=2):
        joblib.Parallel(batch_size=1, pre_dispatch="all")(joblib.delayed(call)() for _ in range(40))
    assert 1 <= most <= 2


def test_a_scikit_learn_estimator(coordinator: Coordinator) -> None:
    joblib = pytest.importorskip("joblib")
    ensemble = pytest.importorskip("sklearn.ensemble")
    import aioktask.joblib  # noqa: F401

    points = np.random.default_rng(1).random((200, 4))
    labels = points[:, 0] > 0.5
    make = ensemble.RandomForestClassifier
    alone = make(20, random_state=1, n_jobs=1).fit(points, labels).predict_proba(points)
    with joblib.parallel_backend("aioktask", n_jobs=2, coordinator=coordinator):
        forest = make(20, random_state=1).fit(points, labels)
        # scikit-learn asks for shared memory here.
        assert np.array_equal(forest.predict_proba(points), alone)


def test_zarr_on_a_loop_of_the_programs_own(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr")
    asynchronous = pytest.importorskip("zarr.api.asynchronous")
    executor = coordinator.executor()
    submitted: list[object] = []
    submit = executor.submit

    def counted(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        submitted.append(fn)
        return submit(fn, *args, **kwargs)

    monkeypatch.setattr(executor, "submit", counted)
    values = np.arange(10_000).reshape(100, 100)

    async def main() -> Any:
        asyncio.get_running_loop().set_default_executor(executor)
        array = await asynchronous.create(
            store=zarr.storage.MemoryStore(), shape=values.shape, chunks=(10, 10), dtype="i8"
        )
        await array.setitem((slice(None), slice(None)), values)
        return await array.getitem((slice(None), slice(None)))

    assert np.array_equal(asyncio.run(main()), values)
    assert submitted
