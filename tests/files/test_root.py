# SPDX-License-Identifier: MIT
# Which tree is removed: the one that was meant when the job was made, or none.

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from aioktask import run_multithreaded_sync
from aioktask.files import Removed, _directories, _root, remove_tree
from tests.support.open_files import open_files

WAYS: list[dict[str, Any]] = [{}, {"ignore_errors": True}, {"onexc": lambda f, p, e: None}]


def make(where: Path) -> Path:
    """A tree of two files and two directories."""
    (where / "inner").mkdir(parents=True)
    (where / "file").touch()
    (where / "inner" / "file").touch()
    return where


def whole(where: Path) -> bool:
    return (where / "file").exists() and (where / "inner" / "file").exists()


# what is refused


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("path", "number"),
    [
        *(
            (path, errno.EINVAL)
            for path in (".", "./", "..", "../", "tree/.", "tree/..", "tree/.//")
        ),
        *((path, errno.EBUSY) for path in ("/", "//", "///")),
        *((path, errno.EINVAL) for path in ("/.", "/..", "/tmp/.", "/tmp/..")),
    ],
)
def test_what_is_no_name_of_a_directory_is_refused_as_by_rm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, number: int, way: dict[str, Any]
) -> None:
    """When the job is made, also where errors are ignored. No such job may ever be run here."""
    tree = make(tmp_path / "tree")
    monkeypatch.chdir(tree if path.startswith(".") else tmp_path)
    within = os.open(".", os.O_RDONLY)
    try:
        for options in ({}, {"dir_fd": within}):
            with pytest.raises(OSError, match=r"name of a directory|root directory") as info:
                remove_tree(path, **options, **way)
            assert (info.value.errno, info.value.filename) == (number, path)
    finally:
        os.close(within)
    assert whole(tree)


@pytest.mark.parametrize("way", WAYS)
def test_a_path_with_a_nul_byte_is_refused(tmp_path: Path, way: dict[str, Any]) -> None:
    """No system call could take it, and cut off there it would be another path."""
    tree = make(tmp_path / "tree")
    with pytest.raises(ValueError, match="NUL"):
        remove_tree(f"{tree}\0more", **way)
    assert whole(tree)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("link", errno.ELOOP),
        ("link/", errno.ELOOP),
        ("file", errno.ENOTDIR),
        ("file/", errno.ENOTDIR),
        ("file/x", errno.ENOTDIR),
        ("nowhere", errno.ENOENT),
        ("nowhere/x", errno.ENOENT),
        ("x" * 256, errno.ENAMETOOLONG),
        ("x/" * 2048 + "x", errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_removed_is_told_at_once_with_the_path_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = make(tmp_path / "tree")
    (tmp_path / "link").symlink_to("tree")
    (tmp_path / "file").touch()
    before = open_files()
    with pytest.raises(OSError, match=re.escape(path)) as info:
        remove_tree(path)
    assert (info.value.errno, info.value.filename) == (number, path)
    # And where errors are told, it is told when the job runs, with a path that leads there.
    told: list[str] = []
    run_multithreaded_sync(remove_tree(path, onexc=lambda f, where, e: told.append(where)))
    assert told == [str(tmp_path / path.rstrip("/"))]
    assert whole(tree)
    assert (tmp_path / "link").is_symlink()
    assert open_files() == before


@pytest.mark.parametrize("call", ["open", "look"])
def test_any_call_that_makes_the_job_may_fail(tmp_path: Path, call: str) -> None:
    tree = make(tmp_path / "tree")
    module: Any = {"open": os, "look": _directories}[call]
    real = getattr(module, call)
    before = open_files()
    for at in (1, 2):
        made = []

        def fails(*arguments: Any, at: int = at, **options: Any) -> Any:
            made.append(arguments)  # noqa: B023 - called in this turn of the loop only
            if len(made) == at:  # noqa: B023
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **options)

        with mock.patch.object(module, call, fails):
            with pytest.raises(OSError, match="Input/output") as info:
                remove_tree(tree)
        assert (info.value.errno, info.value.filename) == (errno.EIO, str(tree))
        assert open_files() == before
    assert whole(tree)


