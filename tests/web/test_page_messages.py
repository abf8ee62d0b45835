# SPDX-License-Identifier: MIT
# What the page is told: bounded, the same mark once, processes that hang or are gone as such.

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the page needs Starlette")

from aioktask import Coordinator, Job, snapshot
from aioktask.observe.courtesy import Courtesy
from aioktask.observe.data import snapshot_data
from aioktask.observe.processes import Told, publish
from aioktask.telling import lasting
from aioktask.web._page import app, gather
from aioktask.web._page.app import Page
from aioktask.web._page.gather import Gatherer
from aioktask.web._page.marks import Marks
from aioktask.web._page.told import GONE_SECONDS, MOST_ENDED, MOST_JOBS, Processes, job_row
from aioktask.web.starlette import Deadline
from tests.support.gates import eventually, until
from tests.web.exchange import Exchange


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def answer(jobs: int = 0, phase: str = "running") -> dict[str, Any]:
    data = snapshot_data(snapshot())
    progress = {"done": 70, "size": 100, "threads": 1, "chunks": 7, "elapsed": 1.0, "rate": 70.0}
    progress |= {"phase": phase, "undone": 0, "eta": 0.4}
    job = {"kind": "job", "name": "a", "labels": {}, "nice": 0, "loan": None, "phase": phase}
    job |= {"progress": progress, "threads": 1, "queued": 0.0, "elapsed": 1.0, "age": 1.0}
    job |= {"ended": None, "undone": 0, "waits_for": "", "stuck": 0.0}
    job |= {"error": "", "error_chunk": None}
    data["jobs"] = [{**job, "number": number} for number in range(jobs)]
    data["ended"] = []
    data["counts"] = {phase: jobs} if jobs else {}
    return {**data, "command": "python", "advice": []}


def entry(thread: int, job: int, start: float, stop: float) -> dict[str, Any]:
    rest = {"name": f"job {job}", "kind": "work", "lent": False, "depth": 0, "failed": False}
    return {"thread": thread, "job": job, "start": start, "stop": stop, **rest}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.floats(0, 0.1), st.floats(0.0001, 0.1)), max_size=60)
)
def test_marks_cover_what_was_served_and_each_is_told_once(
    steps: list[tuple[int, float, float]],
) -> None:
    at = {1: 0.0, 2: 0.0, 3: 0.0}
    entries = []
    for job, (thread, gap, lasts) in enumerate(steps):
        start = at[thread] + gap
        at[thread] = start + lasts
        entries.append(entry(thread, job, start, at[thread]))
    marks = Marks(1e9, 10_000)
    told = marks.add(1, entries)
    assert marks.add(1, entries) == []
    assert sum(each.jobs for each in told) == len(entries)
    for each in entries:
        assert any(
            mark.thread == each["thread"]
            and mark.start <= each["start"]
            and mark.stop >= each["stop"]
            for mark in told
        )
    assert sorted(told) == sorted(marks.all())


def test_processes_that_are_gone_hide_none_that_lives() -> None:
    known = Processes()
    known.hear([Told(pid, None, "it is gone", gone=True) for pid in range(1, 400)], 1.0)
    known.hear([Told(5000, answer(jobs=1))], 2.0)
    message = known.message(2.0)
    assert [each["pid"] for each in message["jobs"]] == [5000]
    assert message["under_way"] == 1
    assert message["processes"][0]["pid"] == 5000


def test_a_thousand_short_jobs_a_second_are_a_few_marks() -> None:
    told = Marks(300.0, 10_000).add(
        1, [entry(1, n, n / 1000, n / 1000 + 0.0009) for n in range(5000)]
    )
    assert len(told) < 10
    assert sum(each.jobs for each in told) == 5000


def test_a_failure_stays_on_what_stands_for_many_short_jobs() -> None:
    entries = [entry(1, n, n / 1000, n / 1000 + 0.0009) for n in range(50)]
    entries[20]["failed"] = True
    (told,) = Marks(300.0, 10_000).add(1, entries)
    assert (told.jobs, told.failed) == (50, True)


def test_what_a_thread_does_inside_another_job_is_a_mark_beside_that_one() -> None:
    inner = [{**entry(1, 2, n / 100, n / 100 + 0.009), "depth": 1} for n in range(10)]
    told = Marks(300.0, 10_000).add(1, [*inner, entry(1, 1, 0.0, 0.1)])
    assert [(each.depth, each.job, each.jobs) for each in told] == [(0, 1, 1), (1, 0, 10)]


