# SPDX-License-Identifier: MIT
# How this process was started, as a person knows it: a worker that multiprocessing started says the
# command of the program that it works for, since its own names nothing but multiprocessing.
"""The command line of a process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import PurePath

from aioktask.engine.machine.imported import imported

__all__ = ["MOST_LETTERS", "command_of", "this_command"]

# No command is told that is longer.
MOST_LETTERS = 200


def this_command() -> str:
    """How this process was started, in at most `MOST_LETTERS` letters."""
    worker = ""
    parent: int | None = None
    multiprocessing = imported("multiprocessing.process")
    if multiprocessing is not None:
        found = multiprocessing.parent_process()
        if found is not None:
            parent, worker = found.pid, multiprocessing.current_process().name
    argv = getattr(sys, "argv", [])  # the program's, which may have put anything there
    return command_of(sys.orig_argv, [str(each) for each in argv], worker, parent)


def command_of(
    orig_argv: Sequence[str], argv: Sequence[str], worker: str, parent: int | None
) -> str:
    """How a process was started, in at most `MOST_LETTERS` letters.

    Args:
        orig_argv: Its `sys.orig_argv`.
        argv: Its `sys.argv`, which multiprocessing sets in a worker as it is in the program.
        worker: The worker's name, where multiprocessing started the process; else not looked at.
        parent: The process that had it started so; None for none.

    >>> command_of(["python", "-m", "app"], ["/src/app/__main__.py"], "", None)
    'python -m app'
    >>> spawned = ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main(...)"]
    >>> command_of(spawned, ["/venv/bin/uvicorn", "app:app"], "SpawnProcess-1", 7)
    '/venv/bin/uvicorn app:app (worker SpawnProcess-1 of process 7)'
    >>> command_of(spawned, ["/src/app/__main__.py"], "SpawnProcess-1", 7)
    'python -m app (worker SpawnProcess-1 of process 7)'
    """
    words = list(orig_argv)
    if parent is None:
        return " ".join(words)[:MOST_LETTERS]
    if any(each.startswith("from multiprocessing.") for each in words):
        words = _program(words[0], argv)
    suffix = f" (worker {worker[: MOST_LETTERS // 4]} of process {parent})"
    return " ".join(words)[: MOST_LETTERS - len(suffix)] + suffix


def _program(python: str, argv: Sequence[str]) -> list[str]:
    """The words by which the program was started that has this `sys.argv`, as far as it tells."""
    first, *rest = argv or [""]
    path = PurePath(first)
    if path.name == "__main__.py":
        return [python, "-m", path.parent.name, *rest]
    if path.suffix == ".py" or not os.path.dirname(first):
        return [python, *argv]
    return [first, *rest]
