# SPDX-License-Identifier: MIT
# Random jobs with random faults over real helpers, interrupted at random by handlers, finalizers
# and denials: every unit is done exactly once, or done and undone exactly once, or never touched;
# nothing is left behind. The seed of a failing schedule is printed.

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import random
import threading
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import Coordinator, JobCancelled, Overloaded, run_multithreaded
from tests.support.harness import Trial, control, interrupted, nothing_refers_to, pool_at_rest

EVERYDAY = 400
LONG = 10_000


@pytest.fixture(autouse=True)
def _own_limit_and_no_records(monkeypatch: pytest.MonkeyPatch) -> Any:
    # pytest keeps what is logged, and with it the exceptions and what they refer to.
    monkeypatch.setattr(logging.getLogger("aioktask"), "disabled", True)
    yield
    aioktask.set_max_threads(None)


async def await_job(trial: Trial, coordinator: Coordinator | None) -> None:
    """`await run_multithreaded`, perhaps cancelled by its scope."""
    with anyio.CancelScope() as scope:
        token = anyio.lowlevel.current_token()
        trial.controls.append(
            control(
                trial.rng,
                handle=lambda: None,
                coordinator=coordinator,
                cancel_waiter=lambda: anyio.from_thread.run_sync(scope.cancel, token=token),
            )
        )
        try:
            trial.outcome = await run_multithreaded(
                trial.job, coordinator=coordinator, timeout=trial.timeout
            )
        except BaseException as error:
            trial.outcome = error
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise
        finally:
            trial.finished = True


async def await_handle(trial: Trial, coordinator: Coordinator) -> None:
    """Submit, with several waiters on the loop and one in a thread."""
    handles = trial.handles
    trial.controls.append(
        control(trial.rng, handle=lambda: next(iter(handles), None), coordinator=coordinator)
    )
    try:
        handle = coordinator.submit(trial.job, timeout=trial.timeout)
    except (Overloaded, RuntimeError) as error:  # also drained, by another trial
        trial.outcome = error
        trial.finished = True
        return
    handles.append(handle)
    outcomes: list[object] = []

    async def wait() -> None:
        try:
            outcomes.append(await handle)
        except BaseException as error:
            outcomes.append(error)

    def wait_in_thread() -> None:
        try:
            outcomes.append(handle.result())
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=wait_in_thread)
    thread.start()
    async with anyio.create_task_group() as tasks:
        for _ in range(trial.rng.randint(0, 2)):
            tasks.start_soon(wait)
        await wait()
    thread.join()
    trial.finished = True
    first = outcomes[0]
    assert isinstance(first, (aioktask.Report, BaseException))
    for other in outcomes:
        if isinstance(first, (JobCancelled, TimeoutError, Overloaded)):
            assert type(other) is type(first)
        else:
            assert other is first or other == first
    trial.outcome = first
    handles.clear()


class Calls:
    """Single calls, awaited and given to an executor, some of them cancelled."""

    def __init__(self, rng: random.Random, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._plans = [
            (rng.random() < 0.5, rng.random() < 0.2, rng.choice([None, None, 0, 1, 3]))
            for _ in range(rng.randint(0, 4))
        ]
        self._timeouts = [rng.choice([None, 600.0, 1e-4, 0]) for _ in self._plans]
        self.made: dict[int, list[str]] = {number: [] for number in range(len(self._plans))}

    def _call(self, number: int, fails: bool) -> int:
        self.made[number].append("began")
        try:
            if fails:
                raise LookupError(number)
            return number
        finally:
            self.made[number].append("ended")

    async def make(self) -> None:
        async with anyio.create_task_group() as tasks:
            for number, plan in enumerate(self._plans):
                tasks.start_soon(self._make_one, number, *plan)

    async def _make_one(
        self, number: int, submitted: bool, fails: bool, cancel_after: int | None
    ) -> None:
        try:
            if submitted:
                future = self._coordinator.executor().submit(self._call, number, fails)
                if cancel_after is not None:
                    for _ in range(cancel_after):
                        await anyio.lowlevel.checkpoint()
                    future.cancel()
                # Not awaited in a task: that is what `run` is for.
                done = await aioktask.run(concurrent.futures.wait, [future])
                assert future in done.done
                assert future.result() == number
                return
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._await_one, number, fails)
                if cancel_after is not None:
                    for _ in range(cancel_after):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
        except (
            *(LookupError, JobCancelled, concurrent.futures.CancelledError, RuntimeError),
            *(Overloaded, TimeoutError),
        ):
            pass  # it fails, or the coordinator was cancelled, by a control of some trial

    async def _await_one(self, number: int, fails: bool) -> None:
        ends = (LookupError, JobCancelled, RuntimeError, Overloaded, TimeoutError)
        with contextlib.suppress(*ends):
            timeout = self._timeouts[number]
            assert await self._coordinator.run(self._call, number, fails, timeout=timeout) == number

    def check(self) -> None:
        for made in self.made.values():
            assert made in ([], ["began", "ended"])


async def one_schedule(seed: int) -> list[Any]:
    rng = random.Random(seed)
    aioktask.set_max_threads(rng.randint(1, 4))
    trials = [Trial(rng, loop_runs=True) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
    with interrupted(rng, trials, may_raise=False):
        async with Coordinator(
            rng.choice([None, 1, 2]),
            max_queued=rng.choice([None, None, 0, 2]),
            max_wait=rng.choice([None, None, None, 1e-4, 600.0]),
        ) as coordinator:
            calls = Calls(rng, coordinator)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(calls.make)
                for trial in trials:
                    if rng.random() < 0.6:
                        tasks.start_soon(await_job, trial, rng.choice([None, coordinator]))
                    else:
                        tasks.start_soon(await_handle, trial, coordinator)
        assert len(coordinator.scope()[1].gate) == 0
    calls.check()
    for trial in trials:
        trial.check()
    return [trial.watch for trial in trials]


async def schedules(first: int, count: int) -> None:
    for seed in range(first, first + count):
        try:
            watches = await one_schedule(seed)
            pool_at_rest()
        except BaseException as error:
            error.add_note(f"the schedule of seed {seed}: one_schedule({seed})")
            raise
        if seed % 50 == 0:
            nothing_refers_to(watches)


@pytest.mark.anyio
async def test_every_unit_is_done_or_undone_or_untouched() -> None:
    await schedules(0, EVERYDAY)


@pytest.mark.slow
@pytest.mark.anyio
async def test_every_unit_is_done_or_undone_or_untouched_in_thousands_of_schedules() -> None:
    await schedules(1_000_000, LONG)


# What an alarm raises in a finalizer goes nowhere, and Python tells of it.
ALARMS_STRIKE_FINALIZERS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def sync_schedules(first: int, count: int) -> None:
    for seed in range(first, first + count):
        rng = random.Random(seed)
        aioktask.set_max_threads(rng.randint(1, 4))
        trial = Trial(rng, loop_runs=False)
        trial.controls.append(control(rng, handle=lambda: None, coordinator=None))
        try:
            with interrupted(rng, [trial], may_raise=True):
                trial.run_sync()
            trial.check()
            pool_at_rest()
        except BaseException as error:
            error.add_note(f"the schedule of seed {seed}")
            raise


@ALARMS_STRIKE_FINALIZERS
def test_the_sync_form_does_or_undoes_every_unit() -> None:
    sync_schedules(0, EVERYDAY)


@pytest.mark.slow
@ALARMS_STRIKE_FINALIZERS
def test_the_sync_form_does_or_undoes_every_unit_in_thousands_of_schedules() -> None:
    sync_schedules(1_000_000, LONG)
