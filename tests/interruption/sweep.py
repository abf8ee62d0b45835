# SPDX-License-Identifier: MIT
# Which trials there are, a sample of them, and what came of them in numbers.
"""Plan and judge a sweep."""

from __future__ import annotations

import random
import re
import signal
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.interruption.calls import CALLS, Call
from tests.interruption.children import Children, Result, Say
from tests.interruption.intruders import HARMLESS, INTRUDERS
from tests.interruption.trials import Spec, count_allocations, record, run_trial

# How many trials of each kind a sample has, for each call, warm and cold.
SAMPLE = {
    "alarm": 12,
    "with_exit": 4,
    "alarm_soon": 8,
    "interrupt": 8,
    "opcode": 60,
    "kill": 3,
    "call": 10,
    "call_everywhere": 3,
    "finalizer": 2,
    "weakref_callback": 2,
    "helper_error": 8,
    "helper_call": 4,
    "helper_call_everywhere": 1,
    "collector": 2,
    "profile": 1,
    "audit": 1,
    "log": 2,
    "hook": 6,
    "recursion": 6,
    "memory": 10,
}

# No handler runs between the last line of a `with` and its `__exit__`: a tracing function can raise
# there, and nothing else.
ONLY_ASKED_FOR = ("with_exit",)

# The shortest ways through the library, which are struck between any two instructions.
BY_OPCODE = (Call("thread", "sync_alone"), Call("thread", "submit"), Call("asyncio", "run"))

# What strikes while the interpreter ends.
AT_EXIT = (
    "alarm",
    "alarm_soon",
    "interrupt",
    "kill",
    "call",
    "call_everywhere",
    "collector",
    "log",
)

# Where most of what may find no memory is the library: loops have their own answers to that.
BY_ALLOCATION = tuple(call for call in CALLS if call.loop == "thread" and not call.at_exit)

# Loops in the library come by again and again: so many turns are struck.
TURNS = 2

# A cold call reads many small files, whose allocations are much alike.
COLD_STEP = 7

# So many frames above what a call needs are tried.
MOST_FRAMES = 50

HEAVY = tuple(name for name in INTRUDERS if name not in HARMLESS)


# Which kinds of trials need to know what; the others strike at no place.
NEEDS = {
    "opcodes": {"opcode"},
    "helpers": {"helper_error", "helper_call"},
    "allocations": {"memory"},
    "lines": set(SAMPLE) - {"opcode", "helper_error", "helper_call", "memory"},
}


@dataclass(frozen=True)
class Recording:
    """What is asked of a child: which places a call passes, or how much it allocates."""

    call: Call
    warm: bool
    way: str  # "lines", "opcodes", "helpers" or "allocations"


# Of so many children one takes its interpreter down to the end.
FULL_EXITS = 8


def ends_quickly(task: Any) -> bool:
    return isinstance(task, Recording) or zlib.crc32(str(task).encode()) % FULL_EXITS != 0


def work_of(task: Any, say: Say) -> Any:
    """What a child does."""
    if isinstance(task, Recording):
        say("record")
        if task.way == "allocations":
            return [count_allocations(task.call, task.warm)]
        return record(task.call, task.warm, task.way, say)
    return run_trial(task, say)


@dataclass
class Fault:
    spec: Spec
    kind: str  # which question, and in which way
    what: str
    result: Result


