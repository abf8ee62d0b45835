# SPDX-License-Identifier: MIT
# A web server under a real load over HTTP: how long its requests take beside heavy ones that want
# every CPU, and what becomes of them where more come than it can serve.
#
# Servers that have the work done in different ways run beside each other and are loaded in turns,
# by one client in a process of its own (`load`), which sends at fixed rates whatever the server
# does. A window lasts as long as a heavy request, so each way has as much done in each of its
# windows, and how long that took tells of throughput. What a request waits is counted above its
# service time, which is that of its function where nothing else runs.
"""`bench serve`."""

from __future__ import annotations

import math
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from time import thread_time
from typing import Any

from aioktask.bench.barest import NICE, bare_requests
from aioktask.bench.beside import quantile
from aioktask.bench.processes import Child, cpus, started
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.bench.serving import (
    BOUNDED,
    OURS,
    PROCESSES,
    SMALL_CHUNKS,
    THREADS,
    WAYS,
    Amount,
    environment,
    missing,
    work,
)
from aioktask.figures.measure import Contender, Interval, alternate, interval
from aioktask.figures.table import Table, number

__all__ = [
    "AGAIN",
    "AT_CAPACITY",
    "AT_TWICE",
    "BESIDE",
    "EMPTY_WITHIN",
    "KEPT",
    "LEAST",
    "OF_THREADS",
    "OVERLOAD",
    "REFUSED_WITHIN",
    "Window",
    "best_of",
    "run",
    "window_of",
]

MILLI = 1e3
EMPTY, INTERACTIVE, HEAVY = "/empty", "/interactive", "/heavy"
# Requests a second: what one loop serves in Python without being busy itself.
MOST_RATE = 400.0
# No part of the other rate, so that the two meet at all distances.
EMPTY_RATE = 97.0
# From so many CPUs on the client has one for itself.
ENOUGH_CPUS = 4
# Each server has the machine to itself while it is loaded, and shares it with no other process.
ALONE = {"AIOKTASK_SHARE": "off"}
# How long requests may wait where they are bounded, in seconds, and how many, for each CPU.
MAX_WAIT, MAX_QUEUED = 50e-3, 2
# What is promised: of the best thread peer, milliseconds, of the p99 at the capacity, milliseconds.
OF_THREADS, EMPTY_WITHIN, KEPT, REFUSED_WITHIN = 1 / 5, 5.0, 1.25, 10.0

# How often requests without a server are measured.
BARE_ROUNDS = 5

BESIDE, AGAIN, LEAST, OVERLOAD = (
    "Requests beside heavy ones",
    "Requests beside heavy ones, fresh rounds",
    "What the same requests wait at the least",
    "More requests than can be served",
)
COLUMNS = (
    "empty: p99, ms",
    "interactive: p50, ms",
    "p99, ms",
    "p99 above service, ms",
    "a heavy one, s",
    "broken",
)
ABOVE, EMPTY_P99, TAKES = "interactive: p99 above service, s", "empty: p99, s", "heavy: takes, s"

