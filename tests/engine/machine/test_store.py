# SPDX-License-Identifier: MIT
# A directory of small files: what may be in it, who may have made it, and what a writer leaves that
# is killed or has no room.

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aioktask
from aioktask.engine.machine import store
from tests.memory.filesystems import mounted

pytestmark = pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="openat(2) and friends")

ROOT = os.geteuid() == 0 if hasattr(os, "geteuid") else False
as_root = pytest.mark.skipif(not ROOT, reason="root, for chown and mount")
NOBODY = 65534
NAME = "a.json"
MOST = 100


def errno_is(error: int) -> Any:
    return pytest.raises(OSError, match=rf"^\[Errno {error}\] ")


def refused(error: int, path: Path, **how: bool) -> OSError:
    with errno_is(error) as caught, store.opened(str(path), **how):
        pass
    return caught.value


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir(0o700)
    return made


def put(directory: Path, data: bytes, name: str = NAME) -> None:
    with store.opened(str(directory)) as opened:
        store.write(opened, name, data)


def got(directory: Path, name: str = NAME) -> bytes | None:
    with store.opened(str(directory)) as opened:
        return store.read(opened, name, MOST)


def test_what_was_written_is_read_and_the_last_writer_holds(directory: Path) -> None:
    assert got(directory) is None
    for data in (b"one", b"", b"two"):
        put(directory, data)
        assert got(directory) == data
    assert os.listdir(directory) == [NAME]
    assert (directory / NAME).stat().st_mode & 0o777 == 0o600


def test_of_a_long_file_little_is_read(directory: Path) -> None:
    (directory / NAME).write_bytes(b"x" * 10 * MOST)
    found = got(directory)
    assert found is not None
    assert len(found) == MOST + 1


def test_a_directory_is_made_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    refused(errno.ENOENT, path)
    with store.opened(str(path), make=True), store.opened(str(path), make=True):
        pass
    assert [each.stat().st_mode & 0o777 for each in (path, *path.parents[:2])] == [0o700] * 3


def test_a_directory_that_others_may_write_to_is_not_used(directory: Path) -> None:
    for mode in (0o770, 0o707, 0o777, 0o1777):
        directory.chmod(mode)
        assert "others may write" in str(refused(errno.EPERM, directory))
        assert "others may write" in str(refused(errno.EPERM, directory, make=True))
    directory.chmod(0o755)
    put(directory, b"one")


