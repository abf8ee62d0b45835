# SPDX-License-Identifier: MIT
# What a handler, a finalizer or a hook calls while the library is at work below it in the same
# thread.
#
# Each call comes back, or refuses with a RuntimeError (a DeadlockError is one), a TimeoutError, a
# JobCancelled or an Overloaded: what else comes out is written down as a fault. It never waits for
# what its own thread holds, and a call that does hangs, which the watchdog of the child sees.
"""Calls of the library from inside the library."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
from _thread import get_ident
from collections.abc import Callable

import aioktask
from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    OnDemand,
    Overloaded,
    current_chunk,
    priority,
    run_multithreaded_sync,
)
from tests.interruption.calls import UNITS, Work, World

REFUSALS = (RuntimeError, TimeoutError, JobCancelled, Overloaded)


def _nothing(start: int, stop: int) -> None:
    pass


def progress(world: World) -> None:
    for handle in _handles(world):
        handle.progress()
        handle.done()
        handle.watch()
        repr(handle)
        handle._repr_html_()


def renice(world: World) -> None:
    for handle in _handles(world):
        handle.renice(7)


def limit(world: World) -> None:
    for handle in _handles(world):
        handle.max_threads = 2


def cancel_other(world: World) -> None:
    if world.background is not None:
        world.background.cancel()


def cancel_own(world: World) -> None:
    for handle in world.handles:
        handle.cancel()
    for work in world.works:
        work.must_finish = False


def cancel_in_finalizer(world: World) -> None:
    class Resource:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            with contextlib.suppress(RuntimeError):
                cancel_other(world)

    Resource()
    gc.collect(0)


def wait_a_little(world: World) -> None:
    if world.background is not None:
        world.background.result(timeout=0.002)


def submit(world: World) -> None:
    work = Work()
    for coordinator in (world.outside, *world.coordinators):
        if coordinator is not None:
            coordinator.submit(work.job())
            world.others.append(work)
            work = Work()


def submit_call(world: World) -> None:
    """Calls of an executor, of which one is wanted no more."""
    for coordinator in (world.outside, *world.coordinators):
        if coordinator is not None:
            executor = coordinator.executor()
            for cancels in (False, True):
                work = Work()
                future = executor.submit(work.fn, 0, UNITS)
                world.others.append(work)
                if cancels:
                    future.cancel()


def scope(world: World) -> None:
    work = Work()
    with Coordinator(1) as coordinator:
        coordinator.submit(work.job())
        world.others.append(work)


def run_sync(world: World) -> None:
    work = Work()
    run_multithreaded_sync(work.job())
    world.others.append(work)


def run_sync_in_coordinator(world: World) -> None:
    for coordinator in (world.outside, *world.coordinators):
        if coordinator is not None:
            work = Work()
            run_multithreaded_sync(work.job(), coordinator=coordinator)
            world.others.append(work)


def leave(world: World) -> None:
    """Leave the coordinator of the struck call, from inside the call."""
    for coordinator in world.coordinators:
        coordinator.__exit__(None, None, None)
    for work in world.works:
        work.must_finish = False


def configure(world: World) -> None:
    aioktask.set_max_threads(2)
    aioktask.configure(nice=2)
    aioktask.configure(nice=None)
    aioktask.max_threads()
    aioktask.tunables()


def cap(world: World) -> None:
    for coordinator in (world.outside, *world.coordinators):
        if coordinator is not None:
            coordinator.max_threads = 2
            repr(coordinator)


def look(world: World) -> None:
    with priority(2):
        aioktask.plan(Job(_nothing, 100))
    with contextlib.suppress(RuntimeError):
        current_chunk()


def ondemand(world: World) -> None:
    with OnDemand(Job(_nothing, 4), section=2) as table:
        table.ensure_sync(0, 1)


FORK_SECONDS = 8.0


def fork(world: World) -> None:
    """The child of a fork at this place runs a job and ends."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(0)
            run_multithreaded_sync(Job(_nothing, 4, chunk=1))
            os._exit(0)
        except RuntimeError:
            os._exit(0)  # refused: inside a loop
        finally:
            os._exit(7)
    watch = os.pidfd_open(child)
    try:
        if not select.select([watch], [], [], FORK_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(watch)
    if status:
        raise AssertionError(f"the child of a fork ended with {status} (-9: it hung)")


def _handles(world: World) -> list[aioktask.Handle[object]]:
    return [each for each in (world.background, *world.handles) if each is not None]


INTRUDERS: dict[str, Callable[[World], None]] = {
    each.__name__: each
    for each in (
        progress,
        renice,
        limit,
        cancel_other,
        cancel_own,
        cancel_in_finalizer,
        wait_a_little,
        submit,
        submit_call,
        scope,
        run_sync,
        run_sync_in_coordinator,
        leave,
        configure,
        cap,
        look,
        ondemand,
        fork,
    )
}


# Those that change little for whom they interrupt, and so may be called again and again.
HARMLESS = ("progress", "renice", "limit", "cancel_other", "look", "cap", "configure")

# So often in one trial. On helpers some of them make work, in which they are called again; and on a
# machine that is busy a few thousand of them are seconds.
MOST_HARMLESS = 2000
MOST_OFTEN = {"configure": 500, "look": 500}  # a millisecond each


class Intruder:
    """Calls the library, once or often, from any thread, and writes down what came of it."""

    def __init__(self, name: str, world: World, most: int) -> None:
        self.name = name
        self.world = world
        self.most = MOST_OFTEN.get(name, MOST_HARMLESS) if name in HARMLESS else most
        self._process = os.getpid()  # what one forks intrudes no more: forks would fork
        self.calls = 0
        self.refused: list[str] = []
        self.faults: list[str] = []
        self._inside: set[int] = set()  # threads: what intrudes calls nothing that intrudes
        self._act = INTRUDERS[name]

    def __call__(self, *ignored: object) -> None:
        thread = get_ident()
        if thread in self._inside or self.calls >= self.most or os.getpid() != self._process:
            return
        self._inside.add(thread)
        self.calls += 1
        try:
            self._act(self.world)
        except REFUSALS as error:
            if len(self.refused) < 3:
                self.refused.append(f"{type(error).__name__}: {error}")
        except BaseException as error:
            self.faults.append(f"{type(error).__name__}: {error}")
        finally:
            self._inside.discard(thread)
