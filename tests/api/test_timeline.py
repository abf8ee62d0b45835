# SPDX-License-Identifier: MIT
# The timeline of a job: what its threads were at, event by event, and how it is shown.

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import (
    Coordinator,
    Job,
    configure,
    failure,
    priority,
    run_multithreaded,
    run_multithreaded_sync,
    tunables,
)
from aioktask.engine.state.trace import MOST_STRETCHES
from aioktask.timeline import Mark, Stretch, Timeline, TracedThread
from tests.support.patience import PATIENCE


def nothing(start: int, stop: int) -> None: ...


def traced(job: Job[Any]) -> Timeline:
    timeline = run_multithreaded_sync(job).timeline
    assert timeline is not None
    return timeline


def units(timeline: Timeline, kind: str) -> Counter[int]:
    """How often each unit was done, or undone."""
    return Counter(
        unit
        for each in timeline.stretches
        if each.kind == kind
        for unit in range(each.first, each.last)
    )


def most_at_a_time(timeline: Timeline) -> int:
    """The most threads that were at stretches at one moment; one may take over from another."""
    changes = [(each.stop, -1) for each in timeline.stretches if each.stop > each.start]
    changes += [(each.start, 1) for each in timeline.stretches if each.stop > each.start]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


@given(
    size=st.integers(0, 300),
    start=st.integers(-50, 50),
    chunk=st.one_of(st.none(), st.integers(1, 40)),
    threads=st.integers(1, 3),
)
def test_each_unit_is_in_one_stretch_whatever_the_job(
    size: int, start: int, chunk: int | None, threads: int
) -> None:
    job = Job(nothing, size, start=start, chunk=chunk, max_threads=threads, trace=True)
    report = run_multithreaded_sync(job)
    timeline = report.timeline
    assert timeline is not None
    assert timeline.lost == 0
    assert units(timeline, "work") == Counter(range(start, start + size))
    assert sum(each.chunks for each in timeline.stretches) == report.chunks
    assert most_at_a_time(timeline) <= threads
    numbers = [each.number for each in timeline.threads]
    assert len(set(numbers)) == len(numbers)
    assert {each.thread for each in timeline.stretches} <= set(numbers)
    by_thread: dict[int, float] = {}
    for each in timeline.stretches:
        assert by_thread.get(each.thread, 0.0) <= each.start <= each.stop <= timeline.seconds
        by_thread[each.thread] = each.stop


def test_a_reduce_has_one_too() -> None:
    timeline = traced(Job(max, 100, reduce=max, chunk=7, trace=True))
    assert units(timeline, "work") == Counter(range(100))


def test_without_trace_nothing_is_kept() -> None:
    assert run_multithreaded_sync(Job(nothing, 100)).timeline is None
    assert run_multithreaded_sync(Job(nothing, 100, trace=False)).timeline is None


def test_the_process_and_a_coordinator_say_what_jobs_do_not() -> None:
    with Coordinator(trace=True) as coordinator:
        assert coordinator.submit(Job(nothing, 9)).result().timeline is not None
        assert coordinator.submit(Job(nothing, 9, trace=False)).result().timeline is None
    assert tunables()["trace"] is False
    configure(trace=True)
    try:
        assert run_multithreaded_sync(Job(nothing, 9)).timeline is not None
        with Coordinator(trace=False) as coordinator:
            assert coordinator.submit(Job(nothing, 9)).result().timeline is None
    finally:
        configure(trace=False)
    with pytest.raises(TypeError, match="trace must be True or False, got 1"):
        Job(nothing, 9, trace=1)  # type: ignore[arg-type]


def test_a_short_job_that_is_awaited_has_one_although_the_lane_is_open() -> None:
    async def main() -> list[Timeline | None]:
        found = []
        for _ in range(20):
            await run_multithreaded(Job(nothing, 1))
            found.append((await run_multithreaded(Job(nothing, 1, trace=True))).timeline)
        return found

    for timeline in asyncio.run(main()):
        assert timeline is not None
        assert units(timeline, "work") == Counter([0])


