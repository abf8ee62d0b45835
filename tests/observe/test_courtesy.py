# SPDX-License-Identifier: MIT
# A thread that computes beside a loop sleeps often, and not at each call.

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.observe import courtesy
from aioktask.observe.courtesy import MOST_WORKS, SLEEPS, WORKS, Courtesy

WAITS = st.sampled_from([0.0, 1e-4, 1e-3, 5e-3, 1e-2, 1.0])


@given(st.lists(st.floats(1e-6, 1e-3), max_size=100), WAITS)
def test_it_sleeps_as_soon_as_it_has_worked_for_so_long_and_not_before(
    parts: list[float], waits: float
) -> None:
    """Where it waits for the GIL after each sleep it works for as long, within 5 ms."""
    now, worked, may_work = 100.0, 0.0, WORKS
    slept: list[float] = []

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal now
            slept.append(worked)
            now += seconds + waits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(courtesy, "time", Clock)
        rests = Courtesy()
        rests()
        for part in parts:
            worked, now, before = worked + part, now + part, len(slept)
            rests()
            if len(slept) > before:
                assert worked >= may_work * (1 - 1e-6)
                worked, may_work = 0.0, max(WORKS, min(SLEEPS + waits, MOST_WORKS))
            else:
                assert worked < may_work * (1 + 1e-6)
    assert SLEEPS > 0  # a sleep of 0 hands the GIL to nobody
