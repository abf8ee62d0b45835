# SPDX-License-Identifier: MIT
# The calls that are struck: each a small program over a World, on one way of running a loop or in
# the sync form.
#
# A World is the material of one call: functions that write down, unit by unit, what they did and
# undid, and a background job for those who call the library from outside. What a function writes
# down, it writes in one step that the interpreter cannot be interrupted after, so that a handler
# which raises there finds the unit either not done or the function returned.
"""Public calls to be interrupted."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import anyio._backends._asyncio  # which would be imported by the first job in each child
import anyio._backends._trio
import anyio.lowlevel
import trio

import aioktask
from aioktask import (
    ChunkCancelled,
    Coordinator,
    Handle,
    Job,
    JobCancelled,
    OnDemand,
    Overloaded,
    current_chunk,
    failure,
    map_ordered,
    map_ordered_sync,
    priority,
    run_multithreaded,
    run_multithreaded_sync,
)

try:
    import uvloop
except ImportError:  # there are no wheels of it for free-threaded Python 3.13
    HAS_UVLOOP = False
else:
    HAS_UVLOOP = True

UNITS = 6

# A time that is over while a job runs, or before it could begin where what strikes takes long; and
# one that never is. In seconds.
SOON = 0.02
LATE = 600.0
OverTime: Any = (TimeoutError, Overloaded)


class Planted(Exception):  # noqa: N818 - it says what it is
    """What a chunk raises that is meant to fail."""


def _nothing() -> None:
    pass


class Work:
    """What one job did and undid, counted for each unit."""

    def __init__(self, *, fails_at: int = -1, nested: Work | None = None) -> None:
        self.done = [0] * UNITS
        self.undone = [0] * UNITS
        self.fails_at = fails_at
        self.nested = nested
        self.undoes = False
        self.must_finish = True  # when nothing strikes
        self.on_chunk: Callable[[], object] = _nothing
        self.named: set[int] = set()  # see `naming`

    def fn(self, start: int, stop: int) -> object:
        self.on_chunk()
        if start <= self.fails_at < stop:
            raise Planted(f"in {start} to {stop}")
        if self.nested is not None and start == 0:
            self.nested.run_nested()
        self.done[start:stop] = [count + 1 for count in self.done[start:stop]]
        return None

    def run_nested(self) -> None:
        """In a chunk of another job. What that is told goes on as what its own job raised."""
        with self.naming():
            run_multithreaded_sync(self.job())

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Note which units an exception names that does not come out of the call as it is."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(LookupError):
                told = failure(error)
                self.named = set().union(*told.done, *told.unknown)
            raise

    def value(self, start: int, stop: int) -> tuple[range, ...]:
        self.fn(start, stop)
        return (range(start, stop),)

    def undo(self, start: int, stop: int) -> None:
        self.undone[start:stop] = [count + 1 for count in self.undone[start:stop]]

    async def undo_async(self, start: int, stop: int) -> None:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        self.undo(start, stop)

    def job(self, *, undo: str = "plain", **options: Any) -> Job[None]:
        self.undoes = undo != "none"
        if undo == "plain":
            options["undo"] = self.undo
        elif undo == "coroutine":
            options["undo"] = self.undo_async
        options.setdefault("max_threads", 2)
        options.setdefault("chunk", 1)
        return Job(self.fn, UNITS, name="struck", **options)

    def job_with_value(self) -> Job[Any]:
        self.undoes = True
        return Job(
            self.value,
            UNITS,
            chunk=1,
            max_threads=2,
            undo=self.undo,
            reduce=lambda a, b: (*a, *b),
            name="struck",
        )

    @property
    def kept(self) -> set[int]:
        return {
            unit
            for unit, (done, undone) in enumerate(zip(self.done, self.undone, strict=True))
            if done > undone
        }


class World:
    """What one call is about."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.handles: list[Handle[Any]] = []
        self.coordinators: list[Coordinator] = []  # of the struck call, also if it never left them
        self.gate = threading.Event()
        self.background: Handle[Any] | None = None
        self.outside: Coordinator | None = None
        self.others: list[Work] = []  # what intruders have submitted
        self.on_chunk: Callable[[], object] = _nothing  # at the beginning of each chunk

    def work(self, **options: Any) -> Work:
        self.works.append(Work(**options))
        self.works[-1].on_chunk = self.on_chunk
        return self.works[-1]

    def coordinator(self, *args: Any, **options: Any) -> Coordinator:
        self.coordinators.append(Coordinator(*args, **options))
        return self.coordinators[-1]

    def submit(self, coordinator: Coordinator, job: Job[Any]) -> Handle[Any]:
        handle = coordinator.submit(job)
        self.handles.append(handle)
        return handle

    def start_background(self) -> None:
        """A job that runs until `stop_background`, whose handle others use."""

        def wait(start: int, stop: int) -> None:
            while not self.gate.wait(0.01):
                current_chunk().check_cancelled()

        self.outside = Coordinator()
        self.background = self.outside.submit(
            Job(wait, 1000, chunk=1, max_threads=1, name="background")
        )

    def stop_background(self) -> None:
        self.gate.set()
        if self.background is not None:
            assert self.outside is not None
            self.background.cancel()
            self.outside.__exit__(None, None, None)
            self.background = self.outside = None


