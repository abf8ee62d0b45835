# SPDX-License-Identifier: MIT
# One trial: in a process of its own, a call is struck and the questions are asked.
#
# The process says on a file that its parent reads which stage it has come to, so that a hang has a
# name, and in the end one line of JSON: the verdict.
"""A call, a strike, and the questions after it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import anyio

from aioktask import JobCancelled
from tests.interruption import calls, children, questions
from tests.interruption.calls import Call, World, warm_up
from tests.interruption.children import Say
from tests.interruption.intruders import Intruder
from tests.interruption.strikes import (
    LIBRARY,
    STRIKE,
    Alarm,
    EveryPlace,
    Place,
    Recorder,
    Striker,
    Tracer,
)

ANYIO = os.path.dirname(anyio.__file__) + os.sep

# So often an intruder that does much is called in one trial.
MOST_OFTEN = 30

# A tuple that CPython 3.11 has no memory for does not let go of what was to be in it.
TUPLES_LEAK = sys.version_info < (3, 12)

# What the interpreter says, as a RuntimeError, where it has no memory for a lock.
NO_LOCK = "can't allocate lock"


@dataclass(frozen=True)
class Spec:
    """What is done to which call: `kind` is one of KINDS, with an intruder's name after a colon."""

    call: Call
    warm: bool
    kind: str
    where: str = ""  # a Place, or the depth, or the number of an allocation

    def __str__(self) -> str:
        state = "warm" if self.warm else "cold"
        return f"{self.call} {state} {self.kind} {self.where}".rstrip()

    @classmethod
    def parse(cls, text: str) -> Spec:
        call, state, kind, *where = text.split(" ")
        return cls(Call.parse(call), state == "warm", kind, " ".join(where))

    @property
    def way(self) -> str:
        return self.kind.partition(":")[0]

    @property
    def intruder(self) -> str:
        return self.kind.partition(":")[2]


@dataclass
class Trial:
    """What is known while a trial runs."""

    spec: Spec
    say: Say
    world: World = field(default_factory=World)
    intruder: Intruder | None = None
    error: BaseException | None = None  # what came out of the call
    unraisable: list[BaseException] = field(default_factory=list)
    struck: Callable[[], bool] = lambda: True
    strikes_with: tuple[type[BaseException], ...] = ()  # what comes out of the strike
    may_strike_with: tuple[type[BaseException], ...] = ()  # the same, where it may be outlived
    depth: int = 0  # of the call

    def stderr(self) -> str:
        with open("/proc/self/fd/2") as file:
            return file.read()

    def intrude(self, *ignored: object) -> None:
        if self.intruder is not None:
            self.intruder()


def run_trial(spec: Spec, say: Say) -> dict[str, Any] | None:
    """Strike, ask, and return the verdict: `fault` is None when all is as it should be.

    None is returned where the verdict comes when the interpreter has ended.
    """
    _quieten()
    say("prepare")
    if spec.warm:
        warm_up(spec.call)
    trial = Trial(spec, say)
    sys.unraisablehook = lambda found: trial.unraisable.append(found.exc_value)
    threading.excepthook = lambda found: trial.unraisable.append(found.exc_value)
    if spec.intruder:
        trial.intruder = Intruder(spec.intruder, trial.world, MOST_OFTEN)
        if spec.warm:
            trial.world.start_background()
    strike = STRIKES[spec.way](trial)
    if spec.call.at_exit:
        spec.call.run(trial.world)
        at_exit(strike, lambda: say.verdict(_ask_in_the_end(trial)))
        say("(d) the exit")
        return None
    say("call")
    try:
        with strike:
            spec.call.run(trial.world, trial.depth)
    except BaseException as raised:
        trial.error = raised
    return _ask(trial)


def at_exit(strike: contextlib.AbstractContextManager[object], then: Callable[[], None]) -> None:
    """Strike from here on, until the library's hook of `atexit` is through."""

    def end() -> None:
        with contextlib.suppress(BaseException):
            strike.__exit__(None, None, None)
        then()

    children.at_end.append(end)
    strike.__enter__()


