# SPDX-License-Identifier: MIT
# What jobs in other processes did, as they wrote it down while they did it, in a file that outlives
# every way in which a process can end; and whether that accounts for each of them.
#
# A step is one line, appended in one system call, so that lines of several processes never mix:
#   begin NAME KIND UNITS   a request is about to ask for a job of so many units
#   done NAME START STOP    units were done
#   undone NAME START STOP  units were undone
#   end NAME HOW            the request saw how the job ended: done, or the name of an exception
"""The ledger of the soak."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# Where the servers write.
FILE = "AIOKTASK_SOAK_LEDGER"
# Jobs with an undo that somebody awaits, and that nobody awaits; calls and streams have none.
AWAITED, SUBMITTED, CALL, STREAM = "awaited", "submitted", "call", "stream"


def write(*words: object) -> None:
    """Append one line, in the process that did something."""
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(os.environ[FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@dataclass
class Told:
    """What the ledger says of one job.

    Attributes:
        name: Of the job.
        kind: One of the above.
        units: How many it has.
        done: How often each unit was done.
        undone: How often each was undone.
        ends: How it ended, as its request saw it.
    """

    name: str
    kind: str
    units: int
    done: Counter[int] = field(default_factory=Counter)
    undone: Counter[int] = field(default_factory=Counter)
    ends: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """What does not add up; empty where it is accounted for."""
        found = []
        twice = [unit for unit, times in self.done.items() if times > 1]
        if twice:
            found.append(f"units were done twice: {twice}")
        whole = self.done.keys() == set(range(self.units)) and not self.undone
        if self.kind == SUBMITTED:
            if not whole and self.done != self.undone:
                found.append(f"{self._some()}, of a job that nobody awaits")
            return found
        if len(self.ends) != 1:
            found.append(f"its request saw {len(self.ends)} ends of it: {self.ends}")
        elif self.ends == ["done"]:
            if not whole:
                found.append(f"{self._some()}, and it ended as done")
        elif self.kind == AWAITED and self.done != self.undone:
            found.append(f"{self._some()}, and it ended by {self.ends[0]}")
        return found

    def _some(self) -> str:
        return f"{len(self.done)} of {self.units} units were done, {len(self.undone)} undone"


def told(lines: Iterable[str]) -> dict[str, Told]:
    """What lines say, by job."""
    jobs: dict[str, Told] = {}
    for line in lines:
        what, name, *rest = line.split()
        if what == "begin":
            assert name not in jobs, f"{name} began twice"
            jobs[name] = Told(name, rest[0], int(rest[1]))
        elif what == "end":
            jobs[name].ends.append(rest[0])
        else:
            getattr(jobs[name], what).update(range(int(rest[0]), int(rest[1])))
    return jobs


def read(path: Path) -> dict[str, Told]:
    """What the file says, by job."""
    return told(path.read_text().splitlines())
