# SPDX-License-Identifier: MIT
# The slots that the processes of one user share, so that each does not start helpers as if it were
# alone.
#
# A set of slots is an empty file that is never written to: what a process has and wishes is told by
# locks on ranges of its bytes, of the kind that belongs to an open file description (F_OFD_SETLK in
# fcntl(2)). The kernel drops them with the last descriptor of it, whichever way a process ends; a
# forked child has to close its copy. Nothing here waits: a lock that is refused is another
# process's, and what two processes see of each other may be a look old. So shares are kept to
# within a look or two, but no slot is ever held twice.
#
# Relies on all processes working out the same shares (`shares`) from the same clock.
"""Slots for helper threads, shared by the processes of one user."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from aioktask.engine.machine.shares import EPOCH_NS, Member, divide, neighbours

if sys.platform == "linux":
    import fcntl

    _WRITE, _NONE = fcntl.F_WRLCK, fcntl.F_UNLCK
    # The interpreter has them if its C library does.
    _SETLK: int = getattr(fcntl, "F_OFD_SETLK", 0)
    _GETLK: int = getattr(fcntl, "F_OFD_GETLK", 0)
else:
    _SETLK = 0

__all__ = ["Slots", "slots_path"]

# The bytes of the file. From 0: the process that locked byte `cpu` has that slot. From ROW on: a
# row for each busy process, in which it locks as many bytes as it wishes for slots, from the row's
# begin, which makes the row its own; and, from CPU_LIMIT bytes further on, those of the CPUs that
# it may use.
CPU_LIMIT = 1 << 16
ROW = 2 * CPU_LIMIT
ROWS = 1 << 12
_SLOTS = (0, CPU_LIMIT)
_MEMBERS = (ROW, ROW * (1 + ROWS))

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHARED_MEMORY = "/dev/shm"
_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EINTR)

Range = tuple[int, int]


def slots_path(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """The file of this user's set of slots with a name.

    Args:
        name: 1 to 64 letters, digits, dots, hyphens and underscores, in ASCII.
        root: The folder; by default /dev/shm, or the one for temporary files where that cannot be
            written to.

    Raises:
        OSError: There is no folder that can be written to.
        ValueError: The name is not of that form.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a name of slots must be 1 to 64 letters, digits, '.', '-' or '_', got {name!r}"
        )
    if root is None:
        usable = os.path.isdir(_SHARED_MEMORY) and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
        root = _SHARED_MEMORY if usable else tempfile.gettempdir()
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    return Path(root, f"aioktask-{user}-{name}")


