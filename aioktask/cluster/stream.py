# SPDX-License-Identifier: MIT
# `map_ordered` over the workers of a Dask cluster.
#
# The consumer's side is one task's: it takes items while there is room in the window, and gives
# values. Each item is one call of `client.run` to one worker, where it is one call on the helpers
# (`aioktask.run`). That takes none of Dask's threads and is no task of Dask's: nothing of it is run
# a second time when a worker dies, and Dask keeps neither items nor values. Guarantees that at most
# `window` items are taken from the source and not given, and that an item is sent once. Relies on
# the scheduler for knowing which workers there are; it is asked twice a second.
#
# Every wait on Dask is in a task of this module's own, which no cancellation of the program's
# reaches.
"""Ordered streams on a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import reprlib
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator
from time import monotonic
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from aioktask.cluster.dask import LOOK_SECONDS, checked_client, refuse_other_loops
from aioktask.cluster.job import WorkerLost
from aioktask.cluster.packing import LARGEST_JOB, packed, unpacked_error
from aioktask.cluster.run import RETRY_AFTER
from aioktask.cluster.standing import How
from aioktask.cluster.stream_handle import ClusterStreamHandle, StreamState, StreamWorker
from aioktask.cluster.stream_worker import call, stop_calls, threads
from aioktask.engine.api import elsewhere
from aioktask.engine.raised import told_of_error
from aioktask.engine.state.record import raisable
from aioktask.errors import JobCancelled, Overloaded, add_note
from aioktask.streams._consumer import Options
from aioktask.streams._scope import close_iterator

__all__ = ["ClusterStream", "map_on_cluster"]

R = TypeVar("R")

# A worker has so many items for each of its threads: one that runs, and the next, so that it does
# not wait for the answer to the last one.
ITEMS_A_THREAD = 2
# Items wait so long for a worker, where there is none, in seconds.
PATIENCE = 60.0
# A consumer that finds each value there lets the loop go on so often, in seconds.
TURN_SECONDS = 0.001
# How long leaving waits for an answer of the scheduler that it needs no more, in seconds.
ANSWER_SECONDS = 5.0


def map_on_cluster(options: Options[Any, Any], items: Any, client: object) -> ClusterStream[Any]:
    """`aioktask.map_ordered` with ``on=client``.

    Raises:
        TypeError: `client` is no asynchronous client of Dask; an option that is of one process; or
            `fn` cannot be pickled.
    """
    with contextlib.suppress(RuntimeError):  # it may be made where no loop runs
        refuse_other_loops("map_ordered(..., on=client)")
    checked = checked_client(client, "on")
    for name, given in (
        ("coordinator", options.coordinator),
        ("max_delay", options.longest_ns),
    ):
        if given is not None:
            raise TypeError(
                f"{name} is for streams on helpers of this process: with on= leave it away"
            )
    return ClusterStream(options, items, checked)


class _Value:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class ClusterStream(Generic[R]):
    """An open stream of values from a cluster: ``async with map_ordered(..., on=client)``."""

    def __init__(self, options: Options[Any, Any], items: Any, client: Any) -> None:
        self._options = options
        self._items: Iterable[Any] | AsyncIterable[Any] | None = items
        self._client = client
        self._fn = _packed_function(options)
        self._token = uuid.uuid4().hex
        self._entered = self._over = self._left = False
        self._state = StreamState(options.name, options.nice, options.labels)
        self._source: Iterator[Any] | None = None  # an ordinary one
        self._reader: asyncio.Task[None] | None = None  # of an async one
        self._close_error: BaseException | None = None
        self._source_error: BaseException | None = None
        self._pending: deque[tuple[int, Any, bytes]] = deque()
        self._outcomes: dict[int, _Value | BaseException] = {}
        self._done: deque[int] = deque()  # in the order in which they came, where that is wanted
        self._failure: BaseException | None = None  # of the stream as a whole
        self._greeted: set[str] = set()
        self._sends: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()  # which nothing waits for
        self._homeless_since = 0.0
        self._news = asyncio.Event()  # for the consumer
        self._room = asyncio.Event()  # for the reader
        self._quit = asyncio.Event()  # for the watch
        self._turn_began = 0.0

    def __repr__(self) -> str:
        state = "not entered" if not self._entered else "over" if self._over else "open"
        return f"<ClusterStream {self._options.name!r}: {state}, {self._state.given} given>"

    # The scope.

    async def __aenter__(self) -> ClusterStream[R]:
        refuse_other_loops("map_ordered(..., on=client)")
        if self._items is None:
            raise RuntimeError("this stream was entered already: make a new one for each use")
        items, self._items = self._items, None
        await asyncio.sleep(0)
        loop = self._loop = asyncio.get_running_loop()
        current = asyncio.current_task()
        assert current is not None
        self._task = weakref.ref(current)
        self._homeless_since = self._turn_began = monotonic()
        if isinstance(items, AsyncIterable):
            iterator = items.__aiter__()
            self._reader = loop.create_task(self._read(iterator))
        else:
            self._source = iter(items)
        self._entered = True
        self.handle = ClusterStreamHandle(
            self._state, functools.partial(_cancel, weakref.ref(self))
        )
        elsewhere.add(self.handle)
        # One that is never left is gone some time.
        weakref.finalize(self, self.handle.over).atexit = False
        self._watch = loop.create_task(self._watch_workers())
        self._watch.add_done_callback(self._watched)
        timeout = self._options.timeout
        self._timer = None if timeout is None else loop.call_later(timeout, self._expire)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if not _is_a(error, GeneratorExit):
                raise
            self._close_source()
            try:
                self._loop.call_soon_threadsafe(self._end_later)
            except RuntimeError:  # the loop is closed, and the client with it
                self.handle.over()
            return
        ending = loop.create_task(self._end())
        if _is_a(error, GeneratorExit) and self._task() is not asyncio.current_task():
            self._keep(ending)  # nobody can wait
            return
        first: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError as cancelled:
                first = first or cancelled
        if first is not None and not _is_a(error, asyncio.CancelledError):
            # Whoever cancelled waits for that, and not for what closing the source raised.
            raise first from (None if ending.cancelled() else ending.exception())
        ending.result()

    async def aclose(self) -> None:
        """Leave the scope early: no further item begins, and this waits for those that run."""
        if self._entered:
            await self.__aexit__(None, None, None)

    def _stop(self) -> None:
        """Begin nothing more."""
        self._left = self._left or not self._over
        self._over = self._state.stopping = True
        self._pending.clear()
        state = self._state
        is_through = state.source_ended and state.given == state.taken
        self._conclude("finished" if is_through and self._source_error is None else "cancelled")
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(RuntimeError):  # one waits on a loop that is closed
            self._news.set()  # another task may wait for a value

    async def _end(self) -> None:
        try:
            await self._wait_for_all()
        finally:  # also where whoever ends the loop cancels this
            self._quit.set()
            for task in (self._watch, *self._sends):
                self._keep(task)  # a wait on Dask is not to be cancelled: it ends by itself
            self._outcomes.clear()
            self.handle.over()
            self._close_source()
        error, self._close_error = self._close_error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    async def _wait_for_all(self) -> None:
        """Wait for the source and for what runs, as far as it can be reached."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        told: set[str] = set()  # also where they were told before: perhaps nobody heard
        while self._sends and self._client.status == "running":
            for worker in list(self._state.workers.values()):
                if worker.items and worker.address not in told:
                    told.add(worker.address)
                    self._spawn(self._tell_to_stop(worker.address))
            await asyncio.wait(self._sends, timeout=LOOK_SECONDS)
        self._quit.set()
        # A worker that is taken for lost may be there still, and at items.
        gone = {each.address for each in self._state.gone} - told
        goodbyes = [self._spawn(self._tell_to_stop(each)) for each in gone]
        await asyncio.wait([self._watch, *goodbyes], timeout=ANSWER_SECONDS)

    def _end_later(self) -> None:
        self._spawn(self._end())

    def _close_source(self) -> None:
        source, self._source = self._source, None
        close_iterator(source)

    async def _tell_to_stop(self, address: str) -> None:
        with contextlib.suppress(Exception):  # then it is lost, and its items with it
            await self._client.run(stop_calls, self._token, workers=[address])

    def _expire(self) -> None:
        name, seconds = self._options.name, self._options.timeout
        if self._state.taken and self._state.first_at is None:  # no worker has room
            text = f"the stream {name!r} did not begin within {seconds} s"
            self._fail(Overloaded(text, 0, RETRY_AFTER), "overloaded")
        else:
            self._fail(
                TimeoutError(f"the stream {name!r} was not over after {seconds} s"), "timed out"
            )

    def _hear_of_cancel(self) -> None:
        """End the stream if its handle was asked to."""
        if self._state.decision.how == "cancelled" and not self._over:
            name = self._options.name
            self._end_with(JobCancelled(f"the stream {name!r} was cancelled by its handle"))

    def _conclude(self, how: How, error: BaseException | None = None) -> bool:
        """Whether this is how the stream ends: so for the first who asks."""
        if not self._state.decision.decide(how):
            return False
        if error is not None:
            self._state.error = told_of_error(error)
        return True

    def _fail(self, error: BaseException, how: How = "failed") -> None:
        """End the stream with this error, whatever is there still, unless it has ended."""
        if self._conclude(how, error):
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._state.stopping = True
        self._pending.clear()
        self._news.set()
        for worker in self._state.workers.values():
            if worker.items:
                self._spawn(self._tell_to_stop(worker.address))

    # Values.

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        self._refuse()
        if self._over:
            raise StopAsyncIteration
        if self._state.asked:
            raise RuntimeError(
                f"two tasks ask for values of the stream {self._options.name!r} at once: have one "
                "task iterate over it and pass the values on, through a queue"
            )
        self._state.asked = True
        try:
            number = await self._next()
        finally:
            self._state.asked = False
        if number is None:
            error, self._source_error = self._source_error, None
            try:
                self._raise_at_end("finished" if error is None else "failed", error)
            finally:
                del error
        outcome = self._outcomes.pop(number)
        self._state.given += 1
        self._room.set()
        if type(outcome) is _Value:
            value: R = outcome.value
            return value
        self._state.failed += 1
        if self._options.yields_errors and _is_a(outcome, Exception):
            return outcome  # type: ignore[return-value]
        try:
            self._raise_at_end("failed", outcome)  # type: ignore[arg-type]
        finally:
            del outcome

    def _raise_at_end(self, how: How, error: BaseException | None) -> NoReturn:
        """Raise that there are no more values, or this error; what ended the stream before it."""
        if not self._conclude(how, error):
            self._hear_of_cancel()
            if self._failure is not None:
                error = self._failure
        self._over = True
        try:
            raise StopAsyncIteration if error is None else raisable(error, "fn, or the source,")
        finally:
            del error

    async def _next(self) -> int | None:
        """Wait for the number of the value that is next; None where none comes any more."""
        if monotonic() - self._turn_began > TURN_SECONDS:
            await asyncio.sleep(0)
            self._turn_began = monotonic()
        while True:
            self._refuse()
            self._hear_of_cancel()
            if self._failure is not None:
                self._over = True
                raise self._failure
            self._fill()
            self._send_all()
            if self._options.ordered and self._state.given in self._outcomes:
                return self._state.given
            if not self._options.ordered and self._done:
                return self._done.popleft()
            if self._state.source_ended and self._state.given == self._state.taken:
                return None
            self._news.clear()
            await self._news.wait()
            self._turn_began = monotonic()

    def _refuse(self) -> None:
        if not self._entered:
            raise RuntimeError(
                "this stream was not entered: use `async with map_ordered(..., on=client)`"
            )
        if self._left:
            raise RuntimeError(
                f"the scope of the stream {self._options.name!r} was left before its last value: "
                "iterate inside the block that entered it, or make a new stream"
            )

    # The source.

    @property
    def _has_room(self) -> bool:
        return self._state.taken - self._state.given < self._options.window

    def _fill(self) -> None:
        """Take items from an ordinary source, while there is room."""
        source = self._source
        while source is not None and self._has_room and not self._state.stopping:
            try:
                item = next(source)
            except StopIteration:
                self._state.source_ended, self._source = True, None
                return
            except Exception as error:
                self._state.source_ended, self._source_error = True, error
                self._source = None
                return
            self._take(item)

    async def _read(self, iterator: AsyncIterator[Any]) -> None:
        """Take items from an async source, while there is room; it is closed in this task."""
        try:
            while not self._state.stopping:
                while not self._has_room:
                    self._room.clear()
                    await self._room.wait()
                item = await iterator.__anext__()
                self._take(item)
                del item
                self._send_all()
        except StopAsyncIteration:
            self._state.source_ended = True
        except asyncio.CancelledError:
            if not self._over:  # not by whoever leaves: something that the source waits for was
                self._source_error = RuntimeError(
                    f"the source of the stream {self._options.name!r} was cancelled"
                )
                self._state.source_ended = True
            raise
        except BaseException as error:
            self._state.source_ended, self._source_error = True, error
            if not _is_a(error, Exception):
                raise
        finally:
            self._news.set()
            close = getattr(iterator, "aclose", None)
            if callable(close):
                try:
                    await close()
                except Exception as error:
                    self._close_error = error

    def _take(self, item: Any) -> None:
        number = self._state.taken
        self._state.taken += 1
        if self._state.stopping:  # the source gave it meanwhile
            return
        try:
            data = packed(item)
        except BaseException as error:  # each that is taken gets an outcome
            why = told_of_error(error)
            if type(error) is TypeError:  # of `packed`, which says what cannot be sent
                why = str(error)
            shown, struck = _shown(item)
            self._has(number, TypeError(f"the item {number} ({shown}) could not be sent: {why}"))
            if not _is_a(error, Exception):
                raise
            if struck is not None:
                raise struck from error
        else:
            self._pending.append((number, item, data))

    # Calls.

    def _send_all(self) -> None:
        """Send items to workers that have room, the least loaded one first."""
        while self._pending and self._state.workers:
            worker = min(self._state.workers.values(), key=_load)
            if _load(worker) >= 1:
                return
            number, item, data = self._pending.popleft()
            worker.items[number] = item
            if self._state.first_at is None:
                self._state.first_at = monotonic()
            send = asyncio.get_running_loop().create_task(self._send(worker, number, data))
            self._sends.add(send)
            worker.sends.add(send)
            send.add_done_callback(functools.partial(self._sent, worker))

    def _sent(self, worker: StreamWorker, send: asyncio.Task[None]) -> None:
        self._sends.discard(send)
        worker.sends.discard(send)
        if self._over or send in self._tasks:  # of a worker that is lost
            return
        if send.cancelled():  # by whoever ends the loop: what the worker told is lost
            self._fail(_cancelled(self._options.name))
        elif (error := send.exception()) is not None:
            self._fail(error)

    def _watched(self, watch: asyncio.Task[None]) -> None:
        if self._over:
            return
        if watch.cancelled():  # as above: nobody would tell that workers are gone
            self._fail(_cancelled(self._options.name))
        elif (error := watch.exception()) is not None:
            self._fail(error)

    async def _send(self, worker: StreamWorker, number: int, data: bytes) -> None:
        options, address = self._options, worker.address
        what = (self._token, self._fn, data, options.name, self._state.nice)
        outcome: _Value | BaseException | None
        try:
            told = await self._client.run(call, *what, workers=[address])
            outcome = _opened(told[address], address)
        except OSError as error:  # the connection to it, or to the scheduler
            self._lose(worker, f"{type(error).__name__}: {error}")
            return
        except Exception as error:  # what it runs is another version, or lacks the library
            add_note(error, f"raised where the worker {address!r} was to call fn")
            outcome = error
        if worker.items.pop(number, worker) is worker:  # it was taken for lost before
            return
        if outcome is None and self._failure is None and not self._over:
            outcome = WorkerLost(
                f"the worker {address!r} was told to stop by somebody else", address
            )
        if outcome is not None:
            worker.done += 1
            self._has(number, outcome)
        self._send_all()

    def _lose(self, worker: StreamWorker, why: str) -> None:
        """What a worker had may be done or not, and is not sent again."""
        if self._state.workers.get(worker.address) is worker:
            del self._state.workers[worker.address]
            worker.lost = why
            self._state.gone.append(worker)
            self._greeted.discard(worker.address)
            if not self._state.workers:
                self._homeless_since = monotonic()
        items, worker.items = worker.items, {}
        # Dask may go on trying to reach it: nobody waits for that.
        self._sends -= worker.sends
        self._tasks |= worker.sends
        for send in worker.sends:
            send.add_done_callback(self._tasks.discard)
        struck: BaseException | None = None
        for number, item in items.items():
            shown, another = _shown(item)
            struck = another if struck is None else struck
            text = (
                f"the worker {worker.address!r} is gone ({why}) with the item {number} ({shown}) "
                f"of the stream {self._options.name!r}, which may be done or not"
            )
            self._has(number, WorkerLost(text, worker.address))
        if struck is not None:
            raise struck

    def _has(self, number: int, outcome: _Value | BaseException) -> None:
        if self._over:
            return
        self._state.done += 1
        self._state.last_at = monotonic()
        if type(outcome) is not _Value:
            note = f"raised for the item {number} of the stream {self._options.name!r}"
            add_note(outcome, note)  # type: ignore[arg-type]
            if not (self._options.yields_errors and _is_a(outcome, Exception)):
                self._state.stopping = True
                self._pending = deque(each for each in self._pending if each[0] < number)
        self._outcomes[number] = outcome
        if not self._options.ordered:
            self._done.append(number)
        self._news.set()

    # Workers.

    async def _watch_workers(self) -> None:
        """Look which workers there are, until the stream is left."""
        client = self._client
        while not self._quit.is_set():
            try:
                there = await client.nthreads()
            except Exception as error:
                there = None
                if client.status != "running":
                    self._lose_all(f"the client is {client.status}: {error}")
            if client.status != "running":
                self._lose_all(f"the client is {client.status}")
            if there is not None:
                for worker in list(self._state.workers.values()):
                    if worker.address not in there:
                        self._lose(worker, "the scheduler has it no more")
                for address in there:
                    if address not in self._greeted:
                        self._greeted.add(address)
                        self._spawn(self._greet(address))
            if not self._state.workers and monotonic() - self._homeless_since > PATIENCE:
                name = self._options.name
                self._fail(WorkerLost(f"no worker came for the stream {name!r}", ""))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quit.wait(), LOOK_SECONDS)

    async def _greet(self, address: str) -> None:
        try:
            told = await self._client.run(threads, workers=[address])
        except (OSError, asyncio.CancelledError):
            self._greeted.discard(address)  # it is asked again, if it is there still
            return
        except Exception as error:
            add_note(error, f"raised by the worker {address!r}, which needs aioktask too")
            self._fail(error)
            return
        self._state.workers[address] = StreamWorker(address, max(told[address], 1))
        self._send_all()

    def _lose_all(self, why: str) -> None:
        for worker in list(self._state.workers.values()):
            self._lose(worker, why)
        self._fail(WorkerLost(f"workers cannot be reached: {why}", ""))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._keep(task)
        return task

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _packed_function(options: Options[Any, Any]) -> bytes:
    """The function for workers, which goes with each item.

    Raises:
        TypeError: It cannot be pickled.
        ValueError: It is larger than a function may be.
    """
    data = packed(options.fn)
    if len(data) > LARGEST_JOB:
        raise ValueError(
            f"fn of the stream {options.name!r} is {len(data) >> 10} KiB as bytes, with all that "
            f"it captures, and at most {LARGEST_JOB >> 10} KiB go with each item: have it open "
            "what it needs on the worker, or put that into the items"
        )
    return data