def _ask_in_the_end(trial: Trial) -> dict[str, Any]:
    verdict: dict[str, Any] = {"spec": str(trial.spec), "struck": trial.struck(), "outcome": "end"}
    found = verdict["units"] = [
        questions.done_or_undone(work, trial.error) for work in trial.world.works
    ]
    if any(each.startswith("wrong") for each in found) and "struck" not in trial.stderr():
        verdict["fault"] = f"(b) {found}, and stderr does not name the job"
    if trial.intruder is not None and trial.intruder.faults:
        verdict["fault"] = f"(1) a call from inside raised {trial.intruder.faults[0]}"
    return verdict


def _ask(trial: Trial) -> dict[str, Any]:
    world, spec, say, error = trial.world, trial.spec, trial.say, trial.error
    outcome = "returned" if error is None else type(error).__name__
    struck = trial.struck()
    verdict: dict[str, Any] = {"spec": str(spec), "struck": struck, "outcome": outcome}
    if trial.intruder is not None:
        verdict["refused"] = trial.intruder.refused[:3]
        verdict["intrusions"] = trial.intruder.calls

    def ask() -> Iterator[str | None]:
        if trial.intruder is not None and trial.intruder.faults:
            yield f"(1) a call from inside raised {trial.intruder.faults[0]}"
        say("(a) the caller's exception")
        yield _caller_got(trial, error, struck)
        say("the background job is ended")
        world.stop_background()
        say("(c) leaving the coordinators")
        left = questions.settled(world)
        verdict["left"] = bool(left)
        if left and not struck:
            yield f"(c) leaving raised {left[0]!r}"
        say("(b) all or nothing")
        told = [*left, *questions.told_to_waiters(world)]
        failed = any(questions.is_one_of(each, trial.may_strike_with) for each in told)
        for work in world.works:
            found = questions.done_or_undone(work, error, *told)
            verdict.setdefault("units", []).append(found)
            if found.startswith("wrong"):
                yield f"(b) {found}, after {error!r}"
            elif error is None and work.must_finish and found != "all" and not failed:
                yield f"(b) the call returned, but {found} is done"
            elif found == "named" and error is None and not told:
                yield "(b) the call returned, but something is left"
        say("(c) what intruders submitted")
        for work in world.others:
            found = questions.done_or_undone(work, error)
            if found not in ("all", "none"):
                yield f"(b) of an intruder's job: {found}"
        yield questions.counted(world)
        for later in questions.LATER:
            say(f"(c) {later.__name__}")
            yield later()

    try:
        for fault in ask():
            if fault is not None:
                verdict["fault"] = fault
                verdict["error"] = _told(error)
                return verdict
    except BaseException as unexpected:
        import traceback

        verdict["fault"] = f"{say.last}: {type(unexpected).__name__}: {unexpected}"
        verdict["error"] = "".join(traceback.format_exception(unexpected))[-3000:]
        return verdict
    if verdict.get("left"):  # anyio holds the task of a loop that was closed inside its scope
        return verdict
    if spec.way == "memory" and TUPLES_LEAK:
        return verdict
    say("(c) nothing refers to the jobs")
    watches = [weakref.ref(each) for each in (*world.works, *world.others)]
    for found in questions.related(error):
        found.__traceback__ = None
        del found
    error = trial.error = None
    calls.heard.clear()
    trial.unraisable.clear()
    if trial.intruder is not None:
        trial.intruder.world = World()
    trial.world = world = World()
    fault = questions.forgotten(watches)
    if fault is not None:
        verdict["fault"] = f"(c) {fault}"
    say("(d) the exit")
    return verdict


