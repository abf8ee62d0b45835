# SPDX-License-Identifier: MIT
"""What is left of memory, and who waits for it: trees made after real ones, then this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.machine import available_memory
from aioktask.engine.machine.available_memory import AvailableMemory, MemoryLimit, MemoryWatch

CGROUP = "sys/fs/cgroup"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
MIB = 1 << 20
SECOND = 1_000_000_000
UNLIMITED_V1 = (1 << 63) - 4096


def tree(root: Path, files: Mapping[str, str | int]) -> Path:
    """A root directory with these files."""
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n" if isinstance(text, int) else text)
    return root


def meminfo(available: int, total: int = 64_000) -> dict[str, str | int]:
    """The machine, in MiB."""
    lines = {"MemTotal": total, "MemFree": available // 2, "MemAvailable": available}
    text = "".join(f"{name + ':':<16}{size << 10:>8} kB\n" for name, size in lines.items())
    return {"proc/meminfo": text + "HugePages_Total:       0\n"}


def v2(own: str = "/", **groups: Mapping[str, str | int]) -> dict[str, str | int]:
    """A process in the cgroup `own` of v2, and files of cgroups by the names of these."""
    files: dict[str, str | int] = {
        "proc/self/cgroup": f"0::{own}\n",
        "proc/self/mountinfo": V2_MOUNT,
        **meminfo(50_000),
    }
    for name, group in groups.items():
        place = "" if name == "root" else f"/{name.replace('_', '/')}"
        files |= {f"{CGROUP}{place}/memory.{file}": text for file, text in group.items()}
    return files


def stat(**pages: int) -> str:
    return "anon 12345\nfile 99999999\n" + "".join(f"{name} {n}\n" for name, n in pages.items())


def look(root: Path, files: Mapping[str, str | int]) -> AvailableMemory:
    found = MemoryWatch(tree(root, files)).look(SECOND)
    assert found is not None
    return found


def least(found: AvailableMemory | None) -> MemoryLimit:
    """The limit of which the least is left."""
    assert found is not None
    return min(found.limits, key=lambda limit: limit.left)


# What is left.


def test_without_a_limit_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    found = look(tmp_path, v2(root={}))
    machine = MemoryLimit(str(tmp_path / "proc/meminfo"), 50_000 * MIB, 64_000 * MIB)
    assert found == AvailableMemory((machine,), pressed=False)


def test_of_the_page_cache_counts_what_can_be_taken_back_at_once(tmp_path: Path) -> None:
    """Not shared memory, which is in `file` but in no list of files; not what is dirty."""
    group = {
        "max": 1000 * MIB,
        "high": "max\n",
        "current": 900 * MIB,
        "stat": stat(
            shmem=300 * MIB,
            inactive_file=200 * MIB,
            active_file=50 * MIB,
            inactive_anon=400 * MIB,
            unevictable=10 * MIB,
            file_dirty=30 * MIB,
            file_writeback=5 * MIB,
        ),
    }
    found = least(look(tmp_path, v2("/app", app=group)))
    assert found.left == (100 + 200 + 50 - 30 - 5) * MIB
    assert found.source.endswith("/app/memory.max")


def test_the_tightest_limit_on_the_path_decides_and_high_is_one(tmp_path: Path) -> None:
    free = {"max": "max", "high": "max", "current": 0, "stat": ""}
    files = v2(
        "/a/b/c",
        a={**free, "max": 800 * MIB, "current": 700 * MIB},
        a_b={**free, "high": 500 * MIB, "current": 450 * MIB},
        a_b_c={**free, "max": 300 * MIB, "current": 10 * MIB},
        a_other={**free, "max": 1, "current": 1},
    )
    found = least(look(tmp_path, files))
    assert (found.left, found.total) == (50 * MIB, 500 * MIB)
    assert found.source.endswith("/a/b/memory.high")


def test_the_machine_decides_where_it_has_less_than_the_cgroup_allows(tmp_path: Path) -> None:
    group: dict[str, str | int] = {"max": 90_000 * MIB, "high": "max", "current": 0, "stat": ""}
    assert least(look(tmp_path, v2("/a", a=group))).left == 50_000 * MIB


def test_beyond_a_limit_less_than_nothing_is_left(tmp_path: Path) -> None:
    group = {"max": "max", "high": 100 * MIB, "current": 130 * MIB, "stat": stat(active_file=MIB)}
    assert least(look(tmp_path, v2("/a", a=group))).left == -29 * MIB


def v1(**files: str | int) -> dict[str, str | int]:
    return {
        "proc/self/cgroup": "4:memory:/docker/abc\n0::/\n",
        "proc/self/mountinfo": V1_MOUNT,
        **meminfo(50_000),
        **{
            f"{CGROUP}/memory/docker/abc/memory.{name.replace('__', '.')}": text
            for name, text in files.items()
        },
    }


def test_v1_counts_the_cgroups_below_and_memory_with_swap(tmp_path: Path) -> None:
    found = look(
        tmp_path,
        v1(
            limit_in_bytes=1000 * MIB,
            usage_in_bytes=400 * MIB,
            memsw__limit_in_bytes=1000 * MIB,
            memsw__usage_in_bytes=900 * MIB,
            stat=stat(
                inactive_file=1,
                total_inactive_file=30 * MIB,
                total_active_file=20 * MIB,
                total_dirty=9 * MIB,
                total_writeback=MIB,
            ),
        ),
    )
    assert least(found).left == (100 + 40) * MIB
    assert least(found).source.endswith("memory.memsw.limit_in_bytes")


def test_the_largest_number_of_v1_is_no_limit(tmp_path: Path) -> None:
    found = look(tmp_path, v1(limit_in_bytes=UNLIMITED_V1, usage_in_bytes=MIB, stat=""))
    assert [limit.left for limit in found.limits] == [50_000 * MIB]


def test_where_nothing_is_known_nothing_is_limited(tmp_path: Path) -> None:
    assert look(tmp_path, {}) == AvailableMemory((), pressed=False)


def test_a_process_that_moves_is_under_the_limits_of_where_it_is(tmp_path: Path) -> None:
    group: dict[str, str | int] = {"max": 90 * MIB, "high": "max", "current": 0, "stat": ""}
    watch = MemoryWatch(tree(tmp_path, v2("/a", a=group, b={**group, "max": 70 * MIB})))
    assert least(watch.look(1)).left == least(watch.look(2)).left == 90 * MIB
    (tmp_path / "proc/self/cgroup").write_text("0::/b\n")
    assert least(watch.look(3)).left == 70 * MIB


def test_a_shortage_of_descriptors_is_told_apart_from_a_limit_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = MemoryWatch(tree(tmp_path, v2(root={})))
    monkeypatch.setattr(available_memory, "try_read", lambda file: None)
    assert watch.look(SECOND) is None


FILES = ["max", "high", "current", "stat", "pressure"]


@given(
    texts=st.dictionaries(
        st.sampled_from([*(f"{CGROUP}/a/memory.{name}" for name in FILES), "proc/meminfo"]),
        st.text(st.characters(codec="utf-8"), max_size=40)
        | st.sampled_from(["max", "-5", "9" * 40, "some avg10=1.2.3 total=5", "some total="]),
    )
)
def test_whatever_is_in_the_files_it_does_not_raise(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("root")
    watch = MemoryWatch(tree(root, {**v2("/a", a={"max": 5}), **texts}))
    for now in (1, SECOND, 2 * SECOND):
        assert watch.look(now) is not None


# Who waits for it.


def pressure(avg10: float, total: int) -> str:
    some = f"some avg10={avg10:.2f} avg60=0.00 avg300=0.00 total={total}\n"
    return some + "full avg10=99.00 avg60=0.00 avg300=0.00 total=999999\n"


def looks(root: Path, file: str, told: list[tuple[int, str]]) -> list[bool]:
    """Whether memory was pressed at each of these times, when the file said this."""
    watch = MemoryWatch(root)
    found = []
    for now, text in told:
        tree(root, {file: text})
        seen = watch.look(now)
        assert seen is not None
        found.append(seen.pressed)
    return found


OWN = f"{CGROUP}/a/memory.pressure"


def test_pressure_is_what_tasks_stalled_since_the_last_look(tmp_path: Path) -> None:
    tree(tmp_path, v2("/a", a={}))
    told = [
        (10 * SECOND, pressure(0, 1_000_000)),
        (11 * SECOND, pressure(0, 1_050_000)),  # 5%
        (12 * SECOND, pressure(9, 1_250_000)),  # 20%
        (13 * SECOND, pressure(80, 1_260_000)),  # the average is of what is over
    ]
    assert looks(tmp_path, OWN, told) == [False, False, True, False]


def test_the_first_look_and_one_long_after_go_by_the_kernels_average(tmp_path: Path) -> None:
    tree(tmp_path, v2("/a", a={}))
    told = [
        (10 * SECOND, pressure(50, 1_000_000)),
        (11 * SECOND, pressure(50, 1_000_000)),
        (99 * SECOND, pressure(50, 1_000_000)),
        (200 * SECOND, pressure(5, 999_000_000)),
    ]
    assert looks(tmp_path, OWN, told) == [True, False, True, False]


def test_looks_one_just_after_the_other_say_the_same(tmp_path: Path) -> None:
    tree(tmp_path, v2("/a", a={}))
    told = [(10 * SECOND, pressure(50, 0)), (10 * SECOND + 1000, pressure(0, 0))]
    assert looks(tmp_path, OWN, told) == [True, True]


@pytest.mark.parametrize(("available", "counts"), [(31_000, True), (33_000, False)])
def test_the_machines_pressure_counts_only_where_its_memory_is_short(
    tmp_path: Path, available: int, counts: bool
) -> None:
    """A cgroup that is at a limit of its own stalls too, and that is not this process's matter."""
    tree(tmp_path, {**v2("/a", a={}), **meminfo(available)})
    told = [(SECOND, pressure(50, 0))]
    assert looks(tmp_path, "proc/pressure/memory", told) == [counts]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")
def test_something_is_left_of_this_machine() -> None:
    found = least(MemoryWatch().look(SECOND))
    assert 0 < found.left < found.total
    assert Path(found.source).exists()