def test_what_is_remembered_of_short_jobs_is_bounded_by_one_answer() -> None:
    marks = Marks(300.0, 10_000)
    for second in range(100):
        last = 1000 * (second + 1)
        # As much as is asked for each time.
        marks.add(1, [entry(1, n, n / 1000, n / 1000 + 0.0009) for n in range(last)[-1250:]])
        marks.forget(second + 1.0)
    assert sum(len(each) for each in marks._told.values()) <= 1250
    assert sum(each.jobs for each in marks.all()) == 100_000
    marks.add(1, [])
    marks.forget(1000.0)
    assert not marks._told


def test_names_of_marks_are_printable() -> None:
    [mark] = Marks(60.0, 10).add(1, [{**entry(7, 1, 0.0, 1.0), "name": "a\u202eb\x1b[2J\ud800"}])
    assert mark.name == "a\ufffdb\ufffd[2J\ufffd"


def test_marks_let_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(Courtesy, "__call__", lambda self: calls.append(None))
    marks = Marks(300.0, 10_000)
    marks.add(1, [entry(1, n, float(n), n + 0.5) for n in range(1000)])
    assert len(calls) >= 2000
    calls.clear()
    marks.forget(0.0)
    assert len(calls) >= 1000


@pytest.mark.parametrize(
    "spoiled",
    [
        {"start": None},
        {"stop": float("inf")},
        {"start": float("nan")},
        {"stop": 10**400},
        {"thread": "7"},
        {"job": None},
        {"name": 7},
        {"kind": ["work"]},
        {"depth": "1"},
        {"depth": -1},
        {"depth": 10**9},
    ],
)
def test_an_entry_that_is_none_is_refused_with_all_beside_it(spoiled: dict[str, Any]) -> None:
    marks = Marks(300.0, 100)
    good = entry(7, 1, 0.0, 1.0)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        marks.add(1, [good, {**entry(7, 2, 1.0, 2.0), **spoiled}])
    assert marks.all() == []
    assert len(marks.add(1, [good])) == 1


def test_marks_are_bounded_in_time_and_in_number() -> None:
    marks = Marks(60.0, 10)
    marks.add(1, [entry(1, n, float(n), n + 0.5) for n in range(100)])
    marks.forget(100.0)
    assert [each.job for each in marks.all()] == list(range(90, 100))
    marks.forget(1000.0)
    assert marks.all() == []


def test_a_message_is_bounded_and_counts_the_rest() -> None:
    known = Processes()
    known.hear([Told(pid, answer(1000)) for pid in range(1, 6)], 1.0)
    told = known.message(1.0)
    assert len(told["jobs"]) == MOST_JOBS
    assert told["under_way"] == 5000
    assert len(json.dumps(told)) < 2_000_000


