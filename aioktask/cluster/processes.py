# SPDX-License-Identifier: MIT
# Workers that are processes of this machine.
#
# Each is started by `multiprocessing` (spawn) and connected by a pipe of its own, so a stretch is
# pinned to it by nature, and the end of the pipe is the end of the worker, whatever killed it: what
# it said before can still be read, so a stretch that it never said to begin has not begun. A worker
# whose pipe ends undoes what is in its ledger, and goes: nobody is left whom it works for.
#
# A thread for each worker starts it, reads what it says, and waits for its end; another sends.
# spawn shares the tracker of shared memory with this process, so a worker may attach a block by
# name and go.
"""Jobs on processes of this machine."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.spawn import get_preparation_data
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar

from aioktask.checks import integer, seconds
from aioktask.cluster.coordinator import Fleet, enter_here, leave_here, run_owned
from aioktask.cluster.driver import block_signals
from aioktask.cluster.job import ClusterJob, ClusterReport, checked_cluster_job
from aioktask.cluster.messages import Command, Joined, Lost, Message
from aioktask.cluster.packing import packed_job
from aioktask.cluster.worker import Station
from aioktask.engine.api.process import configure, max_threads, tunables
from aioktask.engine.api.submission import needed_loop
from aioktask.engine.raised import told_of_error

if sys.platform != "win32":
    import fcntl

__all__ = ["ProcessCarrier", "ProcessCoordinator", "run_in_processes"]

T = TypeVar("T")

# So long a worker that was let go of may take to end, in seconds; then it is killed. It has no job.
ENDING_SECONDS = 10.0
# So long the end of a thread that sends is waited for, in seconds.
STOPPING_SECONDS = 1.0
# Has such a thread end.
_STOP = object()


class ProcessCoordinator(Fleet):
    """A scope that owns jobs on worker processes of this machine: none outlives it.

    The workers are started as it is entered, and serve all of its jobs; one that dies is not
    replaced. Use it with ``async with``, or in a thread without a loop with plain ``with``. Leaving
    it normally waits for its jobs; leaving it by an exception cancels them and waits until they are
    undone.

    Workers import the program's main module, as all of `multiprocessing` does: a script guards what
    it runs by ``if __name__ == "__main__":``. Together with this process they keep to the slots
    that the user's processes share (`AIOKTASK_SHARE`).

    **Cancellation** while leaving cancels the jobs, waits until they are undone, and goes on.

    Args:
        workers: How many; by default as many as this process may have helpers.
        max_threads: The most helpers in each; by default an even share of those.

    Raises:
        TypeError, ValueError: An argument is no integer, or below 1.
        RuntimeError: The main module cannot be imported by workers: it came from standard input, or
            its file is gone.
    """

    def __init__(
        self, workers: SupportsIndex | None = None, *, max_threads: SupportsIndex | None = None
    ) -> None:
        count, threads = _counts(workers, max_threads)
        _refuse_missing_main()
        super().__init__(ProcessCarrier(count, threads))

    def __enter__(self) -> ProcessCoordinator:
        enter_here(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave_here(self, exc)


def _counts(workers: SupportsIndex | None, threads: SupportsIndex | None) -> tuple[int, int]:
    there = max_threads()
    count = there if workers is None else integer("workers", workers, least=1)
    each = max(there // count, 1)
    return count, each if threads is None else integer("max_threads", threads, least=1)


def _refuse_missing_main() -> None:
    """Refuse a program whose main module workers would look for in vain.

    Raises:
        RuntimeError: It is one.
    """
    file = get_preparation_data("").get("init_main_from_path")
    if file is not None and not os.path.exists(file):
        raise RuntimeError(
            "worker processes import the main module of the program, and there is no file "
            f"{os.path.basename(file)!r} to import it from, as of a script that is read from "
            "standard input: write it to a file, or run it by python -c"
        )


async def run_in_processes(
    job: ClusterJob[T],
    workers: SupportsIndex | None = None,
    *,
    max_threads: SupportsIndex | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - it ends the job, not the wait
) -> ClusterReport[T]:
    """Run a job in worker processes of this machine, until all is done or all is undone.

    It is for functions that hold the GIL, which threads do not make faster. The processes are
    started for this job and end with it; a `ProcessCoordinator` keeps them for several.

    Args:
        job: What to run.
        workers: How many processes; by default as many as this process may have helpers.
        max_threads: The most helpers in each; by default an even share of those.
        timeout: How long the job may take from now on, in seconds, its undo apart.

    Returns:
        The report, with what each worker did.

    Raises:
        BaseException: What the first failing chunk raised, after the undo, with a note of the
            worker and its traceback. `failure` tells the ranges, by worker.
        WorkerLost: A worker died, and what it had begun may be done or not.
        UndoFailed: An undo raised, or a worker that had something to undo died before it did.
        TimeoutError: The time was up; what was done is undone.
        TypeError: `job` is no ClusterJob, or a part of it cannot be pickled.
        ValueError: The job is larger than 1 MiB as bytes; or a number is out of its range.
        RuntimeError: No event loop runs here; or workers could not import the main module, see
            `ProcessCoordinator`.

    **Cancellation.** No chunk begins, running ones finish, what is done is undone on the worker
    that did it, and then the cancellation goes on. While the workers close their data it comes too
    late: it goes on, and `failure` says that all is done. On trio the report is returned, and the
    cancellation comes at the next checkpoint.

    >>> import asyncio, operator
    >>> job = ClusterJob(pow, 0, reduce=operator.add, initial=0)
    >>> asyncio.run(run_in_processes(job, 2)).value
    0
    """
    needed_loop("run_in_processes()")
    # Refused before anything is started.
    packed_job(checked_cluster_job(job))
    timeout = None if timeout is None else seconds("timeout", timeout)
    async with ProcessCoordinator(workers, max_threads=max_threads) as coordinator:
        return await run_owned(coordinator, job, timeout)


class ProcessCarrier:
    """Processes and pipes."""

    may_join = False

    def __init__(self, count: int, threads: int) -> None:
        self.workers = {
            f"process-{number}": _Process(f"process-{number}", threads)
            for number in range(1, count + 1)
        }
        _live.add(self)  # before it begins: a child that is forked must not keep its pipes open

    def begin(self, hear: Callable[[Message], None]) -> None:
        try:
            for worker in self.workers.values():
                hear(Joined(worker.name, "localhost"))
                worker.start(hear)
        except BaseException:  # the system has no more threads
            self.end_within(0.0)
            raise

    def send(self, worker: str, command: Command) -> None:
        self.workers[worker].send(command)

    def end(self) -> None:
        self.end_within(ENDING_SECONDS)

    def end_within(self, seconds: float | None) -> None:
        """Let go of all workers, and wait for that; kill those that take longer, if not None."""
        for worker in self.workers.values():
            worker.end(seconds)
        for worker in self.workers.values():
            worker.wait()
        _live.discard(self)


# Those that were not ended: at exit their workers are, before multiprocessing kills or joins them.
_live: weakref.WeakSet[ProcessCarrier] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for carrier in list(_live):
        carrier.end_within(None)  # they may have to undo


def _forget_all() -> None:
    global _starting
    _starting = threading.Lock()  # a thread that is not here may have the parent's
    for carrier in list(_live):
        for worker in carrier.workers.values():
            worker.forget()
    _live.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class _Process:
    """One worker process, the pipe to it, and the two threads that speak to it and hear it."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._theirs = _above_standard(theirs)
        # Something comes by this where the wait for the worker is limited from now on.
        self._woken, self._wake = context.Pipe(duplex=False)
        options = {"share": tunables()["share"], "give_way": tunables()["give_way"]}
        # No daemon: such a process could have no children of its own, and would be killed at exit
        # before it can undo.
        self._process = context.Process(
            target=serve, args=(name, self._theirs, threads, options), name=f"aioktask-{name}"
        )
        # A worker that is stopped reads nothing, and whoever sends waits: so a thread of its own
        # does. None has the worker end, and _STOP that thread.
        self._outbox: queue.SimpleQueue[Command | object] = queue.SimpleQueue()
        self._killed = ""  # why, where it was since the pipe failed
        self._killed_at: float | None = None  # unless it has ended before, on `time.monotonic`
        self._threads: list[threading.Thread] = []

    def start(self, hear: Callable[[Message], None]) -> None:
        thread = threading.Thread(
            target=self._serve, args=(hear,), name=f"aioktask-{self.name}", daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def send(self, command: Command) -> None:
        self._outbox.put(command)

    def _kill(self, why: str) -> None:
        """Kill it, since it waits for what never comes, or says what nobody hears."""
        self._killed = self._killed or f"was killed, since it {why}"
        with contextlib.suppress(ValueError):  # it is through
            self._process.kill()

    def end(self, seconds: float | None) -> None:
        """Have the worker end, and be killed if it has not after so long; None for never."""
        self._outbox.put(None)
        if seconds is not None:
            self._killed_at = time.monotonic() + seconds
            with contextlib.suppress(OSError):
                self._wake.send_bytes(b"ends")

    def wait(self) -> None:
        """Wait until the worker is gone; where its time is up, kill it."""
        for thread in self._threads:
            thread.join(self._left())
            if thread.is_alive():
                # It may be in the middle of a message that a stopped worker will not end.
                with contextlib.suppress(ValueError, AttributeError):  # it is through, or unborn
                    self._process.kill()
                thread.join()

    def _serve(self, hear: Callable[[Message], None]) -> None:
        try:
            with _starting:
                self._process.start()  # before signals are blocked: a child inherits that
        except Exception as error:
            hear(Lost(self.name, f"could not be started: {error}", all_heard=True, may_undo=False))
            return
        finally:
            self._theirs.close()
        block_signals()
        sender = threading.Thread(
            target=self._send_all, name=f"aioktask-{self.name}-sends", daemon=True
        )
        all_heard, served = True, False
        try:
            sender.start()
            for message in self._said():
                hear(message)
                served = True
        except BaseException as error:  # no memory, no threads, or no message of ours
            all_heard = False
            self._kill(f"could not be heard ({told_of_error(error)})")
        self._process.join(self._left())
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        # One that a signal ended undid nothing; one that ended by itself does, as it ends.
        may_undo = code is None or code >= 0
        reason = self._killed or _reason(code, served=served)
        hear(Lost(self.name, reason, all_heard=all_heard, may_undo=may_undo))
        if sender.ident is None:
            self._connection.close()
        else:
            self._outbox.put(_STOP)
            # It may wait for ever where a child of the worker has the other end of the pipe.
            sender.join(STOPPING_SECONDS)
        self._woken.close()
        with contextlib.suppress(ValueError):  # SIGCHLD is ignored, so the system kept no status
            self._process.close()

    def _left(self) -> float | None:
        """How long it may go on, in seconds; None for any time."""
        until = self._killed_at
        return None if until is None else max(until - time.monotonic(), 0.0)

    def _send_all(self) -> None:
        """Send what there is, in its order, and close this end of the pipe when that is over."""
        block_signals()
        there = True
        while (command := self._outbox.get()) is not _STOP:
            if there:
                try:
                    self._connection.send(command)
                except ConnectionError:  # the worker is gone: the other thread tells that
                    there = False
                except BaseException as error:  # no memory, say
                    there = False
                    self._kill(f"could not be told anything ({told_of_error(error)})")
        self._connection.close()

    def _said(self) -> Iterator[Message]:
        """What the worker says, until it is gone and all of that was read, or its time is up.

        A child that the worker forked may hold its end of the pipe open for longer than it lives.
        """
        ends: list[Any] = [self._connection, self._process.sentinel, self._woken]
        pid = self._process.pid
        process = -1
        if pid is not None and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel, or the worker is gone already
                process = os.pidfd_open(pid)
                ends.append(process)
        try:
            while True:
                if not self._connection.poll():
                    ready = wait(ends, self._left())
                    if self._woken in ready:
                        ends.remove(self._woken)
                        continue
                    if not self._connection.poll():
                        return
                yield self._connection.recv()
        except (EOFError, ConnectionError):
            return
        except OSError as error:
            if not _ends_in_a_message(error):  # then something was lost that it said
                raise
        finally:
            if process >= 0:
                os.close(process)

    def forget(self) -> None:
        """In a forked child: have no part in it, and do not keep the pipe open."""
        with contextlib.suppress(OSError):
            self._connection.close()


def _above_standard(connection: Connection) -> Connection:
    """The same, by a descriptor above those of the standard streams, which may be closed here.

    The worker has it under this number, and would print into it.
    """
    if sys.platform == "win32" or connection.fileno() > 2:
        return connection
    moved = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    connection.close()
    return Connection(moved)


def _ends_in_a_message(error: OSError) -> bool:
    """Whether a pipe ended in the middle of what was said, of which `multiprocessing` says so."""
    return error.errno is None and "end of file" in str(error)


# Processes are started one by one.
_starting = threading.Lock()


def _reason(code: int | None, *, served: bool) -> str:
    """Why a worker is gone that ended with this status; whether it had come to serve."""
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}"
    if code and served:
        return f"ended with status {code}"
    if code:
        return (
            f"ended with status {code}, as one does whose main module starts workers while it is "
            'imported (guard that by `if __name__ == "__main__":`), or cannot be imported'
        )
    return "ended"


def end_at_once() -> None:
    """End this process as if it was killed, so that whoever started it takes it for that."""
    os.kill(os.getpid(), signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)


def serve(name: str, connection: Connection, threads: int, options: dict[str, Any]) -> None:
    """What a worker process runs: obey until the pipe ends, then undo what is left."""
    # A Ctrl-C in a terminal comes to all of its processes. The program decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure(**options)
    sending = threading.Lock()

    def tell(message: Message) -> None:
        with sending:
            try:
                connection.send(message)
            except ConnectionError:  # the other side is gone: there is nobody to be told
                pass
            except OSError:  # a part of it may have been sent: nothing can be said after that
                traceback.print_exc()
                end_at_once()

    if hasattr(os, "register_at_fork"):  # a child that a chunk forks does not speak for it
        os.register_at_fork(after_in_child=connection.close)
    station = Station(name, tell, threads)
    while True:
        try:
            command = connection.recv()
        except (EOFError, OSError):
            break
        if command is None:
            break
        station.obey(command)
    station.abandon()
    # The program sees that this one is through, also where it is long in ending.
    with sending:
        connection.close()