def test_jobs_that_wait_hold_nothing_open(tmp_path: Path) -> None:
    make(tmp_path / "tree")
    before = open_files()
    jobs = [remove_tree(tmp_path / "tree") for _ in range(50)]
    assert open_files() == before
    assert run_multithreaded_sync(jobs[0]).value == Removed(2, 2)
    assert open_files() == before


# what happens between making the job and running it


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ["cache", "cache//", "./cache", "x/../cache", "../a/cache"])
def test_a_relative_path_begins_where_the_job_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, way: dict[str, Any]
) -> None:
    for place in ("a", "b"):
        make(tmp_path / place / "cache")
        (tmp_path / place / "x").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    job = remove_tree(path, **way)
    monkeypatch.chdir(tmp_path / "b")
    assert run_multithreaded_sync(job).value == Removed(2, 2)
    assert not (tmp_path / "a" / "cache").exists()
    assert whole(tmp_path / "b" / "cache")


def test_errors_tell_a_path_that_leads_there_after_a_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    job = remove_tree("tree", onexc=lambda f, path, e: told.append(path))
    monkeypatch.chdir("/")
    refusal = mock.Mock(side_effect=PermissionError(errno.EPERM, os.strerror(errno.EPERM)))
    with mock.patch.object(os, "unlink", refusal):
        run_multithreaded_sync(job)
    assert set(told) == {
        str(path) for path in (tree, tree / "file", tree / "inner", tree / "inner" / "file")
    }


def test_a_link_is_followed_before_its_dots(tmp_path: Path) -> None:
    """As the kernel does: on the paper, "link/../tree" would be the tree beside the link."""
    beside, meant = make(tmp_path / "tree"), make(tmp_path / "far" / "tree")
    (tmp_path / "far" / "place").mkdir()
    (tmp_path / "link").symlink_to("far/place")
    run_multithreaded_sync(remove_tree(f"{tmp_path}/link/../tree"))
    assert whole(beside)
    assert not meant.exists()


def moved_in(tree: Path) -> None:
    tree.rename(tree.with_name("moved"))
    make(tree.with_name("other")).rename(tree)


def made_anew(tree: Path) -> None:
    """Many file systems give it the same inode number."""
    shutil.rmtree(tree)
    make(tree)


def link(tree: Path) -> None:
    tree.rename(tree.with_name("moved"))
    tree.symlink_to(make(tree.with_name("other")))


def parent_made_anew(tree: Path) -> None:
    tree.parent.rename(tree.parent.with_name("moved"))
    make(tree)


def parent_without_it(tree: Path) -> None:
    tree.parent.rename(tree.parent.with_name("moved"))
    tree.parent.mkdir()


def parent_is_a_link(tree: Path) -> None:
    tree.parent.rename(tree.parent.with_name("moved"))
    make(tree.parent.with_name("elsewhere") / tree.name)
    tree.parent.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("replace", "number"),
    [
        (moved_in, errno.ESTALE),
        (made_anew, errno.ESTALE),
        (link, errno.ENOTDIR),
        (parent_made_anew, errno.ESTALE),
        (parent_without_it, errno.ESTALE),
        (parent_is_a_link, errno.ESTALE),
    ],
)
def test_another_tree_that_came_to_the_path_is_not_removed(
    tmp_path: Path, replace: Callable[[Path], None], number: int
) -> None:
    tree = make(tmp_path / "above" / "tree")
    told: list[OSError] = []
    jobs = [
        remove_tree(tree),
        remove_tree(tree, ignore_errors=True),
        remove_tree(tree, onexc=lambda f, path, e: told.append(e)),
    ]
    replace(tree)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    opened = open_files()
    for _ in range(2):  # no retry removes it either
        with pytest.raises(OSError, match=str(tree)) as info:
            run_multithreaded_sync(jobs[0])
        assert (info.value.errno, info.value.filename) == (number, str(tree))
        for job in jobs[1:]:
            assert run_multithreaded_sync(job).value == Removed(0, 0)
    assert [error.errno for error in told] == [number, number]
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    assert open_files() == opened