Progress = Callable[[str], object]
Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured.

    Attributes:
        heavy: Seconds of all CPUs that a heavy request takes.
        service: Seconds that an interactive one takes.
        share: Of all CPUs, what interactive requests take beside heavy ones.
        sweep: Rounds in which the rivals are chosen.
        rounds: Rounds that something is promised of.
        capacity: How many requests the capacity is told by.
        overload: Seconds of a window with more requests than can be served.
        bare: Seconds of requests without a server.
    """

    heavy: float = 1.0
    service: float = 5e-3
    share: float = 0.25
    sweep: int = 2
    rounds: int = PAIRS
    capacity: int = 600
    overload: float = 0.7
    bare: float = 3.0


QUICK = Pace(0.1, 0.5e-3, 0.02, sweep=1, rounds=1, capacity=20, overload=0.1, bare=0.2)


@dataclass(frozen=True, slots=True)
class Window:
    """What a client found in a window: seconds, but for the counts.

    Attributes:
        empty: How long requests took that do nothing; 99 of 100 were at most so long.
        median: How long interactive requests took that were served, half of them at most.
        p99: 99 of 100 of them.
        refused: 99 of 100 of the interactive requests that were answered with 503; 0 for none.
        served: How many interactive requests were.
        turned_away: How many were answered with 503.
        broken: Requests that got another answer, or none.
        background: How long heavy requests took, in all.
        late: 99 of 100 requests were sent at most so late; that is in all the others.
    """

    empty: float
    median: float
    p99: float
    refused: float
    served: int
    turned_away: int
    broken: int
    background: float
    late: float


def window_of(answer: Answer) -> Window:
    """What is told of a window by what the client answered."""
    took: Mapping[str, Sequence[tuple[float, int]]] = answer["took"]
    by_status: dict[int, list[float]] = {}
    for seconds, status in took.get(INTERACTIVE, ()):
        by_status.setdefault(status, []).append(seconds)
    served, refused = by_status.pop(200, []), by_status.pop(503, [])
    empty = [seconds for seconds, status in took.get(EMPTY, ()) if status == 200]
    broken = sum(map(len, by_status.values())) + len(took.get(EMPTY, ())) - len(empty)
    broken += sum(status != 200 for status in answer["statuses"])

    def share_of(values: Sequence[float], share: float) -> float:
        return quantile(values, share) if values else 0.0

    return Window(
        empty=share_of(empty, 0.99),
        median=share_of(served, 0.5),
        p99=share_of(served, 0.99),
        refused=share_of(refused, 0.99),
        served=len(served),
        turned_away=len(refused),
        broken=broken,
        background=answer["background"],
        late=share_of(answer["late"], 0.99),
    )


Found = Mapping[str, Sequence[Window]]


def best_of(found: Found, names: Iterable[str]) -> str | None:
    """Whose interactive requests have the smallest p99, by the median; None where none is there."""
    there = [name for name in names if name in found]
    return min(there, key=lambda name: statistics.median(_p99(found[name])), default=None)


def _p99(windows: Sequence[Window]) -> list[float]:
    return [each.p99 for each in windows]


def run(quick: bool, progress: Progress) -> Result:
    """Servers under load, ours and those of the peers."""
    result = Result("serve", quick)
    lacks = {way: missing(way) for way in WAYS}
    if lacks[OURS]:
        rows = [("what is loaded", f"{lacks[OURS]} is not installed")]
        result.tables.append(Table("A web server under load", ("", ""), rows))
        return result
    pace = QUICK if quick else Pace()
    with ExitStack() as stack:
        progress("starting the servers")
        ours, clients = _cpus()
        amount = _amount(len(ours), pace)
        there = [way for way in WAYS if not lacks[way]]
        bench = stack.enter_context(_bench(there, amount, ours, clients, pace))
        ways = [way for way in there if way != BOUNDED]
        progress(f"beside heavy requests: {', '.join(ways)}")
        bench.warm_up(ways)
        found = bench.beside(ways, pace.sweep, warm_ups=0)
        gone = {way: lacks[way] for way in WAYS if lacks[way]}
        _tell(result, BESIDE, found, pace, gone, bench.notes())
        met = [OURS, SMALL_CHUNKS]
        rivals = [best_of(found, names) for names in (THREADS, PROCESSES)]
        met += [rival for rival in rivals if rival is not None]
        progress(f"{pace.rounds} fresh rounds: {', '.join(met)}")
        again = bench.beside(met, pace.rounds)
        _tell(result, AGAIN, again, pace, {}, ())
        _promise_beside(result, again, pace.service, *rivals)
        progress(f"without heavy requests: {', '.join(met)}")
        _tell_least(result, bench.without_heavy(met, pace.rounds), pace, bench.rate)
        capacity = bench.capacity(pace.capacity)
        progress(f"at the capacity, {capacity:.0f} requests a second, and at twice that")
        _tell_overload(result, bench.overload(capacity, pace.rounds), capacity, pace, amount)
    return result


def _amount(servers: int, pace: Pace) -> Amount:
    """How much work takes as long as is wanted where nothing else runs."""
    size, taken = 1 << 19, []
    for _ in range(40):  # CPU time: what else runs on the machine does not count
        began = thread_time()
        work(0, size)
        taken.append(thread_time() - began)
    rate = size / statistics.median(taken)
    interactive, heavy = round(pace.service * rate), round(pace.heavy * servers * rate)
    return Amount(interactive, heavy, MAX_QUEUED * servers, MAX_WAIT)


# The processes.


def _cpus() -> tuple[set[int], set[int]]:
    """The CPUs of the servers, and those of the client: its own where there are enough."""
    if not hasattr(os, "sched_getaffinity"):
        return set(range(cpus())), set()
    every = os.sched_getaffinity(0)
    if len(every) < ENOUGH_CPUS:
        return every, every
    client = {max(every)}
    return every - client, client


@contextmanager
def _on(there: set[int]) -> Iterator[None]:
    """What is started in the block runs on these CPUs alone."""
    if not there or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, there)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nobody listens."""
    with ExitStack() as stack:
        return [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(count)
        ]


