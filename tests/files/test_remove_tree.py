# SPDX-License-Identifier: MIT
# Removing trees: all of it, nothing else, whatever fails, is cancelled, or is swapped in meanwhile.

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioktask import Coordinator, JobCancelled, plan, run_multithreaded, run_multithreaded_sync
from aioktask.files import (
    Removed,
    Tally,
    _branches,
    _directories,
    _removal,
    _walk,
    remove_tree,
)
from tests.support.gates import PATIENCE
from tests.support.open_files import open_files

CALLS = {
    "open": os,
    "scandir": os,
    "unlink": os,
    "rmdir": os,
    "look": _directories,
}

Tree = dict[str, Any]
trees: st.SearchStrategy[Tree] = st.recursive(
    st.dictionaries(st.sampled_from("abcdef"), st.none(), max_size=5),
    lambda inner: st.dictionaries(st.sampled_from("abcdef"), st.none() | inner, max_size=5),
    max_leaves=25,
)


def make(where: Path, tree: Tree) -> None:
    where.mkdir()
    for name, inner in tree.items():
        if inner is None:
            (where / name).write_text(name)
        else:
            make(where / name, inner)


def counts(tree: Tree) -> Removed:
    inner = [counts(each) for each in tree.values() if each is not None]
    files = sum(each is None for each in tree.values()) + sum(each.files for each in inner)
    return Removed(files, 1 + sum(each.directories for each in inner))


def left_in(where: Path) -> Removed:
    """What is there."""
    if not where.exists():
        return Removed(0, 0)
    walked = list(os.walk(where))
    return Removed(sum(len(files) for _, _, files in walked), len(walked))


def descriptors() -> int:
    return len(open_files())


@pytest.fixture
def small() -> Iterator[None]:
    """Bounds so small that every way through the code is taken in a small tree."""
    with (
        mock.patch.multiple(_removal, ENTRIES_A_LOOK=2, NAMES=2),
        mock.patch.multiple(_walk, SLICE=1e-6, TURNS=8, TURNS_OF_A_LENGTH=2),
        mock.patch.object(_directories, "OPEN_LEVELS", 2),
    ):
        yield


def wide(where: Path) -> Removed:
    tree: Tree = {
        f"d{i}": {f"e{j}": dict.fromkeys(map(str, range(i))) for j in range(i)} for i in range(7)
    }
    make(where, tree | {"file": None})
    return counts(tree | {"file": None})