# In a thread.


def sync(world: World) -> None:
    run_multithreaded_sync(world.work().job())


def sync_alone(world: World) -> None:
    run_multithreaded_sync(world.work().job(max_threads=1))


def sync_learned(world: World) -> None:
    run_multithreaded_sync(world.work().job(chunk=None))


def sync_reduce(world: World) -> None:
    report = run_multithreaded_sync(world.work().job_with_value())
    assert [unit for each in report.value for unit in each] == list(range(UNITS))


def sync_fails(world: World) -> None:
    run_multithreaded_sync(world.work(fails_at=3).job())


def sync_nested(world: World) -> None:
    inner = world.work()
    run_multithreaded_sync(world.work(nested=inner).job())


def sync_priority(world: World) -> None:
    with priority(3):
        run_multithreaded_sync(world.work().job(nice=5))


def sync_in_time(world: World) -> None:
    """With a time that is not over, and a place in a queue that has room."""
    with world.coordinator(max_queued=1000, max_wait=LATE) as coordinator:
        run_multithreaded_sync(world.work().job(), coordinator=coordinator, timeout=LATE)


def sync_late(world: World) -> None:
    work = world.work()
    work.must_finish = False
    work.on_chunk = wait_until_unwanted
    with work.naming():
        run_multithreaded_sync(work.job(), timeout=SOON)


def submit_late(world: World) -> None:
    work = world.work()
    work.must_finish = False
    work.on_chunk = wait_until_unwanted
    with world.coordinator() as coordinator:
        world.handles.append(coordinator.submit(work.job(), timeout=SOON))
        world.handles[-1].result()


def refused(world: World) -> None:
    """What has no time left is refused, and the next job is none the worse."""
    with world.coordinator(max_queued=1000) as coordinator:
        with contextlib.suppress(Overloaded):
            coordinator.submit(world.work().job(), timeout=0)
        world.works[-1].must_finish = False
        world.submit(coordinator, world.work().job()).result()
        coordinator.drain()
        with contextlib.suppress(RuntimeError):
            coordinator.submit(world.work().job())
        world.works[-1].must_finish = False


def sync_coordinator(world: World) -> None:
    with world.coordinator(2) as coordinator:
        run_multithreaded_sync(world.work().job(), coordinator=coordinator)


def submit(world: World) -> None:
    with world.coordinator() as coordinator:
        world.submit(coordinator, world.work().job())


def leave_idle_sync(world: World) -> None:
    """A coordinator that has no job: nothing before it is left needs much of the stack."""
    with world.coordinator():
        pass


def submit_and_wait(world: World) -> None:
    with world.coordinator() as coordinator:
        world.submit(coordinator, world.work().job()).result()


def submit_fails(world: World) -> None:
    with world.coordinator() as coordinator:
        world.submit(coordinator, world.work(fails_at=3).job()).result()


def submit_and_cancel(world: World) -> None:
    work = world.work()
    work.must_finish = False
    with world.coordinator() as coordinator:
        handle = world.submit(coordinator, work.job())
        handle.cancel()
        handle.result()