@contextmanager
def _serving(ways: Sequence[str], amount: Amount) -> Iterator[dict[str, int]]:
    """A server for each way, which serves; the port of each."""
    ports = _free_ports(len(ways))
    command = [sys.executable, "-m", "aioktask.bench.serving"]
    commands = [[*command, way, str(port)] for way, port in zip(ways, ports, strict=True)]
    with started(commands, {**environment(amount), **ALONE}) as servers:
        try:
            yield dict(zip(ways, ports, strict=True))
        finally:
            _end(servers)


def _end(servers: Sequence[Child]) -> None:
    """End them as an orchestrator does; with what they started, where that does not help."""
    for server in servers:
        server.process.send_signal(signal.SIGTERM)
    for server in servers:
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)


@contextmanager
def _bench(
    ways: Sequence[str], amount: Amount, ours: set[int], clients: set[int], pace: Pace
) -> Iterator[_Bench]:
    with ExitStack() as stack:
        with _on(ours):
            ports = stack.enter_context(_serving(ways, amount))
        with _on(clients):
            command = [sys.executable, "-m", "aioktask.bench.load"]
            (client,) = stack.enter_context(started([command]))
        bench = _Bench(client, ports, len(ours), clients.isdisjoint(ours) and bool(clients), pace)
        bench.urgent = not bench.apart and _go_before_others(client.process.pid)
        yield bench


def _go_before_others(process: int) -> bool:
    """Have the client run when it wants to, as one on another machine would; whether it may.

    It needs little. What it is late counts as the servers' time.
    """
    if hasattr(os, "sched_setscheduler"):
        with suppress(PermissionError):
            os.sched_setscheduler(process, os.SCHED_RR, os.sched_param(1))
            return True
    return False