def _caller_got(trial: Trial, error: BaseException | None, struck: bool) -> str | None:
    kinds = trial.strikes_with
    expected = (*kinds, *trial.may_strike_with, *trial.spec.call.may_raise)
    if trial.spec.intruder in ("cancel_own", "leave"):
        expected = (*expected, JobCancelled, RuntimeError)
    if error is not None:
        if questions.is_one_of(error, expected):
            return None
        if trial.may_strike_with and not _passed_the_library(error):
            return None  # what others make of a stack or a memory that is at its end
        if trial.spec.way == "memory" and NO_LOCK in map(str, questions.related(error)):
            return None
        return f"(a) the caller got {error!r}"
    if not struck or not kinds:
        return None
    told = [*calls.heard, *trial.unraisable]
    if any(questions.is_one_of(each, kinds) for each in told):
        return None  # the loop, or whoever hears of exceptions that nobody can catch, was told
    if trial.spec.way.startswith("interrupt") and trial.spec.call.loop in ("asyncio", "uvloop"):
        return None  # Runner loses an interrupt whose cancellation comes too late
    if any(kind.__name__ in trial.stderr() for kind in kinds):
        return None
    return "(a) the exception was lost: the call returned, and nobody was told"


def _passed_the_library(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(LIBRARY):
            return True
        trace = trace.tb_next
    return False


def _told(error: BaseException | None) -> str:
    import traceback

    return "" if error is None else "".join(traceback.format_exception(error))[-3000:]


def _quieten() -> None:
    warnings.simplefilter("ignore")
    for name in ("aioktask", "asyncio"):
        logging.getLogger(name).disabled = True


# The ways to strike. Each is a context in which the call is made.

Strike = Callable[[Trial], contextlib.AbstractContextManager[object]]
STRIKES: dict[str, Strike] = {}


def way(strike: Callable[[Trial], Iterator[None]]) -> Callable[[Trial], Iterator[None]]:
    STRIKES[strike.__name__] = contextlib.contextmanager(strike)  # type: ignore[assignment]
    return strike


@contextlib.contextmanager
def tracing(tracer: Any) -> Iterator[None]:
    tracer.start()
    try:
        yield
    finally:
        tracer.stop()


def _raise(number: int, frame: object) -> None:
    raise Alarm


def _strike() -> None:
    signal.raise_signal(STRIKE)


@way
def alarm(trial: Trial) -> Iterator[None]:
    """The handler of a signal raises, exactly at the place."""
    signal.signal(STRIKE, _raise)
    striker = Striker(Place.parse(trial.spec.where), _strike)
    trial.struck = lambda: striker.struck
    trial.strikes_with = (Alarm,)
    with tracing(striker):
        yield


@way
def alarm_soon(trial: Trial) -> Iterator[None]:
    """The handler of a signal raises, where the interpreter looks for signals after the place.

    That may be in anyio, whose scopes are then nested no more: it says so, in a RuntimeError of the
    program's own scope, whatever ran in that. So it is spared.
    """
    spared = False

    def raises(number: int, frame: FrameType) -> None:
        nonlocal spared
        if frame.f_code.co_filename.startswith(ANYIO):
            spared = True
        else:
            raise Alarm

    signal.signal(STRIKE, raises)  # type: ignore[arg-type]
    striker = Striker(Place.parse(trial.spec.where), _strike, soon=True)
    trial.struck = lambda: striker.struck and not spared
    trial.strikes_with = (Alarm,)
    with tracing(striker):
        yield


@way
def interrupt(trial: Trial) -> Iterator[None]:
    """Ctrl-C at the place, under whatever handler there is then."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    striker = Striker(Place.parse(trial.spec.where), lambda: signal.raise_signal(signal.SIGINT))
    trial.struck = lambda: striker.struck
    trial.strikes_with = (KeyboardInterrupt,)
    with tracing(striker):
        yield


@way
def call(trial: Trial) -> Iterator[None]:
    """The handler of a signal calls the library, exactly at the place."""
    signal.signal(STRIKE, trial.intrude)
    striker = Striker(Place.parse(trial.spec.where), _strike)
    trial.struck = lambda: striker.struck
    with tracing(striker):
        yield


@way
def call_everywhere(trial: Trial) -> Iterator[None]:
    """A tracing function calls the library at every line."""
    tracer = EveryPlace(trial.intrude)
    with tracing(tracer):
        yield


@way
def kill(trial: Trial) -> Iterator[None]:
    """A signal to the process, taken by another thread that leaves it unblocked."""
    signal.signal(STRIKE, _raise)
    parked = threading.Lock()
    parked.acquire()
    taker = threading.Thread(target=parked.acquire, daemon=True)
    taker.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {STRIKE})

    def act() -> None:
        os.kill(os.getpid(), STRIKE)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:  # the handler runs in here, when the thread has it
            os.sched_yield()

    striker = Striker(Place.parse(trial.spec.where), act)
    trial.struck = lambda: striker.struck
    trial.strikes_with = (Alarm,)
    try:
        with tracing(striker):
            yield
            _ = 0  # where the handler may run at the latest
    finally:
        parked.release()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@way
def recursion(trial: Trial) -> Iterator[None]:
    """So many frames are left for the call."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    trial.depth = max(sys.getrecursionlimit() - depth - int(trial.spec.where), 0)
    trial.may_strike_with = (RecursionError,)
    yield


@way
def memory(trial: Trial) -> Iterator[None]:
    """One allocation of this number fails, in whichever thread."""
    import _testcapi

    # Some functions of the interpreter then return NULL and set no exception.
    trial.may_strike_with = (MemoryError, SystemError)
    number = int(trial.spec.where)
    _testcapi.set_nomemory(number, number + 1)
    try:
        yield
    finally:
        _testcapi.remove_mem_hooks()


@way
def helper_error(trial: Trial) -> Iterator[None]:
    """At a place of the library that a helper passes, memory ends."""

    def act() -> None:
        raise MemoryError("struck")

    striker = Striker(Place.parse(trial.spec.where), act)
    trial.struck = lambda: striker.struck
    trial.may_strike_with = (MemoryError,)
    trial.world.on_chunk = on_helpers(striker)
    try:
        yield
    finally:
        striker.over = True  # the threads are traced for ever, and later jobs are not to be struck


@way
def helper_call(trial: Trial) -> Iterator[None]:
    """At a place that a helper passes, its own thread calls the library."""
    striker = Striker(Place.parse(trial.spec.where), trial.intrude)
    trial.struck = lambda: striker.struck
    trial.world.on_chunk = on_helpers(striker)
    yield


@way
def helper_call_everywhere(trial: Trial) -> Iterator[None]:
    """A tracing function calls the library at every line that helpers pass."""
    over = False  # the threads are traced for ever

    def intrude() -> None:
        if not over:
            trial.intrude()

    trial.world.on_chunk = on_helpers(EveryPlace(intrude))
    try:
        yield
    finally:
        over = True


@way
def finalizer(trial: Trial) -> Iterator[None]:
    """A finalizer calls the library at a place."""

    class Resource:
        def __del__(self) -> None:
            trial.intrude()

    held = [Resource()]
    striker = Striker(Place.parse(trial.spec.where), held.clear)
    trial.struck = lambda: striker.struck
    with tracing(striker):
        yield


@way
def weakref_callback(trial: Trial) -> Iterator[None]:
    """The callback of a weak reference calls the library at a place."""

    class Resource:
        pass

    held = [Resource()]
    watch = weakref.ref(held[0], trial.intrude)
    striker = Striker(Place.parse(trial.spec.where), held.clear)
    trial.struck = lambda: striker.struck
    with tracing(striker):
        yield
    del watch


@way
def collector(trial: Trial) -> Iterator[None]:
    """A finalizer in a cycle calls the library, at every allocation, in whichever thread."""
    over = False

    class Resource:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            if not over:
                trial.intrude()
                Resource()

    before = gc.get_threshold()
    Resource()
    gc.set_threshold(1, 1_000_000, 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        over = True
        gc.collect()


@way
def profile(trial: Trial) -> Iterator[None]:
    """A profiling function calls the library whenever code of it calls or returns."""

    over = False  # threads that began meanwhile keep the function

    def look(frame: FrameType, event: str, argument: object) -> None:
        if not over and frame.f_code.co_filename.startswith(LIBRARY):
            trial.intrude()

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        over = True
        sys.setprofile(None)
        threading.setprofile(None)


@way
def audit(trial: Trial) -> Iterator[None]:
    """An audit hook calls the library whenever the interpreter tells it something."""
    over = False

    def hook(event: str, arguments: object) -> None:
        if not over:
            trial.intrude()

    sys.addaudithook(hook)
    try:
        yield
    finally:
        over = True


@way
def hook(trial: Trial) -> Iterator[None]:
    """Hooks of `atexit` call the library, before its own and after it."""
    atexit.register(trial.intrude)
    try:
        yield
    finally:
        trial.intrude()


@way
def log(trial: Trial) -> Iterator[None]:
    """A log handler calls the library for each event that it is told."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            trial.intrude()

    logger = logging.getLogger("aioktask")
    listener = Listener()
    logger.addHandler(listener)
    logger.propagate, logger.disabled = False, False
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.disabled = True


def on_helpers(tracer: Tracer) -> Callable[[], None]:
    """What the chunks of a job call so that their thread is traced, if it is not the main one."""
    traced: set[int] = set()

    def begin() -> None:
        thread = threading.get_ident()
        if thread not in traced and threading.current_thread() is not threading.main_thread():
            traced.add(thread)
            tracer.start_in_chunk()

    return begin


# Recording.


def record(call: Call, warm: bool, way: str, say: Say) -> list[tuple[str, bool]] | None:
    """Every place that the call passes, in order, and whether it is the exit of a `with`.

    Of helpers a place where memory cannot end counts as such too. The ways are the main thread's
    lines, or "opcodes", or the lines of "helpers". None is returned where that is said when the
    interpreter has ended.
    """

    def found() -> list[tuple[str, bool]]:
        left_out = recorder.exits | recorder.quiet if way == "helpers" else recorder.exits
        return [(str(place), place.point in left_out) for place in list(recorder.places)]

    _quieten()
    if warm:
        warm_up(call)
    recorder = Recorder(opcodes=way == "opcodes")
    world = World()
    if way == "helpers":
        world.on_chunk = on_helpers(recorder)
    strike = contextlib.nullcontext() if way == "helpers" else tracing(recorder)
    if call.at_exit:
        call.run(world)
        at_exit(strike, lambda: say.verdict(found()))
        return None
    with contextlib.suppress(*call.may_raise), strike:
        call.run(world)
    return found()


# Another thread (the keeper, which looks around) seldom makes the one allocation that fails.
COUNTS = 10


def count_allocations(call: Call, warm: bool) -> int:
    """About how many allocations the call makes, in all threads."""
    import _testcapi

    _quieten()
    if warm:
        warm_up(call)
    far = 300_000

    def left_after(act: Callable[[], object]) -> int | None:
        """None where it was another thread's allocation that failed."""
        left = 0
        _testcapi.set_nomemory(far, far + 1)
        try:
            act()
            for _ in range(far):
                bytes(100)  # two allocations
                left += 1
        except MemoryError:
            return 2 * left
        finally:
            _testcapi.remove_mem_hooks()
        return None

    def certainly_left_after(act: Callable[[], object]) -> int:
        for _ in range(COUNTS):
            if (left := left_after(act)) is not None:
                return left
        raise RuntimeError(f"{call}: in each of {COUNTS} counts another thread's allocation failed")

    def make_call() -> None:
        with contextlib.suppress(*call.may_raise):
            call.run(World())

    return max(certainly_left_after(lambda: None) - certainly_left_after(make_call), 0)


__all__ = ["Spec", "record", "run_trial"]
