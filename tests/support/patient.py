# SPDX-License-Identifier: MIT
# Chunks that last until their job wants no more: the way to have a job run past its time, without
# sleeping.

from __future__ import annotations

import threading
import time

from aioktask import current_chunk
from tests.support.gates import LOOK_SECONDS, PATIENCE


class Endless:
    """A function for a job whose chunks end when the job is cancelled, and what became of them.

    Attributes:
        began: Set when a chunk is inside.
        done: The chunks that came to their end.
        undone: What was undone.
    """

    def __init__(self, endless_from: int = 0) -> None:
        self.began = threading.Event()
        self.lock = threading.Lock()
        self.done: list[tuple[int, int]] = []
        self.undone: list[tuple[int, int]] = []
        self._endless_from = endless_from

    def chunk(self, start: int, stop: int) -> None:
        """Ends at once below `endless_from`; else it raises when the job is cancelled."""
        if start >= self._endless_from:
            self.began.set()
            wait_until_unwanted()
        with self.lock:
            self.done.append((start, stop))

    def undo(self, start: int, stop: int) -> None:
        with self.lock:
            self.undone.append((start, stop))


def wait_until_unwanted() -> None:
    """In a chunk: until its job is cancelled.

    Raises:
        ChunkCancelled: It is.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        current_chunk().check_cancelled()
        time.sleep(LOOK_SECONDS)
    raise AssertionError("the job was never cancelled")
