# SPDX-License-Identifier: MIT
# How many messages a job takes, counted where the carrier moves them, and what one costs.
#
# A message is what one side says to the other, whether or not it travels with others. Its cost is
# the CPU time of the client's process, and of the scheduler's, over many jobs that do nothing else.
"""Messages, for `bench cluster`."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from aioktask.bench.on_dask import awaited_client
from aioktask.bench.promises import Promise, Result
from aioktask.bench.pure_python import spin
from aioktask.cluster import ClusterJob
from aioktask.cluster.carrier import Carrier
from aioktask.cluster.coordinator import Fleet
from aioktask.cluster.messages import Command, Joined, Lost, Message
from aioktask.cluster.processes import ProcessCarrier
from aioktask.figures.measure import interval, ratio
from aioktask.figures.table import Table

__all__ = ["DASK", "MESSAGES", "PROCESSES", "Cost", "Counted", "measure_messages"]

WORKERS = 2
PROCESSES, DASK = "processes", "Dask"
# What stands in promises between the carrier and the numbers of chunks.
MESSAGES = ": messages in "
# Units of a job, of 2 us each, in chunks of so many: the same work in few and in many.
UNITS, FEWER = 1 << 20, 1 << 14
FEW, MANY = 1 << 10, 1 << 4
# What is promised: messages of a job in many chunks, of those of the same in few.
SAME = 1.25
ROUNDS = 7
# Jobs by which the cost of a message is measured.
JOBS = 200

MICRO = 1e6


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time that a message costs, in seconds.

    Attributes:
        client: Of the process with the coordinator.
        scheduler: Of Dask's scheduler; 0 where there is none.
    """

    client: float
    scheduler: float = 0.0

    @property
    def narrowest(self) -> float:
        """Of whoever is the limit."""
        return max(self.client, self.scheduler)


class Counted:
    """A carrier that counts what another one moves.

    Attributes:
        count: Commands that were sent, and messages of workers that were heard.
    """

    def __init__(self, carrier: Carrier) -> None:
        self.count = 0
        self._carrier = carrier
        self._lock = threading.Lock()  # guards the count: workers are heard on several threads

    @property
    def may_join(self) -> bool:
        return self._carrier.may_join

    @may_join.setter
    def may_join(self, value: bool) -> None:
        self._carrier.may_join = value

    def begin(self, hear: Callable[[Message], None]) -> None:
        def heard(message: Message) -> None:
            if not isinstance(message, Joined | Lost):  # those no worker says
                self._one_more()
            hear(message)

        self._carrier.begin(heard)

    def send(self, worker: str, command: Command) -> None:
        self._one_more()
        self._carrier.send(worker, command)

    def end(self) -> None:
        self._carrier.end()

    def _one_more(self) -> None:
        with self._lock:
            self.count += 1


def measure_messages(
    result: Result, quick: bool, progress: Callable[[str], object]
) -> dict[str, Cost]:
    """Count the messages of a job in few and in many chunks; what one costs, by carrier."""
    units, rounds, jobs = (FEWER, 1, 5) if quick else (UNITS, ROUNDS, JOBS)
    costs = {}
    rows: list[tuple[object, ...]] = []
    for name in (PROCESSES, DASK):
        if name == DASK and importlib.util.find_spec("distributed") is None:
            rows.append((name, None, "distributed is not installed", None))
            continue
        progress(f"messages by {name}: {rounds} rounds")
        with ExitStack() as stack:
            fleet, carrier, scheduler_time = stack.enter_context(_fleet(name))
            counted: dict[int, list[float]] = {FEW: [], MANY: []}
            chunks = {}
            for _ in range(rounds):
                for chunk, messages in counted.items():
                    before = carrier.count
                    report = fleet.submit(ClusterJob(spin, units, chunk=chunk)).result()
                    messages.append(carrier.count - before)
                    chunks[chunk] = report.chunks
            costs[name] = _cost(fleet, carrier, scheduler_time, jobs)
        rows += [
            (f"{name}, {chunks[chunk]:,} chunks", interval(messages), None, None)
            for chunk, messages in counted.items()
        ]
        rows.append(
            (
                f"{name}, a message",
                None,
                MICRO * costs[name].client,
                MICRO * costs[name].scheduler if name == DASK else None,
            )
        )
        result.samples[f"messages by {name}"] = {
            f"chunks of {chunk}": messages for chunk, messages in counted.items()
        }
        text = f"{name}{MESSAGES}{UNITS // MANY:,} chunks, of those in {UNITS // FEW:,}"
        reached = ratio(counted[MANY], counted[FEW])
        result.promises.append(Promise(text, SAME, False, reached))
    columns = ("", "messages of a job", "of the client's CPU time, us", "of the scheduler's, us")
    notes = (
        f"A job of {2e-6 * units / WORKERS:.2g} s on {WORKERS} workers, the same work in few and "
        f"in many chunks. What a message costs is the CPU time over {jobs} jobs that do nothing.",
    )
    result.tables.append(Table("Messages of a job", columns, rows, notes))
    return costs


@contextmanager
def _fleet(name: str) -> Iterator[tuple[Fleet, Counted, Callable[[], float]]]:
    """A coordinator that counts, its carrier, and what tells the scheduler's CPU time."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        if name == PROCESSES:
            carrier = Counted(ProcessCarrier(WORKERS, 1))
            scheduler_time: Callable[[], float] = _no_time
        else:
            carrier, scheduler_time = _on_dask(stack, portal)
        fleet = stack.enter_context(portal.wrap_async_context_manager(Fleet(carrier)))
        yield fleet, carrier, scheduler_time


def _on_dask(stack: ExitStack, portal: BlockingPortal) -> tuple[Counted, Callable[[], float]]:
    from aioktask.bench.dask_ways import dask_cluster
    from aioktask.cluster.dask import DaskCarrier

    address, _ = stack.enter_context(dask_cluster(WORKERS))
    client: Any = awaited_client(stack, portal, address)

    def scheduler_time() -> float:
        seconds: float = portal.call(client.run_on_scheduler, time.process_time)
        return seconds

    return Counted(DaskCarrier(client, None)), scheduler_time


def _no_time() -> float:
    return 0.0


def _cost(fleet: Fleet, carrier: Counted, scheduler_time: Callable[[], float], jobs: int) -> Cost:
    job = ClusterJob(spin, WORKERS, chunk=1)
    fleet.submit(job).result()
    messages, scheduler, client = carrier.count, scheduler_time(), time.process_time()
    for _ in range(jobs):
        fleet.submit(job).result()
    client = time.process_time() - client
    messages = carrier.count - messages
    return Cost(client / messages, (scheduler_time() - scheduler) / messages)
