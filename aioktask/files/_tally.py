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
        # A finalizer that runs a job with the same tally may interrupt who holds the lock: between
        # the lines of `add`, and not within one.
        self._lock = threading.RLock()
        self._files = self._directories = self._nbytes = 0

    def __repr__(self) -> str:
        with self._lock:
            files, directories, nbytes = self._files, self._directories, self._nbytes
        return f"Tally(files={files}, directories={directories}, nbytes={nbytes})"

    @property
    def files(self) -> int:
        """Files that were removed, symlinks and devices too; files whose last part was evicted."""
        return self._files

    @property
    def directories(self) -> int:
        """Directories that were removed."""
        return self._directories

    @property
    def nbytes(self) -> int:
        """Bytes that were evicted; nothing is known of the size of removed files."""
        return self._nbytes

    def add(self, files: int = 0, directories: int = 0, nbytes: int = 0) -> None:
        """Count something."""
        with self._lock:
            self._files += files
            self._directories += directories
            self._nbytes += nbytes
