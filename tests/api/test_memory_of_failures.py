# SPDX-License-Identifier: MIT
# What a job works on goes when the program lets go of it, not with the next run of the collector:
# whether the job ended well, failed, was cancelled or was undone, and also where its exception was
# kept for a while.
#
# The collector is off. Each scenario makes Data that only the job's functions, values and its
# exception hold, and returns; then nothing may be left, however long one waits.

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.from_thread
import numpy as np
import pytest

from aioktask import (
    Coordinator,
    Handle,
    Job,
    JobCancelled,
    OnDemand,
    UndoFailed,
    arrays,
    failure,
    run_multithreaded,
    run_multithreaded_sync,
)
from tests.support.patience import PATIENCE
from tests.support.watch import (
    Data,
    Watch,
    no_collector_and_no_records,
)

__all__ = ["no_collector_and_no_records"]

pytestmark = pytest.mark.usefixtures("no_collector_and_no_records")


def broken(data: Data) -> Callable[[int, int], None]:
    def fn(start: int, stop: int) -> None:
        assert data
        if start == 2:
            raise ValueError("planted")

    return fn


def sound(data: Data) -> Callable[[int, int], None]:
    def fn(start: int, stop: int) -> None:
        assert data

    return fn


def undoing(data: Data) -> Callable[[int, int], None]:
    def undo(start: int, stop: int) -> None:
        assert data

    return undo


def undoing_on_the_loop(data: Data) -> Any:
    async def undo(start: int, stop: int) -> None:
        assert data
        await anyio.lowlevel.checkpoint()

    return undo


def failing_to_undo(data: Data) -> Callable[[int, int], None]:
    def undo(start: int, stop: int) -> None:
        assert data
        raise OSError("planted in undo")

    return undo


def adding(data: Data) -> Callable[[Any, Any], Any]:
    def add(a: Any, b: Any) -> Any:
        assert data
        return a

    return add


def values(watch: Watch, fails: bool) -> Callable[[int, int], Data]:
    """Chunks that return Data each."""

    def fn(start: int, stop: int) -> Data:
        if fails and start == 5:
            raise ValueError("planted")
        return watch.data()

    return fn


def nested(data: Data) -> Callable[[int, int], None]:
    def fn(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(broken(data), 4, chunk=1, undo=undoing(data)))

    return fn


def broken_apply(watch: Watch) -> Job[Any]:
    array = np.zeros(9)
    watch.add(array)

    def rows(view: Any) -> Any:
        raise ValueError("planted")

    return arrays.apply(rows, array)


FAILURES = (ValueError, UndoFailed)
FAILING: dict[str, Callable[[Watch, Data], Job[Any]]] = {
    "fixed chunk": lambda watch, data: Job(broken(data), 4, chunk=1),
    "learned chunk": lambda watch, data: Job(broken(data), 1000),
    "undo": lambda watch, data: Job(broken(data), 4, chunk=1, undo=undoing(data)),
    "undo that fails": lambda watch, data: Job(
        broken(data), 4, chunk=1, max_threads=1, undo=failing_to_undo(data)
    ),
    "reduce": lambda watch, data: Job(
        values(watch, fails=True), 9, chunk=1, reduce=adding(data), initial=data
    ),
    "apply": lambda watch, data: broken_apply(watch),
    "nested": lambda watch, data: Job(nested(data), 4, chunk=1),
}
FAILING_ON_A_LOOP = {
    **FAILING,
    "coroutine undo": lambda watch, data: Job(
        broken(data), 4, chunk=1, undo=undoing_on_the_loop(data)
    ),
}
failing = pytest.mark.parametrize("make", FAILING.values(), ids=list(FAILING))
failing_on_a_loop = pytest.mark.parametrize(
    "make", FAILING_ON_A_LOOP.values(), ids=list(FAILING_ON_A_LOOP)
)
Make = Callable[["Watch", "Data"], Job[Any]]


def finishing_jobs(watch: Watch) -> Iterator[Job[Any]]:
    data = watch.data()
    yield Job(sound(data), 4, chunk=1)
    yield Job(sound(data), 1000)
    yield Job(sound(data), 4, chunk=1, undo=undoing(data))
    yield Job(values(watch, fails=False), 9, chunk=1, reduce=adding(data))
    array = np.zeros(9)
    watch.add(array)
    yield arrays.apply(np.sqrt, array)
    yield arrays.reduce(np.add, array)
    yield arrays.fill(array, 1)


# Awaited.


