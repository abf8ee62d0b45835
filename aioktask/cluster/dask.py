# SPDX-License-Identifier: MIT
# Workers that are those of a Dask cluster (`distributed`), which brings machines, their liveness
# and the transport. All that is Dask's own is here, on the client's side, and in `dask_workers`,
# which runs on workers and on the scheduler.
#
# What it relies on, and what it does not. Everything is said in one of two ways, each of which
# keeps the order. Commands go by `client.run`, one call to a worker after the other, and take none
# of its threads. What a worker says are events of a topic of this coordinator's own, one call of
# the scheduler after the other; each has a number, so one that is said again is heard once. No
# stretch is a task of Dask's: a task is run again when its worker dies, waits for one of the
# worker's threads, and its result would pass events by. A plugin of the scheduler tells that a
# worker is gone, and has workers let go where the client is. A worker that closes, for whatever
# reason, undoes what is in its ledger first.
#
# A worker that leaves asks the scheduler whether it is taken for gone, before it undoes what others
# might do again. So the scheduler is told first of whom the coordinator takes for gone, and the
# jobs then, by an event: what the worker said before it was answered comes before that.
#
# Every wait on Dask is in a task of this module's own, so no cancellation of the program's comes to
# one. Where whoever ends the loop cancels those too, or closes the loop, all workers are lost.
"""Jobs on a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from typing import Any, SupportsIndex, TypeVar

from aioktask.checks import integer, seconds
from aioktask.cluster.coordinator import Fleet, run_owned
from aioktask.cluster.dask_workers import (
    LEAVING_SECONDS,
    RETIRED,
    SAYING_SECONDS,
    StationPlugin,
    Watcher,
    deliver,
    forget,
    host_of,
    let_go,
    take_for_gone,
)
from aioktask.cluster.driver import block_signals
from aioktask.cluster.job import ClusterJob, ClusterReport, checked_cluster_job
from aioktask.cluster.messages import Command, Joined, Leaves, Lost, Message
from aioktask.cluster.packing import packed_job
from aioktask.engine.api.submission import needed_loop
from aioktask.extras import missing_package

try:
    from distributed import Client
except ImportError as error:
    raise missing_package("a Dask cluster", "distributed", error) from error

__all__ = ["ClusterCoordinator", "DaskCarrier", "run_on_cluster"]

T = TypeVar("T")

_logger = logging.getLogger("aioktask")

# How long whoever leaves waits until the workers are let go of, in seconds; that goes on after it.
ENDING_SECONDS = 60.0
# How often it is looked whether the client still has its scheduler, in seconds.
LOOK_SECONDS = 0.5
# What a worker says that leaves in good order may come so long after Dask forgot it, in seconds.
GRACE_SECONDS = LEAVING_SECONDS + SAYING_SECONDS
# How often it is tried to have workers begin.
TRIES = 5
# How long it may take until an event is heard, in seconds, before another one is sent.
ASK_SECONDS = 0.05
# Why workers are lost, in words that follow their names.
LOOP_CLOSED = "cannot be reached: the client's loop is closed"
# So Dask's scheduler names the reason for which a worker is gone, with more after it.
WHY_GONE = {
    "handle-worker-cleanup": "is gone: its connection to the scheduler ended",
    "worker-send-comm-fail": "is gone: the scheduler could not tell it anything",
    "send-all-comm-fail": "is gone: the scheduler could not tell it anything",
    "check-worker-ttl": "is gone: it was silent for longer than Dask waits",
    "retire-workers": "is gone: it was retired",
    "worker-close-gracefully": "is gone: it retired itself",
}
# What is run where jobs are to run, by those who may not have this package.
NEEDED = "import aioktask.cluster.dask_workers"


class ClusterCoordinator(Fleet):
    """A scope that owns jobs on the workers of a Dask cluster: none outlives it.

    Use it with ``async with``, on the client's loop. Leaving it normally waits for its jobs;
    leaving it by an exception cancels them and waits until they are undone. Workers that join serve
    the jobs that there are, and one that leaves is let go of.

    **Cancellation** while leaving cancels the jobs, waits until they are undone, and goes on.

    Args:
        client: A ``distributed.Client`` that was made with ``asynchronous=True``.
        max_threads: The most helpers in each worker process, whatever threads Dask has there; by
            default as many as the engine has on that machine.

    Raises:
        TypeError, ValueError: `client` is no such client, or `max_threads` no integer of at
            least 1.
    """

    def __init__(self, client: Client, *, max_threads: SupportsIndex | None = None) -> None:
        checked_client(client)
        threads = None if max_threads is None else integer("max_threads", max_threads, least=1)
        super().__init__(DaskCarrier(client, threads))

    async def __aenter__(self) -> ClusterCoordinator:
        refuse_other_loops("ClusterCoordinator")
        await super().__aenter__()
        return self


async def run_on_cluster(
    job: ClusterJob[T],
    client: Client,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 - it ends the job, not the wait
) -> ClusterReport[T]:
    """Run a job on a Dask cluster, until all is done or all is undone.

    Args:
        job: What to run.
        client: A ``distributed.Client`` that was made with ``asynchronous=True``.
        timeout: How long the job may take from now on, in seconds, its undo apart.

    Returns:
        The report, with what each worker did.

    Raises:
        BaseException: What the first failing chunk raised, after the undo, with a note of the
            worker and its traceback. `failure` tells the ranges, by worker.
        WorkerLost: A worker is gone, and what it had in hand may be done or not.
        UndoFailed: An undo raised, or a worker is gone that had something to undo.
        TimeoutError: The time was up; what was done is undone.
        TypeError: `job` is no ClusterJob, or a part of it cannot be pickled; `client` is none, or
            not asynchronous; or this runs on trio, where Dask does not.
        ValueError: The job is larger than 1 MiB as bytes.
        RuntimeError: No event loop runs here.

    **Cancellation.** No chunk begins, running ones finish, what is done is undone on the worker
    that did it, and then the cancellation goes on. While the workers close their data it comes too
    late: it goes on, and `failure` says that all is done.
    """
    refuse_other_loops("run_on_cluster()")
    checked_client(client)
    # Refused before anything is sent.
    packed_job(checked_cluster_job(job))
    timeout = None if timeout is None else seconds("timeout", timeout)
    async with ClusterCoordinator(client) as coordinator:
        return await run_owned(coordinator, job, timeout)


def refuse_other_loops(what: str) -> None:
    """Raise on trio, where Dask's client does not run.

    Raises:
        TypeError: The running loop is trio's.
        RuntimeError: No loop runs here.
    """
    kind = needed_loop(what).kind
    if kind == "trio":
        raise TypeError(
            f"{what} needs asyncio or uvloop, since Dask's client runs on nothing else, and this "
            "is trio. There run_in_processes() runs a ClusterJob on the processes of this machine"
        )


def checked_client(client: object, what: str = "client") -> Client:
    """`client`, if it is one of Dask's that is awaited.

    Args:
        client: What was given.
        what: The name of the argument.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(client, Client):
        raise TypeError(f"{what} must be a distributed.Client, got {client!r}")
    if not client.asynchronous:
        raise TypeError(
            f"{what} must be asynchronous: `async with Client(address, asynchronous=True) as "
            f"client`, got {client!r}"
        )
    return client