def use_handle(world: World) -> None:
    with world.coordinator() as coordinator:
        handle = world.submit(coordinator, world.work().job())
        handle.renice(4)
        handle.progress()
        handle.max_threads = 1
        handle.done()
        repr(handle)
        repr(coordinator)
        coordinator.max_threads = 1
        coordinator.configure(nice=3)
        handle.result()


def use_executor(world: World) -> None:
    with world.coordinator() as coordinator, coordinator.executor() as executor:
        executor.submit(world.work().fn, 0, UNITS).result()
        list(executor.map(world.work().fn, [0], [UNITS], buffersize=1))


def executor_cancel(world: World) -> None:
    """Calls that are cancelled where they have not begun, by name and by a shutdown."""
    work = world.work()
    work.must_finish = False
    with world.coordinator(1) as coordinator:
        executor = coordinator.executor()
        futures = [executor.submit(work.fn, unit, unit + 1) for unit in range(UNITS)]
        futures[-1].add_done_callback(lambda _: None)
        for future in futures[UNITS // 2 :]:
            future.cancel()
        executor.shutdown(cancel_futures=True)
        assert all(future.done() for future in futures)
        concurrent.futures.wait(futures)


def executor_fails(world: World) -> None:
    with world.coordinator() as coordinator, coordinator.executor() as executor:
        executor.submit(world.work(fails_at=3).fn, 0, UNITS).result()


def executor_nested(world: World) -> None:
    """A call that waits for another one, which needs no free helper."""
    work = world.work()
    with world.coordinator(1) as coordinator, coordinator.executor() as executor:
        executor.submit(lambda: executor.submit(work.fn, 0, UNITS).result()).result()


def ondemand_sync(world: World) -> None:
    with OnDemand(world.work().job(undo="none"), section=2, first=1) as table:
        table.ensure_sync(4, 5)


def stream_sync(world: World) -> None:
    with map_ordered_sync(item_of(world.work()), range(UNITS), window=3) as results:
        for _ in results:
            pass


def process(world: World) -> None:
    aioktask.max_threads()
    aioktask.set_max_threads(3)
    aioktask.configure(nice=1)
    aioktask.tunables()
    aioktask.plan(world.work().job())
    aioktask.configure(nice=None)
    world.works[0].must_finish = False


def item_of(work: Work) -> Callable[[int], object]:
    """The function of a stream whose items are the units of this work."""
    return lambda unit: work.fn(unit, unit + 1)


# Programs that end while jobs run. What is struck is the library's hook of `atexit`.


def exit_running(world: World) -> None:
    work = world.work()
    work.must_finish = False
    work.on_chunk = wait_until_unwanted
    world.coordinator().submit(work.job())


def exit_idle(world: World) -> None:
    run_multithreaded_sync(world.work().job())


# On a loop.


async def run(world: World) -> None:
    await run_multithreaded(world.work().job())


async def run_short(world: World) -> None:
    """Jobs of one chunk; from the second one on they pass the lane."""
    for _ in range(2):
        await run_multithreaded(world.work().job(undo="none", chunk=UNITS))


async def run_short_undo(world: World) -> None:
    """Likewise, with an undo; and the last one fails."""
    for fails_at in (-1, -1, 3):
        await run_multithreaded(world.work(fails_at=fails_at).job(chunk=UNITS))


async def run_call(world: World) -> None:
    """Single calls; the second one passes the lane."""
    for _ in range(2):
        await aioktask.run(world.work().fn, 0, UNITS, name="struck")


async def run_in_time(world: World) -> None:
    """Single calls with a time that is not over; the second one passes the lane."""
    for _ in range(2):
        await aioktask.run(world.work().fn, 0, UNITS, name="struck", timeout=LATE)


async def run_late(world: World) -> None:
    work = world.work()
    work.must_finish = False
    work.on_chunk = wait_until_unwanted
    with work.naming():
        await run_multithreaded(work.job(undo="coroutine"), timeout=SOON)


async def stream_in_time(world: World) -> None:
    async with map_ordered(item_of(world.work()), range(UNITS), window=3, timeout=LATE) as results:
        async for _ in results:
            pass


async def run_two(world: World) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(run_job, world.work().job())


async def run_job(job: Job[Any]) -> None:
    await run_multithreaded(job)


async def run_fails(world: World) -> None:
    await run_multithreaded(world.work(fails_at=3).job())


async def run_fails_coroutine(world: World) -> None:
    await run_multithreaded(world.work(fails_at=3).job(undo="coroutine"))


async def stream(world: World) -> None:
    async with map_ordered(item_of(world.work()), range(UNITS), window=3) as results:
        async for _ in results:
            pass


async def stream_of_async(world: World) -> None:
    async def units() -> AsyncIterator[int]:
        for unit in range(UNITS):
            await anyio.lowlevel.checkpoint()
            yield unit

    async with map_ordered(item_of(world.work()), units(), window=3) as results:
        async for _ in results:
            pass


async def run_cancelled(world: World) -> None:
    work = world.work()
    work.must_finish = False
    soon = soon_on_this_loop()
    with anyio.CancelScope() as scope:

        def fn(start: int, stop: int) -> None:
            if start == 1:
                soon(scope.cancel)
                wait_until_unwanted()
            work.fn(start, stop)

        work.undoes = True
        with work.naming():
            await run_multithreaded(Job(fn, UNITS, chunk=1, max_threads=1, undo=work.undo))


def soon_on_this_loop() -> Callable[[Callable[[], object]], object]:
    """What has the running loop call something soon, from any thread, without waiting for it."""
    if trio.lowlevel.in_trio_run():
        later: Callable[[Callable[[], object]], object] = (
            trio.lowlevel.current_trio_token().run_sync_soon
        )
    else:
        later = asyncio.get_running_loop().call_soon_threadsafe

    def soon(act: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is over
            later(act)

    return soon


def wait_until_unwanted() -> None:
    """In a chunk: until its job wants no more, or for half a second."""
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        try:
            current_chunk().check_cancelled()
        except ChunkCancelled:
            return
        os.sched_yield()


async def submit_and_await(world: World) -> None:
    async with world.coordinator() as coordinator:
        await world.submit(coordinator, world.work().job(undo="coroutine"))


async def leave_idle(world: World) -> None:
    async with world.coordinator():
        pass


async def await_submitted_elsewhere(world: World) -> None:
    """A handle is awaited, and a coordinator left, where there may be no stack for a submit."""
    work = world.work()
    soon = soon_on_this_loop()
    struck: list[BaseException | None] = []
    async with world.coordinator() as coordinator:

        def submit() -> None:
            error: BaseException | None = None
            try:
                world.submit(coordinator, work.job(undo="coroutine"))
            except BaseException as raised:  # here, and not in the loop's own code
                error = raised
            struck.append(error)

        soon(submit)
        while not struck:
            await anyio.lowlevel.checkpoint()
        if struck[0] is not None:
            raise struck[0]
        await world.handles[0]


async def stream_of_nothing(world: World) -> None:
    work = world.work()
    work.must_finish = False
    async with map_ordered(item_of(work), ()):
        pass


async def shutdown(world: World) -> None:
    work = world.work()
    work.must_finish = False
    coordinator = world.coordinator()
    world.submit(coordinator, work.job(undo="coroutine"))
    await coordinator.shutdown(cancel=True)


async def shutdown_in_time(world: World) -> None:
    work = world.work()
    work.must_finish = False
    coordinator = world.coordinator()
    world.submit(coordinator, work.job())
    coordinator.drain()
    await coordinator.shutdown(cancel=True, timeout=LATE)


async def shutdown_gives_up(world: World) -> None:
    """Whatever the shutdown leaves, the second one waits for."""
    coordinator = world.coordinator()
    world.submit(coordinator, world.work().job())
    await coordinator.shutdown(timeout=0)
    await coordinator.shutdown()


async def ondemand(world: World) -> None:
    async with OnDemand(world.work().job(undo="none"), section=2, first=1) as table:
        await table.ensure(4, 5)


# Ways to run them.

Body = Callable[[World], object]
AsyncBody = Callable[[World], Coroutine[Any, Any, None]]

heard: list[BaseException] = []  # what a loop's exception handler was told


def _hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if isinstance(context.get("exception"), BaseException):
        heard.append(context["exception"])


async def _listening(body: AsyncBody, world: World) -> None:
    asyncio.get_running_loop().set_exception_handler(_hear)
    await body(world)


def on_asyncio(body: AsyncBody, world: World) -> None:
    asyncio.run(_listening(body, world))


def on_uvloop(body: AsyncBody, world: World) -> None:
    uvloop.run(_listening(body, world))


def on_trio(body: AsyncBody, world: World) -> None:
    trio.run(body, world)


def on_bare_loop(body: AsyncBody, world: World) -> None:
    """As many programs do: what is left when an exception comes out is cancelled, then closed."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(_listening(body, world))
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            loop.close()


LOOPS: dict[str, Callable[[AsyncBody, World], None]] = {
    "asyncio": on_asyncio,
    "bare": on_bare_loop,
    **({"uvloop": on_uvloop} if HAS_UVLOOP else {}),
    "trio": on_trio,
}

SYNC: list[Body] = [
    sync,
    sync_alone,
    sync_learned,
    sync_reduce,
    sync_fails,
    sync_nested,
    sync_priority,
    sync_in_time,
    sync_late,
    sync_coordinator,
    submit,
    leave_idle_sync,
    submit_and_wait,
    submit_fails,
    submit_and_cancel,
    submit_late,
    refused,
    use_handle,
    use_executor,
    executor_cancel,
    executor_fails,
    executor_nested,
    ondemand_sync,
    stream_sync,
    process,
]
AT_EXIT: list[Body] = [exit_running, exit_idle]
ASYNC: list[AsyncBody] = [
    run,
    run_short,
    run_short_undo,
    run_call,
    run_in_time,
    run_late,
    run_two,
    run_fails,
    run_fails_coroutine,
    run_cancelled,
    submit_and_await,
    leave_idle,
    await_submitted_elsewhere,
    shutdown,
    shutdown_in_time,
    shutdown_gives_up,
    ondemand,
    stream,
    stream_in_time,
    stream_of_nothing,
    stream_of_async,
]

# What a call raises when nothing strikes.
MAY_RAISE: dict[str, Any] = {
    "sync_fails": Planted,
    "submit_fails": Planted,
    "submit_and_cancel": JobCancelled,
    "executor_fails": Planted,
    "sync_late": OverTime,
    "submit_late": OverTime,
    "run_late": OverTime,
    "run_short_undo": Planted,
    "run_fails": Planted,
    "run_fails_coroutine": Planted,
}


@dataclass(frozen=True, order=True)
class Call:
    """One of the calls, on one way of running it."""

    loop: str  # "thread" for the sync form
    name: str

    def __str__(self) -> str:
        return f"{self.loop}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Call:
        return cls(*text.split("/"))

    def run(self, world: World, depth: int = 0) -> None:
        """Make the call, so many frames deeper."""
        body = _BY_NAME[self.name]
        if self.loop == "thread":
            deeper(body, world, depth)
        elif depth:
            LOOPS[self.loop](functools.partial(deeper_async, body, depth=depth), world)
        else:
            LOOPS[self.loop](body, world)

    @property
    def at_exit(self) -> bool:
        """Whether what counts comes when the interpreter ends."""
        return self.name.startswith("exit_")

    @property
    def may_raise(self) -> tuple[type[Exception], ...]:
        raised = MAY_RAISE.get(self.name, ())
        return raised if isinstance(raised, tuple) else (raised,)


def deeper(body: Body, world: World, depth: int) -> None:
    if depth:
        deeper(body, world, depth - 1)
    else:
        body(world)


async def deeper_async(body: AsyncBody, world: World, *, depth: int) -> None:
    if depth:
        await deeper_async(body, world, depth=depth - 1)
    else:
        await body(world)


_BY_NAME: dict[str, Any] = {body.__name__: body for body in (*SYNC, *AT_EXIT, *ASYNC)}

CALLS: tuple[Call, ...] = (
    *(Call("thread", body.__name__) for body in (*SYNC, *AT_EXIT)),
    *(Call(loop, body.__name__) for loop in LOOPS for body in ASYNC),
)


def warm_up(call: Call) -> None:
    """Run the call once, so that the pool, its threads and what a loop imports are there."""
    if call.at_exit:
        call = Call("thread", "sync")
    with contextlib.suppress(*call.may_raise):
        call.run(World())
