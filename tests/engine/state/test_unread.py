# SPDX-License-Identifier: MIT
# Runs whose function may have left a lesson on disk: no chunk begins before that was read, or it
# took too long, and meanwhile they can be cancelled as any other run.

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import pytest

from aioktask import Job
from aioktask.engine import events
from aioktask.engine.events import Event, EventKind
from aioktask.engine.learning.lessons import Asked, Lesson, Lessons, key_of
from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.state import admission, recovery
from aioktask.engine.state.admission import PATIENCE_NS, lesson_read, wait_no_longer
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.ending import cancel
from aioktask.engine.state.outbox import Source
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Caller
from tests.engine.state.turns import a_run, a_state, admit, idle_helper, outbox_of, stint_of

SOMEWHERE = "/somewhere"
SIZE = 1 << 20


def work(start: int, stop: int) -> None: ...


def the_job(**how: Any) -> Job[None]:
    return Job(work, SIZE, **{"remember": SOMEWHERE, "max_threads": 1, **how})


KEY = key_of(the_job(), 1)


def a_lesson(chunk: int = 1 << 12) -> Lesson:
    sizes = Sizes(SIZE, 1, 1)
    sizes._curve.best = chunk.bit_length() - 1
    sizes.rate = 1.0
    assert sizes.chunk == chunk
    return Lesson(sizes, Scaling(1), 1.0)


def told(run: Run) -> list[EventKind]:
    return [event.kind for event in run.news]


def readings_of(state: State) -> list[Source]:
    return outbox_of(state).readings


def test_no_chunk_begins_before_the_lesson_was_read_and_then_the_first_has_its_size() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = admit(state, a_run(the_job()))
    assert readings_of(state) == [(SOMEWHERE, KEY, run.number)]
    assert helper.stint is None
    assert not run.claimable
    recovery.rebuild(state)
    assert helper.stint is None
    lesson_read(state, None, SOMEWHERE, KEY, a_lesson())
    stint = stint_of(helper)
    assert (stint.chunk_start, stint.chunk) == (0, 1 << 12)
    assert run.sweep.pacing.learned(1, 1).remembered


def test_where_nothing_was_found_the_run_begins_anew_and_nobody_asks_again() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = admit(state, a_run(the_job()))
    lesson_read(state, None, SOMEWHERE, KEY, None)
    assert stint_of(helper).run is run
    assert not run.sweep.pacing.learned(1, 1).remembered
    assert len(readings_of(state)) == 1
    assert admit(state, a_run(the_job())).claimable
    assert readings_of(state) == []


def test_several_runs_of_a_function_wait_for_one_reading() -> None:
    state = a_state(3)
    for _ in range(3):
        idle_helper(state)
    runs = [admit(state, a_run(the_job())) for _ in range(3)]
    assert len(readings_of(state)) == 1
    assert not any(run.claimable for run in runs)
    other = admit(state, a_run(the_job(name="another")))
    lesson_read(state, None, SOMEWHERE, KEY, a_lesson())
    assert [stint.run for stint in state.serving] == runs
    assert not other.claimable
    lesson_read(state, None, SOMEWHERE, KEY, a_lesson())  # once more does no harm
    assert [stint.run for stint in state.serving] == runs


@pytest.mark.parametrize("waited", [PATIENCE_NS - 10_000_000_000, PATIENCE_NS + 1])
def test_no_run_waits_longer_than_it_is_patient(waited: int) -> None:
    state = a_state(2)
    helper = idle_helper(state)
    run = admit(state, a_run(the_job()))
    run.submitted_at -= waited
    wait_no_longer(state, None)
    patient = waited < PATIENCE_NS
    assert (helper.stint is None) == patient
    if patient:
        return
    # What comes later does not wait at all, until there is an answer, which is used.
    assert admit(state, a_run(the_job())).claimable
    lesson_read(state, None, SOMEWHERE, KEY, a_lesson())
    assert not run.sweep.pacing.learned(1, 1).remembered
    assert admit(state, a_run(the_job())).sweep.pacing.learned(1, 1).remembered


