# SPDX-License-Identifier: MIT
# The directories of a tree that is being removed, and how long their descriptors stay open.
#
# A tree may be deeper than a process may have files open, so of a branch only the last OPEN_LEVELS
# directories are open, and those that somebody still reads. One whose descriptor was closed is
# reached again through the ".." of a directory in it, and only if it is the same directory still:
# one that was moved out of the tree meanwhile has another ".." now.
#
# A directory on another mount than the one it is in is a mount point. It is opened only where that
# was asked for, and the root directory of this process never is, wherever it is mounted.
#
# One lock guards what is open and who is in which directory. The names in a directory belong to
# the helper whose branch it is on.
"""Directories that are being removed, and the lifetime of their descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import NamedTuple

from aioktask.files._mounts import Looked, look

__all__ = ["Directory", "OpenDirectories", "Opened", "close"]

# Levels of a branch whose descriptors stay open.
OPEN_LEVELS = 32

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What the root is in need not be readable.
_ABOVE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


def close(descriptor: int) -> None:
    """Close a directory, of which nothing that can fail then was asked."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


class Opened(NamedTuple):
    """A descriptor that nobody owns yet, and what is known of its directory."""

    descriptor: int
    looked: Looked


class Directory:
    """A directory that is being removed.

    Attributes:
        parent: The directory it is in. None for the one that the root is in, which is open to the
            end, and is not removed since nobody leaves it.
        name: In the parent.
        descriptor: Open, or None while it is closed for the sake of others.
        users: Who is calling something with the descriptor.
        looked: Its identity, and the mount it is on.
        pending: One while it is read, and one for each subdirectory that was entered.
        entries: Where reading it stands, None before and after.
        names: Of subdirectories that nobody has entered.
        more: Whether there were more subdirectories than names may be kept.
        kept: Subdirectories that could not be removed.
        entered: Subdirectories that somebody is in.
        files_done: Whether its files have been removed, so that it is read for directories only.
        needed: Whether who reads it needs it open: not while far below, nor after going on
            elsewhere, when who is in it last removes it. Others close it again then.
    """

    __slots__ = (
        "depth",
        "descriptor",
        "entered",
        "entries",
        "files_done",
        "kept",
        "looked",
        "more",
        "name",
        "names",
        "needed",
        "parent",
        "pending",
        "users",
    )

    def __init__(self, parent: Directory | None, name: str, opened: Opened) -> None:
        self.parent = parent
        self.name = name
        self.depth: int = 0 if parent is None else parent.depth + 1  # the root's is 1
        self.descriptor: int | None = opened.descriptor
        self.looked = opened.looked
        self.users = 0
        self.pending = 1
        self.entries: os._ScandirIterator[str] | None = None
        self.names: list[str] = []
        self.more = True
        self.kept: set[str] = set()
        self.entered: set[str] = set()
        self.files_done = False
        self.needed = True

    def opened(self) -> int:
        """The descriptor of a directory that is in use.

        Raises:
            RuntimeError: It is closed, which is a mistake of ours. It must not go unnoticed under
                ``python -O``: to a system call no descriptor is the working directory.
        """
        if self.descriptor is None:
            raise RuntimeError(f"{self.path()} is used while it is closed")
        return self.descriptor

    def path(self, *names: str) -> str:
        """The path of the directory, or of what has these names below it, for errors to tell."""
        parts = list(reversed(names))
        here: Directory | None = self
        while here is not None:
            parts.append(here.name)
            here = here.parent
        return os.path.join(*reversed(parts))


