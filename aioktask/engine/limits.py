# SPDX-License-Identifier: MIT
# The cap on helper threads: what the process as a whole may use, and what decided that; and what
# jobs learn that do not say.
#
# Pure: topology, environment and setting in, cap out. The machine's figure is a default, so the
# user's word, in the environment or in a call, goes below it and above it; a call goes before the
# environment. A cap always says in a sentence where it comes from.
"""The process's cap on helper threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aioktask.checks import check_learn
from aioktask.engine.topology import Topology

__all__ = [
    "LEARN_VARIABLE",
    "MAX_THREADS_VARIABLE",
    "REMEMBER_VARIABLE",
    "Cap",
    "Learning",
    "process_cap",
    "process_learning",
]

MAX_THREADS_VARIABLE = "AIOKTASK_MAX_THREADS"
LEARN_VARIABLE = "AIOKTASK_LEARN"
REMEMBER_VARIABLE = "AIOKTASK_REMEMBER"


@dataclass(frozen=True, slots=True)
class Cap:
    """The most helper threads at one moment.

    Attributes:
        threads: At least 1.
        reason: What decided, as a sentence.
    """

    threads: int
    reason: str


@dataclass(frozen=True, slots=True)
class Learning:
    """What jobs learn that do not say so themselves.

    Attributes:
        learn: As in `Job`.
        remember: As in `Job`.
    """

    learn: str = "both"
    remember: bool = True


def process_learning(environ: Mapping[str, str]) -> Learning:
    """What the environment says about it; empty counts as not set.

    Raises:
        ValueError: `AIOKTASK_LEARN` is none of the words that `Job` takes, or `AIOKTASK_REMEMBER`
            neither 0 nor 1.
    """
    remember = environ.get(REMEMBER_VARIABLE, "").strip() or "1"
    if remember not in ("0", "1"):
        raise ValueError(f"{REMEMBER_VARIABLE} must be 0 or 1, got {remember!r}")
    learn = environ.get(LEARN_VARIABLE, "").strip() or "both"
    return Learning(check_learn(LEARN_VARIABLE, learn), remember == "1")


def process_cap(topology: Topology, environ: Mapping[str, str], override: int | None = None) -> Cap:
    """The cap of the whole process.

    Args:
        topology: Gives the cap where the user says nothing.
        environ: Where `AIOKTASK_MAX_THREADS` may be set; empty counts as not set.
        override: What `set_max_threads` was called with, at least 1. The variable is then not
            looked at.

    Raises:
        ValueError: The variable is no integer of at least 1.
    """
    machine = _machine_cap(topology)
    if override is not None:
        return _chosen(override, f"set_max_threads({override})", machine)
    text = environ.get(MAX_THREADS_VARIABLE, "")
    if not text:
        return machine
    return _chosen(_threads(text), f"{MAX_THREADS_VARIABLE}={text.strip()}", machine)


def _machine_cap(topology: Topology) -> Cap:
    threads, cpus, online = topology.cpu_limit, len(topology.cpus), len(topology.online)
    quota = topology.quota
    if quota is not None and threads < cpus:
        return Cap(
            threads,
            f"the cgroup quota in {quota.source} is worth {quota.cpus:.4g} of the {cpus} CPUs "
            f"that the affinity allows",
        )
    if cpus < online:
        return Cap(threads, f"the affinity allows {cpus} of the {online} CPUs that are online")
    return Cap(threads, f"the affinity allows every CPU that is online ({online})")


def _chosen(threads: int, chooser: str, machine: Cap) -> Cap:
    if threads == machine.threads:
        effect = "keeps the cap at"
    else:
        effect = "raises the cap above" if threads > machine.threads else "lowers the cap below"
    given = f"the {machine.threads} that the machine gives"
    return Cap(threads, f"{chooser} {effect} {given}: {machine.reason}")


def _threads(text: str) -> int:
    try:
        threads = int(text)
    except ValueError:
        threads = 0
    if threads < 1:
        raise ValueError(f"{MAX_THREADS_VARIABLE} must be an integer of at least 1, got {text!r}")
    return threads