def without(data: dict[str, Any], *path: str) -> dict[str, Any]:
    """A copy of it that lacks what stands at this place."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in data.items() if key != first}
    return {**data, first: without(data[first], *rest)}


def loops(**fields: Any) -> dict[str, Any]:
    return {**answer(1), "loops": [{"kind": "asyncio", "late": 0.0, **fields}]}


UNREADABLE: list[Any] = [
    [],
    "x",
    7,
    {},
    {"x": 1},
    without(answer(1), "limits", "background"),
    without(answer(1), "helpers"),
    {**answer(1), "jobs": [None]},
    {**answer(1), "jobs": [{**answer(1)["jobs"][0], "elapsed": float("inf")}]},
    {**answer(1), "ended": [answer(1)["jobs"][0]]},
    {**answer(1), "counts": {"running": "1"}},
    {**answer(1), "history": [{"thread": 7}]},
    loops(),  # another version may tell nothing of the worst
    loops(worst=float("nan")),
]


@pytest.mark.parametrize("told", UNREADABLE)
def test_a_process_that_cannot_be_read_is_told_as_such_beside_the_others(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gatherer = Gatherer()

    def message(*answers: Told) -> Any:
        monkeypatch.setattr(gather, "ask_all", lambda *args, **options: list(answers))
        return json.loads(gatherer._build(with_marks=True).state)

    for _ in range(2):  # again where it is silent the next time
        found = message(Told(7, told), Told(8, {**answer(1), "history": []}))
        bad, good = found["processes"]
        assert (bad["state"], good["state"]) == ("silent", "alive")
        assert "cannot be read here: another version?" in bad["problem"]
        assert [each["pid"] for each in found["jobs"]] == [8]
        found = message(Told(7, None, "it did not answer"), Told(8, answer(1)))
        assert [each["problem"] for each in found["processes"]] == ["it did not answer", ""]


def test_a_process_without_history_is_shown_without_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [Told(7, answer(1))])
    found = json.loads(Gatherer()._build(with_marks=True).state)
    assert [each["state"] for each in found["processes"]] == ["alive"]
    assert found["marks"] == []


def test_a_process_whose_words_tell_of_what_is_gone_is_not() -> None:
    known = Processes()
    known.hear([Told(8, None, "TypeError: the job is gone")], 1.0)
    assert known.message(1.0)["processes"][0]["state"] == "silent"


def test_a_process_that_hangs_is_shown_as_it_was_last_seen() -> None:
    known = Processes()
    known.hear([Told(7, answer(1))], 1.0)
    known.hear([Told(7, None, "it did not answer in 1 s: it hangs, or is stopped")], 11.0)
    told = known.message(11.0)
    assert told["processes"][0]["state"] == "silent"
    assert told["processes"][0]["age"] == "10 s"
    assert [each["pid"] for each in told["jobs"]] == [7]
    known.hear([Told(7, answer(1))], 12.0)
    assert known.message(12.0)["processes"][0]["state"] == "alive"


@pytest.mark.parametrize("last", [[], [Told(7, None, "it is gone", gone=True)]])
def test_a_process_that_is_gone_is_shown_as_such_for_a_while(last: list[Told]) -> None:
    known = Processes()
    known.hear([Told(7, answer(1))], 1.0)
    known.hear(last, 2.0)
    told = known.message(2.0)
    assert told["processes"][0]["state"] == "gone"
    assert told["jobs"] == []
    known.hear([], 2.0 + GONE_SECONDS)
    assert known.message(2.0 + GONE_SECONDS)["processes"] == []


def test_a_process_that_was_silent_for_long_is_shown_as_gone_for_as_long() -> None:
    known = Processes()
    known.hear([Told(7, answer(1))], 1.0)
    known.hear([Told(7, None, "it did not answer")], 2.0)
    gone_at = 2.0 + 2 * GONE_SECONDS
    known.hear([], gone_at)
    [shown] = known.message(gone_at)["processes"]
    assert (shown["state"], shown["age"]) == ("gone", lasting(0.0))
    known.hear([Told(7, answer(1))], gone_at + 1.0)  # another one with its number
    known.hear([], gone_at + GONE_SECONDS)
    assert known.message(gone_at + GONE_SECONDS)["processes"]
    known.hear([], gone_at + 3 * GONE_SECONDS)
    assert known.message(gone_at + 3 * GONE_SECONDS)["processes"] == []


def test_words_are_those_of_bars_and_an_undo_runs_back() -> None:
    known = Processes()
    told = answer(1, "undoing")
    told["jobs"][0]["progress"]["undone"] = 30
    known.hear([Told(7, told)], 1.0)
    row = known.message(1.0)["jobs"][0]
    assert (row["fraction"], row["percent"], row["text"]) == (0.4, "40%", "undoing, 0.4 s left")


def told_of(**more: Any) -> dict[str, Any]:
    """The row of a job that tells this of itself."""
    told = answer(1)
    told["jobs"][0] |= more
    return job_row(7, told["jobs"][0])


def test_how_long_a_job_takes_is_told_where_that_is_known() -> None:
    assert told_of()["text"] == "0.4 s left"
    progress = answer(1)["jobs"][0]["progress"]
    assert told_of(progress={**progress, "eta": None})["text"] == "for 1.0 s"


def test_a_rate_is_told_as_long_as_anything_is_done() -> None:
    progress = answer(1)["jobs"][0]["progress"]
    assert told_of()["rate"] == "70/s"
    assert told_of(progress={**progress, "rate": 0.05})["rate"] == "3/min"
    assert told_of(progress={**progress, "rate": 0.0})["rate"] == ""


def test_why_a_job_failed_is_told_and_where() -> None:
    row = told_of(error="ValueError: \x1b[2Jno", error_chunk=[1000, 1016])
    assert row["error"] == "ValueError: \ufffd[2Jno"
    assert row["error_chunk"] == "1,000 to 1,016"
    assert told_of(error="OSError: no", error_chunk=None)["error_chunk"] == ""


def test_items_of_a_stream_that_failed_are_counted_beside_those_that_are_done() -> None:
    progress = {"done": 5, "size": None, "threads": 1, "elapsed": 1.0, "rate": 5.0}
    progress |= {"phase": "running", "eta": None, "failed": 2}
    assert told_of(kind="stream", progress=progress)["failed"] == "2"
    assert told_of()["failed"] == ""


def test_whether_a_job_has_begun_is_told() -> None:
    assert told_of()["begun"]
    assert not told_of(phase="waiting", elapsed=0.0)["begun"]


def test_threads_inside_chunks_of_other_jobs_stand_below_the_row_of_that_job() -> None:
    def thread(kind: str, number: int, job: int | None, depth: int = 0) -> dict[str, Any]:
        rest = {
            "depth": depth,
            "nice": 0,
            "node": None,
            "chunk": None,
            "since": 0.1,
            "stuck": 0.0,
            "stack": [],
        }
        return {"kind": kind, "thread": number, "job": job, "state": "working", **rest}

    told = answer(1)
    told["helpers"] = [
        thread("helper", 71, 1),
        thread("helper", 72, 4),
        thread("caller", 7, 3),
        thread("caller", 71, 2, 1),
        thread("caller", 71, 5, 2),
        # Between two values of a stream its thread is at another job, which is not inside.
        thread("caller", 7, 6),
        thread("helper", 0, None),
        thread("helper", 0, None),
    ]
    known = Processes()
    known.hear([Told(7, told)], 1.0)
    rows = known.message(1.0)["helpers"]
    found = [(each["thread"], each["depth"], each["job"], each["inside"]) for each in rows]
    assert found == [
        (71, 0, 1, None),
        (71, 1, 2, 1),
        (71, 2, 5, 2),
        (72, 0, 4, None),
        (7, 0, 3, None),
        (7, 0, 6, None),
        (0, 0, None, None),
        (0, 0, None, None),
    ]
    assert len({each["key"] for each in rows}) == len(rows)


@pytest.mark.anyio
async def test_all_readers_have_one_message_and_nothing_is_asked_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def ask_all(*args: object, **options: object) -> list[Told]:
        asked.append(threading.current_thread().name)
        return []

    monkeypatch.setattr(gather, "ask_all", ask_all)
    monkeypatch.setattr(gather, "EVERY", 0.05)
    gatherer = Gatherer()
    with gatherer.reading() as one, gatherer.reading() as other:
        for _ in range(3):
            first, second = await one.next(10), await other.next(10)
            assert first is not None
            assert second is not None
        assert first.number - 1 <= second.number <= first.number + 1
    await eventually(lambda: gatherer._thread is None)
    assert set(asked) == {"aioktask page"}
    assert len(asked) < 12


@pytest.mark.anyio
async def test_readers_that_come_and_go_have_no_more_messages_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [])
    monkeypatch.setattr(gather, "EVERY", 3600.0)
    gatherer = Gatherer()
    with gatherer.reading() as reader:
        assert await reader.next(10) is not None
    for _ in range(3):
        with gatherer.reading() as reader:
            assert await reader.next(0.01) is None
    await eventually(lambda: gatherer._thread is None)
    assert gatherer._number == 1
    monkeypatch.setattr(gather, "EVERY", 0.01)
    with gatherer.reading() as reader:
        assert await reader.next(10) is not None


def test_a_reader_that_comes_as_the_thread_goes_has_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes once the thread has given up its place, before that thread has returned."""
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [])
    monkeypatch.setattr(gather, "EVERY", 0.01)
    gatherer = Gatherer()
    came, leaves, told = threading.Event(), threading.Event(), []

    async def read(over: threading.Event) -> None:
        with gatherer.reading():
            came.set()
            await eventually(over.is_set)

    class Condition(threading.Condition):
        def __exit__(self, *of: Any) -> None:
            super().__exit__(*of)
            if gatherer._thread is None and not told:
                told.append(threading.current_thread())
                came.clear()
                second.start()
                assert came.wait(60)

    gatherer._changed = Condition()
    first, second = (
        threading.Thread(target=anyio.run, args=(read, over)) for over in (came, leaves)
    )
    first.start()
    first.join()
    until(lambda: told)
    [one] = told
    one.join(60)
    assert not one.is_alive()
    assert gatherer._thread is not None
    leaves.set()
    second.join()