@dataclass
class Sweep:
    """Trials and their results."""

    specs: list[Spec]
    results: list[Result] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    missed: int = 0  # trials whose place was not passed
    crashed: list[str] = field(default_factory=list)  # in the interpreter, or an extension

    @classmethod
    def of(cls, specs: Iterable[Spec]) -> Sweep:
        return cls(list(specs))

    @classmethod
    def planned(
        cls,
        children: Children,
        rng: random.Random,
        *,
        sample: float | None,
        only: str = "",
        kinds: Iterable[str] = (),
        state: str = "",
    ) -> Sweep:
        chosen = [call for call in CALLS if only in str(call)]
        states = [warm for warm in (True, False) if state in ("", "warm" if warm else "cold")]
        wanted = set(kinds)
        recordings = [
            Recording(call, warm, way)
            for call in chosen
            for warm in states
            for way in ("lines", "helpers", "opcodes", "allocations")
            if (not wanted or wanted & NEEDS[way])
            and (way != "opcodes" or (warm and call in BY_OPCODE))
            and (way != "allocations" or (call in BY_ALLOCATION and can_deny_memory()))
        ]
        plans: dict[tuple[str, bool], Plan] = {}
        for result in children.run(recordings):
            if result.verdict is None or result.status:
                raise RuntimeError(f"{result.task} could not be recorded:\n{result.stderr}")
            task = result.task
            plan = plans.setdefault((str(task.call), task.warm), Plan(task.call, task.warm))
            plan.recorded[task.way] = result.verdict
        specs: list[Spec] = []
        for _, plan in sorted(plans.items()):
            for kind, trials in sorted(plan.trials(rng).items()):
                if kind not in wanted if wanted else kind in ONLY_ASKED_FOR:
                    continue
                if sample is not None:
                    count = max(round(SAMPLE[kind] * sample), 1)
                    trials = rng.sample(trials, min(count, len(trials)))
                specs += trials
        rng.shuffle(specs)
        return cls(specs)

    def repeat_faults(self, children: Children, times: int) -> None:
        """Strike anew where something went wrong, and keep what goes wrong again every time.

        A place of the code is struck alike each time; a busy machine is not.
        """
        for _ in range(times):
            again = Sweep([fault.spec for fault in self.faults])
            if not again.specs:
                return
            print(f"once more: {len(again.specs)} that went wrong", flush=True)
            again.run(children, most_faults=len(again.specs))
            self.faults = again.faults

    def run(self, children: Children, *, most_faults: int, seconds: float = float("inf")) -> None:
        """Make the trials, those that begin within `seconds`."""
        until = time.monotonic() + seconds

        def tasks() -> Iterable[Spec]:
            for number, spec in enumerate(self.specs):
                if time.monotonic() >= until:
                    print(f"{seconds:g} s are over: {number} of {len(self.specs)} trials made")
                    return
                if len(self.faults) >= most_faults:
                    print(f"{most_faults} faults: the rest is left out", file=sys.stderr)
                    return
                yield spec

        for result in children.run(tasks()):
            self.results.append(result)
            if crashes_elsewhere(result):
                self.crashed.append(str(result.task))
                continue
            fault = judged(result)
            if fault is not None:
                self.faults.append(fault)
                print(f"FAULT {fault.spec}\n      {fault.kind}: {fault.what[:300]}", flush=True)
            elif result.verdict is not None and not result.verdict["struck"]:
                self.missed += 1


@dataclass
class Plan:
    """The trials of one call, in one state."""

    call: Call
    warm: bool
    recorded: dict[str, Any] = field(default_factory=dict)

    def trials(self, rng: random.Random) -> dict[str, list[Spec]]:
        """By kind, all there are."""

        def struck(kind: str, places: Iterable[object]) -> list[Spec]:
            return [Spec(self.call, self.warm, kind, str(place)) for place in places]

        def intruded(kind: str, names: Iterable[str], place: object = "") -> list[Spec]:
            return [Spec(self.call, self.warm, f"{kind}:{name}", str(place)) for name in names]

        def early(places: Iterable[str], turns: int) -> list[str]:
            """The first times that a place is passed."""
            return [place for place in places if int(place.rpartition("#")[2]) <= turns]

        def one_each(kind: str, places: Iterable[str]) -> list[Spec]:
            """At each place one of those that do much: in turn, from a random one on."""
            first = rng.randrange(len(HEAVY))
            return [
                spec
                for number, place in enumerate(places, first)
                for spec in intruded(kind, [HEAVY[number % len(HEAVY)]], place)
            ]

        lines = self.recorded.get("lines", ())
        everywhere = early((place for place, _ in lines), TURNS)
        inside = early((place for place, exits in lines if not exits), TURNS)
        helped = self.recorded.get("helpers", ())
        helped_inside = [place for place, exits in helped if not exits]
        steps = self.recorded.get("opcodes", ())
        allocations = self.recorded.get("allocations", [0])[0]
        found = {
            "alarm": struck("alarm", inside),
            "with_exit": struck("alarm", [place for place, exits in lines if exits]),
            "alarm_soon": struck("alarm_soon", everywhere),
            "interrupt": struck("interrupt", inside),
            "opcode": struck("alarm", early((place for place, exits in steps if not exits), 2)),
            "kill": struck("kill", early(inside, 1)),
            "call": one_each("call", everywhere),
            "call_everywhere": intruded("call_everywhere", HARMLESS),
            "finalizer": one_each("finalizer", early(everywhere, 1)),
            "weakref_callback": one_each("weakref_callback", early(everywhere, 1)),
            "helper_error": struck("helper_error", early(helped_inside, TURNS)),
            "helper_call": one_each("helper_call", early((place for place, _ in helped), TURNS)),
            "helper_call_everywhere": intruded("helper_call_everywhere", HARMLESS),
            "collector": intruded("collector", INTRUDERS),
            "profile": intruded("profile", INTRUDERS),
            "audit": intruded("audit", INTRUDERS),
            "log": intruded("log", INTRUDERS),
            "recursion": struck("recursion", range(1, MOST_FRAMES)),
            "memory": struck("memory", range(0, allocations, 1 if self.warm else COLD_STEP)),
        }
        if self.call.at_exit:
            found = {kind: found[kind] for kind in AT_EXIT} | {"hook": intruded("hook", INTRUDERS)}
        if self.call.loop == "bare":  # the library's lines are those of asyncio's other ways
            found = {kind: found[kind] for kind in ("alarm", "alarm_soon", "interrupt")}
        return {kind: specs for kind, specs in found.items() if specs}


