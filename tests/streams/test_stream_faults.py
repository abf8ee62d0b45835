# SPDX-License-Identifier: MIT
# Random streams beside random jobs, interrupted at random by handlers, finalizers and denials: each
# item is worked on once or not at all, values come in order, nothing is left behind. The seed of a
# failing schedule is printed.

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator

import anyio
import pytest

import aioktask
from aioktask import run_multithreaded
from tests.streams.scenarios import (
    ASYNC_SOURCES,
    MOST_ITEMS,
    SOURCES,
    Control,
    Scenario,
    play,
    play_sync,
)
from tests.support.harness import Trial, interrupted, pool_at_rest

EVERYDAY = 300
LONG = 3_000


@pytest.fixture(autouse=True)
def _own_limit_and_no_records(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("aioktask"), "disabled", True)
    yield
    aioktask.set_max_threads(None)


def some(rng: random.Random, most: int) -> frozenset[int]:
    return frozenset(rng.sample(range(MOST_ITEMS), rng.randint(0, most)))


def a_scenario(rng: random.Random, sources: tuple[str, ...]) -> Scenario:
    source = rng.choice(sources)
    size = rng.randint(0, MOST_ITEMS) if source == "list" or rng.random() < 0.7 else None
    fails_at = None if source == "list" else rng.choice([None, None, rng.randint(0, MOST_ITEMS)])
    leaves = rng.randint(0, MOST_ITEMS)
    return Scenario(
        size=size,
        source=source,
        window=rng.choice([1, 2, 3, 8, 64]),
        ordered=rng.random() < 0.7,
        errors=rng.choice(["raise", "yield"]),
        max_delay=rng.choice([None, 0, 0.001]),
        source_fails_at=fails_at,
        fails=some(rng, 3) if rng.random() < 0.4 else frozenset(),
        slow=some(rng, 8),
        pauses=some(rng, 20),
        leaves_after=leaves if size is None else rng.choice([None, leaves]),
        leaves_by=rng.choice(["break", "raise", "cancel"]),
    )


def some_controls(rng: random.Random) -> dict[int, Control]:
    """What is done with a stream's handle, by the number of values that were given."""
    choices: list[Control] = [
        lambda handle: handle.cancel(),
        lambda handle: handle.renice(rng.randint(-20, 19)),
        lambda handle: setattr(handle, "max_threads", rng.randint(1, 4)),
        lambda handle: handle.progress(),
        lambda handle: aioktask.set_max_threads(rng.randint(1, 4)),
    ]
    return {rng.randint(1, MOST_ITEMS): rng.choice(choices) for _ in range(rng.randint(0, 3))}


async def one_schedule(seed: int) -> None:
    rng = random.Random(seed)
    aioktask.set_max_threads(rng.randint(1, 4))
    streams = [
        (a_scenario(rng, ASYNC_SOURCES), some_controls(rng))
        for _ in range(rng.choice([1, 1, 2, 3]))
    ]
    trials = [Trial(rng, loop_runs=True) for _ in range(rng.choice([0, 0, 1]))]

    async def run_trial(trial: Trial) -> None:
        try:
            trial.outcome = await run_multithreaded(trial.job)
        except BaseException as error:
            trial.outcome = error
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise
        finally:
            trial.finished = True

    async def run_stream(scenario: Scenario, controls: dict[int, Control]) -> None:
        ledger, raised = await play(scenario, controls)
        ledger.check(raised)

    with interrupted(rng, trials, may_raise=False):
        async with anyio.create_task_group() as tasks:
            for trial in trials:
                tasks.start_soon(run_trial, trial)
            for scenario, controls in streams:
                tasks.start_soon(run_stream, scenario, controls)
    for trial in trials:
        trial.check()


async def schedules(first: int, count: int) -> None:
    for seed in range(first, first + count):
        try:
            await one_schedule(seed)
            pool_at_rest()
        except BaseException as error:
            error.add_note(f"the schedule of seed {seed}: one_schedule({seed})")
            raise


@pytest.mark.anyio
async def test_streams_keep_their_promises_whatever_interrupts_them() -> None:
    await schedules(0, EVERYDAY)


@pytest.mark.slow
@pytest.mark.anyio
async def test_streams_keep_their_promises_in_thousands_of_schedules() -> None:
    await schedules(1_000_000, LONG)


def run_sync(scenario: Scenario, controls: dict[int, Control], found: list[BaseException]) -> None:
    """Run a scenario in this thread; what is wrong is appended to `found`."""
    try:
        ledger, raised = play_sync(scenario, controls)
        ledger.check(raised)
    except BaseException as error:
        found.append(error)


def sync_schedules(first: int, count: int) -> None:
    for seed in range(first, first + count):
        rng = random.Random(seed)
        aioktask.set_max_threads(rng.randint(1, 4))
        scenario, controls = a_scenario(rng, SOURCES), some_controls(rng)
        if scenario.leaves_by == "cancel":
            scenario.leaves_by = "break"
        found: list[BaseException] = []
        try:
            with interrupted(rng, [], may_raise=False):
                if rng.random() < 0.5:
                    run_sync(scenario, controls, found)
                else:
                    thread = threading.Thread(target=run_sync, args=(scenario, controls, found))
                    thread.start()
                    thread.join()
            if found:
                raise found[0]
            pool_at_rest()
        except BaseException as error:
            error.add_note(f"the schedule of seed {seed}")
            raise


def test_the_sync_form_keeps_its_promises_whatever_interrupts_it() -> None:
    sync_schedules(0, EVERYDAY)


@pytest.mark.slow
def test_the_sync_form_keeps_its_promises_in_thousands_of_schedules() -> None:
    sync_schedules(1_000_000, LONG)