def test_symlinks_are_not_followed(tmp_path: Path, directory: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(directory)
    assert "symlink" in str(refused(errno.ELOOP, link))
    assert "symlink" in str(refused(errno.ELOOP, link, make=True))
    with errno_is(errno.ELOOP), store.opened(f"{link}/"):
        pass
    with store.opened(f"{directory}//"):
        pass
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    (directory / NAME).symlink_to(other)
    with errno_is(errno.ELOOP):
        got(directory)
    put(directory, b"one")  # in place of the symlink
    assert got(directory) == b"one"
    assert other.read_bytes() == b"mine"


@as_root
def test_root_makes_nothing_behind_a_symlink_of_a_users(tmp_path: Path) -> None:
    roots = tmp_path / "roots"
    roots.mkdir(0o700)
    link = tmp_path / "cache"
    link.symlink_to(roots)
    os.lchown(link, NOBODY, NOBODY)
    refused(errno.EPERM, link / "aioktask", make=True)
    assert not os.listdir(roots)


def test_a_directory_with_a_name_of_ours_stays_and_ends_no_tidying(directory: Path) -> None:
    for name in (".aioktask-0", "0.json", "1.json", "2.json"):
        (directory / name).mkdir() if name != "2.json" else (directory / name).touch()
        os.utime(directory / name, (0, 0))
    with store.opened(str(directory)) as opened:
        store.tidy(opened, lambda name: name.endswith(".json"), 0, 1.0)
        store.tidy(opened, lambda name: name.endswith(".json"), 0, float("inf"))
    assert sorted(os.listdir(directory)) == [".aioktask-0", "0.json", "1.json"]


def test_what_is_no_regular_file_is_not_read_and_nobody_waits_for_it(directory: Path) -> None:
    os.mkfifo(directory / NAME, 0o600)
    with pytest.raises(OSError, match="no regular file"):
        got(directory)
    (directory / "d.json").mkdir()
    with pytest.raises(OSError, match="no regular file"):
        got(directory, "d.json")
    with errno_is(errno.EISDIR) as caught:
        put(directory, b"one", "d.json")
    assert caught.value.filename == "d.json"
    assert sorted(os.listdir(directory)) == [NAME, "d.json"]


def test_a_file_that_others_may_write_to_is_not_read(directory: Path) -> None:
    put(directory, b"one")
    (directory / NAME).chmod(0o620)
    with pytest.raises(PermissionError, match="others may write"):
        got(directory)


def test_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    refused(errno.ENOTDIR, file)
    refused(errno.ENOTDIR, file, make=True)
    refused(errno.ENOTDIR, file / "below", make=True)


@as_root
def test_another_user_s_directory_and_files_are_not_used(directory: Path) -> None:
    put(directory, b"one")
    os.chown(directory / NAME, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="belongs to user 65534, and this is user 0"):
        got(directory)
    os.chown(directory, NOBODY, NOBODY)
    assert "belongs to user 65534" in str(refused(errno.EPERM, directory))
    # Root makes nothing in there, where it would be in the owner's way.
    refused(errno.EPERM, directory / "below", make=True)
    assert os.listdir(directory) == [NAME]


@as_root
def test_a_user_does_not_use_root_s_and_may_be_refused_all(tmp_path: Path) -> None:
    program = """
        import os, sys
        from aioktask.engine.machine import store
        os.setgid(65534); os.setuid(65534)
        for path in sys.argv[1:]:
            try:
                with store.opened(path, make=True) as directory:
                    store.write(directory, "a.json", b"one")
                    print(store.read(directory, "a.json", 10))
            except OSError as error:
                print(error.errno)
    """
    roots, closed, own = (tmp_path / name for name in ("roots", "closed", "own"))
    for each in (roots, closed, own):
        each.mkdir(0o755)
    closed.chmod(0o700)
    os.chown(own, NOBODY, NOBODY)
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == 0 and each.stat().st_mode & 0o007 == 0:
            each.chmod(each.stat().st_mode | 0o011)
    paths = [roots, roots / "below", closed / "below", own, own / "below"]
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(aioktask.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    one = "b'one'"
    refusal = str(errno.EACCES)
    assert ended.stdout.split() == [str(errno.EPERM), refusal, refusal, one, one]


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one page."""
    with mounted("tmpfs", tmp_path, "size=4k,mode=700") as place:
        yield place


@as_root
def test_where_there_is_no_room_the_old_file_stays_and_nothing_else_does(tiny: Path) -> None:
    put(tiny, b"one")
    with errno_is(errno.ENOSPC):
        put(tiny, b"x" * 8192)
    assert got(tiny) == b"one"
    assert os.listdir(tiny) == [NAME]


@as_root
def test_a_read_only_file_system_is_read(tiny: Path) -> None:
    put(tiny, b"one")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
    assert got(tiny) == b"one"
    with errno_is(errno.EROFS):
        put(tiny, b"two")
    refused(errno.EROFS, tiny / "below", make=True)


KILLED = """
    import os, sys
    from aioktask.engine.machine import store

    number = int(sys.argv[2])
    data = (b"%d" % number) * 50
    print("writes", flush=True)
    while True:
        with store.opened(sys.argv[1]) as directory:
            store.write(directory, "a.json", data)
"""


def test_twenty_writers_that_are_killed_leave_one_whole_file(directory: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(directory), str(number)],
            env={**os.environ, "PYTHONPATH": str(Path(aioktask.__file__).parents[1])},
            stdout=subprocess.PIPE,
        )
        for number in range(10, 30)
    ]
    whole = {str(number).encode() * 50 for number in range(10, 30)}
    looks = 0
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        found = got(directory)
        assert found is None or found in whole
        looks += found is not None
        # In whatever line it is, with those that come after it still to begin or in the middle.
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        found = got(directory)
        assert found is None or found in whole
        looks += found is not None
    assert looks
    left = [name for name in os.listdir(directory) if name != NAME]
    assert all(name.startswith(".aioktask-") for name in left)
    for name in left:
        os.utime(directory / name, (0, 0))
    with store.opened(str(directory)) as opened:
        store.tidy(opened, lambda name: name == NAME, 10, 3600.0)
    assert os.listdir(directory) == [NAME]


def test_what_is_old_or_too_much_goes_and_other_files_stay(directory: Path) -> None:
    for number in range(10):
        put(directory, b"", f"{number}.json")
    now = (directory / "0.json").stat().st_mtime
    for number in range(10):
        os.utime(directory / f"{number}.json", (0, now - 10 * number))
    for name in ("notes.txt", ".aioktask-1-new", ".aioktask-1-old"):
        (directory / name).touch()
    for name in ("notes.txt", ".aioktask-1-old"):
        os.utime(directory / name, (0, 0))
    with store.opened(str(directory)) as opened:
        store.tidy(opened, lambda name: name.endswith(".json"), 4, 55.0)
    kept = [f"{number}.json" for number in range(4)]
    assert sorted(os.listdir(directory)) == sorted([*kept, "notes.txt", ".aioktask-1-new"])
    with store.opened(str(directory)) as opened:
        store.tidy(opened, lambda name: name.endswith(".json"), 4, 25.0)
    assert sorted(os.listdir(directory)) == sorted([*kept[:3], "notes.txt", ".aioktask-1-new"])


def test_where_the_user_s_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.default_directory() == str(tmp_path / "aioktask")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert store.default_directory() == str(tmp_path / ".cache" / "aioktask")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(FileNotFoundError, match="no home directory"):
        store.default_directory()