@pytest.mark.anyio
@failing_on_a_loop
async def test_a_failed_job_that_was_awaited_goes_with_its_exception(make: Make) -> None:
    watch = Watch()

    async def request() -> None:
        await run_multithreaded(make(watch, watch.data()))

    for _ in range(3):
        try:
            await request()
        except FAILURES:
            pass
        else:
            pytest.fail("it did not fail")
    await watch.check_in_task()


@pytest.mark.anyio
async def test_an_exception_that_is_kept_keeps_the_job_and_no_longer() -> None:
    watch = Watch()

    async def request() -> None:
        await run_multithreaded(FAILING["undo"](watch, watch.data()))

    kept: list[BaseException] = []
    try:
        await request()
    except ValueError as error:
        kept.append(error)
    assert failure(kept[0]).job.size == 4
    kept.clear()
    await watch.check_in_task()


@pytest.mark.anyio
async def test_a_finished_job_that_was_awaited_goes_with_its_report() -> None:
    watch = Watch()
    for job in finishing_jobs(watch):
        report = await run_multithreaded(job)
        del report
    del job
    await watch.check_in_task()


def cancelling(data: Data, cancel: Callable[[], object]) -> Callable[[int, int], None]:
    """Chunks of which the first has the job cancelled, and is over after that."""

    def fn(start: int, stop: int) -> None:
        assert data
        if start == 0:
            cancel()

    return fn


@pytest.mark.anyio
@pytest.mark.parametrize("undo", [None, undoing, undoing_on_the_loop])
async def test_a_cancelled_job_goes_with_the_cancellation(undo: Any) -> None:
    watch = Watch()

    async def request() -> None:
        data = watch.data()
        token = anyio.lowlevel.current_token()
        with anyio.CancelScope() as scope:

            def cancel() -> None:
                anyio.from_thread.run_sync(scope.cancel, token=token)

            options: dict[str, Any] = {} if undo is None else {"undo": undo(data)}
            await run_multithreaded(Job(cancelling(data, cancel), 100, chunk=1, **options))
            pytest.fail("it was not cancelled")

    await request()
    await watch.check_in_task()


@pytest.mark.anyio
async def test_an_undo_that_failed_after_a_cancel_goes_with_its_exception() -> None:
    watch = Watch()

    async def request() -> None:
        data = watch.data()
        token = anyio.lowlevel.current_token()
        with anyio.CancelScope() as scope:

            def cancel() -> None:
                anyio.from_thread.run_sync(scope.cancel, token=token)

            undo = failing_to_undo(data)
            await run_multithreaded(Job(cancelling(data, cancel), 100, chunk=1, undo=undo))

    try:
        await request()
    except UndoFailed:
        pass
    else:
        pytest.fail("the undo did not fail")
    await watch.check_in_task()


# Handles.


@pytest.mark.anyio
@failing_on_a_loop
async def test_a_failed_job_goes_with_its_handle_and_its_exception(make: Make) -> None:
    watch = Watch()

    async def request(coordinator: Coordinator) -> None:
        await coordinator.submit(make(watch, watch.data()))

    async with Coordinator() as coordinator:
        try:
            await request(coordinator)
        except FAILURES:
            pass
        else:
            pytest.fail("it did not fail")
        await watch.check_in_task()


@pytest.mark.anyio
async def test_a_finished_job_goes_with_its_handle() -> None:
    watch = Watch()
    async with Coordinator() as coordinator:
        for job in finishing_jobs(watch):
            handle = coordinator.submit(job)
            await handle
        del job, handle
        await watch.check_in_task()


@pytest.mark.anyio
@pytest.mark.parametrize("undo", [None, undoing, undoing_on_the_loop])
async def test_a_job_that_a_handle_cancelled_goes_with_the_handle(undo: Any) -> None:
    watch = Watch()
    handles: list[Handle[Any]] = []

    async def request(coordinator: Coordinator) -> None:
        data = watch.data()
        submitted = threading.Event()

        def cancel() -> None:
            assert submitted.wait(PATIENCE)
            handles[0].cancel()

        options: dict[str, Any] = {} if undo is None else {"undo": undo(data)}
        job = Job(cancelling(data, cancel), 100, chunk=1, **options)
        handles.append(coordinator.submit(job))
        submitted.set()
        await handles[0]

    async with Coordinator() as coordinator:
        try:
            await request(coordinator)
        except JobCancelled:
            pass
        else:
            pytest.fail("it was not cancelled")
        handles.clear()
        await watch.check_in_task()


