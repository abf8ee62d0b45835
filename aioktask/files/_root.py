# SPDX-License-Identifier: MIT
# Which directory a job is to remove: decided when the job is made, and checked when it runs.
#
# In between the working directory may change, and each part of the path may be renamed, replaced,
# mounted over or swapped for a symlink. So a relative path is joined to the working directory at
# once, and what the path led to is remembered: the directory, and the one that it is in. What is
# there now and was not there then is not removed. A descriptor would do as well, but a job may be
# kept for long, and thousands of them.
#
# The name that is removed is the last part of the path as it was given. "." and ".." are no names
# to remove, so they are refused as rm does, and a slash after the name never follows a symlink. The
# rest of the path is left to the kernel: "link/.." is not what it looks like.
"""The directory that is to be removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import NamedTuple

from aioktask.files._directories import Directory, OpenDirectories, Opened, close

__all__ = ["Root"]

# FS_IOC_GETVERSION of linux/fs.h. Where another machine has another number the kernel refuses it.
_GET_GENERATION = 0x80087601


class _Remembered(NamedTuple):
    """What the path led to. `generation` tells an inode from an earlier one of its number."""

    above: tuple[int, int]
    root: tuple[int, int]
    generation: bytes | None


class Root:
    """The directory at a path.

    Args:
        path: As the user gave it.
        within: A descriptor that a relative path begins at, instead of the working directory.

    Raises:
        OSError: The path ends in ``.`` or ``..`` (EINVAL), is the root directory (EBUSY), or begins
            at the working directory, which is gone (ENOENT).
        ValueError: There is a NUL byte in the path.
    """

    def __init__(self, path: str, within: int | None) -> None:
        if "\0" in path:
            raise ValueError(f"path must have no NUL byte, got {path!r}")
        above, name = os.path.split(path.rstrip("/"))
        if path and not name:
            raise _error(errno.EBUSY, "the root directory is never removed", path)
        if name in (".", ".."):
            raise _error(errno.EINVAL, "the last part must be the name of a directory", path)
        if path.startswith("/"):
            above = above or "/"
        elif path and within is None:
            try:
                above = os.path.join(os.getcwd(), above)
            except OSError as error:
                error.filename = path
                raise
        self._given = path
        self._within = within
        self._above = above
        self._remembered: _Remembered | None = None
        self.name = name
        self.path = os.path.join(above, name)

    def remember(self, tree: OpenDirectories) -> None:
        """From now on open nothing but what is there now.

        Args:
            tree: Opens what is there for a moment.

        Raises:
            OSError: Nothing is there that can be removed. It has the path as it was given.
        """
        try:
            above = tree.above(self._above, self._within)
            opened = tree.open(above, self.name)
            try:
                self._remembered = _seen(above, opened)
            finally:
                close(opened.descriptor)
        except OSError as error:
            error.filename = self._given
            if error.errno == errno.ENOTDIR and self._is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._given) from None
            raise
        finally:
            tree.close_all()

    def forget(self) -> None:
        """Open whatever is there from now on: what was remembered is gone."""
        self._remembered = None

    def open(self, tree: OpenDirectories) -> tuple[Directory, Opened] | None:
        """What the directory is in, and the directory; None if it is gone since it was remembered.

        Raises:
            OSError: It cannot be opened; or another is there than was remembered (ESTALE).
        """
        remembered = self._remembered
        try:
            above = tree.above(self._above, self._within)
            if remembered is not None and above.looked.identity != remembered.above:
                raise _error(errno.ESTALE, "it is in another directory than before", self.path)
            opened = tree.open(above, self.name)
        except FileNotFoundError:
            if remembered is None:
                raise
            self.forget()
            return None
        if remembered is not None and _seen(above, opened) != remembered:
            close(opened.descriptor)
            raise _error(errno.ESTALE, "another directory is there than before", self.path)
        return above, opened

    def _is_symlink(self) -> bool:
        try:
            return stat.S_ISLNK(os.lstat(self.path, dir_fd=self._within).st_mode)
        except OSError:
            return False


def _seen(above: Directory, opened: Opened) -> _Remembered:
    generation = None
    with contextlib.suppress(OSError):  # few file systems tell it
        generation = fcntl.ioctl(opened.descriptor, _GET_GENERATION, bytes(8))
    return _Remembered(above.looked.identity, opened.looked.identity, generation)


def _error(number: int, why: str, path: str) -> OSError:
    return OSError(number, f"{os.strerror(number)}: {why}", path)
