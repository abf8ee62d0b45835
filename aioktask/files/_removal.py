# SPDX-License-Identifier: MIT
# Removing what is in a directory, entry by entry, in one run of `remove_tree`.
#
# Nothing is reached by a path: a directory is opened by its name in its parent's descriptor and
# never through a symlink, so whatever is swapped in meanwhile, nothing outside of the tree is
# touched.
#
# What vanishes meanwhile is passed over. Any other error is told of, and if the run goes on then,
# what could not be removed is kept out of what follows. Several helpers remove at a time, each in
# directories of its own.
"""What one run removes, counts and tells of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from aioktask.files._directories import Directory, OpenDirectories, Opened, close
from aioktask.files._tally import Tally

__all__ = ["OnError", "Removal", "Removed"]

# Entries between two looks at the clock: about a millisecond.
ENTRIES_A_LOOK = 256
# Names of subdirectories that are kept of one branch.
NAMES = 1 << 16

OnError = Callable[[Callable[..., object], str, OSError], object]


@dataclass(frozen=True, slots=True)
class Removed:
    """What `remove_tree` removed.

    Attributes:
        files: All that was no directory: symlinks, sockets and devices too.
        directories: With the tree's root.
    """

    files: int
    directories: int


class Removal:
    """What one run removes of the directories that it is given.

    Args:
        tree: Opens directories, and closes them.
        report: Called for each error, and the run goes on; None to raise the first.
        tally: The user's, which counts beside the run's own.
    """

    def __init__(self, tree: OpenDirectories, report: OnError | None, tally: Tally) -> None:
        self._open = tree
        self._report = report
        self._tally = tally
        self._gone = Tally()  # by this run

    def removed(self) -> Removed:
        """What is gone by now."""
        return Removed(self._gone.files, self._gone.directories)

    def begin_reading(self, here: Directory) -> None:
        """Open the directory's list of entries, which `read` goes on with."""
        here.more = False
        try:
            here.entries = os.scandir(here.opened())
        except FileNotFoundError:
            pass
        except OSError as error:
            self.tell(os.scandir, here.path(), error)

    def read(self, here: Directory) -> None:
        """Remove some files of the directory, and note its subdirectories."""
        assert here.entries is not None
        descriptor = here.opened()
        room = max(1, NAMES // here.depth)
        files = 0
        try:
            for _ in range(ENTRIES_A_LOOK):
                try:
                    entry = next(here.entries, None)
                    is_directory = entry is not None and entry.is_dir(follow_symlinks=False)
                except FileNotFoundError:  # reading a directory that is gone
                    entry = None
                except OSError as error:
                    self._stop_reading(here)
                    self.tell(os.scandir, here.path(), error)
                    return
                if entry is None:
                    self._stop_reading(here)
                    return
                if entry.name in here.kept:
                    continue
                if is_directory:
                    if entry.name in here.entered:
                        continue
                    if len(here.names) < room:
                        here.names.append(entry.name)
                    else:
                        here.more = True
                elif not here.files_done:
                    try:
                        os.unlink(entry.name, dir_fd=descriptor)
                        files += 1
                    except FileNotFoundError:
                        pass
                    except OSError as error:
                        self.tell(os.unlink, here.path(entry.name), error)
        finally:
            if files:
                self._count(files=files)

    @staticmethod
    def _stop_reading(here: Directory) -> None:
        assert here.entries is not None
        here.entries.close()
        here.entries = None
        here.files_done = True

    def remove_small(self, here: Directory) -> Directory | None:
        """Remove subdirectories as long as they are small; the first that is not, entered.

        Most directories of most trees are: they cost no more here than in a simple loop.
        """
        room = ENTRIES_A_LOOK
        while here.names and room > 0:
            name = here.names.pop()
            opened = self.open_within(here, name)
            if opened is None:
                continue
            mine: int | None = opened.descriptor
            kept: set[str] = set()
            try:
                left = self._empty(opened.descriptor, here, name, kept, room)
                if left < 0:
                    child = self._open.enter(here, name, opened)
                    mine = None
                    child.kept = kept
                    return child
            finally:
                if mine is not None:
                    close(mine)
            room = left - 1
            self.remove_directory(here, name, here.opened())
        return None

    def _empty(
        self, descriptor: int, parent: Directory, name: str, kept: set[str], room: int
    ) -> int:
        """Remove the files of a directory that has at most `room` entries and no subdirectory.

        Returns:
            How much room is left; below 0 when there is more in it than that.
        """
        files = 0
        function: Callable[..., object] = os.unlink
        result = -1  # the rest of it is read by who enters it
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    room -= 1
                    if room < 0 or entry.is_dir(follow_symlinks=False):
                        return -1
                    try:
                        os.unlink(entry.name, dir_fd=descriptor)
                        files += 1
                    except FileNotFoundError:
                        pass
                    except OSError as error:
                        kept.add(entry.name)
                        failed, where = error, parent.path(name, entry.name)
                        break
                else:
                    return room
        except FileNotFoundError:
            return room
        except OSError as error:
            function, result = os.scandir, room
            failed, where = error, parent.path(name)
        finally:
            if files:
                self._count(files=files)
        # Told outside of the loop: what it raises is no error of the directory's.
        self.tell(function, where, failed)
        return result

    def remove_directory(self, parent: Directory, name: str, descriptor: int) -> None:
        """Remove an empty directory; `descriptor` is its parent's."""
        try:
            os.rmdir(name, dir_fd=descriptor)
            self._count(directories=1)
        except FileNotFoundError:
            pass
        except OSError as error:
            parent.kept.add(name)
            self.tell(os.rmdir, parent.path(name), error)

    def open_within(self, parent: Directory, name: str) -> Opened | None:
        """The subdirectory of this name; None if it is gone, or cannot be opened."""
        try:
            return self._open.open(parent, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            parent.kept.add(name)
            self.tell(os.open, parent.path(name), error)
            return None

    def tell(self, function: Callable[..., object], where: str, error: OSError) -> None:
        """Report an error of a call, or raise it where nobody wants to be told."""
        error.filename = where
        if self._report is None:
            raise error
        self._report(function, where, error)

    def _count(self, files: int = 0, directories: int = 0) -> None:
        self._gone.add(files, directories)
        self._tally.add(files, directories)