def test_a_failed_job_s_timeline_shows_what_was_done_and_what_was_undone() -> None:
    undone: list[range] = []

    def fails(start: int, stop: int) -> None:
        if start == 40:
            raise OSError(5, "no")

    def undo(start: int, stop: int) -> None:
        undone.append(range(start, stop))

    with pytest.raises(OSError, match="no") as caught:
        run_multithreaded_sync(Job(fails, 100, chunk=10, undo=undo, trace=True))
    told = failure(caught.value)
    timeline = told.timeline
    assert timeline is not None
    expected = Counter(unit for each in undone for unit in each)
    assert units(timeline, "undo") == expected
    assert units(timeline, "work") - Counter(range(40, 50)) == expected
    marks = [each.what for each in timeline.marks]
    assert marks == ["the first chunk begins", "raised OSError", "failed: undo begins"]
    assert timeline.marks[1].thread in {each.number for each in timeline.threads}
    assert pickle.loads(pickle.dumps(told)).timeline == timeline


def test_a_mark_names_its_thread_although_that_has_done_nothing_before() -> None:
    def fails(start: int, stop: int) -> None:
        raise ValueError

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - any is meant
        run_multithreaded_sync(Job(fails, 1, trace=True))
    timeline = failure(caught.value).timeline
    assert timeline is not None
    (number,) = (each.number for each in timeline.threads)
    assert timeline.marks[-1] == (f"raised {ValueError.__name__}", timeline.marks[-1].at, number)


def test_a_coroutine_undo_is_a_row_of_its_own() -> None:
    async def main() -> Timeline | None:
        async def undo(start: int, stop: int) -> None:
            await asyncio.sleep(0)

        def fails(start: int, stop: int) -> None:
            if start == 4:
                raise ValueError

        try:
            await run_multithreaded(
                Job(fails, 8, chunk=1, max_threads=1, undo=undo, trace=True, name="undone")
            )
        except ValueError as error:
            return failure(error).timeline
        return None

    timeline = asyncio.run(main())
    assert timeline is not None
    assert units(timeline, "undo") == Counter(range(4))
    names = {each.number: each.name for each in timeline.threads}
    assert {names[each.thread] for each in timeline.stretches if each.kind == "undo"} == {
        "event loop"
    }


def test_of_a_long_job_the_last_stretches_are_kept_and_the_others_counted() -> None:
    from aioktask.engine.state.trace import Ring

    ring = Ring(1, "helper")
    for number in range(MOST_STRETCHES + 5):
        ring.add(Stretch(1, number, number + 1, number, number + 1, 1, "work", 0, False))
    assert len(ring.stretches) == MOST_STRETCHES
    assert ring.stretches[0].first == ring.lost == 5


def test_a_running_job_s_timeline_is_what_was_done_until_then() -> None:
    at, go = threading.Event(), threading.Event()

    def waits(start: int, stop: int) -> None:
        if start == 5:
            at.set()
            assert go.wait(PATIENCE)

    with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(waits, 10, chunk=1, trace=True))
        try:
            assert at.wait(PATIENCE)
            timeline = handle.timeline()
            assert timeline is not None
            assert set(units(timeline, "work")) <= set(range(5))
        finally:
            go.set()
        report = handle.result()
        assert handle.timeline() is report.timeline is not None


def events_of(timeline: Timeline, phase: str) -> list[dict[str, Any]]:
    events: Any = timeline.chrome_trace()["traceEvents"]
    return [each for each in events if each["ph"] == phase]


def test_the_chrome_trace_has_each_stretch_and_counters_that_end_at_what_is_done() -> None:
    timeline = traced(Job(nothing, 500, chunk=7, trace=True, name="counted"))
    shown = {(each["tid"], each["args"]["first"]) for each in events_of(timeline, "X")}
    assert shown == {(each.thread, each.first) for each in timeline.stretches}
    assert all(type(each["tid"]) is int for each in events_of(timeline, "X"))
    counters = events_of(timeline, "C")
    assert [each["ts"] for each in counters] == sorted(each["ts"] for each in counters)
    threads = [each["args"]["threads"] for each in counters if each["name"] == "threads"]
    assert threads[-1] == 0 <= min(threads)
    assert max(threads) <= len(timeline.threads)
    done = [each["args"]["units"] for each in counters if each["name"] == "units done"]
    assert done[-1] == 500
    names = [each["args"]["name"] for each in events_of(timeline, "M")]
    assert names == ["job counted", "the job", *(each.name for each in timeline.threads)]