@given(trees, st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_tree_is_removed_and_counted(tmp_path: Path, tree: Tree, threads: int) -> None:
    where = Path(tempfile.mkdtemp(dir=tmp_path), "tree")
    make(where, tree)
    tally = Tally()
    job = remove_tree(where, tally=tally, max_threads=threads)
    assert left_in(where) == counts(tree)
    before = descriptors()
    assert run_multithreaded_sync(job).value == counts(tree)
    assert not where.exists()
    assert descriptors() == before
    assert (tally.files, tally.directories) == (counts(tree).files, counts(tree).directories)


@given(trees, st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_the_same_within_small_bounds(
    tmp_path: Path, small: None, tree: Tree, threads: int
) -> None:
    where = Path(tempfile.mkdtemp(dir=tmp_path), "tree")
    make(where, tree)
    before = descriptors()
    job = remove_tree(where, max_threads=threads)
    assert run_multithreaded_sync(job).value == counts(tree)
    assert not where.exists()
    assert descriptors() == before


@pytest.mark.anyio
async def test_awaited_it_does_the_same(tmp_path: Path) -> None:
    expected = wide(tmp_path / "tree")
    report = await run_multithreaded(remove_tree(tmp_path / "tree"))
    assert report.value == expected
    assert not (tmp_path / "tree").exists()


def test_a_chain_deeper_than_python_may_recurse_and_than_files_may_be_open(
    tmp_path: Path,
) -> None:
    depth = 3000
    where = tmp_path / "tree"
    where.mkdir()
    descriptor = os.open(where, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    most = 0
    real = os.open

    def counted(*arguments: Any, **options: Any) -> int:
        nonlocal most
        opened = real(*arguments, **options)
        most = max(most, opened)
        return opened

    before = descriptors()
    try:
        with mock.patch.object(os, "open", counted):
            report = run_multithreaded_sync(remove_tree(where))
        assert report.value == Removed(1, depth + 1)
        assert most < before + 200
        assert not where.exists()
    finally:
        subprocess.run(["rm", "-rf", where], check=True)  # pytest's own cleaning would recurse


def test_helpers_share_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two helpers meet within the removal of different directories."""
    if plan(remove_tree(tmp_path)).threads < 2:
        pytest.skip("this process may use one thread only")
    make(tmp_path / "tree", {f"d{i}": {"x": {"f": None}, "y": {"f": None}} for i in range(9)})
    meet = threading.Barrier(2, timeout=PATIENCE)
    real, met = os.unlink, threading.local()
    first_branch = _walk.Walk._first_branch

    def when_another_is_there(walk: Any) -> Any:
        with walk._branches._changed:
            while not walk._branches._hungry:
                walk._branches._changed.wait(0.001)
        return first_branch(walk)

    def unlink(*arguments: Any, **options: Any) -> None:
        if not hasattr(met, "once"):
            met.once = True
            meet.wait()
        real(*arguments, **options)

    monkeypatch.setattr(_walk.Walk, "_first_branch", when_another_is_there)
    monkeypatch.setattr(_removal, "ENTRIES_A_LOOK", 1)
    monkeypatch.setattr(os, "unlink", unlink)
    report = run_multithreaded_sync(remove_tree(tmp_path / "tree", max_threads=2))
    assert report.value == Removed(18, 28)
    assert report.peak_threads == 2


def test_the_last_turn_goes_on_to_the_end_of_all_branches(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of those that were given away and that nobody else comes for."""
    expected = wide(tmp_path / "tree")
    create = _branches.Branches.__init__

    def with_two_that_want_work(branches: Any, *arguments: Any) -> None:
        create(branches, *arguments)
        branches._hungry = 2

    monkeypatch.setattr(_branches.Branches, "__init__", with_two_that_want_work)
    job = remove_tree(tmp_path / "tree", max_threads=1)
    assert run_multithreaded_sync(job).value == expected
    assert not (tmp_path / "tree").exists()


def test_many_short_branches_do_not_use_up_the_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn lasts as long as it should, however little there is in each branch."""
    make(tmp_path / "tree", {f"d{i}": {"x": {}} for i in range(50)})
    taken, turns = [], []
    take, work = _branches.Branches.take, _walk.Walk.turns

    def one_more_is_hungry(branches: Any, deadline: float) -> Any:
        branch = take(branches, deadline)
        branches._hungry = 1
        taken.append(branch is not None)
        return branch

    def turn(walk: Any, start: int, stop: int) -> None:
        if not walk._branches.ended:
            turns.append(start)
        work(walk, start, stop)

    monkeypatch.setattr(_walk, "SLICE", PATIENCE)
    monkeypatch.setattr(_removal, "ENTRIES_A_LOOK", 1)
    monkeypatch.setattr(_branches.Branches, "take", one_more_is_hungry)
    monkeypatch.setattr(_walk.Walk, "turns", turn)
    job = remove_tree(tmp_path / "tree", max_threads=1)
    assert run_multithreaded_sync(job).value == Removed(0, 101)
    assert sum(taken) > 2
    assert turns == [0]


def test_links_and_special_files_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    make(outside, {"a": {"b": None}})
    tree = tmp_path / "tree"
    make(tree, {"d": {}})
    (tree / "link").symlink_to(outside)
    (tree / "d" / "up").symlink_to("..")
    (tree / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    assert run_multithreaded_sync(remove_tree(tree)).value == Removed(4, 2)
    assert left_in(outside) == Removed(1, 2)


@pytest.mark.parametrize("look", [1, 256])
def test_a_link_that_is_swapped_in_meanwhile_leads_nowhere(tmp_path: Path, look: int) -> None:
    outside = tmp_path / "outside"
    make(outside, {"a": {"b": None}, "c": None})
    tree = tmp_path / "tree"
    make(tree, {"d": {"e": {"f": None}}, "g": {"h": None}})
    real = os.open
    swapped = []

    def swap(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if path in ("d", "g", "e"):  # it has been seen to be a directory
            inside = Path(os.readlink(f"/proc/self/fd/{options['dir_fd']}")) / path
            shutil.move(inside, tmp_path / f"moved-{path}")
            inside.symlink_to(outside)
            swapped.append(path)
        return real(path, flags, *rest, **options)

    errors: list[OSError] = []
    with mock.patch.multiple(_removal, ENTRIES_A_LOOK=look):
        with mock.patch.object(os, "open", swap):
            job = remove_tree(tree, onexc=lambda f, p, e: errors.append(e), max_threads=1)
            run_multithreaded_sync(job)
    assert swapped
    assert {error.errno for error in errors} <= {errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY}
    assert left_in(outside) == Removed(2, 2)


def test_a_link_in_the_place_of_a_directory_above_leads_nowhere(tmp_path: Path) -> None:
    """Not even an empty directory of the root's name is removed elsewhere."""
    above, outside = tmp_path / "above", tmp_path / "outside"
    above.mkdir()
    make(above / "tree", {"f": None})
    make(outside, {"tree": {}})
    real = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        real(path, **options)
        above.rename(tmp_path / "moved")
        above.symlink_to(outside)

    with mock.patch.object(os, "unlink", unlink):
        job = remove_tree(above / "tree", max_threads=1)
        assert run_multithreaded_sync(job).value == Removed(1, 1)
    assert left_in(outside) == Removed(0, 2)
    assert not (tmp_path / "moved" / "tree").exists()


def test_a_path_may_be_relative_to_an_open_directory_and_end_in_slashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "above").mkdir()
    within = os.open(tmp_path / "above", os.O_RDONLY)
    try:
        for path in ("tree", "tree//", "./tree"):
            make(tmp_path / "above" / "tree", {"a": {"f": None}})
            job = remove_tree(path, dir_fd=within)
            assert run_multithreaded_sync(job).value == Removed(1, 2)
            assert not (tmp_path / "above" / "tree").exists()
        with pytest.raises(FileNotFoundError) as info:
            remove_tree("tree/", dir_fd=within)
        assert info.value.filename == "tree/"
    finally:
        os.close(within)
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "tree", {"f": None})
    assert run_multithreaded_sync(remove_tree("tree/")).value == Removed(1, 1)


def test_a_directory_that_was_moved_away_is_not_gone_up_from(tmp_path: Path, small: None) -> None:
    """Its ".." is outside of the tree then."""
    tree, other = tmp_path / "tree", tmp_path / "other"
    make(tree, {"1": {"2": {"3": {"4": {"5": {"f": None}}}}}})
    make(other, {"keep": None})
    real = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        real(path, **options)
        os.rename(tree / "1" / "2" / "3", other / "3")

    with mock.patch.object(os, "unlink", unlink):
        with pytest.raises(OSError, match="moved") as info:
            run_multithreaded_sync(remove_tree(tree, ignore_errors=True, max_threads=1))
    assert info.value.errno == errno.ESTALE
    assert (other / "keep").exists()


# what fails


def failing(
    at: int, number: int, names: Iterable[str] = CALLS
) -> tuple[Callable[[], AbstractContextManager[None]], list[str]]:
    """The calls of the module, replaced by ones of which the one with this number fails."""
    lock = threading.Lock()
    made: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(CALLS[name], name)

        def call(*arguments: Any, **options: Any) -> Any:
            with lock:
                made.append(name)
                fails = len(made) == at
            if fails:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        return call

    return functools.partial(replaced, {name: wrap(name) for name in names}), made


@contextlib.contextmanager
def replaced(calls: dict[str, Callable[..., Any]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, call in calls.items():
            stack.enter_context(mock.patch.object(CALLS[name], name, call))
        yield


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EINTR])
@pytest.mark.parametrize("look", [1, 256])
def test_any_call_may_fail_and_the_tally_tells_what_is_gone(
    tmp_path: Path, look: int, number: int
) -> None:
    tree = {"a": {"b": {"c": None, "d": None}, "e": None}, "f": {"g": None}, "h": None}
    calls, made = failing(0, 0)
    where = tmp_path / "tree"
    make(where, tree)
    with mock.patch.multiple(_removal, ENTRIES_A_LOOK=look):
        job = remove_tree(where, max_threads=2)
        with calls():
            run_multithreaded_sync(job)
        assert len(made) > 12
        before = descriptors()
        for at in range(1, len(made) + 1):
            make(where, tree)
            calls, again = failing(at, number)
            tally = Tally()
            error = None
            job = remove_tree(where, tally=tally, max_threads=2)
            with calls():
                try:
                    run_multithreaded_sync(job)
                except OSError as raised:
                    error = raised
            if error is None:  # with another division of the work there are a few calls less
                assert len(again) < at
                assert not where.exists()
                continue
            assert error.errno == number
            path = Path(error.filename)
            assert path == where or where in path.parents
            left = left_in(where)
            assert tally.files == counts(tree).files - left.files
            assert tally.directories == counts(tree).directories - left.directories
            gone = f"{tally.files} files and {tally.directories} directories had been removed"
            assert any(gone in note for note in error.__notes__)
            assert descriptors() == before
            # And what is left can be removed.
            run_multithreaded_sync(remove_tree(where))


@pytest.mark.parametrize("look", [1, 256])
def test_with_onexc_it_goes_on_and_tells_each_error_once(tmp_path: Path, look: int) -> None:
    tree = {"a": {"b": {"c": None, "d": None}, "e": None}, "f": {"g": None}, "h": None}
    where = tmp_path / "tree"
    real = os.unlink

    def unlink(path: str, **options: Any) -> None:
        if path in "ceh":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(path, **options)

    told: list[tuple[str, str, int | None]] = []
    make(where, tree)
    with mock.patch.multiple(_removal, ENTRIES_A_LOOK=look):
        with mock.patch.object(os, "unlink", unlink):
            job = remove_tree(
                where, onexc=lambda f, p, e: told.append((f.__name__, p, e.errno)), max_threads=2
            )
            assert run_multithreaded_sync(job).value == Removed(2, 1)
    assert left_in(where) == Removed(3, 3)
    refused = [(path, number) for name, path, number in told if name == "unlink"]
    assert sorted(refused) == [(str(where / path), errno.EPERM) for path in ("a/b/c", "a/e", "h")]
    not_empty = [path for name, path, number in told if name == "rmdir"]
    assert sorted(not_empty) == [str(where), str(where / "a"), str(where / "a" / "b")]
    run_multithreaded_sync(remove_tree(where, ignore_errors=True))
    assert not where.exists()


def test_what_onexc_raises_ends_it(tmp_path: Path) -> None:
    make(tmp_path / "tree", {"a": {"b": None}})

    def onexc(function: object, path: str, error: OSError) -> None:
        raise ZeroDivisionError

    calls, _ = failing(4, errno.EIO)
    job = remove_tree(tmp_path / "tree", onexc=onexc)
    with calls(), pytest.raises(ZeroDivisionError):
        run_multithreaded_sync(job)


def test_an_onexc_that_only_makes_a_coroutine_ends_it(tmp_path: Path) -> None:
    make(tmp_path / "tree", {"a": {"b": None}})

    async def tell(path: str) -> None:
        raise AssertionError(f"nobody awaits it: {path}")

    calls, _ = failing(4, errno.EIO)
    job = remove_tree(tmp_path / "tree", onexc=lambda function, path, error: tell(path))
    with calls(), pytest.raises(TypeError, match=r"onexc of the job 'files\.remove_tree' returned"):
        run_multithreaded_sync(job)


def test_what_onexc_raises_may_refuse_notes(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):  # noqa: N818
        what: str

    make(tmp_path / "tree", {"a": {"b": None}})

    def onexc(function: object, path: str, error: OSError) -> None:
        raise Frozen("planted")

    calls, _ = failing(4, errno.EIO)
    job = remove_tree(tmp_path / "tree", onexc=onexc)
    with calls(), pytest.raises(Frozen, match="planted"):
        run_multithreaded_sync(job)


def test_what_vanishes_meanwhile_is_no_error(tmp_path: Path) -> None:
    expected = wide(tmp_path / "tree")
    for at in range(2, 60):
        if not (tmp_path / "tree").exists():
            wide(tmp_path / "tree")
        calls, _ = failing(at, errno.ENOENT, ("open", "scandir", "unlink", "rmdir"))
        job = remove_tree(tmp_path / "tree", onexc=lambda f, p, e: None, max_threads=1)
        with calls():
            run_multithreaded_sync(job)
    assert expected.files > 50


@pytest.mark.parametrize("look", [1, 256])
def test_the_whole_tree_may_vanish_before_any_call(tmp_path: Path, look: int) -> None:
    """Another program removes it too: then it is gone, which is what was asked for."""
    where = tmp_path / "tree"
    calls = {name: getattr(module, name) for name, module in CALLS.items()}
    gone = True
    at = 1
    before = descriptors()
    while gone:
        make(where, {"a": {"b": {"c": None, "d": None}, "e": None}, "f": {"g": None}, "h": None})
        job = remove_tree(where, max_threads=1)
        made: list[str] = []
        gone = False

        def call(name: str, *arguments: Any, at: int = at, **options: Any) -> Any:
            nonlocal gone
            made.append(name)  # noqa: B023 - called in this turn of the loop only
            if len(made) == at:  # noqa: B023
                shutil.rmtree(where)
                gone = True
            return calls[name](*arguments, **options)

        vanishing = {name: functools.partial(call, name) for name in CALLS}
        with mock.patch.multiple(_removal, ENTRIES_A_LOOK=look):
            with replaced(vanishing):
                run_multithreaded_sync(job)
        assert not where.exists()
        assert descriptors() == before
        at += 1
    assert at > 20


def before_call(at: int, action: Callable[[], object]) -> Callable[..., None]:
    """`os.unlink`, with something done before the call of this number."""
    lock, made = threading.Lock(), []
    real = os.unlink

    def unlink(*arguments: Any, **options: Any) -> None:
        with lock:
            made.append(arguments)
            now = len(made) == at
        if now:
            action()
        real(*arguments, **options)

    return unlink


@pytest.mark.anyio
async def test_a_cancel_at_any_call_stops_it_and_the_tally_tells_what_is_gone(
    tmp_path: Path,
) -> None:
    where = tmp_path / "tree"
    before = descriptors()
    token = anyio.lowlevel.current_token()
    for at in range(1, 40, 3):
        expected = wide(where)
        tally = Tally()
        with anyio.CancelScope() as scope:
            cancels = functools.partial(anyio.from_thread.run_sync, scope.cancel, token=token)
            with mock.patch.object(os, "unlink", before_call(at, cancels)):
                job = remove_tree(where, tally=tally, max_threads=2)
                await run_multithreaded(job)
        left = left_in(where)
        assert tally.files == expected.files - left.files
        assert tally.directories == expected.directories - left.directories
        del job
        shutil.rmtree(where, ignore_errors=True)
    assert descriptors() == before


@pytest.mark.anyio
async def test_a_cancel_before_any_turn_stops_it(tmp_path: Path, small: None) -> None:
    """Between turns nobody is at work who could close what is open."""
    where = tmp_path / "tree"
    before = descriptors()
    token = anyio.lowlevel.current_token()
    work = _walk.Walk.turns
    stopped = 0
    for at in range(_walk.TURNS):
        expected = wide(where)
        tally = Tally()

        def turn(walk: Any, start: int, stop: int, at: int = at, **_: Any) -> None:
            if start == at:
                anyio.from_thread.run_sync(scope.cancel, token=token)
            work(walk, start, stop)

        with anyio.CancelScope() as scope:
            with mock.patch.object(_walk.Walk, "turns", turn):
                await run_multithreaded(remove_tree(where, tally=tally, max_threads=2))
        stopped += scope.cancelled_caught
        left = left_in(where)
        assert tally.files == expected.files - left.files
        assert tally.directories == expected.directories - left.directories
        assert descriptors() == before
        shutil.rmtree(where, ignore_errors=True)
    assert stopped > 1


def test_what_is_added_meanwhile_is_an_error_and_stays(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make(tree, {"a": {"f": None}})
    real = os.rmdir

    def rmdir(path: Any, **options: Any) -> None:
        (tree / "a" / "late").touch()
        real(path, **options)

    with mock.patch.object(os, "rmdir", rmdir):
        with pytest.raises(OSError, match="not empty") as info:
            run_multithreaded_sync(remove_tree(tree))
    assert info.value.errno == errno.ENOTEMPTY
    assert info.value.filename == str(tree / "a")
    assert (tree / "a" / "late").exists()


@pytest.mark.anyio
async def test_a_handle_that_is_cancelled_ends_it(tmp_path: Path) -> None:
    wide(tmp_path / "tree")
    async with Coordinator() as coordinator:
        handle = coordinator.submit(remove_tree(tmp_path / "tree"))
        handle.cancel()
        with contextlib.suppress(JobCancelled):
            await handle


# what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": 5}, TypeError, "int"),
        ({"path": b"tree"}, TypeError, "path must be a string"),
        ({"path": "tree", "onexc": 5}, TypeError, "onexc"),
        ({"path": "tree", "onexc": print, "ignore_errors": True}, TypeError, "not both"),
        ({"path": "tree", "tally": 5}, TypeError, "Tally"),
        ({"path": "tree", "nice": 99}, ValueError, "nice"),
        ({"path": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"path": "file"}, NotADirectoryError, "file"),
        ({"path": "link"}, OSError, "link"),
        ({"path": "link/"}, OSError, "link/"),
        ({"path": "tree", "dir_fd": -1}, ValueError, "dir_fd"),
    ],
)
def test_nonsense_is_refused_when_the_job_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "tree", {"a": None})
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("tree")
    with pytest.raises(error, match=message):
        remove_tree(**arguments)
    assert left_in(tmp_path / "tree") == Removed(1, 1)