def test_what_was_served_while_a_process_did_not_answer_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    asked: list[tuple[float, float]] = []

    def ask_all(request: Callable[[int], dict[str, Any]], seconds: float) -> list[Told]:
        back7, back8 = (request(pid)["history"] - gather.OVERLAP_SECONDS for pid in (7, 8))
        asked.append((now - back7, now - back8))
        silent = {7, 8} - alive
        return [Told(pid, answer(0)) for pid in alive] + [Told(pid, None, "no") for pid in silent]

    monkeypatch.setattr(gather, "ask_all", ask_all)
    monkeypatch.setattr(gather.time, "perf_counter", lambda: now)
    gatherer = Gatherer()
    for now, alive in [  # noqa: B007
        (1000.0, {7, 8}),
        (1001.0, {8}),
        (1002.0, {8}),
        (1003.0, {7}),
        (1004.0, {7, 8}),
        (1005.0, set[int]()),
        (1006.0, {7, 8}),
    ]:
        gatherer._ask()
    # Each from when it had answered last.
    assert [since for since, _ in asked[1:]] == [1000.0, 1000.0, 1000.0, 1003.0, 1004.0, 1004.0]
    assert [since for _, since in asked[1:]] == [1000.0, 1001.0, 1002.0, 1002.0, 1004.0, 1004.0]


