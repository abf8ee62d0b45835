# SPDX-License-Identifier: MIT
# Labels: what a program says of a job goes with its events, whatever becomes of it, and of nothing
# else.

from __future__ import annotations

import contextlib
import copy
import pickle
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import Coordinator, Job, map_ordered_sync, run_multithreaded, run_multithreaded_sync
from aioktask.engine import events
from aioktask.engine.events import Event
from aioktask.job import NO_LABELS, Labels
from tests.support.harness import pool_at_rest

REQUEST = {"request": "7f3a"}


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What is told from now on."""
    told: list[Event] = []
    monkeypatch.setattr(events, "_listeners", [told.append])
    monkeypatch.setattr(events, "_wishes", [lambda: True])
    return told


def nothing(start: int, stop: int) -> None:
    pass


def fail(start: int, stop: int) -> None:
    raise LookupError("planted")


def labels_of(heard: list[Event], name: str) -> list[dict[str, str]]:
    pool_at_rest()
    return [dict(each.labels) for each in heard if each.job == name]


@pytest.mark.parametrize("fn", [nothing, fail])
def test_every_event_of_a_job_has_its_labels(heard: list[Event], fn: Any) -> None:
    job = Job(fn, 4, chunk=1, name="named", labels=REQUEST, undo=nothing)
    with contextlib.suppress(LookupError):
        run_multithreaded_sync(job)
    run_multithreaded_sync(Job(nothing, 4, name="other"))
    told = labels_of(heard, "named")
    assert len(told) >= 3
    assert all(each == REQUEST for each in told)
    assert not any(labels_of(heard, "other"))


@pytest.mark.anyio
async def test_calls_streams_and_refusals_have_them_too(heard: list[Event]) -> None:
    async with Coordinator(max_queued=0) as coordinator:
        await coordinator.run(pow, 2, 3, name="call", labels=REQUEST)
        await aioktask.run(pow, 2, 3, name="call", labels=REQUEST)
        async with aioktask.map_ordered(abs, [1], name="stream", labels=REQUEST) as results:
            assert [value async for value in results] == [1]
        with pytest.raises(aioktask.Overloaded):
            await run_multithreaded(
                Job(nothing, 1, name="refused", labels=REQUEST), coordinator=coordinator, timeout=0
            )
        await coordinator.submit(Job(nothing, 1, name="handle").with_labels(REQUEST))
    await anyio.to_thread.run_sync(_stream)
    for name in ("call", "stream", "refused", "handle", "stream in a thread"):
        told = labels_of(heard, name)
        assert told, name
        assert all(each == REQUEST for each in told)
    refused = next(each for each in heard if each.job == "refused")
    assert refused.kind.value == "job_refused"
    assert refused.details == {"queued": 0, "retry_after": 1.0}


def _stream() -> None:
    with map_ordered_sync(abs, [1], name="stream in a thread", labels=REQUEST) as results:
        assert list(results) == [1]


def test_a_job_that_was_made_already_gets_labels_in_a_copy() -> None:
    job = Job(nothing, 4, labels={"a": "1"})
    other = job.with_labels({"b": "2"})
    assert dict(job.labels) == {"a": "1"}
    assert dict(other.labels) == {"b": "2"}
    assert other.fn is job.fn
    assert job != other
    with pytest.raises(TypeError, match="labels must be strings"):
        job.with_labels({"a": 1})  # type: ignore[dict-item]


def test_they_never_change() -> None:
    given = {"a": "1"}
    labels = Job(nothing, 4, labels=given).labels
    given["a"] = "2"
    assert labels["a"] == "1"
    with pytest.raises(TypeError):
        labels["a"] = "3"  # type: ignore[index]
    assert labels == {"a": "1"}
    assert hash(labels) == hash(Labels({"a": "1"}))


def test_they_can_be_copied_and_sent_between_processes() -> None:
    job = Job(nothing, 4, labels=REQUEST)
    for other in (pickle.loads(pickle.dumps(job)), copy.copy(job), copy.deepcopy(job)):
        assert other.labels == REQUEST
    assert pickle.loads(pickle.dumps(Job(nothing, 4))).labels == {}


def test_a_job_without_labels_shares_none() -> None:
    assert Job(nothing, 4).labels is NO_LABELS


@pytest.mark.parametrize(
    ("labels", "kind", "match"),
    [
        (["a"], TypeError, "labels must be a mapping of strings to strings, got"),
        ({"a": 1}, TypeError, "labels must be strings, got 'a': 1"),
        ({1: "a"}, TypeError, "labels must be strings, got 1: 'a'"),
        ({"": "a"}, ValueError, "a label must have a name"),
        ({"a": "x" * 1025}, ValueError, "1024 characters, got 'a' with 1025 characters"),
        ({str(each): "" for each in range(33)}, ValueError, "at most 32 labels, got 33"),
    ],
)
def test_what_labels_may_not_be_is_refused(labels: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        Job(nothing, 4, labels=labels)
    with pytest.raises(kind, match=match):
        aioktask.map_ordered(abs, [1], labels=labels)
    with pytest.raises(kind, match=match):
        anyio.run(_call, labels)


async def _call(labels: Any) -> None:
    await aioktask.run(pow, 2, 3, labels=labels)