def test_a_failed_job_goes_with_its_handle_in_a_thread() -> None:
    watch = Watch()

    def request(coordinator: Coordinator, make: Make) -> None:
        coordinator.submit(make(watch, watch.data())).result()

    with Coordinator() as coordinator:
        for make in FAILING.values():
            try:
                request(coordinator, make)
            except FAILURES:
                pass
            else:
                pytest.fail("it did not fail")
        watch.check()


# Jobs that nobody awaits.


def submit(coordinator: Coordinator, make: Make) -> Watch:
    """Submit a job, and keep nothing of it."""
    watch = Watch()
    coordinator.submit(make(watch, watch.data()))
    return watch


@pytest.mark.parametrize("end", ["finished", "fixed chunk", "undo", "reduce", "nested"])
def test_a_job_that_nobody_awaits_goes_when_it_is_over(end: str) -> None:
    with Coordinator() as coordinator:
        submit(coordinator, {**FAILING, "finished": make_sound}[end]).check()


def make_sound(watch: Watch, data: Data) -> Job[Any]:
    return Job(sound(data), 4, chunk=1)


def test_a_job_that_nobody_awaits_and_whose_undo_failed_goes_with_what_leaving_raises() -> None:
    kept: list[Watch] = []
    try:
        with Coordinator() as coordinator:
            kept.append(submit(coordinator, FAILING["undo that fails"]))
    except UndoFailed:
        pass
    else:
        pytest.fail("leaving did not raise")
    kept[0].check()


@pytest.mark.anyio
async def test_jobs_that_nobody_awaited_are_gone_when_their_coordinator_was_left() -> None:
    watch = Watch()

    def submit(coordinator: Coordinator) -> None:
        for name, make in FAILING.items():
            if name != "undo that fails":
                coordinator.submit(make(watch, watch.data()))
        for job in finishing_jobs(watch):
            coordinator.submit(job)

    async with Coordinator() as coordinator:
        submit(coordinator)
    await watch.check_in_task()


# The sync form.


@failing
def test_a_failed_job_of_the_sync_form_goes_with_its_exception(make: Make) -> None:
    watch = Watch()

    def request() -> None:
        run_multithreaded_sync(make(watch, watch.data()))

    for _ in range(3):
        try:
            request()
        except FAILURES:
            pass
        else:
            pytest.fail("it did not fail")
    watch.check()


def test_a_finished_job_of_the_sync_form_goes_with_its_report() -> None:
    watch = Watch()
    for job in finishing_jobs(watch):
        report = run_multithreaded_sync(job)
        del report
    del job
    watch.check()


def test_a_job_of_the_sync_form_that_its_coordinator_ended_goes_with_the_exception() -> None:
    watch = Watch()

    def request(coordinator: Coordinator) -> None:
        data = watch.data()

        def shut() -> None:
            thread = threading.Thread(
                target=lambda: asyncio.run(coordinator.shutdown(cancel=True)), daemon=True
            )
            thread.start()
            while not coordinator.scope()[1].closed:
                pass

        job = Job(cancelling(data, shut), 100, chunk=1, undo=undoing(data), max_threads=1)
        run_multithreaded_sync(job, coordinator=coordinator)

    try:
        request(Coordinator())
    except JobCancelled:
        pass
    else:
        pytest.fail("it was not cancelled")
    watch.check()


# Work that is done on demand.


@pytest.mark.anyio
@pytest.mark.parametrize("first", [0, 3])
async def test_what_is_done_on_demand_goes_when_it_was_left(first: int) -> None:
    watch = Watch()

    async def request() -> None:
        job = Job(sound(watch.data()), 10)
        async with OnDemand(job, section=1, first=first) as table:
            await table.ensure(7, 9)

    await request()
    await watch.check_in_task()


def test_what_is_done_on_demand_in_a_thread_goes_when_it_was_left() -> None:
    watch = Watch()

    def request() -> None:
        with OnDemand(Job(sound(watch.data()), 10), section=1) as table:
            table.ensure_sync(7, 9)

    request()
    watch.check()


@pytest.mark.anyio
async def test_what_is_ended_on_demand_goes_with_the_exception_that_ended_it() -> None:
    watch = Watch()

    async def request(waits: Callable[[OnDemand], Awaitable[None]]) -> None:
        async with OnDemand(Job(sound(watch.data()), 10), section=1) as table:
            await waits(table)
            raise KeyError

    for waits in (OnDemand.wait, lambda table: table.ensure(3, 5)):
        try:
            await request(waits)
        except KeyError:
            pass
        else:
            pytest.fail("nothing was raised")
    await watch.check_in_task()
