# SPDX-License-Identifier: MIT
# Which trials there are, a sample of them, and what came of them in numbers.
"""Plan and judge a sweep."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.interruption.calls import CALLS, Call
from tests.interruption.children import Children, Result, Say
from tests.interruption.intruders import INTRUDERS
from tests.interruption.strikes import Place
from tests.interruption.trials import Spec, record, run_trial

# Those that change nothing for whom they interrupt: they are called at every line of one run.
HARMLESS = ("progress", "renice", "limit", "cancel_other", "look", "cap", "configure")

# How many trials of each kind a sample has, for each call, warm and cold.
SAMPLE = {"alarm": 8, "alarm_soon": 5, "interrupt": 5, "call": 8}


@dataclass(frozen=True)
class Recording:
    """What is asked of a child: which places a call passes."""

    call: Call
    warm: bool
    opcodes: bool = False


def work_of(task: Any, say: Say) -> Any:
    """What a child does."""
    if isinstance(task, Recording):
        say("record")
        return record(task.call, task.warm, task.opcodes)
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
        recordings = [Recording(call, warm) for call in chosen for warm in states]
        places: dict[tuple[Call, bool], list[tuple[Place, bool]]] = {}
        for result in children.run(recordings):
            if result.verdict is None or result.status:
                raise RuntimeError(f"{result.task} could not be recorded:\n{result.stderr}")
            key = (result.task.call, result.task.warm)
            places[key] = [(Place.parse(text), exits) for text, exits in result.verdict]
        specs: list[Spec] = []
        wanted = set(kinds)
        for key in sorted(places, key=str):
            for kind, ways in sorted(_trials(*key, places[key]).items()):
                if wanted and kind not in wanted:
                    continue
                if sample is not None and kind in SAMPLE:
                    count = max(round(SAMPLE[kind] * sample), 1)
                    ways = rng.sample(ways, min(count, len(ways)))
                specs += ways
        rng.shuffle(specs)
        return cls(specs)

    def run(self, children: Children, *, most_faults: int) -> None:
        def tasks() -> Iterable[Spec]:
            for spec in self.specs:
                if len(self.faults) >= most_faults:
                    print(f"{most_faults} faults: the rest is left out", file=sys.stderr)
                    return
                yield spec

        for result in children.run(tasks()):
            self.results.append(result)
            fault = judged(result)
            if fault is not None:
                self.faults.append(fault)
                print(f"FAULT {fault.spec}\n      {fault.kind}: {fault.what[:300]}", flush=True)
            elif result.verdict is not None and not result.verdict["struck"]:
                self.missed += 1


def _trials(call: Call, warm: bool, places: list[tuple[Place, bool]]) -> dict[str, list[Spec]]:
    """By kind, the trials of one call."""

    def spec(kind: str, place: Place) -> Spec:
        return Spec(call, warm, kind, str(place))

    # Between the last line of a `with` and its `__exit__` no handler runs in earnest.
    inside = [place for place, exits in places if not exits]
    everywhere = [place for place, _ in places]
    trials = {
        "alarm": [spec("alarm", place) for place in inside],
        "with_exit": [spec("alarm", place) for place, exits in places if exits],
        "alarm_soon": [spec("alarm_soon", place) for place in everywhere],
        "interrupt": [spec("interrupt", place) for place in inside],
        "call": [spec(f"call:{name}", place) for place in everywhere for name in INTRUDERS],
        "call_everywhere": [Spec(call, warm, f"call_everywhere:{name}") for name in HARMLESS],
    }
    del trials["with_exit"]
    return trials


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
    print(f"places not passed again: {sweep.missed}")
    if verbose:
        for result in sweep.results:
            print(result.verdict, f"status {result.status}", f"{result.seconds:.2f} s")
    return {
        "trials": dict(ways),
        "missed": sweep.missed,
        "faults": {kind: [str(fault.spec) for fault in faults] for kind, faults in by_kind.items()},
    }
