# SPDX-License-Identifier: MIT
# Workers in this process: what drives jobs, with real stations, and without processes that take
# seconds to start.

from __future__ import annotations

import threading
from collections.abc import Callable

from aioktask.cluster.messages import Command, Joined, Message
from aioktask.cluster.worker import Station


class Here:
    """A carrier whose workers are stations of this process.

    Attributes:
        hear: What the driver is told by.
        ended: Set when it was let go of.
    """

    may_join = False

    def __init__(self, workers: int = 1, threads: int = 1) -> None:
        self.names = [f"w{number}" for number in range(workers)]
        self.threads = threads
        self.stations: dict[str, Station] = {}
        self.hear: Callable[[Message], object] = lambda message: None
        self.ended = threading.Event()

    def begin(self, hear: Callable[[Message], None]) -> None:
        self.hear = hear
        for name in self.names:
            self.stations[name] = Station(name, hear, self.threads)
            hear(Joined(name, "localhost"))

    def send(self, worker: str, command: Command) -> None:
        self.stations[worker].obey(command)

    def end(self) -> None:
        for station in self.stations.values():
            station.abandon(30.0)
        self.ended.set()
