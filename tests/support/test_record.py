# SPDX-License-Identifier: MIT
# What sessions of pytest and steps of .ci/run write down, and the table of it.

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support.record import CHECK, FILE, Entry, append, counted, read, table, this_python

ROOT = Path(__file__).parents[2]

WORDS = st.text("abc é\n'\"\\", min_size=1)
COUNTS = st.dictionaries(
    st.sampled_from(("passed", "skipped", "xfailed", "xpassed", "failed", "error", "warnings", "")),
    st.integers(0, 9999),
)
SESSIONS = st.builds(
    lambda check, python, seconds, counts: Entry(check, seconds, python, counted(counts.items())),
    st.sampled_from(("tests", "long", "api")),
    st.sampled_from(("3.11.7", "3.13.15 free-threaded")),
    st.integers(0, 5000),
    COUNTS,
)
STEPS = st.builds(
    Entry, st.sampled_from(("tests", "lint", "types")), st.integers(0, 5000), note=WORDS
)


@given(st.lists(SESSIONS | STEPS))
def test_what_was_appended_is_read_in_its_order(entries: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "new", "record")
        assert read(file) == []
        for each in entries:
            append(file, each)
        assert read(file) == entries


@given(COUNTS)
def test_no_end_of_a_test_is_lost(counts: dict[str, int]) -> None:
    ends = {name: count for name, count in counts.items() if name not in ("", "warnings")}
    assert sum(counted(counts.items()).values()) == sum(ends.values())
    failed = counted(counts.items())["failed"]
    assert failed == counts.get("failed", 0) + counts.get("error", 0)


@given(st.lists(SESSIONS | STEPS))
def test_the_table_has_a_line_for_each_session_and_for_each_step_without_any(
    entries: list[Entry],
) -> None:
    lines = table([Entry(each.check, each.seconds, each.python, each.ended) for each in entries])
    sessions = [each for each in entries if each.python]
    checks = {each.check for each in sessions}
    steps = [each for each in entries if not each.python and each.check not in checks]
    rows = [line.split() for line in lines.splitlines()]
    assert rows[0] == ["check", "Python", "passed", "skipped", "xfailed", "failed", "seconds"]
    assert sorted(rows[1:]) == sorted(
        [
            *(
                [
                    each.check,
                    *each.python.split(),
                    *map(str, each.ended.values()),
                    f"{each.seconds}",
                ]
                for each in sessions
            ),
            *([each.check, "-", "-", "-", "-", "-", f"{each.seconds}"] for each in steps),
        ]
    )


def test_a_session_writes_down_how_its_tests_ended_and_its_children_do_not(tmp_path: Path) -> None:
    (tmp_path / "test_all.py").write_text(
        "import os, pytest\n"
        "def test_passes(): assert not {*os.environ} & {'AIOKTASK_TEST_RECORD'}\n"
        "def test_fails(): assert False\n"
        "def test_skips(): pytest.skip('so')\n"
        "@pytest.mark.xfail\n"
        "def test_known(): assert False\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError\n"
        "def test_error(broken): pass\n"
    )
    file = tmp_path / "record"
    ended = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "tests.conftest",
            ),
            *("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, FILE: str(file), CHECK: "of a test"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (entry,) = read(file)
    assert (entry.check, entry.python) == ("of a test", this_python())
    assert entry.ended == {"passed": 1, "skipped": 1, "xfailed": 1, "failed": 2}
