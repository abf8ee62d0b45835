# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import sampling
from tests.support.sampling import Sample, in_order_of

ROOT = Path(__file__).parents[2]
MODULES = st.lists(st.text("ab/", max_size=3))


@given(MODULES, st.integers(1, 5))
def test_the_seed_and_the_modules_decide_the_order(modules: list[str], seed: int) -> None:
    places = in_order_of(seed, modules)
    assert sorted(places.values()) == list(range(len(set(modules))))
    assert in_order_of(seed, reversed(modules)) == places


def test_each_module_comes_first_with_some_seed() -> None:
    orders = [in_order_of(seed, "abc") for seed in range(1, 100)]
    assert {min(places, key=places.__getitem__) for places in orders} == set("abc")


def test_tests_begin_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(sampling.time, "monotonic", lambda: now)
    sample = Sample(10, 1)
    sample.admit()
    now = 109.9
    sample.admit()
    assert "all tests" in sample.told()
    now = 110.0
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="10 s were over"):
            sample.admit()
    assert sample.told().startswith("2 tests left out after 10 s")
    assert "AIOKTASK_TEST_SEED=1" in sample.told()


def session(folder: Path, environment: dict[str, str]) -> str:
    """What a session with this repository's conftest prints, of two modules with two tests each."""
    for name in ("first", "second"):
        (folder / f"test_{name}.py").write_text(
            "def test_a() -> None: pass\ndef test_b() -> None: pass\n"
        )
    quietly = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-rs")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quietly, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("seconds", "seed", "told"),
    [
        ("1000", "3", "all tests were within 1000 s; AIOKTASK_TEST_SEED=3 has the same order"),
        ("1e-9", "3", "3 tests left out after 1e-09 s"),
        ("1000", "", "all tests were within 1000 s; AIOKTASK_TEST_SEED="),
        ("much", "", "AIOKTASK_TEST_SECONDS and AIOKTASK_TEST_SEED are numbers"),
        ("nan", "", "AIOKTASK_TEST_SECONDS is above 0, not nan"),
    ],
)
def test_a_session_says_what_was_left_out(
    seconds: str, seed: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sampling.SECONDS, seconds)
    if seed:
        monkeypatch.setenv(sampling.SEED, seed)
    said = session(tmp_path, dict(os.environ))
    assert told in said, said