def test_a_tree_made_anew_is_told_apart_by_the_generation_of_its_inode(tmp_path: Path) -> None:
    """What the test above needs where inode numbers are given again at once."""
    tree = make(tmp_path / "tree")
    job = remove_tree(tree)
    with mock.patch.object(_root.fcntl, "ioctl", mock.Mock(return_value=b"another")):
        with pytest.raises(OSError, match="another directory") as info:
            run_multithreaded_sync(job)
    assert info.value.errno == errno.ESTALE
    assert whole(tree)
    with mock.patch.object(_root.fcntl, "ioctl", mock.Mock(side_effect=OSError(errno.ENOTTY, ""))):
        job = remove_tree(tree)
        assert run_multithreaded_sync(job).value == Removed(2, 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gone", ["above/tree", "above"])
def test_a_tree_that_was_removed_or_renamed_since_is_gone(
    tmp_path: Path, gone: str, way: dict[str, Any]
) -> None:
    tree = make(tmp_path / "above" / "tree")
    job = remove_tree(tree, **way)
    (tmp_path / gone).rename(tmp_path / "moved")
    assert run_multithreaded_sync(job).value == Removed(0, 0)
    assert whole(tmp_path / ("moved" if gone.endswith("tree") else "moved/tree"))
    # And then the job means what is there when it is run again.
    make(tree)
    assert run_multithreaded_sync(job).value == Removed(2, 2)


def test_a_tree_that_is_not_there_yet_is_removed_where_errors_are_ignored(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    job = remove_tree(tree, ignore_errors=True)
    make(tree)
    assert run_multithreaded_sync(job).value == Removed(2, 2)


def test_a_descriptor_that_is_another_directory_now_removes_nothing(tmp_path: Path) -> None:
    for place in ("a", "b"):
        make(tmp_path / place / "tree")
    (tmp_path / "c").mkdir()
    within = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        job = remove_tree("tree", dir_fd=within)
        for place in ("b", "c"):
            other = os.open(tmp_path / place, os.O_RDONLY)
            os.dup2(other, within)
            os.close(other)
            with pytest.raises(OSError, match="another directory") as info:
                run_multithreaded_sync(job)
            assert (info.value.errno, info.value.filename) == (errno.ESTALE, "tree")
    finally:
        os.close(within)
    assert whole(tmp_path / "a" / "tree")
    assert whole(tmp_path / "b" / "tree")


# the working directory


def test_the_working_directory_may_be_in_the_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make(tmp_path / "tree")
    monkeypatch.chdir(tree / "inner")
    assert run_multithreaded_sync(remove_tree("../../tree")).value == Removed(2, 2)
    assert not tree.exists()
    # It is gone now: nothing begins there any more.
    make(tree / "inner" / "x")
    for way in WAYS:
        with pytest.raises(FileNotFoundError) as info:
            remove_tree("x", **way)
        assert (info.value.errno, info.value.filename) == (errno.ENOENT, "x")
    assert run_multithreaded_sync(remove_tree(tree)).value == Removed(2, 4)


def test_a_closed_directory_is_never_taken_for_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it is to a system call that gets no descriptor, under ``python -O`` too."""
    make(tmp_path / "tree")
    monkeypatch.chdir(make(tmp_path / "precious"))
    tree = _directories.OpenDirectories(one_file_system=True)
    above = tree.above(str(tmp_path / "tree"), None)
    tree.close_all()
    with pytest.raises(RuntimeError, match="closed"):
        tree.open(above, "inner")