@pytest.mark.parametrize("ignores", [{"ignore_errors": True}, {"onexc": lambda f, p, e: None}])
def test_the_empty_path_is_no_directory_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignores: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "precious", {"a": {"b": None}})
    with pytest.raises(FileNotFoundError) as info:
        remove_tree("")
    assert (info.value.errno, info.value.filename) == (errno.ENOENT, "")
    assert run_multithreaded_sync(remove_tree("", **ignores)).value == Removed(0, 0)
    within = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileNotFoundError):
            remove_tree("", dir_fd=within)
        job = remove_tree("", dir_fd=within, **ignores)
        assert run_multithreaded_sync(job).value == Removed(0, 0)
    finally:
        os.close(within)
    assert left_in(tmp_path) == Removed(1, 3)


def test_ignored_errors_may_be_that_nothing_is_there(tmp_path: Path) -> None:
    job = remove_tree(tmp_path / "nowhere", ignore_errors=True)
    assert run_multithreaded_sync(job).value == Removed(0, 0)
    told: list[OSError] = []
    job = remove_tree(tmp_path / "nowhere", onexc=lambda f, p, e: told.append(e))
    run_multithreaded_sync(job)
    assert [error.errno for error in told] == [errno.ENOENT]


def test_a_job_may_be_run_again(tmp_path: Path) -> None:
    make(tmp_path / "tree", {"a": None})
    job = remove_tree(tmp_path / "tree")
    assert run_multithreaded_sync(job).value == Removed(1, 1)
    with pytest.raises(FileNotFoundError):
        run_multithreaded_sync(job)
    make(tmp_path / "tree", {"a": None, "b": {}})
    assert run_multithreaded_sync(job).value == Removed(1, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_an_unwritable_directory_is_an_error_with_its_whole_path() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o777)
        where = Path(open_to_all, "tree")
        make(where, {"a": {"b": None}})
        (where / "a").chmod(stat.S_IRUSR | stat.S_IXUSR)
        for each in (where, where / "a", where / "a" / "b"):
            os.chown(each, 65534, 65534)
        job = remove_tree(where, max_threads=1)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as info:
                # Taking part, this thread alone is somebody else now.
                run_multithreaded_sync(job)
        finally:
            os.seteuid(0)
    assert info.value.filename == str(where / "a" / "b")