def can_deny_memory() -> bool:
    """Whether this interpreter can have an allocation fail."""
    try:
        import _testcapi
    except ImportError:
        return False
    return hasattr(_testcapi, "set_nomemory")


def crashes_elsewhere(result: Result) -> bool:
    """Whether the interpreter or an extension did not stand it: none of this is written in C.

    A collection at every allocation finds objects of extensions half made; an allocation that fails
    is not looked for everywhere.
    """
    return result.status == -signal.SIGSEGV and result.task.way in ("collector", "memory")


def judged(result: Result) -> Fault | None:
    """What was wrong with a trial, if anything."""
    spec, verdict = result.task, result.verdict
    if result.hung:
        where = stands_in(result.stderr)
        if verdict is None:
            return Fault(spec, f"hangs: {result.stage}, in {where}", "no verdict", result)
        before = verdict.get("fault")
        return Fault(spec, "hangs: (d) the exit", f"in {where}; before: {before}", result)
    if verdict is None:
        return Fault(spec, f"dies: {result.stage}", f"status {result.status}", result)
    if verdict.get("fault"):
        return Fault(spec, verdict["fault"][:3] + _gist(verdict["fault"]), verdict["fault"], result)
    if result.status:
        return Fault(spec, "(d) exit status", f"{result.status}: {result.stderr[-300:]}", result)
    return None


def stands_in(stacks: str) -> str:
    """The innermost function of the library that the main thread is in, from faulthandler."""
    main = stacks.rpartition("(most recent call first):")[2]
    found = re.search(r'aioktask/(\S+)", line \d+ in (\S+)', main)
    return "no code of the library" if found is None else f"{found[1]}:{found[2]}"


def _gist(fault: str) -> str:
    """The fault without what differs from one trial to the next."""
    return " " + fault[3:].split(":")[0].split(", after")[0].split("Alarm(")[0].strip()[:60]


def report(sweep: Sweep, *, verbose: bool = False) -> dict[str, Any]:
    """Print and return the numbers, and the first of each kind of faults in full."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in sweep.faults:
        by_kind[fault.kind].append(fault)
    ways: Counter[str] = Counter(result.task.kind.partition(":")[0] for result in sweep.results)
    wrong: Counter[str] = Counter(fault.spec.kind.partition(":")[0] for fault in sweep.faults)
    for kind, faults in sorted(by_kind.items(), key=lambda each: -len(each[1])):
        first = faults[0]
        print(f"\n=== {len(faults)} x {kind}\n    first: {first.spec}\n    {first.what[:600]}")
        verdict = first.result.verdict or {}
        if verdict.get("error"):
            print("    " + verdict["error"][-1500:].replace("\n", "\n    "))
        if first.result.stderr:
            print("    " + first.result.stderr[-3000:].replace("\n", "\n    "))
    print()
    for name, count in sorted(ways.items()):
        print(f"{name:16} {count:6} trials, {wrong[name]:4} with faults")
    if sweep.crashed:
        print(f"crashed in C: {len(sweep.crashed)}, the first: {sweep.crashed[0]}")
    print(f"places not passed again: {sweep.missed}")
    if verbose:
        for result in sweep.results:
            print(result.verdict, f"status {result.status}", f"{result.seconds:.2f} s")
    return {
        "trials": dict(ways),
        "missed": sweep.missed,
        "crashed": sweep.crashed,
        "faults": {kind: [str(fault.spec) for fault in faults] for kind, faults in by_kind.items()},
    }
