# SPDX-License-Identifier: MIT
# What is mounted inside of a tree is left alone: with real mounts, as root.

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from aioktask import run_multithreaded_sync
from aioktask.files import Removed, _directories, _mounts, _removal, _walk, remove_tree

Mount = Callable[[Path], Path]


@pytest.fixture(params=["tmpfs", "bind"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    """Mounts something with files and directories on a path, and says where its files are told."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    with contextlib.ExitStack() as mounted:

        def on(where: Path) -> Path:
            source = tmp_path / "source"
            source.mkdir()
            how = ["-t", "tmpfs", "none"] if request.param == "tmpfs" else ["--bind", str(source)]
            done = subprocess.run(["mount", *how, where], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"mounting is refused here: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", "--lazy", where], check=True)
            (where / "file").touch()
            (where / "inner" / "deep" / "deeper" / "deepest").mkdir(parents=True)
            (where / "inner" / "deep" / "deeper" / "deepest" / "file").touch()
            return where if request.param == "tmpfs" else source

        yield on


@pytest.fixture(params=["as it is", "small"])
def bounds(request: pytest.FixtureRequest) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if request.param == "small":
            stack.enter_context(mock.patch.multiple(_removal, ENTRIES_A_LOOK=2, NAMES=2))
            stack.enter_context(mock.patch.object(_walk, "SLICE", 1e-6))
            stack.enter_context(mock.patch.object(_directories, "OPEN_LEVELS", 2))
        yield


def tree_with_a_mount_point(tmp_path: Path) -> tuple[Path, Path]:
    tree = tmp_path / "tree"
    where = tree / "a" / "b" / "here"
    where.mkdir(parents=True)
    (tree / "other").mkdir()
    for name in ("a/file", "a/b/file", "other/file"):
        (tree / name).touch()
    return tree, where


def names_in(where: Path) -> set[str]:
    return {str(path.relative_to(where)) for path in where.rglob("*")}


@pytest.mark.usefixtures("bounds")
def test_what_is_mounted_is_left_alone_and_told(tmp_path: Path, mount: Mount) -> None:
    tree, where = tree_with_a_mount_point(tmp_path)
    files = mount(where)
    before = names_in(files)
    assert len(before) == 6
    with pytest.raises(OSError, match="one_file_system") as info:
        run_multithreaded_sync(remove_tree(tree))
    assert (info.value.errno, info.value.filename) == (errno.EBUSY, str(where))
    told: dict[str, int | None] = {}
    job = remove_tree(tree, onexc=lambda f, path, e: told.setdefault(path, e.errno))
    run_multithreaded_sync(job)
    assert told == {
        str(where): errno.EBUSY,
        str(where.parent): errno.ENOTEMPTY,
        str(where.parent.parent): errno.ENOTEMPTY,
        str(tree): errno.ENOTEMPTY,
    }
    assert names_in(tree) - {f"a/b/here/{name}" for name in before} == {"a", "a/b", "a/b/here"}
    run_multithreaded_sync(remove_tree(tree, ignore_errors=True))
    assert names_in(files) == before


@pytest.mark.usefixtures("bounds")
def test_what_is_mounted_is_removed_where_that_is_asked_for(tmp_path: Path, mount: Mount) -> None:
    """Its mount point cannot be, and the way up from it leads back into the tree."""
    tree, where = tree_with_a_mount_point(tmp_path)
    files = mount(where)
    told: list[tuple[str, int | None]] = []
    job = remove_tree(
        tree, one_file_system=False, onexc=lambda f, path, e: told.append((path, e.errno))
    )
    assert run_multithreaded_sync(job).value == Removed(5, 5)
    assert told[0] == (str(where), errno.EBUSY)
    assert names_in(files) == set()
    assert names_in(tree) == {"a", "a/b", "a/b/here"}


def test_a_tree_that_is_a_mount_point_is_refused_at_once(tmp_path: Path, mount: Mount) -> None:
    """Nothing of it is removed then; emptied, it could not be removed either."""
    tree = tmp_path / "tree"
    tree.mkdir()
    late = remove_tree(tree)
    files = mount(tree)
    before = names_in(files)
    with pytest.raises(OSError, match="one_file_system") as info:
        remove_tree(tree)
    assert (info.value.errno, info.value.filename) == (errno.EBUSY, str(tree))
    with pytest.raises(OSError, match="one_file_system") as info:
        run_multithreaded_sync(late)
    assert (info.value.errno, info.value.filename) == (errno.EBUSY, str(tree))
    assert names_in(files) == before
    told: list[tuple[str, int | None]] = []
    job = remove_tree(
        tree, one_file_system=False, onexc=lambda f, path, e: told.append((path, e.errno))
    )
    assert run_multithreaded_sync(job).value == Removed(2, 4)
    assert told == [(str(tree), errno.EBUSY)]
    assert names_in(files) == set()


def test_what_is_mounted_over_what_the_tree_is_in_is_left_alone(
    tmp_path: Path, mount: Mount
) -> None:
    above = tmp_path / "above"
    (above / "inner").mkdir(parents=True)
    job = remove_tree(above / "inner")
    files = mount(above)
    before = names_in(files)
    with pytest.raises(OSError, match="another directory") as info:
        run_multithreaded_sync(job)
    assert (info.value.errno, info.value.filename) == (errno.ESTALE, str(above / "inner"))
    assert names_in(files) == before


def test_the_root_directory_is_never_gone_into(tmp_path: Path, mount: Mount) -> None:
    tree, where = tree_with_a_mount_point(tmp_path)
    files = mount(where)
    before = names_in(files)
    found = where.stat()
    # In its place: the real one would not survive a failure of this test.
    told = mock.Mock(return_value=(found.st_dev, found.st_ino))
    with mock.patch.object(_directories, "_identity_of_the_root_directory", told):
        job = remove_tree(tree, one_file_system=False)
        with pytest.raises(OSError, match="root directory") as info:
            run_multithreaded_sync(job)
    assert (info.value.errno, info.value.filename) == (errno.EBUSY, str(where))
    assert names_in(files) == before
    found = os.stat("/")
    assert _directories._identity_of_the_root_directory() == (found.st_dev, found.st_ino)


def test_a_file_that_is_a_mount_point_is_left_alone_and_told(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    tree, source = tmp_path / "tree", tmp_path / "source"
    tree.mkdir()
    (tree / "file").touch()
    source.write_text("precious")
    subprocess.run(["mount", "--bind", source, tree / "file"], check=True)
    try:
        with pytest.raises(OSError, match="busy") as info:
            run_multithreaded_sync(remove_tree(tree))
        assert (info.value.errno, info.value.filename) == (errno.EBUSY, str(tree / "file"))
        assert source.read_text() == "precious"
    finally:
        subprocess.run(["umount", "--lazy", tree / "file"], check=True)


@pytest.mark.parametrize("refusal", [None, errno.ENOSYS, errno.EPERM])
def test_a_mount_is_noticed_without_statx(
    tmp_path: Path, mount: Mount, refusal: int | None
) -> None:
    """Before Linux 5.8, and in sandboxes that refuse what they do not know."""
    tree, where = tree_with_a_mount_point(tmp_path)
    files = mount(where)
    before = names_in(files)

    def refuse(*arguments: object) -> int:
        assert refusal is not None
        _mounts.ctypes.set_errno(refusal)
        return -1

    with mock.patch.object(_mounts, "_statx", None if refusal is None else refuse):
        with pytest.raises(OSError, match="one_file_system") as info:
            run_multithreaded_sync(remove_tree(tree))
    assert info.value.filename == str(where)
    assert names_in(files) == before


def test_another_device_is_noticed_when_the_kernel_tells_of_no_mounts(tmp_path: Path) -> None:
    tree, where = tree_with_a_mount_point(tmp_path)
    real = _mounts.look

    def told(descriptor: int) -> _mounts.Looked:
        looked = real(descriptor)
        inside = Path(os.readlink(f"/proc/self/fd/{descriptor}")) == where
        return looked._replace(mount=(looked.mount[0] + inside, 0))

    with mock.patch.object(_directories, "look", told):
        with pytest.raises(OSError, match="one_file_system") as info:
            run_multithreaded_sync(remove_tree(tree))
    assert info.value.filename == str(where)
    assert where.exists()


def test_both_ways_to_ask_for_a_mount_agree(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/"), Path("/proc"), Path("/dev")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            looked = _mounts.look(descriptor)
            with mock.patch.object(_mounts, "_statx", None):
                assert _mounts.look(descriptor) == looked
            found = os.fstat(descriptor)
            assert looked.identity == (found.st_dev, found.st_ino)
            assert looked.mount[1] > 0
        finally:
            os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor") as info:
        _mounts.look(descriptor)
    assert info.value.errno == errno.EBADF
