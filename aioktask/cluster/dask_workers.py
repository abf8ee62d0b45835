# SPDX-License-Identifier: MIT
# What a coordinator's client has run on the workers of a Dask cluster, and on its scheduler: a
# station on each worker, and a watcher on the scheduler.
#
# A worker says everything in order, each message with a number, by calls of the scheduler, which
# go on where its own stream has ended. Guarantees that one that closes undoes what is in its ledger
# before; of an idempotent job only where the coordinator hears of that first, or is gone. So it
# says that it leaves, waits until that is heard, and asks the scheduler whether it was taken for
# gone before. Relies on events being sent to the client in the order in which they are logged.
"""The workers' and the scheduler's side of jobs on a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aioktask.cluster.messages import Joined, Leaves, Lost, Message
from aioktask.cluster.worker import Station
from aioktask.extras import missing_package

try:
    from distributed.comm import get_address_host_port
    from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
except ImportError as error:
    raise missing_package("a Dask cluster", "distributed", error) from error

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["StationPlugin", "Watcher", "deliver", "forget", "host_of", "let_go", "take_for_gone"]

# A worker that closes has so long to undo, in seconds; Dask's nanny gives it about as much.
LEAVING_SECONDS = 30.0
# How long a worker that closes tries to say what it did, in seconds.
SAYING_SECONDS = 5.0
# How often it looks whether that was heard, in seconds.
SAY_LOOK_SECONDS = 0.005
# So long after a first refusal the scheduler is asked again whether it is there, in seconds.
REFUSED_SECONDS = 2.0
# What Dask says of a worker that is retired, or retires itself as it closes in good order. It
# forgets the worker first, and then has it close: so what that says as it undoes comes later. So it
# does where the worker said that it leaves, and its connection ended since.
RETIRED = ("retire-workers", "worker-close-gracefully")
# How often what could not be said is said again, in seconds.
AGAIN_SECONDS = 0.5


def _question(name: str) -> str:
    """What a worker asks the scheduler by: whether the coordinator was told that it is gone."""
    return f"{name.replace('-', '_')}_is_gone"


class StationPlugin(WorkerPlugin):  # type: ignore[misc]
    """A station on each worker."""

    idempotent = True  # registered again it would take the place of itself, and undo

    def __init__(self, name: str, threads: int | None) -> None:
        self.name = name
        self.threads = threads

    def setup(self, worker: Worker) -> None:
        self.worker = worker
        self.unsaid: list[Message] = []
        self.number = 0  # of what was said last
        self.heard = 0  # of what the scheduler has surely heard last
        self.saying: asyncio.Task[None] | None = None
        self.closes = False
        # An address may be used again by a worker that is started anew.
        name = f"{worker.address}/{uuid.uuid4().hex[:8]}"
        self.station = Station(name, self._tell, self.threads, worker)
        host = socket.gethostname()
        names = frozenset((worker.address, str(worker.name), host, host.partition(".")[0]))
        self._tell(Joined(name, host_of(worker.address), names))

    async def teardown(self, worker: Worker) -> None:
        """Undo what is in the ledger, unless the job was closed, before the worker goes."""
        loop = asyncio.get_running_loop()
        # What began after it said that it leaves would not know that.
        self.station.leave()
        known = not self.station.asks_before_undo or await self._say_that_it_leaves()
        abandon = functools.partial(self.station.abandon, LEAVING_SECONDS, known=known)
        # In a thread of its own: the program may have those of the loop do anything, for any time.
        leaving = ThreadPoolExecutor(1, "aioktask-leaving")
        ended = await loop.run_in_executor(leaving, abandon)
        leaving.shutdown(wait=False)
        await asyncio.sleep(0)  # what was told meanwhile is in the list after this
        if ended:  # else nobody knows yet where its units stand
            name = self.station.name
            self._say(Lost(name, "left the cluster", all_heard=True, may_undo=False))
        self.closes = True
        if self.saying is not None:
            with contextlib.suppress(Exception):  # the scheduler is gone
                await asyncio.wait_for(self.saying, SAYING_SECONDS)

    async def _say_that_it_leaves(self) -> bool:
        """Say that from now on it may undo; whether that is heard before it is taken for gone."""
        if await self._scheduler_is_dead():
            return True  # so the coordinator has nobody to go on with
        self._say(Leaves(self.station.name))
        number = self.number + 1  # of what it is said with
        until = time.monotonic() + SAYING_SECONDS
        while self.heard < number:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(SAY_LOOK_SECONDS)
        ask = getattr(self.worker.scheduler, _question(self.name))
        asked = ask(station=self.station.name)
        try:
            # Where nobody listens any more Dask answers None: it may have been told before that.
            return await asyncio.wait_for(asked, SAYING_SECONDS) is False
        except Exception:
            return False

    async def _scheduler_is_dead(self) -> bool:
        """Whether its machine answers that nobody listens there, and again some seconds later.

        A firewall may answer so too, and so may a service of Kubernetes that has lost sight of the
        scheduler for a moment.
        """
        if not await self._is_refused():
            return False
        await asyncio.sleep(REFUSED_SECONDS)
        return await self._is_refused()

    async def _is_refused(self) -> bool:
        try:
            host, port = get_address_host_port(self.worker.scheduler.address)
            opened = asyncio.open_connection(host, port)
            _, writer = await asyncio.wait_for(opened, SAYING_SECONDS)
        except ConnectionRefusedError:
            return True
        except Exception:
            return False
        writer.close()
        return False

    def _tell(self, message: Message) -> None:
        self.worker.loop.add_callback(self._say, message)

    def _say(self, message: Message) -> None:
        self.unsaid.append(message)
        if self.saying is None or self.saying.done():
            self.saying = asyncio.get_running_loop().create_task(self._say_all())

    async def _say_all(self) -> None:
        """Say what there is, one call of the scheduler after the other.

        The stream by which a worker's own events go keeps no order with calls, and ends where the
        scheduler lets go of the worker; calls are answered still.
        """
        while self.unsaid:
            data = pickle.dumps(self.unsaid)
            self.unsaid = []
            self.number += 1
            event = ["said", self.worker.address, self.station.name, self.number, data]
            while True:
                try:
                    await self.worker.scheduler.log_event(topic=self.name, msg=event)
                    self.heard = self.number
                    break
                except Exception:  # perhaps it was heard: then the number says that
                    if self.closes:
                        return
                    await asyncio.sleep(AGAIN_SECONDS)


def _station(worker: Worker, name: str) -> StationPlugin | None:
    found = worker.plugins.get(name)
    return found if isinstance(found, StationPlugin) else None


def deliver(name: str, station: str, data: bytes, dask_worker: Worker) -> bool:
    """Have a station obey commands; whether it is there."""
    plugin = _station(dask_worker, name)
    if plugin is None or plugin.station.name != station:
        return False
    for command in pickle.loads(data):
        plugin.station.obey(command)
    return True


class Watcher(SchedulerPlugin):  # type: ignore[misc]
    """Tells the client of workers that are gone, and workers of the client."""

    idempotent = True

    def __init__(self, name: str, client: str) -> None:
        self.name = name
        self.client = client

    async def start(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.heard = True  # by the client, which is there
        self.letting_go: asyncio.Task[None] | None = None
        # The scheduler's address of each station, which may have called it otherwise; empty once
        # it has forgotten that worker.
        self.stations: dict[str, str] = {}
        self.gone: set[str] = set()  # stations: forgotten otherwise than in good order, or taken
        # Of those that let go since they are taken for gone, by the scheduler's address.
        self.removing: dict[str, asyncio.Task[None]] = {}
        scheduler.handlers[_question(self.name)] = self._is_gone

    def _is_gone(self, station: str) -> bool:
        return station in self.gone

    def log_event(self, topic: str, msg: Any) -> None:
        """Have the scheduler keep none of what was said: the client has been sent it by now."""
        if topic != self.name:
            return
        if topic in (topics := _topics(self.scheduler)):
            topics[topic].truncate()
        if msg[0] == "said":
            _, address, station, *_ = msg
            if station not in self.stations:
                self.stations[station] = self.scheduler.coerce_address(address)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self.removing.pop(worker, None)

    def remove_worker(self, scheduler: Any, worker: str, **how: Any) -> None:
        stimulus = str(how.get("stimulus_id", ""))
        for station in [each for each, address in self.stations.items() if address == worker]:
            self.stations[station] = ""
            if not stimulus.startswith(RETIRED):
                self.gone.add(station)
            scheduler.log_event(self.name, ["gone", station, stimulus])

    def remove_client(self, scheduler: Any, client: str) -> None:
        if client == self.client:
            self.heard = False
            scheduler.loop.add_callback(self._forget_all, scheduler)

    async def _forget_all(self, scheduler: Any) -> None:
        await self.let_go(scheduler)
        forget(self.name, scheduler)

    async def let_go(self, scheduler: Any) -> None:
        """Have workers let go of the coordinator, and end this; whoever asks waits for that.

        Where Dask is asked for what was done, it writes a traceback into the scheduler's log.
        """
        if self.letting_go is None:
            self.letting_go = asyncio.create_task(self._let_go(scheduler))
        await asyncio.shield(self.letting_go)

    async def _let_go(self, scheduler: Any) -> None:
        scheduler.worker_plugins.pop(self.name, None)  # so that workers to come are not given it
        # Dask's own call for both would be over as soon as one worker cannot be told.
        others = [each for each in scheduler.workers if each not in self.removing]
        await self._have_removed(scheduler, others)
        if self.removing:
            await asyncio.wait(self.removing.values(), timeout=LEAVING_SECONDS)
        with contextlib.suppress(Exception):
            await scheduler.unregister_scheduler_plugin(self.name)

    async def _have_removed(self, scheduler: Any, workers: list[str]) -> None:
        """Have these let go of the coordinator, as far as they can be told, and wait for that."""
        message = {"op": "plugin-remove", "name": self.name}
        with contextlib.suppress(Exception):
            await scheduler.broadcast(msg=message, workers=workers, on_error="ignore")

    def take(self, station: str, reason: str) -> None:
        """Take a worker for gone, have the coordinator hear that, and then the worker let go.

        So it asks before it undoes while the scheduler is there, and frees what it holds.
        """
        self.gone.add(station)
        self.scheduler.log_event(self.name, ["taken", station, reason])
        if address := self.stations.get(station):
            removed = self._have_removed(self.scheduler, [address])
            self.removing[address] = asyncio.create_task(removed)


def take_for_gone(name: str, station: str, reason: str, dask_scheduler: Any) -> bool:
    """Take a worker for gone, and have the coordinator hear that; whether that could be done."""
    watcher = dask_scheduler.plugins.get(name)
    if not isinstance(watcher, Watcher) or not watcher.heard:
        return False
    watcher.take(station, reason)
    return True


async def let_go(name: str, dask_scheduler: Any) -> None:
    """Have workers let go of a coordinator, and the scheduler not look after them any more."""
    watcher = dask_scheduler.plugins.get(name)
    if isinstance(watcher, Watcher):
        await watcher.let_go(dask_scheduler)


def forget(name: str, dask_scheduler: Any) -> None:
    """Have the scheduler keep nothing of a coordinator that is gone, as far as it can do that."""
    dask_scheduler.handlers.pop(_question(name), None)
    _topics(dask_scheduler).pop(name, None)


def _topics(scheduler: Any) -> dict[str, Any]:
    """The topics of a scheduler by name, as far as they can be found: Dask has no call for that."""
    topics = getattr(getattr(scheduler, "_broker", None), "_topics", None)
    return topics if isinstance(topics, dict) else {}


def host_of(address: str) -> str:
    """The host in an address like ``tcp://10.0.0.1:4000``."""
    return address.rpartition("://")[2].rpartition(":")[0]
