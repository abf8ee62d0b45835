# SPDX-License-Identifier: MIT
# Removing a tree of files, in parallel: what the kernel does for a whole file system at umount.
#
# Nothing is reached by a path: a directory is opened by its name in its parent's descriptor and
# never through a symlink, so whatever is swapped in meanwhile, nothing outside of the tree is
# touched. The root itself is removed by its name in the directory that it was found in.
#
# The kernel locks a directory while an entry of it is removed, so helpers share directories, never
# the entries of one. Each helper walks a branch, a path of directories, depth first, and gives a
# subdirectory away when another has nothing to do. So what is known of the tree at a time is one
# path for each helper, with at most NAMES names on all of it: in a directory with more
# subdirectories the others are read again later.
#
# The size of the work is not known, so the job's units are turns: a turn lasts SLICE seconds, so
# that helpers serve other jobs too and a cancel is seen; turns become longer as they get fewer, and
# the last one goes on to the end. When nothing is left, turns return at once.
"""`remove_tree`: a job that removes a directory and all that is in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

from aioktask.checks import check_flag, check_function, integer
from aioktask.engine.state.current import current_chunk
from aioktask.files._branches import Branches
from aioktask.files._directories import Directory, OpenDirectories, Opened, close
from aioktask.files._root import Root
from aioktask.files._tally import Tally
from aioktask.job import Bound, Job, job_that_makes

__all__ = ["Removed", "remove_tree"]

# Those that find nothing left cost 0.1 us each at the end.
TURNS = 1024
SLICE = 0.010
# A turn lasts twice as long after each so many: the last of 1024 begins after 11 hours of work.
TURNS_OF_A_LENGTH = 64
# Entries between two looks at the clock: about a millisecond.
ENTRIES_A_LOOK = 256
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


def remove_tree(
    path: str | os.PathLike[str],
    *,
    ignore_errors: bool = False,
    onexc: OnError | None = None,
    dir_fd: SupportsIndex | None = None,
    one_file_system: bool = True,
    tally: Tally | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[Removed]:
    """A job that removes a directory and all that is in it, as `shutil.rmtree` does.

    Symlinks are removed and never followed, also when they are put in the place of a directory
    meanwhile. What vanishes meanwhile is no error, and neither is it when the whole tree does. It
    cannot be undone: after an error or a cancel, `tally` tells how much is gone, and a note on the
    exception too. The job's units are turns of its helpers, which say nothing about the tree.

    Which directory is meant is decided when this is called: a relative path begins at the working
    directory of that moment, and if another directory has come to the path when the job runs, or
    to the place of the one that it is in, that is an ESTALE and nothing is removed. Once the tree
    is gone the job may be run again, and means what is there then.

    Args:
        path: The directory. As by rm(1), the last part may not be ``.`` or ``..``, and ``/`` is
            refused; a tree that the working directory lies in is not. Unlike `shutil.rmtree`, a
            symlink is refused with a slash after it too, and bytes are: pass `os.fsdecode` of them.
        ignore_errors: Whether to go on after errors and tell nobody. The path may lead nowhere yet
            when this is called: then what is there when the job runs is meant.
        onexc: Called as ``onexc(function, path, error)`` for each error, as by `shutil.rmtree`, and
            then it goes on, as with `ignore_errors`. On helper threads, several at a time; what it
            raises ends the job. The path is not relative to the working directory.
        dir_fd: An open directory that `path` is relative to; open until the job is over.
        one_file_system: Whether what is mounted inside of the tree, or on its root, is left alone:
            each such directory is an EBUSY. False goes in and removes what is mounted, bind mounts
            too, whose files lie elsewhere as well; the mount points stay and are an EBUSY then. The
            root directory is never gone into.
        tally: Counts what is removed.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "files.remove_tree" by default.

    Returns:
        A job whose value is the `Removed`.

    Raises:
        OSError: `path` ends in ``.`` or ``..`` (EINVAL), is ``/`` (EBUSY), or begins at a working
            directory that is gone (ENOENT). Without `ignore_errors` and `onexc` also: it is no
            directory (ENOTDIR), a symlink (ELOOP), a mount point (EBUSY, see `one_file_system`),
            not there (ENOENT, as the empty path never is), or cannot be opened. Out of the job that
            runs, without them: the first error, with the whole path as its `filename`; and ESTALE,
            with them too, if a directory in the tree was moved meanwhile.
        TypeError: An argument of the wrong kind.
        ValueError: There is a NUL byte in `path`; or an argument that `Job` refuses.

    >>> import pathlib, tempfile
    >>> from aioktask import run_multithreaded_sync
    >>> tree = pathlib.Path(tempfile.mkdtemp())
    >>> (tree / "a" / "b").mkdir(parents=True)
    >>> (tree / "a" / "file").touch()
    >>> run_multithreaded_sync(remove_tree(tree)).value
    Removed(files=1, directories=3)
    """
    given = os.fspath(path)
    if not isinstance(given, str):
        raise TypeError(f"path must be a string or a path of strings, got {path!r}")
    if onexc is not None:
        check_function("onexc", onexc)
        if ignore_errors:
            raise TypeError("pass ignore_errors=True or onexc=, not both")
    counts = Tally() if tally is None else tally
    if not isinstance(counts, Tally):
        raise TypeError(f"tally must be a files.Tally, got {tally!r}")
    check_flag("one_file_system", one_file_system)
    within = None if dir_fd is None else integer("dir_fd", dir_fd, least=0)
    root = Root(given, within)

    def directories() -> OpenDirectories:
        return OpenDirectories(one_file_system=one_file_system)

    try:
        root.remember(directories())
    except OSError:
        if not ignore_errors and onexc is None:
            raise

    def ignore(function: Callable[..., object], where: str, error: OSError) -> None:
        pass

    report = ignore if ignore_errors else onexc

    def bind() -> Bound[Removed]:
        removal = _Removal(root, directories(), report, counts)
        return Bound(removal.turns, removal.removed)

    job = Job(
        lambda start, stop: None,
        TURNS,
        chunk=1,
        nice=nice,
        max_threads=max_threads,
        name="files.remove_tree" if name is None else name,
    )
    return job_that_makes(job, bind)


class _Removal:
    """One run of the job. A branch is a path of directories, the deepest last."""

    def __init__(
        self, root: Root, tree: OpenDirectories, report: OnError | None, tally: Tally
    ) -> None:
        self._root = root
        self._above: Directory | None = None  # what the root is in, once that is open
        self._report = report
        self._tally = tally
        self._gone = Tally()  # by this run
        self._branches: Branches[list[Directory]] = Branches([])  # of the first the root is opened
        self._open = tree
        self._errors: list[BaseException] = []

    def __del__(self) -> None:
        self._open.close_all()

    def removed(self) -> Removed:
        if self._above is not None and not self._above.kept:
            self._root.forget()
        return Removed(self._gone.files, self._gone.directories)

    def turns(self, start: int, stop: int) -> None:
        """The chunk function: so many turns of one helper. The last goes on until all is done."""
        if self._branches.ended:
            return
        for turn in range(start, stop):
            length = SLICE * 2 ** (turn // TURNS_OF_A_LENGTH)
            deadline = float("inf") if turn == TURNS - 1 else time.monotonic() + length
            # Branch after branch, many of which are short: else the turns would not last.
            while self._work(deadline):
                pass

    def _work(self, deadline: float) -> bool:
        """Walk one branch; whether there is something left, and time for it."""
        branch = self._branches.take(deadline)
        if branch is None:
            return False
        try:
            if not branch:
                branch = self._first_branch()
            self._walk(branch, deadline)
        except BaseException as error:
            self._errors.append(error)
            self._branches.end()
            raise
        finally:
            if self._branches.give_back(*[branch] if branch else []):
                self._tell_what_is_gone()
                self._open.close_all()
        return not self._branches.ended and time.monotonic() < deadline

    def _first_branch(self) -> list[Directory]:
        try:
            found = self._root.open(self._open)
        except OSError as error:
            self._tell(os.open, self._root.path, error)
            return []
        if found is None:
            return []
        self._above, opened = found
        return [self._open.enter(self._above, self._root.name, opened)]

    def _walk(self, branch: list[Directory], deadline: float) -> None:
        while branch:
            if self._branches.ended:
                return
            here = branch[-1]
            if here.entries is None and not here.names and here.more:
                here.more = False
                try:
                    here.entries = os.scandir(here.opened())
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self._tell(os.scandir, here.path(), error)
            if here.entries is not None:
                self._read(here)
            elif here.names:
                child = self._remove_small(here)
                if child is not None:
                    branch.append(child)
                    self._open.close_far_above(branch)
            else:
                branch.pop()
                self._leave(here, goes_on=bool(branch))
            if self._branches.wanted:
                self._give_away(branch)
            current_chunk().check_cancelled()
            if time.monotonic() >= deadline:
                return

    def _read(self, here: Directory) -> None:
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
                    self._tell(os.scandir, here.path(), error)
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
                        self._tell(os.unlink, here.path(entry.name), error)
        finally:
            if files:
                self._count(files=files)

    @staticmethod
    def _stop_reading(here: Directory) -> None:
        assert here.entries is not None
        here.entries.close()
        here.entries = None
        here.files_done = True

    def _remove_small(self, here: Directory) -> Directory | None:
        """Remove subdirectories as long as they are small; the first that is not, entered.

        Most directories of most trees are: they cost no more here than in a simple loop.
        """
        room = ENTRIES_A_LOOK
        while here.names and room > 0:
            name = here.names.pop()
            opened = self._open_within(here, name)
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
            self._remove_directory(here, name, here.opened())
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
        self._tell(function, where, failed)
        return result

    def _remove_directory(self, parent: Directory, name: str, descriptor: int) -> None:
        """Remove an empty directory; `descriptor` is its parent's."""
        try:
            os.rmdir(name, dir_fd=descriptor)
            self._count(directories=1)
        except FileNotFoundError:
            pass
        except OSError as error:
            parent.kept.add(name)
            self._tell(os.rmdir, parent.path(name), error)

    def _open_within(self, parent: Directory, name: str) -> Opened | None:
        try:
            return self._open.open(parent, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            parent.kept.add(name)
            self._tell(os.open, parent.path(name), error)
            return None

    def _leave(self, here: Directory, *, goes_on: bool) -> None:
        """The directory has been read: remove it, unless others are in it still, and go up.

        Args:
            here: The directory.
            goes_on: Whether the parent is on the same branch, and so is the next.
        """
        descriptor = self._open.leave(here, goes_on=goes_on, borrowed=False)
        while descriptor is not None:
            assert here.parent is not None
            self._remove_directory(here.parent, here.name, descriptor)
            here.parent.entered.discard(here.name)
            here = here.parent
            descriptor = self._open.leave(here, goes_on=goes_on, borrowed=True)

    def _give_away(self, branch: list[Directory]) -> None:
        """A subdirectory as near to the root as can be, for a helper that has nothing to do."""
        for here in branch:
            if here.names and here.needed:
                name = here.names.pop()
                opened = self._open_within(here, name)
                if opened is not None:
                    self._branches.add([self._open.enter(here, name, opened)])
                return

    def _tell(self, function: Callable[..., object], where: str, error: OSError) -> None:
        error.filename = where
        if self._report is None:
            raise error
        self._report(function, where, error)

    def _count(self, files: int = 0, directories: int = 0) -> None:
        self._gone.add(files, directories)
        self._tally.add(files, directories)

    def _tell_what_is_gone(self) -> None:
        """When no helper works on it any more, so that it is true."""
        gone = f"{self._gone.files:,} files and {self._gone.directories:,} directories"
        while self._errors:
            self._errors.pop().add_note(f"remove_tree: {gone} had been removed")
