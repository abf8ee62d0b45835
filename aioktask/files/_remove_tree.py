# SPDX-License-Identifier: MIT
# Removing a tree of files, in parallel: what the kernel does for a whole file system at umount.
#
# Nothing can be undone, so all that may be refused is refused when the job is made: the root is
# looked at then and remembered. A run is a walk of its own, on directories that it opens itself.
# The root is removed by its name in the directory that it was found in.
"""`remove_tree`: a job that removes a directory and all that is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import SupportsIndex

from aioktask.checks import check_arguments, check_done, check_flag, check_function, integer
from aioktask.files import _walk
from aioktask.files._directories import OpenDirectories
from aioktask.files._removal import OnError, Removal, Removed
from aioktask.files._root import Root
from aioktask.files._tally import Tally
from aioktask.job import Bound, Job, job_that_makes

__all__ = ["remove_tree"]


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
        check_arguments("onexc", onexc, "function, path, error")
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

    called = "files.remove_tree" if name is None else name

    def report(function: Callable[..., object], where: str, error: OSError) -> None:
        if onexc is not None:
            check_done(onexc(function, where, error), "onexc", called)

    told = report if ignore_errors or onexc is not None else None

    def bind() -> Bound[Removed]:
        tree = directories()
        walk = _walk.Walk(root, tree, Removal(tree, told, counts))
        return Bound(walk.turns, walk.removed)

    job = Job(
        lambda start, stop: None,
        _walk.TURNS,
        chunk=1,
        nice=nice,
        max_threads=max_threads,
        name=called,
    )
    return job_that_makes(job, bind)