def test_a_loan_is_an_arrow_to_the_stretch_that_it_made_urgent(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(start: int, stop: int) -> None:
        begun.set()
        if start == 1:
            assert go.wait(PATIENCE)

    with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(slow, 30, chunk=1, nice=10, trace=True))
        assert begun.wait(PATIENCE)

        def wait_urgently() -> None:
            with priority(0):
                handle.result()

        waiter = threading.Thread(target=wait_urgently)
        waiter.start()
        deadline = time.monotonic() + PATIENCE
        while coordinator.snapshot().jobs[0].loan is None:
            assert time.monotonic() < deadline
        go.set()
        waiter.join()
        timeline = handle.result().timeline
    assert timeline is not None
    lent = [each for each in timeline.stretches if each.lent]
    assert lent
    assert {each.nice for each in lent} == {0}
    starts, ends = events_of(timeline, "s"), events_of(timeline, "f")
    assert [each["id"] for each in starts] == [each["id"] for each in ends] != []
    assert {each["tid"] for each in starts} == {0}
    path = tmp_path / "trace.json"
    timeline.write_chrome_trace(path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(timeline.chrome_trace()))


def test_the_picture_is_valid_and_takes_every_name_literally() -> None:
    pytest.importorskip("matplotlib")
    name = "<script>alert(1)</script> & $\\frac{1}{0$ \N{SNOWMAN} \N{PILE OF POO}"
    picture = traced(Job(nothing, 100, trace=True, name=name))._repr_html_()
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    assert not [each for each in root.iter() if each.tag.endswith("script")]


