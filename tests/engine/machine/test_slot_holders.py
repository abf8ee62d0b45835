# SPDX-License-Identifier: MIT
# Who holds slots, as the kernel tells it of real processes, and of what it may tell.

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aioktask.engine.machine.slot_holders import holders_of
from aioktask.engine.machine.slots import CPU_LIMIT, Slots

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fdinfo").is_dir(), reason="the system tells of no locks (/proc)"
)

HOLDER = """
import sys, time
from aioktask.engine.machine.slots import Slots
slots = Slots(sys.argv[1])
slots.look(frozenset(range(int(sys.argv[2]), int(sys.argv[3]))), 8, time.monotonic_ns())
print(slots.held, flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(path: Path, first: int, stop: int) -> Iterator[int]:
    """Another process that holds these slots, and its number."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(first), str(stop)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == stop - first
        yield child.pid
    finally:
        child.communicate()


def test_each_process_is_told_with_how_many_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    assert holders_of(path) == ()
    slots = Slots(path)
    assert holders_of(path) == ()  # it has the file open, and holds none
    with holder(path, 0, 2) as one, holder(path, 2, 5) as other:
        slots.look(frozenset([7]), 1, 0)
        expected = {(one, 2), (other, 3), (os.getpid(), 1)}
        assert set(holders_of(path)) == expected
        assert list(holders_of(path)) == sorted(expected)
        slots.release()
        assert set(holders_of(path)) == {(one, 2), (other, 3)}
    assert holders_of(path) == ()
    slots.close()


def test_a_set_is_known_by_any_name_of_its_folder(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    slots = Slots(tmp_path / "link" / "slots")
    slots.look(frozenset([0]), 1, 0)
    assert holders_of(real / "slots") == holders_of(slots.path) == ((os.getpid(), 1),)
    slots.close()


def _proc(tmp_path: Path, lines: list[str]) -> Path:
    """A folder as the kernel's, with one process that has a file open with these locks."""
    process = tmp_path / "proc" / "17"
    for each in ("fd", "fdinfo"):
        (process / each).mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir()
    (process / "fd" / "3").symlink_to(tmp_path / "slots")
    (process / "fd" / "4").symlink_to(tmp_path / "another")
    for descriptor in ("3", "4"):
        told = "".join(f"lock:\t{each}\n" for each in lines)
        (process / "fdinfo" / descriptor).write_text(f"pos:\t0\nflags:\t02\n{told}")
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("lock", "held"),
    [
        ("1: OFDLCK  ADVISORY  WRITE -1 00:19:1234 0 1", 2),
        ("1: OFDLCK  ADVISORY  WRITE -1 00:19:1234 5 5", 1),
        (f"1: OFDLCK  ADVISORY  WRITE -1 00:19:1234 {2 * CPU_LIMIT} {2 * CPU_LIMIT + 3}", 0),
        ("1: OFDLCK  ADVISORY  WRITE -1 00:19:1234 0 EOF", 0),  # no lock of ours
        ("1: POSIX  ADVISORY  WRITE 17 00:19:1234 0 1", 0),
        ("nonsense", 0),
    ],
)
def test_locks_on_slots_alone_count(tmp_path: Path, lock: str, held: int) -> None:
    proc = _proc(tmp_path, [lock, lock])
    expected = ((17, 2 * held),) if held else ()
    assert holders_of(tmp_path / "slots", str(proc)) == expected


def test_what_cannot_be_looked_at_is_left_out(tmp_path: Path) -> None:
    proc = _proc(tmp_path, ["1: OFDLCK  ADVISORY  WRITE -1 00:19:1234 0 1"])
    (proc / "18").mkdir()  # it has ended meanwhile
    (proc / "19" / "fd").mkdir(parents=True)
    (proc / "19" / "fd" / "3").symlink_to(tmp_path / "slots")
    (proc / "20").write_text("no folder")
    assert holders_of(tmp_path / "slots", str(proc)) == ((17, 2),)
    assert holders_of(tmp_path / "slots", str(tmp_path / "nowhere")) == ()
