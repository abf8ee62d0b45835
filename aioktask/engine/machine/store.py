# SPDX-License-Identifier: MIT
# A directory of small files of this user's, from which they may be read, and written as a whole.
#
# It may be anywhere, and others may have been there first. So nothing in it is used unless it is
# this user's and only this user can write to it, the directory and each file; neither is followed
# where it is a symlink; and what is in it is reached by the directory's descriptor, never again by
# its path. A file is written under a name of its own and then renamed, so that whoever reads finds
# the old one or the new one, whenever a writer is killed; what such a writer leaves is removed by
# later ones. Of two writers the last one holds. Nothing waits for the disk: after a power cut a
# file may be empty, and is to be checked by who reads it, as any other.
#
# It knows nothing of what is in the files. Every call may raise an OSError, and then has changed
# nothing.
"""Small files in a directory of this user's."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator

__all__ = ["default_directory", "names", "opened", "read", "remove", "tidy", "write"]

_OPEN_DIRECTORY = (
    os.O_RDONLY
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
# Not to wait for the writer of a FIFO.
_READ = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_WRITE = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
)

_TEMPORARY = ".aioktask-"
# No writer takes so long: what is older was left by one that was killed.
_TEMPORARY_SECONDS = 3600.0


def default_directory() -> str:
    """Where this user's caches are, by the XDG base directory specification, and ours in it.

    Raises:
        OSError: There is no home directory (ENOENT).
    """
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):
        caches = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(caches):
        raise OSError(errno.ENOENT, "no home directory is known: set HOME or XDG_CACHE_HOME")
    return os.path.join(caches, "aioktask")


@contextlib.contextmanager
def opened(path: str, *, make: bool = False) -> Iterator[int]:
    """A descriptor of the directory, as long as the block lasts.

    Args:
        path: Of the directory; absolute.
        make: Whether to make it, with mode 700, where it is not there, and what leads to it.

    Raises:
        OSError: It cannot be opened or made; it is a symlink (ELOOP), belongs to another user or
            may be written to by others (EPERM); this system has no `openat` (ENOSYS).
    """
    path = path.rstrip("/") or "/"  # by "link/" the system follows a symlink
    if os.open not in os.supports_dir_fd:
        raise OSError(errno.ENOSYS, "this system opens no files relative to a directory", path)
    if make:
        _make(path)
    try:
        directory = os.open(path, _OPEN_DIRECTORY)
    except NotADirectoryError:
        if os.path.islink(path):
            raise OSError(errno.ELOOP, "not used: it is a symlink", path) from None
        raise
    try:
        _check(os.fstat(directory), path)
        yield directory
    finally:
        os.close(directory)


def _make(path: str) -> None:
    """Make the directory and what leads to it, but for root only where root's is what it is in.

    So a program that runs as root, with a user's environment, leaves nothing in the user's home
    that the user could not use.
    """
    above = os.path.dirname(path)
    if os.path.lexists(path):
        return
    if not os.path.lexists(above):
        _make(above)
    owner = os.lstat(above).st_uid  # of a user's symlink to a directory of root's: the user
    if os.geteuid() == 0 and owner != 0:
        text = f"not made: {above} belongs to user {owner}, and this is root"
        raise OSError(errno.EPERM, text, path)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        os.mkdir(path, 0o700)


def _check(found: os.stat_result, path: str) -> None:
    if found.st_uid != os.geteuid():
        why = f"it belongs to user {found.st_uid}, and this is user {os.geteuid()}"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = f"others may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return
    raise OSError(errno.EPERM, f"not used: {why}", path)


def read(directory: int, name: str, most: int) -> bytes | None:
    """What a file has; None where it is not there.

    Args:
        directory: Its descriptor.
        name: Of the file.
        most: Of a longer file only so many bytes are read, and one more.

    Raises:
        OSError: It cannot be read; it is a symlink (ELOOP), another user's, others may write to
            it, or it is no regular file (EPERM).
    """
    try:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            text = f"not used: it is no regular file ({stat.filemode(found.st_mode)})"
            raise OSError(errno.EPERM, text, name)
        _check(found, name)
        data = b""
        while len(data) <= most and (part := os.read(descriptor, most + 1 - len(data))):
            data += part
        return data
    finally:
        os.close(descriptor)


def write(directory: int, name: str, data: bytes) -> None:
    """Have a file of this name have this, whether or not there was one.

    Raises:
        OSError: It cannot be written; what there was is still there.
    """
    temporary = f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
    try:
        descriptor = os.open(temporary, _WRITE, 0o600, dir_fd=directory)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        if isinstance(error, OSError):
            error.filename, error.filename2 = name, None
        raise


def names(directory: int) -> list[str]:
    """The names of what is in the directory."""
    return os.listdir(directory)


def remove(directory: int, name: str) -> bool:
    """Remove a file; whether it was there."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def tidy(directory: int, is_ours: Callable[[str], bool], most: int, seconds: float) -> None:
    """Remove what is old, and the oldest of what is too much. Other files are left alone.

    Args:
        directory: Its descriptor.
        is_ours: Whether a name is that of a file that may be removed.
        most: How many of them may stay.
        seconds: Those are old that were written before so long.
    """
    now = time.time()
    found = []
    for name in os.listdir(directory):
        temporary = name.startswith(_TEMPORARY)
        if not temporary and not is_ours(name):
            continue
        with contextlib.suppress(OSError):  # another process was quicker, or it is a directory
            written = os.lstat(name, dir_fd=directory).st_mtime
            if now - written > (_TEMPORARY_SECONDS if temporary else seconds):
                remove(directory, name)
            elif not temporary:
                found.append((written, name))
    for _, name in sorted(found)[: max(len(found) - most, 0)]:
        with contextlib.suppress(OSError):
            remove(directory, name)
