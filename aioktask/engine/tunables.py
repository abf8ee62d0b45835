# SPDX-License-Identifier: MIT
# What can be set: the names, what each may be, and who said so.
#
# Pure. There is one table. A tunable of the process comes from a call of `configure`, else from the
# environment, else from the table; one of a coordinator from its arguments, else the process's
# holds. All three use the same name. A value that makes no sense is refused with its source named.
"""The tunables of the process and of coordinators."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aioktask.checks import (
    DISK,
    check_flag,
    check_function,
    check_learn,
    check_remember,
    integer,
    nice_value,
    seconds,
)
from aioktask.engine.lookups import look_up

__all__ = [
    "NO_SHARE",
    "PROCESS",
    "TUNABLES",
    "Tunable",
    "Tunables",
    "checked",
    "process_tunables",
    "refuse_misspelt",
]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

NO_SHARE = "off"
OFF = "off"  # in the environment, for None

PREFIX = "AIOKTASK_"
# What else is read from the environment: whether snapshots are published, and the page's token.
OTHER_NAMES = ("PUBLISH", "TOKEN")
# How alike a name is to one of those where it is taken for a slip, from 0 to 1.
ALIKE = 0.85

# As a value of `limit_native_threads`: of the whole process as well.
PROCESS = "process"


@dataclass(frozen=True, slots=True)
class Tunable:
    """One of the tunables.

    Attributes:
        name: In calls; the environment variable is ``AIOKTASK_`` and the name in capitals.
        text: What it is for.
        check: Takes who says so and a value; returns the value or raises.
        parse: From the text of an environment variable to such a value.
        scoped: Whether a coordinator may have its own.
    """

    name: str
    text: str
    check: Callable[[str, object], object]
    parse: Callable[[str], object]
    scoped: bool = True

    @property
    def variable(self) -> str:
        return f"{PREFIX}{self.name.upper()}"


def _integer(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text


def _seconds(text: str) -> object:
    if text.strip() == OFF:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _flag(text: str) -> object:
    return {"0": False, "1": True}.get(text.strip(), text)


def _memory(text: str) -> object:
    text = text.strip()
    if text in ("0", "1"):
        return text == "1"
    return text if text == DISK or text.startswith("/") else None


def _native_mode(text: str) -> object:
    return {"0": False, "1": True, PROCESS: PROCESS}.get(text.strip())


def _unparsed(text: str) -> object:
    return text


def _word(text: str) -> object:
    return text.strip()


def _threads(name: str, value: object) -> object:
    return None if value is None else integer(name, value, least=1)


def _count(name: str, value: object) -> object:
    return integer(name, value, least=0)


def _limit(name: str, value: object) -> object:
    return None if value is None else integer(name, value, least=0)


def _time_above_zero(name: str, value: object) -> object:
    return None if value is None else seconds(name, value, may_be_zero=False)


def _nice(name: str, value: object) -> object:
    return None if value is None else nice_value(name, value)


def _function(name: str, value: object) -> object:
    if value is not None:
        check_function(name, value)
    return value


def _native(name: str, value: object) -> object:
    if isinstance(value, bool) or value == PROCESS:
        return value
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name} must be True, False or {PROCESS!r}, got {value!r}")


def _share(name: str, value: object) -> object:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(
        f"{name} must be a name of 1 to 64 letters, digits and ._-, or {NO_SHARE!r}, got {value!r}"
    )


TUNABLES = {
    each.name: each
    for each in (
        Tunable(
            "max_threads",
            "The most helpers at a time. Of the process: None for what AIOKTASK_MAX_THREADS says, "
            "else the CPUs it may use and its cgroup's quota, as they change. Of a coordinator: "
            "below that.",
            _threads,
            _integer,
        ),
        Tunable(
            "max_threads_per_node",
            "The most helpers at a time that are bound to one NUMA node; None for as many as the "
            "node has CPUs that the process may use.",
            _threads,
            _integer,
        ),
        Tunable(
            "max_blocked",
            "The most calls (`run`, executors) that block without using a CPU, for each of which "
            "the process may have one helper more than `max_threads`; 0 for none.",
            _count,
            _integer,
            scoped=False,
        ),
        Tunable(
            "max_queued",
            "The most jobs of a coordinator that may wait for a thread, beside as many as there "
            "are threads for them; one more is refused with `Overloaded`. None for any number. "
            "Jobs without a coordinator count together.",
            _limit,
            _integer,
        ),
        Tunable(
            "max_wait",
            "The longest, in seconds, that a job may wait to begin: one that would wait longer, by "
            "the rate at which jobs begin, is refused with `Overloaded`, and one that has waited "
            "so long ends with it. Above 0; None for any time.",
            _time_above_zero,
            _seconds,
        ),
        Tunable(
            "stuck_after",
            "After how many seconds in one chunk the event `chunk_stuck` tells of it, with the "
            "Python stack of its thread; again after twice the time, and so on. None for never.",
            _time_above_zero,
            _seconds,
        ),
        Tunable(
            "nice",
            "The nice of jobs, in place of their own, as a `priority` block around them would set "
            "it; None for their own.",
            _nice,
            _integer,
        ),
        Tunable(
            "give_way",
            "Whether jobs of a nice above 0 leave the CPUs to other processes that want them.",
            check_flag,
            _flag,
        ),
        Tunable(
            "share",
            "The set of slots that this process shares with the user's others of the same name, so "
            f"that together they start no more helpers than there are CPUs; {NO_SHARE!r} for none.",
            _share,
            _word,
            scoped=False,
        ),
        Tunable("learn", "What jobs learn that do not say so; see `Job`.", check_learn, _word),
        Tunable(
            "remember",
            "Whether jobs remember it that do not say so, and where: True for within the process, "
            f"{DISK!r} for across processes, in the user's directory for caches, or another "
            "directory for that; see `Job`.",
            check_remember,
            _memory,
        ),
        Tunable(
            "trace",
            "Whether jobs that do not say so keep which thread was at which part when, for "
            "`Report.timeline`.",
            check_flag,
            _flag,
        ),
        Tunable(
            "initializer",
            "A function without arguments that is called once in each helper, before that takes "
            "work; None for none. Only calls set it.",
            _function,
            _unparsed,
            scoped=False,
        ),
        Tunable(
            "limit_native_threads",
            "Whether BLAS, OpenMP and their like have one thread in each helper, as far as that "
            f"leaves other threads alone; {PROCESS!r}: in the whole process, while helpers work.",
            _native,
            _native_mode,
            scoped=False,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Tunables:
    """The process's tunables at one moment, each as `TUNABLES` describes it.

    Attributes:
        sources: By name, the call or variable that set a tunable; the others are as in the table.
    """

    max_threads: int | None = None
    max_threads_per_node: int | None = None
    max_blocked: int = 32
    max_queued: int | None = None
    max_wait: float | None = None
    stuck_after: float | None = 30.0
    nice: int | None = None
    give_way: bool = True
    share: str = "default"
    learn: str = "both"
    remember: bool | str = True
    trace: bool = False
    initializer: Callable[[], object] | None = None
    limit_native_threads: bool | str = True
    sources: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, object]:
        """The values by name."""
        return {name: getattr(self, name) for name in TUNABLES}


def process_tunables(environ: Mapping[str, str], calls: Mapping[str, tuple[str, Any]]) -> Tunables:
    """The process's tunables.

    Args:
        environ: Where variables may be set.
        calls: What calls have set, by name: who, and a value as `checked` returns it.

    Raises:
        ValueError: A variable is set to what it may not be, and no call says otherwise.
    """
    unsaid = {
        known.variable: environ.get(known.variable, "")
        for known in TUNABLES.values()
        if known.name not in calls
    }
    values = from_environment(unsaid)
    sources = {
        name: f"{TUNABLES[name].variable}={unsaid[TUNABLES[name].variable].strip()}"
        for name in values
    }
    for name, (source, value) in calls.items():
        values[name], sources[name] = value, source
    return Tunables(**values, sources=sources)


def checked(source: str, values: Mapping[str, object], *, scoped: bool = False) -> dict[str, Any]:
    """The values as they will be used.

    Args:
        source: Who says so, for errors.
        values: By name.
        scoped: Whether they are a coordinator's.

    Raises:
        TypeError: A value of the wrong kind, or no such tunable.
        ValueError: A value out of its range.
    """
    found = {}
    for name, value in values.items():
        known: Tunable | None = look_up(TUNABLES, name)
        if known is None or (scoped and not known.scoped):
            names = ", ".join(each.name for each in TUNABLES.values() if each.scoped or not scoped)
            raise TypeError(f"{source}: there is no tunable {name!r}; there are {names}")
        found[name] = known.check(f"{source}: {name}", value)
    return found


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment says; a variable that is empty counts as not set.

    Raises:
        ValueError: A variable is set to what it may not be.
    """
    found = {}
    for known in TUNABLES.values():
        text = environ.get(known.variable, "")
        if not text:
            continue
        try:
            found[known.name] = known.check(known.variable, known.parse(text))
        except TypeError:
            wanted = _WANTED[known.parse]
            raise ValueError(f"{known.variable} must be {wanted}, got {text!r}") from None
    return found


def refuse_misspelt(environ: Mapping[str, str]) -> None:
    """Refuse variables that look like one that is read, and are none: they would say nothing.

    Args:
        environ: All that is set; a variable that is empty counts as not set.

    Raises:
        ValueError: There is one. The message names the variable that may be meant.
    """
    known = [*map(str.upper, TUNABLES), *OTHER_NAMES]
    for variable in environ:
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known or not environ.get(variable):
            continue
        meant = difflib.get_close_matches(name.upper(), known, 1, ALIKE)
        if meant:
            raise ValueError(
                f"the variable {variable!r} is set, which says nothing; "
                f"set {PREFIX}{meant[0]} if that is meant, else unset it"
            )


_WANTED: dict[Callable[[str], object], str] = {
    _integer: "an integer",
    _seconds: f"a number of seconds or {OFF}",
    _flag: "0 or 1",
    _memory: f"0, 1, {DISK} or the absolute path of a directory",
    _word: "a word",
    _native_mode: f"0, 1 or {PROCESS}",
    _unparsed: "left unset, since a call of configure sets a function",
}