@dataclass(slots=True)
class _Bench:
    """The client, and the servers that it loads.

    Attributes:
        client: The process that puts the load on them.
        ports: Of the servers, by way.
        cpus: How many CPUs the servers have.
        apart: Whether the client has a CPU for itself.
        pace: How much is measured.
        urgent: Whether the client goes before the servers where they share CPUs.
        windows: How many were measured.
        late: How late the client sent, in each window.
    """

    client: Child
    ports: Mapping[str, int]
    cpus: int
    apart: bool
    pace: Pace
    urgent: bool = False
    windows: int = 0
    late: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Interactive requests a second, beside heavy ones."""
        return min(self.pace.share * self.cpus / self.pace.service, MOST_RATE)

    def window(self, way: str, rates: Mapping[str, float], seconds: float, **more: Any) -> Window:
        """Load a server for so long, or until what is in the background is through."""
        self.windows += 1
        self.client.ask(
            port=self.ports[way], rates=rates, seconds=seconds, seed=self.windows, **more
        )
        found = window_of(self.client.answer())
        self.late.append(found.late)
        return found

    def warm_up(self, ways: Iterable[str]) -> None:
        """Have each server do everything once."""
        for way in ways:
            self.window(way, {EMPTY: 50.0, INTERACTIVE: 50.0}, 60, background=HEAVY, times=1)

    def beside(self, ways: Sequence[str], rounds: int, warm_ups: int = 1) -> Found:
        """Windows beside a heavy request: so many for each way, that count."""
        rates = {EMPTY: EMPTY_RATE, INTERACTIVE: self.rate}
        most = 60 * self.pace.heavy  # nothing takes so long that is not broken

        def window(way: str) -> Window:
            return self.window(way, rates, most, background=HEAVY, times=1)

        return _alternated({way: partial(window, way) for way in ways}, rounds, warm_ups)

    def without_heavy(self, ways: Sequence[str], rounds: int) -> Found:
        """Windows of the same requests with nothing heavy beside them."""
        rates = {EMPTY: EMPTY_RATE, INTERACTIVE: self.rate}

        def window(way: str) -> Window:
            return self.window(way, rates, self.pace.heavy)

        return _alternated({way: partial(window, way) for way in ways}, rounds)

    def capacity(self, count: int) -> float:
        """Interactive requests a second that are served where as many are asked for as can be."""
        together = 2 * self.cpus
        times = max(count // together, 1)
        self.window(OURS, {}, 0, background=INTERACTIVE, times=1, together=together)
        found = self.window(OURS, {}, 0, background=INTERACTIVE, times=times, together=together)
        return together * times / found.background

    def overload(self, capacity: float, rounds: int) -> Found:
        """Windows at the capacity and at twice that, by what they are at."""

        def window(factor: float) -> Window:
            return self.window(BOUNDED, {INTERACTIVE: factor * capacity}, self.pace.overload)

        return _alternated({name: partial(window, factor) for name, factor in LOADS}, rounds)

    def notes(self) -> tuple[str, ...]:
        """Where the client was, and what it did."""
        where = (
            "The client has a CPU for itself."
            if self.apart
            else "The client shares the servers' CPUs"
            + (", and goes before them." if self.urgent else ".")
        )
        return (
            f"{EMPTY_RATE:.0f} empty and {self.rate:.0f} interactive requests a second, at moments "
            f"that are fixed beforehand, from which their time counts. {where} Of 100 requests 99 "
            f"were sent at most {number(MILLI * statistics.median(self.late))} ms late.",
        )


AT_CAPACITY, AT_TWICE = "at the capacity", "at twice the capacity"
LOADS = ((AT_CAPACITY, 1.0), (AT_TWICE, 2.0))


def _alternated(
    windows: Mapping[str, Callable[[], Window]], rounds: int, warm_ups: int = 1
) -> Found:
    found: dict[str, list[Window]] = {name: [] for name in windows}

    def one(name: str) -> None:
        found[name].append(windows[name]())

    contenders = [Contender(name, partial(one, name)) for name in windows]
    warm_ups = min(rounds - 1, warm_ups)
    alternate(contenders, rounds, warm_ups=warm_ups)
    return {name: each[warm_ups:] for name, each in found.items()}


# What is told.


def _tell(
    result: Result,
    title: str,
    found: Found,
    pace: Pace,
    gone: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    rows: list[tuple[object, ...]] = [
        (
            name,
            interval(MILLI * each.empty for each in windows),
            MILLI * statistics.median(each.median for each in windows),
            interval(MILLI * each.p99 for each in windows),
            interval(MILLI * (each.p99 - pace.service) for each in windows),
            interval(each.background for each in windows),
            sum(each.broken for each in windows),
        )
        for name, windows in found.items()
    ]
    rows += [(way, f"{package} is not installed", *[None] * 5) for way, package in gone.items()]
    columns = ("", *COLUMNS)
    said = (
        *notes,
        f"An interactive request is {number(MILLI * pace.service)} ms of NumPy, its service time; "
        f"a heavy one is {number(pace.heavy)} s of all CPUs, one after the other. Medians of "
        "windows as long as a heavy request.",
    )
    result.tables.append(Table(title, columns, rows, said))
    values: dict[str, Callable[[Window], float]] = {
        ABOVE: lambda each: each.p99 - pace.service,
        EMPTY_P99: lambda each: each.empty,
        TAKES: lambda each: each.background,
    }
    for what, value in values.items():
        result.samples[f"{title}: {what}"] = {
            name: [value(each) for each in windows] for name, windows in found.items()
        }


def _tell_least(result: Result, found: Found, pace: Pace, rate: float) -> None:
    """What requests wait at the least: where nothing heavy is asked for, and without a server."""

    def row(name: str, median: float, above: Iterable[float], broken: int) -> tuple[object, ...]:
        return name, MILLI * median, interval(MILLI * each for each in above), broken

    rows = [
        row(
            f"{way}, no heavy requests",
            statistics.median(each.median for each in windows),
            [each.p99 - pace.service for each in windows],
            sum(each.broken for each in windows),
        )
        for way, windows in found.items()
    ]
    names = ("no server, nothing beside", f"no server, a process at nice {NICE} on each CPU beside")
    bare: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(BARE_ROUNDS if pace.rounds > 1 else 1):
        for name, took in zip(names, bare_requests(pace.service, rate, pace.bare), strict=True):
            bare[name].append(took)
    rows += [
        row(
            name,
            statistics.median(quantile(each, 0.5) for each in windows),
            [quantile(each, 0.99) - pace.service for each in windows],
            0,
        )
        for name, windows in bare.items()
    ]
    note = (
        "Without a server: processes that sleep until the moment of a request, each for itself, "
        "and use a CPU for its service time. What these wait beside others is the kernel's doing."
    )
    columns = ("the same interactive requests", "p50, ms", "p99 above service, ms", "broken")
    result.tables.append(Table(LEAST, columns, rows, (note,)))


def _promise_beside(
    result: Result, found: Found, service: float, threads: str | None, processes: str | None
) -> None:
    def above(each: Window) -> float:
        # A clock's precision: of a hurried run nothing may be above the service time.
        return max(each.p99 - service, 1e-6)

    def speed(each: Window) -> float:
        return 1 / each.background

    for ours in (OURS, SMALL_CHUNKS):
        start = f"{ours}: interactive p99 above the service time, of that of"
        if threads is not None:
            reached = _of(found, ours, threads, above)
            result.promises.append(Promise(f"{start} {threads}", OF_THREADS, False, reached))
            text = f"{ours}: heavy requests a second, of those of {threads}"
            reached = _of(found, ours, threads, speed)
            result.promises.append(Promise(text, 1.0, True, reached))
        if processes is not None:
            reached = _of(found, ours, processes, above)
            result.promises.append(Promise(f"{start} {processes}", 1.0, False, reached))
        empty = interval(MILLI * each.empty for each in found[ours])
        result.promises.append(Promise(f"{ours}: empty p99, ms", EMPTY_WITHIN, False, empty))


def _of(found: Found, ours: str, rival: str, value: Callable[[Window], float]) -> Interval:
    """A value of one of ours, of the rival's, by round."""
    return interval(value(a) / value(b) for a, b in zip(found[ours], found[rival], strict=True))


