# SPDX-License-Identifier: MIT
# What the coordinator needs of whatever moves messages: one protocol, one file for each carrier.
#
# What a carrier promises: messages of a worker arrive in the order in which it said them; a worker
# that joined is lost at most once, and nothing of it comes after that; names are never used again.
# What it need not promise: that a command arrives, where the worker is lost; or that it arrives
# once, since leases are for one use.
"""The protocol of a carrier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from aioktask.cluster.messages import Command, Message

__all__ = ["Carrier"]


class Carrier(Protocol):
    """Moves commands to workers and messages from them, and knows which workers there are.

    Attributes:
        may_join: Whether workers may come later that are not there when it begins. The driver
            makes it False where it is told that all are lost.
    """

    may_join: bool

    def begin(self, hear: Callable[[Message], None]) -> None:
        """Start: from now on `hear` is told what workers say, and that they join and are lost.

        It may be called on any thread, and never waits.
        """

    def send(self, worker: str, command: Command) -> None:
        """Send a command to a worker, after those that were sent to it before.

        Never raises: a worker that cannot be reached is lost, or will be.
        """

    def end(self) -> None:
        """Let go of all workers, and wait for that. Sessions are over, or workers end them."""
