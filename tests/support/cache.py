# SPDX-License-Identifier: MIT
# What the tests keep between runs: a guest machine, other interpreters, programs.
#
# Guarantees that whatever has its final name is whole: it is made under another name and renamed
# when it is finished. What a killed run left unfinished is thrown away by the next. One run at a
# time makes anything; the others wait for it and find it made. Relies on rename(2) within one
# directory and on flock(2), which the kernel lets go however the holder ends.
"""The cache directories of the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["cache_directory", "forget_unused", "locked", "made_once"]

_UNFINISHED = "unfinished-"
_UNUSED_AFTER = 30 * 24 * 3600


def cache_directory(of: str) -> Path:
    """Of the guest `$AIOKTASK_GUEST_CACHE`, else `aioktask-guest` where the user's caches are."""
    chosen = os.environ.get(f"AIOKTASK_{of.upper()}_CACHE")
    if chosen:
        return Path(chosen).absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / f"aioktask-{of}"


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """The cache for this process alone, waiting for whoever has it."""
    # Here, since the tests are collected on systems that have no such module, too.
    import fcntl

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        yield


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made by `make` unless an earlier run did. The cache must be `locked`.

    Args:
        path: A file or a directory directly in the cache. Its name says all that it was made of,
            so that something else has another name.
        make: Makes it under the name it is given.
    """
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=_UNFINISHED) as unfinished:
            target = Path(unfinished) / path.name
            make(target)
            # The contents before the name: after a power cut, too, the name means a whole thing.
            os.sync()
            target.rename(path)
    os.utime(path)
    return path


def forget_unused(cache: Path, pattern: str) -> None:
    """Remove what no run has used for a month: made of what is no longer current.

    The cache must be `locked`.
    """
    for path in cache.glob(pattern):
        if time.time() - path.stat().st_mtime > _UNUSED_AFTER:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