@pytest.mark.anyio
async def test_marks_go_to_the_reader_that_asked_for_them_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [])
    monkeypatch.setattr(gather, "EVERY", 0.0)
    gatherer = Gatherer()
    gatherer._thread = threading.current_thread()  # whose turns are those below
    with gatherer.reading() as one:
        assert gatherer._turn()
        first = await one.next(60)
        with gatherer.reading() as other:
            assert gatherer._turn()
            with_marks, without = await other.next(60), await one.next(60)
    assert first is not None
    assert with_marks is not None
    assert without is not None
    assert first.marks == with_marks.marks == b"[]"
    assert without.marks is None


@pytest.mark.anyio
async def test_a_reader_that_missed_messages_has_all_marks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "EVERY", 0.02)
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [])
    gatherer = Gatherer()
    with gatherer.reading() as reader:
        first = await reader.next(10)
        assert first is not None
        assert first.marks == b"[]"
        after = first.number + 3
        await eventually(lambda: gatherer._number >= after)
        messages = [await reader.next(10) for _ in range(4)]
        assert any(each is not None and each.marks is not None for each in messages)


@pytest.mark.anyio
async def test_an_error_of_the_gathering_is_told_and_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **options: object) -> list[Told]:
        raise OSError("no directory")

    monkeypatch.setattr(gather, "ask_all", fail)
    monkeypatch.setattr(gather, "EVERY", 0.02)
    with Gatherer().reading() as reader:
        for _ in range(2):
            message = await reader.next(10)
            assert message is not None
            assert json.loads(message.state)["error"] == "OSError: no directory"


@pytest.mark.anyio
async def test_the_page_goes_on_after_the_system_had_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [])
    gatherer = Gatherer()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as once:
        once.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"), gatherer.reading():
            pass
    assert not gatherer._readers
    with gatherer.reading() as reader:
        assert await reader.next(10) is not None


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["_encoded_by_rows", "_encoded_list"])
async def test_the_page_goes_on_after_memory_was_short(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [])
    monkeypatch.setattr(gather, "EVERY", 0.02)
    real = getattr(gather, name)
    failed: list[Any] = []

    def fail_once(value: Any) -> bytes:
        if not failed:
            failed.append(value)
            raise MemoryError
        found: bytes = real(value)
        return found

    monkeypatch.setattr(gather, name, fail_once)
    with Gatherer().reading() as reader:
        marks = None
        while marks is None:
            message = await reader.next(10)
            assert message is not None
            marks = message.marks
    assert failed


@pytest.mark.anyio
async def test_the_next_reader_begins_another_thread_where_one_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dies(BaseException):
        pass

    def die(*args: object, **options: object) -> list[Told]:
        raise Dies

    died: list[object] = []
    gatherer = Gatherer()
    with monkeypatch.context() as once:
        once.setattr(threading, "excepthook", lambda told: died.append(told.exc_type))
        once.setattr(gather, "ask_all", die)
        with gatherer.reading():
            await eventually(lambda: died)
    monkeypatch.setattr(gather, "ask_all", lambda *args, **options: [])
    with gatherer.reading() as reader:
        assert await reader.next(10) is not None