class OpenDirectories:
    """The directories of one tree that are open. `close_all` closes what is left of them.

    Args:
        one_file_system: Whether what is mounted inside of the tree is left alone.
    """

    def __init__(self, *, one_file_system: bool) -> None:
        self._one_file_system = one_file_system
        self._lock = threading.Lock()
        self._open: set[Directory] = set()

    def above(self, path: str, within: int | None) -> Directory:
        """The directory that the root is in."""
        return self._add(None, path, _opened(path or ".", _ABOVE, within))

    def open(self, parent: Directory, name: str) -> Opened:
        """The subdirectory of this name, for who closes it or enters it.

        Raises:
            OSError: It cannot be opened: ENOTDIR for a symlink, which is not followed. Or EBUSY: it
                is a mount point, which is to be left alone.
        """
        opened = _opened(name, _OPEN, parent.opened())
        if opened.looked.mount != parent.looked.mount:
            try:
                self._check_mount_point(opened.looked)
            except BaseException:
                close(opened.descriptor)
                raise
        return opened

    def _check_mount_point(self, looked: Looked) -> None:
        why = ""
        if self._one_file_system:
            why = "it is mounted there, and one_file_system=False was not passed"
        elif looked.identity == _identity_of_the_root_directory():
            why = "it is the root directory"
        if why:
            raise OSError(errno.EBUSY, f"{os.strerror(errno.EBUSY)}: {why}")

    def enter(self, parent: Directory, name: str, opened: Opened) -> Directory:
        """The subdirectory, which is closed when it is left, or with all others."""
        child = self._add(parent, name, opened)
        with self._lock:
            parent.pending += 1
            parent.entered.add(name)
        return child

    def _add(self, parent: Directory | None, name: str, opened: Opened) -> Directory:
        here = Directory(parent, name, opened)
        with self._lock:
            self._open.add(here)
        return here

    def leave(self, here: Directory, *, goes_on: bool, borrowed: bool) -> int | None:
        """End one's part in a directory.

        Args:
            here: The directory.
            goes_on: Whether its parent is on the same branch, and so is the next.
            borrowed: Whether one did not read it, but came up to remove what it was the last in.

        Returns:
            The parent's descriptor, to remove the directory with; None while others are in it.
        """
        parent = here.parent
        # In one step, so that a directory that somebody is about to leave stays open.
        with self._lock:
            here.users -= borrowed
            here.pending -= 1
            others_are_in_it = here.pending > 0
            if parent is not None and goes_on and not borrowed:
                parent.needed = True
                if others_are_in_it:  # to the parent: through this one
                    self._borrow(parent, here)
                    parent.users -= 1
            if others_are_in_it:
                if not borrowed:
                    here.needed = False
                if not here.needed:
                    self._close(here)
                return None
            assert parent is not None
            descriptor = self._borrow(parent, here)
            self._close(here)
            return descriptor

    def close_far_above(self, branch: list[Directory]) -> None:
        """Close the directory of a branch that became too far from its end, if nobody uses it."""
        if len(branch) > OPEN_LEVELS:
            far = branch[-1 - OPEN_LEVELS]
            far.needed = False
            with self._lock:
                self._close(far)

    def close_all(self) -> None:
        """Close all. Takes no lock: nobody works on the tree any more, and finalizers call it."""
        while self._open:
            here = self._open.pop()
            if here.entries is not None:
                here.entries.close()
            if here.descriptor is not None:
                close(here.descriptor)
                here.descriptor = None

    def _borrow(self, parent: Directory, child: Directory) -> int:
        """The parent's descriptor, opened again by the child's ".." if closed. With the lock."""
        if parent.descriptor is None:
            try:
                opened = _opened("..", _PARENT, child.opened())
            except OSError as error:
                error.filename = parent.path()
                raise
            if opened.looked.identity != parent.looked.identity:
                close(opened.descriptor)
                text = f"{os.strerror(errno.ESTALE)}: it was moved while it was removed"
                raise OSError(errno.ESTALE, text, child.path())
            parent.descriptor = opened.descriptor
            self._open.add(parent)
        parent.users += 1
        return parent.descriptor

    def _close(self, here: Directory) -> None:
        """Close the directory, unless somebody uses it now. With the lock."""
        if here.descriptor is not None and here.users == 0:
            descriptor, here.descriptor = here.descriptor, None
            self._open.discard(here)
            close(descriptor)


def _opened(name: str, flags: int, within: int | None) -> Opened:
    descriptor = os.open(name, flags, dir_fd=within)
    try:
        return Opened(descriptor, look(descriptor))
    except BaseException:
        close(descriptor)
        raise


def _identity_of_the_root_directory() -> tuple[int, int]:
    found = os.stat("/")
    return found.st_dev, found.st_ino