def test_an_error_whose_class_has_no_name_to_tell_is_traced() -> None:
    class Nameless(type):
        @property
        def __name__(cls) -> str:
            raise LookupError

    class Odd(Exception, metaclass=Nameless):  # noqa: N818
        pass

    undone: list[int] = []

    def fn(start: int, stop: int) -> None:
        if start == 5:
            raise Odd

    def undo(start: int, stop: int) -> None:
        undone.extend(range(start, stop))

    with pytest.raises(Odd):
        run_multithreaded_sync(Job(fn, 10, chunk=1, max_threads=1, undo=undo, trace=True))
    assert sorted(undone) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a\x1b[2J\x00b", "of half \ud800", "two\nlines", "x" * 3000])
def test_any_name_makes_a_valid_picture(name: str) -> None:
    pytest.importorskip("matplotlib")
    stretches = (Stretch(1, 0.0, 1.0, 0, 10, 1, "work", 0, False),)
    threads = (TracedThread(1, name),)
    ET.fromstring(Timeline(name, 10, 1.0, threads, stretches, (), 0).svg())


spans = st.tuples(
    st.integers(0, 15), st.floats(0, 9.9), st.floats(0, 0.5), st.sampled_from(["work", "undo"])
)


@given(st.lists(spans), st.booleans())
def test_a_picture_is_bounded_and_shows_each_stretch_where_it_was(
    found: list[tuple[int, float, float, Any]], crowded: bool
) -> None:
    """Each stretch is within something that is drawn in its row, however short it is."""
    pytest.importorskip("matplotlib")
    stretches = [
        Stretch(thread, at, min(at + lasts, 10.0), 0, 1, 1, kind, 0, lent=False)
        for thread, at, lasts, kind in found
    ]
    if crowded:  # as of a long job with tiny chunks
        stretches += [
            Stretch(thread, n / 200, n / 200 + 0.004, n, n + 1, 1, "work", 0, lent=False)
            for thread in (0, 1)
            for n in range(2000)
        ]
    stretches.sort(key=lambda each: each.start)
    threads = tuple(TracedThread(number, f"thread {number}") for number in range(16))
    timeline = Timeline("a", 1, 10.0, threads, tuple(stretches), (), 0)
    drawn = [
        (path.get_extents().x0, path.get_extents().x1, round(path.get_extents().y0 + 0.4))
        for collection in timeline.figure().axes[0].collections
        for path in collection.get_paths()
    ]
    assert len(drawn) <= len(found) + (2 * 1000 if crowded else 0)
    for each in stretches:
        assert any(
            row == each.thread and start <= each.start + 1e-9 and each.stop <= stop + 1e-9
            for start, stop, row in drawn
        )
    assert all(stop - start >= 0.019 for start, stop, _ in drawn)


def test_an_empty_job_has_an_empty_picture() -> None:
    pytest.importorskip("matplotlib")
    ET.fromstring(traced(Job(nothing, 0, trace=True)).svg())


def test_without_matplotlib_the_error_says_what_to_install_and_a_notebook_shows_a_table() -> None:
    program = """if True:
        import sys
        sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
        from aioktask import Job, run_multithreaded_sync
        job = Job(lambda start, stop: None, 10, trace=True, name="<b>")
        timeline = run_multithreaded_sync(job).timeline
        try:
            timeline.svg()
        except ImportError as error:
            assert "aioktask[plot]" in str(error)
        shown = timeline._repr_html_()
        assert shown.startswith("<table>") and "&lt;b&gt;" in shown and "<b>" not in shown
    """
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


KNOWN = Timeline(
    name="known",
    size=8,
    seconds=0.006,
    threads=(TracedThread(1, "helper 11"), TracedThread(2, "helper 12")),
    stretches=(
        Stretch(1, 0.0, 0.002, 0, 4, 2, "work", 5, lent=False),
        Stretch(2, 0.001, 0.003, 4, 6, 1, "work", 5, lent=False),
        Stretch(1, 0.003, 0.004, 6, 8, 1, "work", -5, lent=True),
        Stretch(2, 0.005, 0.006, 0, 4, 1, "undo", 5, lent=False),
    ),
    marks=(Mark("the first chunk begins", 0.0, None), Mark("raised OSError", 0.004, 1)),
    lost=0,
)


def test_a_known_job_is_told_event_by_event() -> None:
    pid = os.getpid()

    def told(phase: str, name: str, ts: float, tid: int, **more: Any) -> dict[str, Any]:
        return {"ph": phase, "name": name, "ts": ts, "pid": pid, "tid": tid, **more}

    def is_called(what: str, tid: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}

    def stretch(
        tid: int, ts: float, dur: float, first: int, last: int, *about: Any
    ) -> dict[str, Any]:
        chunks, kind, nice, lent = about
        args = {"first": first, "last": last, "chunks": chunks, "nice": nice, "lent": lent}
        return told("X", f"{first} to {last}", ts, tid, cat=kind, dur=dur, args=args)

    def threads(ts: float, count: int) -> dict[str, Any]:
        return told("C", "threads", ts, 0, args={"threads": count})

    def units_done(ts: float, count: int) -> dict[str, Any]:
        return told("C", "units done", ts, 0, args={"units": count})

    assert KNOWN.chrome_trace()["traceEvents"] == [
        is_called("process_name", 0, "job known"),
        is_called("thread_name", 0, "the job"),
        is_called("thread_name", 1, "helper 11"),
        is_called("thread_name", 2, "helper 12"),
        told("i", "the first chunk begins", 0, 0, s="p"),
        told("i", "raised OSError", 4000, 1, s="t"),
        stretch(1, 0, 2000, 0, 4, 2, "work", 5, False),
        stretch(2, 1000, 2000, 4, 6, 1, "work", 5, False),
        stretch(1, 3000, 1000, 6, 8, 1, "work", -5, True),
        stretch(2, 5000, 1000, 0, 4, 1, "undo", 5, False),
        told("i", "lends nice -5", 3000, 0, s="t"),
        told("s", "loan", 3000, 0, cat="loan", id=1),
        told("f", "loan", 3000, 1, cat="loan", id=1, bp="e"),
        threads(0, 1),
        threads(1000, 2),
        threads(2000, 1),
        units_done(2000, 4),
        threads(3000, 0),
        units_done(3000, 6),
        threads(3000, 1),
        threads(4000, 0),
        units_done(4000, 8),
        threads(5000, 1),
        threads(6000, 0),
        units_done(6000, 4),
    ]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the package, about its own program
def test_perfetto_s_own_processor_reads_each_stretch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perfetto = pytest.importorskip("perfetto.trace_processor", reason="perfetto is not installed")
    (tmp_path / ".curlrc").write_text("connect-timeout = 5\nmax-time = 60\n")
    monkeypatch.setenv("CURL_HOME", str(tmp_path))  # what fetches the program, the first time
    path = tmp_path / "trace.json"
    KNOWN.write_chrome_trace(path)
    try:
        processor = perfetto.TraceProcessor(trace=str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"perfetto's trace processor cannot be fetched: {error}")
    with processor:
        rows = processor.query(
            "select ts, dur, name, category from slice "
            "where category in ('work', 'undo') order by ts"
        )
        found = [(row.ts, row.dur, row.name, row.category) for row in rows]
    assert found == [
        (
            round(each.start * 1e9),
            round((each.stop - each.start) * 1e9),
            f"{each.first} to {each.last}",
            each.kind,
        )
        for each in KNOWN.stretches
    ]
