# SPDX-License-Identifier: MIT
# What jobs in other processes did, as they wrote it down while they did it: a file outlives every
# way in which a process can end. One line a step, appended in one system call, so that lines of
# several processes never mix.

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# Where the processes of a test write.
FILE = "AIOKTASK_TEST_LEDGER"


def write(*words: object) -> None:
    """Append one line, in the process that did something."""
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(os.environ[FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@dataclass
class Told:
    """What the ledger says of one job.

    Attributes:
        done: How often each unit was done.
        undone: How often each was undone.
        end: How the request that ran it ended; empty while it has not.
    """

    done: Counter[int] = field(default_factory=Counter)
    undone: Counter[int] = field(default_factory=Counter)
    end: str = ""

    @property
    def nothing_left(self) -> bool:
        """Whether each unit that was done was undone, once."""
        return self.done == self.undone and set(self.done.values()) <= {1}


class Ledger:
    """The file, read in the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]

    def of(self, name: str) -> Told:
        told = Told()
        for what, whose, *rest in self.lines():
            if whose == name:
                if what == "end":
                    told.end = " ".join(rest)
                else:
                    getattr(told, what).update(range(int(rest[0]), int(rest[1])))
        return told

    def processes(self, what: str) -> list[int]:
        """The processes that wrote this of themselves: ``began``, ``stopped``."""
        return [int(line[1]) for line in self.lines() if line[0] == what]