def test_jobs_that_are_over_are_bounded_however_many_there_were() -> None:
    gatherer, publisher = Gatherer(), publish()

    def size() -> int:
        message = gatherer._build(with_marks=True)
        assert message.marks is not None
        return len(message.state) + len(message.marks)

    def run(jobs: int) -> None:
        with Coordinator() as coordinator:
            for number in range(jobs):
                coordinator.submit(Job(lambda start, stop: None, 1, name=f"job {number}"))

    try:
        run(5000)
        size()  # what is kept to be told is full
        first = size()
        run(10_000)
        size()
        assert size() < 2 * first + 200_000
        ended = json.loads(gatherer._build(with_marks=False).state)["ended"]
        assert len(ended) <= MOST_ENDED
    finally:
        publisher.close()


class Stream:
    """The page's stream of events, as a server has it that serves an application."""

    def __init__(self, **state: object) -> None:
        page = Page()
        assert page.token is not None
        bearer = f"Bearer {page.token.value}"
        self.app: Any = page
        self._exchange = Exchange(headers=[("host", "localhost"), ("authorization", bearer)])
        self._exchange.scope |= {"path": "/events", "state": state}

    @property
    def told(self) -> bytes:
        return self._exchange.body

    async def run(self) -> None:
        await self._exchange.run(self.app)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that bring messages often."""
    monkeypatch.setattr(gather, "EVERY", 0.02)


@pytest.mark.anyio
async def test_a_stream_ends_when_the_coordinator_of_its_application_drains(streams: None) -> None:
    async with Coordinator() as coordinator:
        stream = Stream(coordinator=coordinator)
        async with anyio.create_task_group() as group:
            group.start_soon(stream.run)
            await eventually(lambda: b"event: state" in stream.told)
            coordinator.drain()
    assert stream.told.endswith(b"event: end\ndata: stop\n\n")


@pytest.mark.anyio
async def test_a_stream_says_something_now_and_then_and_ends_after_a_while(
    streams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "EVERY", 60.0)  # after the first message there is no other one
    monkeypatch.setattr(app, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(app, "STREAM_SECONDS", 1.0)
    stream = Stream()
    with anyio.fail_after(60):
        await stream.run()
    assert stream.told.count(b": still there\n\n") >= 3
    assert stream.told.endswith(b"event: end\ndata: again\n\n")


@pytest.mark.anyio
async def test_a_stream_ends_by_itself_before_the_deadline_of_a_middleware_around_it(
    streams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would cut it, and have the server tell of an answer that is not whole."""
    monkeypatch.setattr(app, "BEFORE_DEADLINE_SECONDS", 9.5)
    stream = Stream()
    stream.app = Deadline(stream.app, most=10)
    with anyio.fail_after(60):
        await stream.run()
    assert b"event: state" in stream.told
    assert stream.told.endswith(b"event: end\ndata: again\n\n")


@pytest.mark.anyio
async def test_a_stream_whose_client_goes_away_ends_at_once(streams: None) -> None:
    stream = Stream()
    async with anyio.create_task_group() as group:
        group.start_soon(stream.run)
        await eventually(lambda: b"event: state" in stream.told)
        stream._exchange.leave()
    assert b"event: end" not in stream.told


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("gone"),
        RuntimeError("unable to perform operation; the handler is closed"),
    ],
)
@pytest.mark.parametrize("place", [1, 2, 4])
async def test_a_stream_ends_in_silence_where_the_server_says_that_its_client_is_gone(
    streams: None, error: Exception, place: int
) -> None:
    stream = Stream()
    sent = 0

    async def send(message: object) -> None:
        nonlocal sent
        sent += 1
        if sent >= place:
            raise error

    with anyio.fail_after(60):
        await stream.app(stream._exchange.scope, stream._exchange.receive, send)
    assert sent == place
    assert not stream.app._gatherer._readers


@pytest.mark.anyio
async def test_a_stream_ends_in_silence_where_nothing_can_be_received(streams: None) -> None:
    stream = Stream()

    async def receive() -> Any:
        await eventually(lambda: b"event: state" in stream.told)
        raise ConnectionResetError("gone")

    with anyio.fail_after(60):
        await stream.app(stream._exchange.scope, receive, stream._exchange.send)
    assert b"event: end" not in stream.told


@pytest.mark.anyio
async def test_another_error_of_a_server_is_raised(streams: None) -> None:
    stream = Stream()

    async def send(message: object) -> None:
        raise RuntimeError("the server is broken")

    with pytest.raises(ExceptionGroup) as raised:
        await stream.app(stream._exchange.scope, stream._exchange.receive, send)
    assert raised.group_contains(RuntimeError, match="the server is broken")