def test_a_run_that_waits_is_cancelled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_wishes", (lambda: True,))
    state = a_state(1)
    idle_helper(state)
    heard: list[Event] = []
    run = a_run(the_job())
    admit(state, run)
    assert run.cancel()
    cancel(state, run)
    assert run.over
    heard += [event for _, event in state.out.events]
    assert [event.kind for event in heard] == [EventKind.SUBMITTED, EventKind.CANCELLED]
    assert not state.runs
    lesson_read(state, None, SOMEWHERE, KEY, a_lesson())
    assert not state.serving


def test_that_a_run_was_submitted_is_told_with_the_size_that_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "_wishes", (lambda: True,))
    state = a_state(1)
    admit(state, a_run(the_job()))
    assert not state.out.events
    lesson_read(state, None, SOMEWHERE, KEY, a_lesson())
    [event] = [event for _, event in state.out.events]
    assert event.kind is EventKind.SUBMITTED
    assert event.details["chunk"] == 1 << 12


def test_a_calling_thread_takes_its_first_stretch_when_the_lesson_came() -> None:
    state = a_state(1)
    caller = Caller(0, main=False)
    run = a_run(the_job())
    admit(state, run, caller, caller)
    assert caller.stint is None
    lesson_read(state, None, SOMEWHERE, KEY, a_lesson())
    assert caller.stint is not None
    assert caller.stint.chunk == 1 << 12


@pytest.mark.parametrize("where", [(admission, "Source"), (Lessons, "_forget_questions")])
def test_where_asking_fails_the_next_run_asks_or_has_the_question_on_its_way(
    where: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(*_: object) -> None:
        raise MemoryError

    state = a_state(1)
    with monkeypatch.context() as patch:
        patch.setattr(*where, strike)
        failed = a_run(the_job())
        admission.admit(state, failed, None, None, False, False)
    assert isinstance(failed.verdict, MemoryError)
    run = admit(state, a_run(the_job()))
    assert not run.claimable
    assert [each[:2] for each in readings_of(state)] == [(SOMEWHERE, KEY)]
    assert state.reads


def test_what_this_process_learned_goes_before_the_disk() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    state.lessons.put(KEY, a_lesson(1 << 8))
    run = admit(state, a_run(the_job()))
    # It is asked for all the same: the archive is to be there at exit.
    assert readings_of(state) == [(SOMEWHERE, KEY, run.number)]
    assert stint_of(helper).chunk == 1 << 8
    state.lessons.answered(SOMEWHERE, KEY, a_lesson())
    assert state.lessons.get(KEY).sizes.chunk == 1 << 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "how",
    [
        {"remember": True},
        {"remember": False},
        {"learn": "nothing"},
        {"chunk": 10},
        {"min_chunk": SIZE},
        {"min_chunk": SIZE // 4},
    ],
    ids=str,
)
def test_a_run_that_would_use_no_lesson_from_disk_asks_for_none(how: dict[str, Any]) -> None:
    state = a_state(1)
    run = admit(state, a_run(the_job(**how)))
    assert run.claimable
    assert readings_of(state) == []


def test_what_a_run_learned_is_handed_out_to_be_kept() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = admit(state, Run(the_job(), state.root, nice=0, context=copy_context()))
    lesson_read(state, None, SOMEWHERE, KEY, None)
    while not run.over:
        stint = stint_of(helper)
        now = stint.claimed_at + 1_000_000
        if not state.walked(stint, stint.stretch_stop, now):
            state.reconsider(stint, now)
    [(source, lesson)] = outbox_of(state).lessons
    assert source == (SOMEWHERE, KEY, run.number)
    assert lesson is state.lessons.get(KEY) is not None


def test_questions_are_forgotten_at_last_and_asked_again() -> None:
    lessons = Lessons()
    assert lessons.ask(SOMEWHERE, (0,)) is Asked.NOW
    assert lessons.ask(SOMEWHERE, (0,)) is Asked.BEFORE
    lessons.answered(SOMEWHERE, (0,), None)
    assert lessons.ask(SOMEWHERE, (0,)) is Asked.ANSWERED
    assert lessons.ask("/elsewhere", (0,)) is Asked.NOW
    for number in range(1, 1000):
        lessons.ask(SOMEWHERE, (number,))
    assert lessons.ask(SOMEWHERE, (0,)) is Asked.NOW