class Slots:
    """One process's part in a set of slots.

    For one thread at a time; the attributes may be read by any. Several objects on one path share
    the slots as several processes do.

    Attributes:
        path: The file.
        held: How many slots this process has.
        members: How many processes that may use one of its CPUs were busy at the last look, itself
            included; 0 while it is not busy itself.

    Raises:
        OSError: The file cannot be opened or made; it is no regular file, another user's, or open
            to others (EPERM); a symlink (ELOOP); or there are no such locks here (ENOSYS).
    """

    __slots__ = ("_cpus", "_epoch", "_fd", "_file", "_held", "_row", "_wish", "members", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._row = 0  # its own while it wishes for something, else the one it had last
        self._epoch = -1
        self._reset()
        self._fd, self._file = _opened(self.path)

    @property
    def held(self) -> int:
        return len(self._held)

    def look(self, cpus: frozenset[int], wanted: int, now_ns: int) -> int:
        """See which others are busy, and take or give back slots: some us where none is.

        Args:
            cpus: The CPUs that this process may use, from 0 and below 65536.
            wanted: How many helpers it could use. 0: all is given up, as by `release`.
            now_ns: CLOCK_MONOTONIC, which is the same in all processes of a machine.

        Returns:
            How many helpers it may have until the next look: one for each slot, but at least 1, and
            0 if it wants none.

        Raises:
            OSError: The system refused, and not because of another's lock; all was given up.
            ValueError: After `close` or `forget`; or a CPU's number is out of bounds.
        """
        if self._fd < 0:
            raise ValueError(f"the slots {self.path} are closed")
        if cpus and not 0 <= min(cpus) <= max(cpus) < CPU_LIMIT:
            raise ValueError(f"CPUs must be from 0 to {CPU_LIMIT - 1}, got {sorted(cpus)}")
        wish = min(wanted, len(cpus))
        try:
            self._follow(now_ns // EPOCH_NS)
            if wish >= 1 and self._join(cpus, wish):
                self._take_share(now_ns // EPOCH_NS)
            else:
                self.release()
        except OSError:
            with contextlib.suppress(OSError):
                self.release()
            raise
        return max(self.held, 1) if wanted >= 1 else 0

    def busy(self) -> int:
        """How many other processes are busy now. Takes no part.

        Raises:
            OSError: The system refused.
        """
        return len(self._others())

    def release(self) -> None:
        """Give up all slots, and be busy no longer."""
        if self._wish:
            self._reset()
            self._unlock(0, 0)

    def close(self) -> None:
        """Give all up for good. Can be called again.

        Raises:
            OSError: The system refused; it is closed all the same.
        """
        try:
            # First: a child that was forked and has not closed its copy must not keep them.
            self.release()
        finally:
            self.forget()

    def forget(self) -> None:
        """Have no part in it any more, in a forked child: what is held is the parent's and stays.

        Only closes the file, so it can be called at any moment. Can be called again.
        """
        fd, self._fd = self._fd, -1
        self._reset()
        if fd >= 0:
            os.close(fd)

    def _reset(self) -> None:
        self._held: set[int] = set()
        self._cpus: frozenset[int] = frozenset()
        self._wish = 0
        self.members = 0

    def _follow(self, epoch: int) -> None:
        """Once an epoch: change to the new file if the old one of this name was removed.

        systemd-logind removes it when a user's last session ends; the next process makes a new one.
        """
        if epoch == self._epoch:
            return
        self._epoch = epoch
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._file:
            opened = _opened(self.path)
            self.close()
            self._fd, self._file = opened

    def _join(self, cpus: frozenset[int], wish: int) -> bool:
        """Tell what this process wishes for; False if more are busy than there are rows."""
        if not self._wish:
            rows = range(self._row, self._row + ROWS)  # the one it had is likely to be free
            free = (row % ROWS for row in rows if self._lock(*_wish(row % ROWS, wish)))
            row = next(free, None)
            if row is None:
                return False
            self._row = row
        elif wish > self._wish:
            self._lock(*_wish(self._row, wish))
        elif wish < self._wish:
            begin, stop = _wish(self._row, self._wish)
            self._unlock(begin + wish, stop)
        self._wish = wish
        if cpus != self._cpus:
            # A lock on a CPU that is not this process's any more is given back first.
            begin = ROW * (1 + self._row) + CPU_LIMIT
            self._give(self._held - cpus)
            for start, stop in _runs(self._cpus - cpus):
                self._unlock(begin + start, begin + stop)
            for start, stop in _runs(cpus - self._cpus):
                self._lock(begin + start, begin + stop)
            self._cpus = cpus
        return True

    def _take_share(self, epoch: int) -> None:
        """Come as near to the share of this process as what others hold allows."""
        busy = self._others()
        others = [member for member in busy if not member.cpus.isdisjoint(self._cpus)]
        self.members = 1 + len(others)
        if not others and self.held == self._wish:
            return
        mine = Member(self._row, self._cpus, self._wish)
        near = neighbours(mine, busy)
        wanted = divide(near, epoch)[near.index(mine)]
        taken = {cpu for found in self._locks_of_others(*_SLOTS) for cpu in range(*found)}
        if all(member.cpus == self._cpus for member in near):
            # Any will do, so as few change hands as can be.
            free = sorted(self._cpus - taken, key=lambda cpu: (cpu not in self._held, cpu))
            wanted = frozenset(free[: len(wanted)])
        self._give(self._held - wanted)
        for start, stop in _runs(wanted - taken - self._held):
            if self._lock(start, stop):
                self._held.update(range(start, stop))

    def _others(self) -> list[Member]:
        """The other processes that are busy; one that changes meanwhile may be seen in between."""
        wishes: Counter[int] = Counter()
        cpus: dict[int, set[int]] = {}
        for start, stop in self._locks_of_others(*_MEMBERS):
            row, at = divmod(start - ROW, ROW)
            if at < CPU_LIMIT:
                wishes[row] += stop - start
            else:
                first = at - CPU_LIMIT
                cpus.setdefault(row, set()).update(range(first, first + stop - start))
        return [
            Member(row, frozenset(cpus[row]), wish) for row, wish in wishes.items() if row in cpus
        ]

    def _locks_of_others(self, start: int, stop: int) -> Iterator[Range]:
        """Ranges from `start` to `stop` that are locked by others, each byte once."""
        rest = [(start, stop)]
        while rest:
            start, stop = rest.pop()
            lock = _lock_of_another(self._fd, start, stop)
            if lock is not None:
                # The kernel tells of any lock in the range, not of the first one.
                first, last = max(lock[0], start), min(lock[1], stop)
                yield first, last
                rest += [part for part in ((start, first), (last, stop)) if part[0] < part[1]]

    def _give(self, slots: Iterable[int]) -> None:
        for start, stop in _runs(slots):
            self._unlock(start, stop)
            self._held.difference_update(range(start, stop))

    def _lock(self, start: int, stop: int) -> bool:
        """Lock all of these bytes or none; False if another process has locked some."""
        try:
            _call(self._fd, _SETLK, _WRITE, start, stop)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True

    def _unlock(self, start: int, stop: int) -> None:
        """Unlock these bytes; all from `start` on with a `stop` of 0."""
        _call(self._fd, _SETLK, _NONE, start, stop)


def _wish(row: int, wish: int) -> Range:
    start = ROW * (1 + row)
    return start, start + wish


def _runs(numbers: Iterable[int]) -> list[Range]:
    """The numbers as ranges."""
    runs: list[Range] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs


def _opened(path: Path) -> tuple[int, tuple[int, int]]:
    """A descriptor of the file, made if need be, and the file's device and inode numbers."""
    if not _SETLK:
        raise OSError(errno.ENOSYS, "this system has no open file description locks", str(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(fd)
        why = _unfit(found)
        if why is not None:
            raise OSError(errno.EPERM, f"not fit to hold slots: it {why}", str(path))
        _lock_of_another(fd, 0, 1)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EINVAL:
            raise
        why = "open file description locks are refused here"
        raise OSError(errno.ENOSYS, why, str(path)) from error
    return fd, (found.st_dev, found.st_ino)


def _unfit(found: os.stat_result) -> str | None:
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        return f"is no regular file ({stat.filemode(found.st_mode)})"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, and this is user {os.geteuid()}"
    if mode & 0o077:
        # A user who may only read the file could lock it, too.
        return f"must be for its owner alone (mode 600), and its mode is {mode:o}"
    return None


def _lock_of_another(fd: int, start: int, stop: int) -> Range | None:
    """The range of one lock that another process holds on these bytes; None if there is none."""
    answer = _call(fd, _GETLK, _WRITE, start, stop)
    kind, _, first, length, _ = _FLOCK.unpack(answer)
    if kind == _NONE:
        return None
    return first, first + length if length else stop


def _call(fd: int, command: int, kind: int, start: int, stop: int) -> bytes:
    flock = _FLOCK.pack(kind, os.SEEK_SET, start, stop - start if stop else 0, 0)
    return fcntl.fcntl(fd, command, flock)
