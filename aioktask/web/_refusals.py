# SPDX-License-Identifier: MIT
# Which answer a client gets for what a coordinator raises. Pure: an exception in, a status and
# headers out.
"""Answers for refused and cancelled jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aioktask.checks import integer
from aioktask.engine.api.coordinator import Coordinator
from aioktask.errors import CoordinatorClosed, Overloaded

# What nginx logs where a client closed its connection before the answer; no client ever sees it.
CLIENT_CLOSED_REQUEST = 499
UNAVAILABLE = 503

# Behind a balancer the next attempt finds another process, so it need not wait long.
RETRY_ELSEWHERE = "1"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)


class Refusals:
    """The answers of one application.

    Args:
        overloaded: The status of `Overloaded`.

    Raises:
        TypeError, ValueError: It is neither 429 nor 503.
    """

    def __init__(self, overloaded: int) -> None:
        self._overloaded = integer("overloaded", overloaded)
        if self._overloaded not in (429, UNAVAILABLE):
            raise ValueError(f"overloaded must be 429 or 503, got {overloaded!r}")

    def of(self, error: Exception, coordinator: object) -> Refusal:
        """The answer for an exception of a coordinator.

        Args:
            error: An `Overloaded`, a `JobCancelled` or a `CoordinatorClosed`.
            coordinator: That of the application, if it has one.
        """
        if isinstance(error, Overloaded):
            seconds = max(1, math.ceil(error.retry_after))
            return Refusal(self._overloaded, str(error), {"Retry-After": str(seconds)})
        stopping = isinstance(coordinator, Coordinator) and not coordinator.ready
        if stopping or isinstance(error, CoordinatorClosed):
            return Refusal(UNAVAILABLE, "the service is stopping", {"Retry-After": RETRY_ELSEWHERE})
        return Refusal(CLIENT_CLOSED_REQUEST, str(error))
