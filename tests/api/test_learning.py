# SPDX-License-Identifier: MIT
# What jobs learn, as a program sees it: asked for, turned off, remembered, reported and planned.

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest

from aioktask import Coordinator, Job, Learned, plan, run_multithreaded_sync
from aioktask.engine.api.process import current_pool
from aioktask.engine.learning.lessons import Lesson, key_of
from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.state import run
from aioktask.engine.state.run import gil_advice


def nothing(start: int, stop: int) -> None:
    """Work that is done at once."""


def job(name: str, **how: Any) -> Job[None]:
    """By one thread, so that no stretch goes uncounted because a helper came or went."""
    return Job(nothing, 100_000, name=name, max_threads=1, **how)


def learned(asked: Job[Any], coordinator: Coordinator | None = None) -> Learned:
    return run_multithreaded_sync(asked, coordinator=coordinator).learned


def test_a_run_tells_what_it_learned_and_the_next_one_remembers() -> None:
    first = learned(job("remembered once"))
    assert not first.remembered
    assert first.rate > 0
    assert any(each.chunk == first.chunk and each.speed == 1.0 for each in first.curve)
    assert [each.chunk for each in first.curve] == sorted(each.chunk for each in first.curve)
    assert learned(job("remembered once")).remembered


def test_who_remembers_nothing_leaves_nothing() -> None:
    assert not learned(job("forgetful", remember=False)).remembered
    assert not learned(job("forgetful", remember=False)).remembered
    assert not learned(job("forgetful")).remembered
    assert not learned(job("forgetful", remember=False)).remembered


@pytest.mark.parametrize("how", [{"chunk": 1000}, {"learn": "nothing"}])
def test_where_the_size_is_given_none_is_looked_for(how: dict[str, Any]) -> None:
    asked = job("given", **how)
    found = learned(asked)
    assert found.chunk == plan(asked).chunk
    assert found.curve == ()
    assert found.rate == 0.0


def test_the_leaves_of_a_reduce_are_given() -> None:
    asked = Job(lambda a, b: b - a, 100_000, reduce=operator.add)
    found = learned(asked)
    assert found.chunk == plan(asked).chunk
    assert found.curve == ()


def test_a_job_goes_before_its_coordinator_and_that_before_the_process() -> None:
    with Coordinator(learn="nothing", remember=False) as coordinator:
        assert learned(job("obedient"), coordinator).curve == ()
        assert learned(job("wilful", learn="chunk"), coordinator).curve != ()
        assert not learned(job("wilful", learn="chunk"), coordinator).remembered
        again = job("wilful", learn="chunk", remember=True)
        learned(again, coordinator)
        assert learned(again, coordinator).remembered


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"learn": "everything"}, ValueError, "learn must be one of 'both', .* got 'everything'"),
        ({"learn": True}, TypeError, "learn must be one of"),
        ({"remember": 1}, TypeError, "remember must be True, False, .* got 1"),
        ({"remember": "a/path"}, ValueError, "remember must be .* absolute path .* got 'a/path'"),
        ({"remember": b"/a"}, TypeError, "remember must be .* absolute path .* got b'/a'"),
        ({"remember": "/a\0b"}, ValueError, "remember must be .* absolute path"),
    ],
)
def test_nonsense_is_refused(how: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        job("nonsense", **how)
    with pytest.raises(error, match=match):
        Coordinator(**how)


def test_a_fixed_size_cannot_be_learned_too() -> None:
    with pytest.raises(ValueError, match="chunk=8 fixes the size"):
        job("fixed", chunk=8, learn="both")
    assert learned(job("fixed", chunk=8, learn="threads")).chunk == 8


def test_a_plan_shows_where_the_next_run_begins() -> None:
    asked = job("planned")
    assert not any("learned" in note for note in plan(asked).notes)
    found = learned(asked)
    shown = plan(asked)
    assert shown.chunk == found.chunk
    assert any("learned by earlier runs" in note for note in shown.notes)
    assert not any("learned" in note for note in plan(job("planned", learn="nothing")).notes)


@pytest.mark.parametrize(
    ("gil", "ways"),
    [
        (True, ("free-threaded", "numba with nogil=True", "processes", "NumPy")),
        (False, ("an object of its own", "reduce=", "NumPy array")),
    ],
    ids=["with the GIL", "without"],
)
def test_a_plan_names_the_ways_there_are_where_threads_wait_for_each_other(
    gil: bool, ways: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "gil_is_on", lambda: gil)
    asked = Job(nothing, 100_000, name="holds the GIL", max_threads=2, learn="threads")
    threads = plan(asked).threads
    scaling = Scaling(threads)
    scaling.level, scaling.holds_gil = 1, True
    lessons = current_pool().state.lessons
    lessons.put(key_of(asked, threads), Lesson(None, scaling, 1.0))
    shown = plan(asked)
    assert shown.threads == 1
    [advice] = shown.notes
    for way in ways:
        assert way in advice
        assert way in gil_advice()
    assert ("free-threaded" in advice) is gil


@pytest.mark.parametrize(("undo", "cut"), [(lambda start, stop: None, 24), (None, 6)])
def test_chunks_end_on_multiples_of_what_may_be_cut_and_cover_the_range_once(
    undo: Callable[[int, int], object] | None, cut: int
) -> None:
    seen: list[tuple[int, int]] = []
    asked = Job(lambda a, b: seen.append((a, b)), 50_000, start=7, align=6, min_chunk=20, undo=undo)
    run_multithreaded_sync(asked)
    seen.sort()
    assert seen[0][0] == 7
    assert seen[-1][1] == 50_007
    assert all(a[1] == b[0] for a, b in itertools.pairwise(seen))
    assert all(stop % cut == 0 for _, stop in seen[:-1])