class DaskCarrier:
    """A client's connection to the workers, for one coordinator."""

    may_join = True

    def __init__(self, client: Client, threads: int | None) -> None:
        self._client = client
        self._threads = threads
        self._id = f"aioktask-{uuid.uuid4().hex}"
        self._hear: Callable[[Message], None] = _nothing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._addresses: dict[str, str] = {}  # of workers, by the name that they have here
        self._queues: dict[str, asyncio.Queue[Command | None]] = {}
        self._leaving: set[str] = set()  # names of those that said, or of which Dask did, they do
        self._losing: set[str] = set()  # of those of which the scheduler is being told
        self._heard: dict[str, int] = {}  # the number of what each worker said last
        self._tasks: set[asyncio.Task[None]] = set()
        self._beginning: asyncio.Task[None] | None = None
        self._listens = asyncio.Event()
        self._quit = asyncio.Event()
        self._gone = False  # nobody listens to this carrier any more
        self._cut = False  # all workers are lost, and nothing is heard any more
        self._over = threading.Event()
        self._watch = threading.Thread(
            target=self._watch_loop, name="aioktask-dask-loop", daemon=True
        )

    # On the client's loop.

    def begin(self, hear: Callable[[Message], None]) -> None:
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._watch.start()
        try:
            self._client.subscribe_topic(self._id, self._event)
        except Exception as error:
            self._over.set()
            raise RuntimeError(
                f"the client is {self._client.status}, so no coordinator can use it: make a new one"
            ) from error
        except BaseException:
            self._over.set()
            raise
        self._beginning = self._spawn(self._begin())
        self._spawn(self._find_who_lacks_this())

    # On the driver's thread, and on one of this carrier's own.

    def send(self, worker: str, command: Command) -> None:
        loop = self._loop
        assert loop is not None
        try:
            loop.call_soon_threadsafe(self._send, worker, command)
        except RuntimeError:
            self._lose_all(LOOP_CLOSED)

    def end(self) -> None:
        loop = self._loop
        assert loop is not None
        self._over.set()
        self._watch.join()
        ending = self._end()
        try:
            ended = asyncio.run_coroutine_threadsafe(ending, loop)
        except RuntimeError:  # the loop is closed: workers let go by themselves
            ending.close()
            return
        until = time.monotonic() + ENDING_SECONDS
        while not wait([ended], LOOK_SECONDS).done:
            if loop.is_closed():
                ending.close()  # nobody runs it, and perhaps nobody ever did
                return
            if time.monotonic() > until:  # a worker is stopped, say: it goes on by itself
                return

    def _watch_loop(self) -> None:
        """Tell that workers are lost where the loop is closed, which ends none of its tasks."""
        block_signals()
        loop = self._loop
        assert loop is not None
        while not self._over.wait(LOOK_SECONDS):
            if loop.is_closed():
                self._lose_all(LOOP_CLOSED)
                return

    # On the client's loop again.

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        loop = self._loop
        assert loop is not None
        try:
            task = loop.create_task(coroutine)
        except RuntimeError:  # it is closed
            coroutine.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _rest(self, seconds: float) -> None:
        """Wait so long, or until this ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quit.wait(), seconds)

    async def _begin(self) -> None:
        why = "cannot be reached: the tasks of the client's loop were cancelled"
        try:
            why = await self._serve()
        except Exception as error:
            why = f"could not be told what to run: {error}"
        finally:
            if not self._gone:
                self._lose_all(why)

    async def _serve(self) -> str:
        """Have workers begin, and watch until none can be reached any more; why that is."""
        connection = self._client.scheduler_comm
        # Events are lost that come before the scheduler knows who wants them, and what it is asked
        # to do may pass that by. So it is asked until it is heard.
        while not (self._listens.is_set() or self._gone):
            await self._client.log_event(self._id, ["heard", ""])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._listens.wait(), ASK_SECONDS)
        await self._register(Watcher(self._id, self._client.id))
        # Each worker tells that it is there, also one that comes later.
        await self._register(StationPlugin(self._id, self._threads))
        while not self._gone:
            await self._rest(LOOK_SECONDS)
            # Where it connects anew, Dask has cancelled what was asked for, workers let go, and
            # what they said meanwhile is lost. That may all be over between two looks.
            if self._client.status != "running":
                return f"cannot be reached: the client is {self._client.status}"
            if self._client.scheduler_comm is not connection:
                return "could not be reached for a while: the client connected anew"
        return ""

    async def _find_who_lacks_this(self) -> None:
        """Tell which workers cannot import this package, and lose all where none can.

        Beside all else, since a worker that is stopped keeps Dask from answering. What could not
        be asked for another reason is found out, and told, by whoever needs it.
        """
        try:
            await self._client.run_on_scheduler(exec, NEEDED)
        except ImportError as error:
            self._lose_all(f"could not be told what to run: the scheduler {_lacks(error)}")
            return
        except Exception:
            return
        try:
            found = await self._client.run(exec, NEEDED, on_error="return")
        except Exception:
            return
        if self._gone:
            return
        lacking = {
            address: _lacks(error)
            for address, error in found.items()
            if issubclass(type(error), ImportError)
        }
        for address, why in lacking.items():
            _logger.warning("the worker %r %s: it has no part in jobs", address, why)
            self._hear(Joined(address, host_of(address)))
            self._hear(Lost(address, why, all_heard=True, may_undo=False))
        # One that has it may have come since.
        if lacking and len(lacking) == len(found) and not self._addresses:
            last = next(reversed(lacking))
            self._lose_all(f"could not be told what to run: the worker {last!r} {lacking[last]}")

    async def _register(self, plugin: StationPlugin | Watcher) -> None:
        """Register a plugin, which fails where a worker goes meanwhile, and has been done then."""
        for left in reversed(range(TRIES)):
            if self._gone:
                return
            try:
                await self._client.register_plugin(plugin, name=self._id)
                return
            except Exception:
                if not left or self._client.status != "running":
                    raise
                await self._rest(LOOK_SECONDS)

    async def _end(self) -> None:
        self._gone = True
        self._quit.set()
        for queue in self._queues.values():
            queue.put_nowait(None)
        # Unregistered while it is being registered, a plugin would stay on the workers; and a wait
        # on Dask is not to be cancelled. Whatever tells a worker something yet ends by itself.
        if self._beginning is not None:
            await asyncio.wait([self._beginning])
        if self._client.status != "running":
            return
        with contextlib.suppress(Exception):
            await self._client.run_on_scheduler(let_go, self._id)
        with contextlib.suppress(Exception):
            self._client.unsubscribe_topic(self._id)
        with contextlib.suppress(Exception):
            await self._client.run_on_scheduler(forget, self._id)

    def _event(self, event: tuple[float, Any]) -> None:
        if self._cut:
            return
        what, worker, *told = event[1]  # the worker by its address where it says that itself
        if what == "heard":
            self._listens.set()
        elif what == "said":
            self._said(worker, *told)
        elif what == "taken":  # for gone, and the scheduler knows that
            self._lost(worker, *told)
        else:
            self._gone_from_scheduler(worker, *told)

    def _gone_from_scheduler(self, name: str, stimulus: str) -> None:
        """Dask forgot a worker: one that leaves may have something to say still.

        Any other is lost now. That it leaves may come next, and it undoes nothing of what others
        might do again, since the scheduler, which it asks after that, knows that it is gone.
        """
        why = _why_gone(stimulus)
        if stimulus.startswith(RETIRED) or name in self._leaving:
            self._leaving.add(name)
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._lose, name, why)
        else:
            self._lost(name, why)

    def _said(self, address: str, name: str, number: int, data: bytes) -> None:
        """Hear what a worker says: the next of it, once, and nothing after it is lost."""
        if number <= self._heard.get(name, 0):
            return
        missed = number - self._heard.get(name, 0) > 1
        self._heard[name] = number
        if number == 1:
            self._addresses[name] = address
        if missed:
            self._lost(name, "said something that was lost on its way", may_leave=True)
        if name not in self._addresses:
            return
        try:
            messages = pickle.loads(data)
        except Exception as error:
            why = f"said something that cannot be read: {type(error).__name__}: {error}"
            self._lost(name, why, may_leave=True)
            return
        for message in messages:
            if isinstance(message, Leaves):
                self._leaving.add(name)
            if isinstance(message, Lost):
                self._lost(name, message.reason, left=True)
            else:
                self._hear(message)

    def _lose(self, name: str, reason: str) -> None:
        """Take a worker for gone, which may be there: the scheduler is told, and then the jobs."""
        if self._gone or name not in self._addresses or name in self._losing:
            return
        self._losing.add(name)
        self._tell_no_more(name)
        try:
            self._spawn(self._have_it_taken_for_gone(name, reason))
        except RuntimeError:
            self._lose_all(LOOP_CLOSED)

    async def _have_it_taken_for_gone(self, name: str, reason: str) -> None:
        taken = False
        try:
            with contextlib.suppress(Exception):  # the scheduler cannot be reached either
                taken = await self._client.run_on_scheduler(take_for_gone, self._id, name, reason)
        finally:
            if not (taken or self._gone):
                self._lost(name, reason, may_leave=True)

    def _lost(self, name: str, reason: str, *, left: bool = False, may_leave: bool = False) -> None:
        """Tell that a worker is lost.

        Args:
            name: The worker's.
            reason: Why, in words that follow its name.
            left: Whether it said that itself, as the last.
            may_leave: Whether it may leave, and undo, without being told that it is taken for gone.
        """
        if self._addresses.pop(name, None) is None:
            return
        self._losing.discard(name)
        self._tell_no_more(name)
        if may_leave:
            self._hear(Leaves(name))
        # What is gone otherwise may close at this moment, and undo.
        self._hear(Lost(name, reason, all_heard=left, may_undo=not left))

    def _tell_no_more(self, name: str) -> None:
        queue = self._queues.pop(name, None)
        if queue is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                queue.put_nowait(None)

    def _lose_all(self, reason: str) -> None:
        if self._cut:
            return
        self._cut = True
        for name in list(self._addresses):
            self._lost(name, reason, may_leave=True)
        self._hear(Lost("", reason, all_heard=False, may_undo=True))

    def _send(self, worker: str, command: Command) -> None:
        address = self._addresses.get(worker)
        if address is None or worker in self._losing or self._gone:
            return
        queue = self._queues.get(worker)
        if queue is None:
            queue = self._queues[worker] = asyncio.Queue()
            self._spawn(self._deliver_all(worker, address, queue))
        queue.put_nowait(command)

    async def _deliver_all(
        self, worker: str, address: str, queue: asyncio.Queue[Command | None]
    ) -> None:
        why = "cannot be told anything: the task that did was cancelled"
        try:
            why = await self._deliver_until_lost(worker, address, queue)
        finally:
            if why:
                self._lose(worker, why)

    async def _deliver_until_lost(
        self, worker: str, address: str, queue: asyncio.Queue[Command | None]
    ) -> str:
        """Deliver a worker's commands in turn; why that is over, if it is told from here."""
        while True:
            commands = [await queue.get()]
            while not queue.empty():
                commands.append(queue.get_nowait())
            if None in commands:
                return ""
            data = pickle.dumps(commands)
            try:
                told = await self._client.run(deliver, self._id, worker, data, workers=[address])
            except Exception as error:
                # That the plugin was told of the loss tells more, if it is on its way.
                await self._rest(LOOK_SECONDS)
                if worker in self._leaving:  # in good order: it has more to say
                    await self._rest(GRACE_SECONDS)
                return f"cannot be told anything: {type(error).__name__}: {error}"
            if not told[address]:
                # It lets go of this coordinator, or closes, and says when it has undone.
                await self._rest(GRACE_SECONDS)
                return "has let go of this coordinator"


def _lacks(error: ImportError) -> str:
    return f"cannot import aioktask ({error}): pip install 'aioktask[dask]' there"


def _why_gone(stimulus: str) -> str:
    return next((why for what, why in WHY_GONE.items() if stimulus.startswith(what)), "is gone")


def _nothing(message: Message) -> None:
    pass