def _tell_overload(
    result: Result, found: Found, capacity: float, pace: Pace, amount: Amount
) -> None:
    rows: list[tuple[object, ...]] = [
        (
            name,
            statistics.median(each.served / pace.overload for each in windows),
            statistics.median(each.turned_away / pace.overload for each in windows),
            interval(MILLI * each.p99 for each in windows),
            interval(_refused(windows)) if any(each.turned_away for each in windows) else None,
            sum(each.broken for each in windows),
        )
        for name, windows in found.items()
    ]
    columns = (
        "interactive requests",
        "served/s",
        "503/s",
        "served: p99, ms",
        "503: p99, ms",
        "broken",
    )
    note = (
        f"The capacity is {capacity:.0f} requests a second: so many are served to clients that ask "
        f"again at once. max_queued={amount.max_queued}, max_wait={amount.max_wait:g}."
    )
    result.tables.append(Table(OVERLOAD, columns, rows, (note,)))
    for what in ("p99", "refused"):
        result.samples[f"{OVERLOAD}: {what}, s"] = {
            name: [getattr(each, what) for each in windows] for name, windows in found.items()
        }
    pairs = zip(found[AT_TWICE], found[AT_CAPACITY], strict=True)
    # Where nothing is served, or something broke, no time is short enough.
    kept = interval(a.p99 / b.p99 if _is_whole(a) and b.p99 else math.inf for a, b in pairs)
    text = f"{AT_TWICE}: p99 of what is served, of that at the capacity"
    result.promises.append(Promise(text, KEPT, False, kept))
    whole = all(_is_whole(each) for each in found[AT_TWICE])
    refused = interval(_refused(found[AT_TWICE]) if whole else [math.inf])
    text = f"{AT_TWICE}: p99 of what is answered with 503, ms"
    result.promises.append(Promise(text, REFUSED_WITHIN, False, refused))


def _is_whole(window: Window) -> bool:
    """Whether requests were served, and each got one of the answers that it may get."""
    return window.served > 0 and not window.broken


def _refused(windows: Sequence[Window]) -> list[float]:
    """How long 503 took, in milliseconds, of the windows in which there was one; 0 if in none."""
    return [MILLI * each.refused for each in windows if each.turned_away] or [0.0]
