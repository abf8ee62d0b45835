# SPDX-License-Identifier: MIT
# Which processes hold slots. The locks are those of an open file, so the kernel names no process
# for them; but it lists those of each descriptor in ``/proc/PID/fdinfo``, for the user's own ones.
"""Who holds the slots of a set."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from aioktask.engine.machine.slots import CPU_LIMIT

__all__ = ["holders_of"]

# "lock:  1: OFDLCK  ADVISORY  WRITE -1 00:19:1234 0 1": the last two are the first and last byte.
_LOCK = re.compile(r"^lock:.* OFDLCK .* (\d+) (\d+|EOF)$", re.MULTILINE)


def holders_of(path: Path, proc: str = "/proc") -> tuple[tuple[int, int], ...]:
    """The processes that hold slots of the set in this file, each with how many.

    Processes of other users, and those that end meanwhile, are left out.

    Args:
        path: The file of the set.
        proc: Where the kernel tells of processes.

    >>> holders_of(Path("/nowhere"), "/nowhere")
    ()
    """
    found: dict[int, int] = {}
    with contextlib.suppress(OSError):
        user, real = os.geteuid(), os.path.realpath(path)
        with os.scandir(proc) as processes:
            for entry in processes:
                if entry.name.isdecimal():
                    with contextlib.suppress(OSError):
                        if entry.stat().st_uid == user:
                            held = _held_by(entry.path, real)
                            if held:
                                found[int(entry.name)] = held
    return tuple(sorted(found.items()))


def _held_by(process: str, path: str) -> int:
    """How many slots of the file the process holds."""
    held = 0
    with os.scandir(f"{process}/fd") as descriptors:
        for entry in descriptors:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) != path:
                    continue
                told = Path(process, "fdinfo", entry.name).read_text()
                for start, stop in _LOCK.findall(told):
                    if stop != "EOF" and int(stop) < CPU_LIMIT:
                        held += int(stop) - int(start) + 1
    return held
