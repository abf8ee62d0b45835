# SPDX-License-Identifier: MIT
# What cannot be undone is counted while it is done, so that it is known however the job ends.
"""Counting what is gone."""

from __future__ import annotations

import threading

__all__ = ["Tally"]


class Tally:
    """What a job of `aioktask.files` has done so far: read it at any time, from any thread.

    Pass one to `remove_tree` or `evict` to show progress, or to know after an error or a cancel
    what is gone, since neither can be undone. It may be passed to several jobs, and counts all.

    >>> Tally()
    Tally(files=0, directories=0, nbytes=0)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = (0, 0, 0)

    def __repr__(self) -> str:
        files, directories, nbytes = self._counts
        return f"Tally(files={files}, directories={directories}, nbytes={nbytes})"

    @property
    def files(self) -> int:
        """Files that were removed, symlinks and devices too; files that were evicted whole."""
        return self._counts[0]

    @property
    def directories(self) -> int:
        """Directories that were removed."""
        return self._counts[1]

    @property
    def nbytes(self) -> int:
        """Bytes that were evicted; nothing is known of the size of removed files."""
        return self._counts[2]

    def add(self, files: int = 0, directories: int = 0, nbytes: int = 0) -> None:
        """Count something."""
        with self._lock:
            before = self._counts
            self._counts = (before[0] + files, before[1] + directories, before[2] + nbytes)
