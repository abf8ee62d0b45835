# SPDX-License-Identifier: MIT
# A sample of the tests, for as long as there is time: modules in an order that a seed decides, one
# after another until the time is over. What is then left is skipped, and said to be.
#
#   AIOKTASK_TEST_SECONDS=300 make test-switching
#   AIOKTASK_TEST_SECONDS=300 AIOKTASK_TEST_SEED=7 make test-switching      in that order once more
"""Run as many of the collected tests as there is time for."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

SECONDS = "AIOKTASK_TEST_SECONDS"
SEED = "AIOKTASK_TEST_SEED"


def in_order_of(seed: int, modules: Iterable[str]) -> dict[str, int]:
    """The place of each module: the same for the same seed and modules, however these come."""
    every = sorted(set(modules))
    random.Random(seed).shuffle(every)
    return {module: place for place, module in enumerate(every)}


@dataclass
class Sample:
    """The tests of a session for which there is time.

    Attributes:
        seconds: How long tests may begin.
        seed: What decides the order.
    """

    seconds: float
    seed: int
    _until: float | None = None
    _left_out: int = 0

    def arrange(self, items: list[Any]) -> None:
        """Order the tests by modules; within one they keep their order."""
        places = in_order_of(self.seed, (item.nodeid.partition("::")[0] for item in items))
        items.sort(key=lambda item: places[item.nodeid.partition("::")[0]])

    def why_not(self) -> str:
        """Why the test that is about to begin is left out; empty if the time is not over, which
        the first one starts."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self.seconds
        if now < self._until:
            return ""
        self._left_out += 1
        return f"not in this sample: its {self.seconds:g} s were over"

    def admit(self) -> None:
        """Skip the test that is about to begin if it is left out."""
        if reason := self.why_not():
            pytest.skip(reason)

    def told(self) -> str:
        """What there is to say of it at the end."""
        again = f"{SEED}={self.seed} has the same order"
        if not self._left_out:
            return f"all tests were within {self.seconds:g} s; {again}"
        return f"{self._left_out} tests left out after {self.seconds:g} s; {again}"


# The sample of a session, where only so much time is given.
SAMPLE = pytest.StashKey[Sample]()


def asked_for() -> Sample | None:
    """The sample that the environment asks for, if it does.

    Taken out of the environment, since tests start sessions of their own.

    Raises:
        pytest.UsageError: It asks for one that cannot be.
    """
    asked = os.environ.pop(SECONDS, "")
    if not asked:
        return None
    try:
        seconds, seed = float(asked), int(os.environ.get(SEED, "0"))
    except ValueError as error:
        raise pytest.UsageError(f"{SECONDS} and {SEED} are numbers: {error}") from None
    if not seconds > 0:
        raise pytest.UsageError(f"{SECONDS} is above 0, not {asked}")
    return Sample(seconds, seed or random.SystemRandom().randrange(1, 1_000_000))