def _load(worker: StreamWorker) -> float:
    return len(worker.items) / (worker.threads * ITEMS_A_THREAD)


def _is_a(error: object, kind: type[BaseException]) -> bool:
    """Whether it is such an exception, whatever its class may say of itself."""
    return issubclass(type(error), kind)


def _cancel(stream: weakref.ref[ClusterStream[Any]]) -> None:
    """Have the stream's loop hear of a cancel, on any thread."""
    found = stream()
    if found is not None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            found._loop.call_soon_threadsafe(found._hear_of_cancel)


def _cancelled(name: str) -> WorkerLost:
    """What a stream ends with whose tasks were cancelled by somebody else."""
    return WorkerLost(
        f"the stream {name!r} cannot reach workers any more: its tasks on the loop were cancelled",
        "",
    )


def _shown(item: object) -> tuple[str, BaseException | None]:
    """An item in short, and what struck meanwhile that is no `Exception`, if anything."""
    try:
        return reprlib.repr(item), None
    except BaseException as error:
        shown = f"a {type(item).__name__}, whose repr raised {type(error).__name__}"
        return shown, None if _is_a(error, Exception) else error


def _opened(data: bytes, address: str) -> _Value | BaseException | None:
    """What a worker told of an item: None where it was not called, since the stream is left."""
    kind, told = pickle.loads(data)
    if kind == "value":
        try:
            return _Value(pickle.loads(told))
        except Exception as error:
            add_note(error, "raised where the value of a worker was unpickled")
            return error
    return unpacked_error(told, address) if kind == "error" else None
