# SPDX-License-Identifier: MIT
# The cap on helper threads: what the process as a whole may use, and what decided that.
#
# Pure: topology and tunables in, cap out. The machine's figure is only a default: what the user
# says, in the environment or in a call, may be below or above it. A cap always says in a sentence
# where it comes from.
"""The process's cap on helper threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aioktask.engine.machine.topology import Topology

__all__ = ["Cap", "Decider", "bound_to_one_cpu", "process_cap", "threads_within", "within_share"]

# In a word, what decides how many helpers there may be: the CPUs that are online, the affinity, a
# cgroup's quota, what the user says, or what other processes leave of the slots that they share.
Decider = Literal["cpus", "affinity", "quota", "user", "slots"]


@dataclass(frozen=True, slots=True)
class Cap:
    """The most helper threads at one moment.

    Attributes:
        threads: At least 1.
        reason: What decided, as a sentence.
        decider: The same in a word.
    """

    threads: int
    reason: str
    decider: Decider = "cpus"


def process_cap(topology: Topology, threads: int | None = None, source: str = "") -> Cap:
    """The cap of the whole process.

    Args:
        topology: Gives the cap where the user says nothing.
        threads: What the user says, at least 1.
        source: How the user said so, in a few words.
    """
    machine = _machine_cap(topology)
    return machine if threads is None else _chosen(threads, source, machine)


def threads_within(threads: int, share: int | None) -> int:
    """The most of so many threads that a share of the slots has room for, one at least.

    Args:
        threads: At least 1.
        share: How many slots other processes leave; None where that bounds nothing.
    """
    return threads if share is None else max(min(threads, share), 1)


def within_share(cap: Cap, share: int | None) -> Cap:
    """The cap, or what other processes leave of it where that is less.

    Args:
        cap: Of the process alone.
        share: As `threads_within` takes it.

    >>> within_share(Cap(4, "the affinity allows every CPU that is online (4)"), 0)
    Cap(threads=1, reason='what other busy processes leave of the slots', decider='slots')
    """
    threads = threads_within(cap.threads, share)
    if threads == cap.threads:
        return cap
    return Cap(threads, "what other busy processes leave of the slots", "slots")


def bound_to_one_cpu(topology: Topology, threads: int | None = None) -> str | None:
    """Advice where jobs have one thread because the process is bound to one CPU of many.

    Libraries do that to the thread that loads them (OpenMP's under OMP_PROC_BIND) or to the workers
    that they start, and nothing else shows it.

    Args:
        topology: The machine.
        threads: What the user says; such a user needs no advice.

    Returns:
        The advice, or None where the process is not so bound.
    """
    cpus, online = topology.cpus, topology.online
    if threads is not None or len(cpus) > 1 or len(online) == 1:
        return None
    return (
        f"the main thread is bound to CPU {min(cpus)} of the {len(online)} that are online, so "
        "jobs have one thread. If that is not meant: do without OMP_PROC_BIND or whatever else "
        "bound it, call os.sched_setaffinity(os.getpid(), cpus), or say by AIOKTASK_MAX_THREADS "
        "how many threads there should be (1 is heard too)"
    )


def _machine_cap(topology: Topology) -> Cap:
    threads, cpus, online = topology.cpu_limit, len(topology.cpus), len(topology.online)
    quota = topology.quota
    if quota is not None and threads < cpus:
        return Cap(
            threads,
            f"the cgroup quota in {quota.source} is worth {quota.cpus:.4g} of the {cpus} CPUs "
            f"that the affinity allows",
            "quota",
        )
    if cpus < online:
        reason = f"the affinity allows {cpus} of the {online} CPUs that are online"
        return Cap(threads, reason, "affinity")
    return Cap(threads, f"the affinity allows every CPU that is online ({online})")


def _chosen(threads: int, chooser: str, machine: Cap) -> Cap:
    if threads == machine.threads:
        effect = "keeps the cap at"
    else:
        effect = "raises the cap above" if threads > machine.threads else "lowers the cap below"
    given = f"the {machine.threads} that the machine gives"
    return Cap(threads, f"{chooser} {effect} {given}: {machine.reason}", "user")
