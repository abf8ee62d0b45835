# SPDX-License-Identifier: MIT
# Functions for workers that write down, in a file outside of them, what they do; and that kill a
# process at a stage, their own or another one. What is in the file is there whatever becomes of the
# worker, in the order in which it was done.

from __future__ import annotations

import functools
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aioktask.cluster import ClusterFailure, ClusterJob
from aioktask.job import Failure

STAGES = ("setup", "chunk", "between", "undo", "close")
# In the environment of a worker: what it is called.
NAME = "AIOKTASK_TEST_WORKER"


class Ledger:
    """The file, and the functions. It travels to workers by its path.

    Args:
        folder: Where the file is. A file `hold` there keeps chunks behind unit 1000 in, and a file
            `fail` has them raise; `hold-undo` keeps the first undo of each worker in. Where there
            is one `slow-` and a worker's name, its units take ten times as long.
        stage: At which of STAGES the first worker that comes there kills `victim`.
        unit_seconds: What a unit takes.
        victim: "worker", for the one that comes there; "nanny", for its parent; or of whom there is
            a file `pid-` and that name.
    """

    def __init__(
        self,
        folder: Path,
        stage: str = "never",
        unit_seconds: float = 0.0002,
        victim: str = "worker",
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.unit_seconds = unit_seconds
        self.victim = victim

    def job(self, size: int = 2000, **options: Any) -> ClusterJob[None]:
        return ClusterJob(
            self.chunk,
            size,
            setup=self.setup,
            close=self.close,
            undo=self.undo,
            name="ledger",
            **options,
        )

    # In workers.

    def setup(self) -> int:
        self._die("setup")
        if self.stage == "between" and self._chosen("between"):
            _call_before_the_second_stretch(self._kill)
        file = os.open(self.folder / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, b"opened 0 0\n")
        return file

    def chunk(self, start: int, stop: int, file: int) -> None:
        slow = (self.folder / f"slow-{os.environ.get(NAME)}").exists()
        # What the work takes.
        time.sleep(self.unit_seconds * (stop - start) * (10 if slow else 1))
        if start > 200:
            self._die("chunk")
        while start > 1000 and (self.folder / "hold").exists():
            time.sleep(0.001)
        os.write(file, f"done {start} {stop}\n".encode())
        if (self.folder / "fail").exists() and start > 1000:
            os.write(file, f"raised {start} {stop}\n".encode())
            raise OSError(28, "planted")

    def undo(self, start: int, stop: int, file: int) -> None:
        self._die("undo")
        if (self.folder / "hold-undo").exists() and self._chosen(f"undoing-{os.getpid()}"):
            os.write(file, b"undoing 0 0\n")
            while (self.folder / "hold-undo").exists():
                time.sleep(0.001)
        os.write(file, f"undone {start} {stop}\n".encode())

    def close(self, file: int) -> None:
        self._die("close")
        os.write(file, b"closed 0 0\n")
        os.close(file)

    def _die(self, stage: str) -> None:
        if stage == self.stage and self._chosen(stage):
            self._kill()

    def _kill(self) -> None:
        pid = os.getpid()
        if self.victim == "nanny":
            pid = os.getppid()
        elif self.victim != "worker":
            pid = int((self.folder / f"pid-{self.victim}").read_text())
        os.kill(pid, signal.SIGKILL)
        if self.victim == "nanny":
            time.sleep(30)  # a worker ends with its nanny

    def _chosen(self, stage: str) -> bool:
        """Whether this process is the first one that asks."""
        try:
            os.close(os.open(self.folder / f"victim-{stage}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    # In the test.

    def lines(self) -> list[tuple[str, range]]:
        found = []
        path = self.folder / "ledger"
        for line in path.read_text().splitlines() if path.exists() else []:
            what, start, stop = line.split()
            found.append((what, range(int(start), int(stop))))
        return found

    def counts(self, what: str) -> Counter[int]:
        return Counter(unit for each, units in self.lines() if each == what for unit in units)

    def said(self, what: str) -> int:
        """How often workers wrote that they opened, or closed, their data."""
        return sum(each == what for each, _ in self.lines())

    def done_at_the_end(self, *, twice: bool = False) -> Counter[int]:
        """How often each unit is done and not undone, once all that was written is followed.

        A unit that is done, undone and done anew was never done twice.
        """
        there: Counter[int] = Counter()
        for what, units in self.lines():
            for unit in units:
                if what == "done":
                    assert twice or not there[unit], f"unit {unit} was done twice"
                    there[unit] += 1
                elif what == "undone":
                    assert there[unit], f"unit {unit} was undone, and it was not done"
                    there[unit] -= 1
        return there

    def check_all_undone(self, *, twice: bool = False) -> None:
        """Nothing is done and not undone, but for what a chunk that raised had done."""
        left = +self.done_at_the_end(twice=twice) - self.counts("raised")
        assert not left, f"left over are {sorted(left)[:10]}, and more"

    def check_done(self, size: int = 2000, *, twice: bool = False) -> None:
        """Every unit is done, once but for `twice`."""
        there = self.done_at_the_end(twice=twice)
        missing = [unit for unit in range(size) if not there[unit]]
        assert not missing, f"a job that is done left out {missing[:10]}, and more"

    def check(self, told: Failure, *, twice: bool = False) -> None:
        """Every unit was done once, or done and undone once, or is named unknown.

        What is named is so: "done" is done, "undone" was done and is no more, and of what is not
        named nothing is left. Nobody but a worker that is lost, or whose chunk failed, has units of
        which it is not known.
        """
        there, ever = self.done_at_the_end(twice=twice), self.counts("done")
        said: dict[int, str] = {}
        for name in ("done", "undone", "unknown"):
            for unit in (unit for each in getattr(told, name) for unit in each):
                assert unit not in said, f"unit {unit} is said to be {said[unit]} and {name}"
                said[unit] = name
        for unit in range(told.job.start, told.job.stop):
            name = said.get(unit, "nothing")
            if name != "unknown":
                assert bool(there[unit]) == (name == "done"), f"unit {unit} is not {name}"
            if name == "undone":
                assert ever[unit], f"unit {unit} was never done, and is said to be undone"
        if isinstance(told, ClusterFailure):
            for part in told.workers:
                assert not part.unknown or part.lost or told.chunk is not None, part


def _call_before_the_second_stretch(call: Any) -> None:
    from aioktask.cluster import worker

    run = worker._Part._run
    called = False

    @functools.wraps(run)
    def calling(part: Any, order: Any) -> bool:
        nonlocal called
        if part._ledger and not called:
            called = True
            call()
        return run(part, order)

    worker._Part._run = calling  # type: ignore[method-assign]
