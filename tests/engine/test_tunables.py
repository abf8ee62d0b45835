# SPDX-License-Identifier: MIT
"""Tunables: one set of names in calls, the environment and coordinators, each refused by name."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioktask
from aioktask import Coordinator, Handle, Job, configure, tunables
from aioktask.engine.threads.adapt import Adapter
from aioktask.engine.tunables import (
    NO_SHARE,
    PROCESS,
    TUNABLES,
    Tunables,
    checked,
    process_tunables,
    refuse_misspelt,
)


def test_the_table_the_process_and_the_coordinator_have_the_same_names() -> None:
    assert {each.name for each in fields(Tunables)} == {*TUNABLES, "sources"}
    of_coordinator = set(inspect.signature(Coordinator).parameters)
    assert of_coordinator == {each.name for each in TUNABLES.values() if each.scoped}


def test_every_default_is_a_value_that_may_be_set() -> None:
    default = Tunables().data()
    assert checked("test", default) == default


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        ({"AIOKTASK_LEARN": "", "AIOKTASK_REMEMBER": ""}, {}),
        (
            {"AIOKTASK_LEARN": " nothing ", "AIOKTASK_REMEMBER": "0"},
            {"learn": "nothing", "remember": False},
        ),
        ({"AIOKTASK_REMEMBER": "1"}, {"remember": True}),
        ({"AIOKTASK_REMEMBER": " disk\n"}, {"remember": "disk"}),
        ({"AIOKTASK_REMEMBER": "/a/directory"}, {"remember": "/a/directory"}),
        ({"AIOKTASK_MAX_THREADS": " 3\n"}, {"max_threads": 3}),
        ({"AIOKTASK_MAX_THREADS_PER_NODE": "2"}, {"max_threads_per_node": 2}),
        ({"AIOKTASK_NICE": "-5", "AIOKTASK_GIVE_WAY": "0"}, {"nice": -5, "give_way": False}),
        ({"AIOKTASK_SHARE": "web.v2"}, {"share": "web.v2"}),
        ({"AIOKTASK_SHARE": NO_SHARE}, {"share": NO_SHARE}),
        ({"AIOKTASK_LIMIT_NATIVE_THREADS": "0"}, {"limit_native_threads": False}),
        ({"AIOKTASK_LIMIT_NATIVE_THREADS": " process\n"}, {"limit_native_threads": PROCESS}),
    ],
)
def test_the_environment_speaks_for_the_process(
    environ: dict[str, str], expected: dict[str, object]
) -> None:
    found = process_tunables(environ, {})
    assert found.data() == {**Tunables().data(), **expected}
    assert set(found.sources) == set(expected)


class _ManyVariables(dict[str, str]):
    """An environment that is too large to be gone through."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("every variable was looked at")

    items = keys = values = __iter__  # type: ignore[assignment]


def test_of_the_environment_only_the_table_s_variables_are_read() -> None:
    """What a call costs does not depend on how many variables there are beside them."""
    environ = _ManyVariables({"AIOKTASK_LEARN": "nothing", "OTHER": "1"})
    assert process_tunables(environ, {"nice": ("a call", 3)}).learn == "nothing"


@given(st.sampled_from([*TUNABLES, "publish", "token"]), st.data())
def test_a_variable_that_is_almost_one_is_refused(name: str, data: st.DataObject) -> None:
    letters = list(name.upper())
    at = data.draw(st.integers(0, len(letters) - 1))
    slip = data.draw(st.sampled_from(["drop", "double", "swap"]))
    if slip == "drop":
        del letters[at]
    elif slip == "double":
        letters.insert(at, letters[at])
    else:
        letters[at : at + 2] = reversed(letters[at : at + 2])
    wrong = "AIOKTASK_" + "".join(letters)
    refuse_misspelt({"HOME": "/", f"AIOKTASK_{name.upper()}": "1", wrong: ""})
    if wrong == f"AIOKTASK_{name.upper()}" or (len(name) <= 5 and slip != "double"):
        return  # of a short name little is left
    with pytest.raises(ValueError, match=f"AIOKTASK_{name.upper()} if that is meant"):
        refuse_misspelt({wrong: "1"})


@pytest.mark.parametrize("name", ["AIOKTASK_TEST_SEED", "AIOKTASK_MINE", "AIOKTASK_", "MAX_THREAD"])
def test_other_variables_are_let_be(name: str) -> None:
    refuse_misspelt({name: "1"})


def test_a_variable_in_small_letters_is_refused() -> None:
    with pytest.raises(ValueError, match="AIOKTASK_MAX_THREADS if that is meant"):
        refuse_misspelt({"AIOKTASK_max_threads": "1"})


@pytest.mark.parametrize(
    "call",
    [
        "aioktask.run_multithreaded_sync(aioktask.Job(lambda a, b: print('ran'), 1))",
        "aioktask.configure(max_threads=1)",
    ],
    ids=["a job", "configure"],
)
def test_a_slip_is_refused_before_anything_is_done(call: str) -> None:
    program = (
        f"import os, aioktask\ntry:\n    {call}\nfinally:\n"
        "    os.environ.pop('AIOKTASK_MAX_THREAD')\n"
        "    assert aioktask.tunables()['max_threads'] is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "AIOKTASK_MAX_THREAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    assert done.stderr.rstrip().endswith(
        "ValueError: the variable 'AIOKTASK_MAX_THREAD' is set, which says nothing; "
        "set AIOKTASK_MAX_THREADS if that is meant, else unset it"
    )


def test_a_call_goes_before_a_variable_even_a_wrong_one() -> None:
    calls = {"max_threads": ("set_max_threads(16)", 16)}
    found = process_tunables({"AIOKTASK_MAX_THREADS": "abc"}, calls)
    assert found.max_threads == 16
    assert found.sources == {"max_threads": "set_max_threads(16)"}


WRONG: list[tuple[str, Any, str]] = [
    ("max_threads", 0, "0"),
    ("max_threads", "four", "four"),
    ("max_threads", 1.5, "1.5"),
    ("max_threads_per_node", -1, "-1"),
    ("nice", 20, "20"),
    ("give_way", "yes", "yes"),
    ("share", "a/b", "a/b"),
    ("share", "x" * 65, "xxx"),
    ("learn", "everything", "everything"),
    ("initializer", "module:function", "module:function"),
    ("limit_native_threads", "2", "2"),
    ("limit_native_threads", "threads", "threads"),
    ("remember", "maybe", "maybe"),
    ("remember", "a/directory", "a/directory"),
    ("remember", "2", "2"),
]


@pytest.mark.parametrize(("name", "value", "shown"), WRONG)
def test_a_wrong_value_is_refused_with_its_source(name: str, value: Any, shown: str) -> None:
    variable = f"AIOKTASK_{name.upper()}"
    with pytest.raises(ValueError, match=f"^{variable} must be .*{shown}"):
        process_tunables({variable: str(value)}, {})
    before = tunables()
    with pytest.raises((TypeError, ValueError), match=rf"^configure\(\): {name} must be .*{shown}"):
        configure(**{"remember": False, name: value})
    assert tunables() == before
    if TUNABLES[name].scoped:
        with pytest.raises((TypeError, ValueError), match=rf"^Coordinator\(\): {name} must be"):
            Coordinator(**{name: value})
        with Coordinator(max_threads=1) as coordinator:
            with pytest.raises((TypeError, ValueError), match=f"^Coordinator: {name} must be"):
                coordinator.configure(**{name: value})


def test_what_is_no_tunable_is_refused_with_those_there_are() -> None:
    with pytest.raises(TypeError, match=r"configure\(\): there is no tunable 'threads'.* share"):
        configure(threads=2)
    with Coordinator() as coordinator:
        for wrong in ("share", "threads"):
            with pytest.raises(TypeError, match=f"no tunable '{wrong}'; there are max_threads"):
                coordinator.configure(**{wrong: None})


def test_a_call_that_meets_a_wrong_variable_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = tunables()
    monkeypatch.setenv("AIOKTASK_LEARN", "everything")
    with pytest.raises(ValueError, match=r"^AIOKTASK_LEARN must be"):
        configure(nice=3)
    monkeypatch.delenv("AIOKTASK_LEARN")
    configure(learn="both")
    assert tunables() == before


def submit(coordinator: Coordinator, nice: int = 3) -> Handle[None]:
    return coordinator.submit(Job(lambda start, stop: None, 4, chunk=1, nice=nice))


def gives_way(handle: Handle[None]) -> bool:
    handle.result()  # by then a turn has taken it in
    return handle._run.entry.gives_way


def test_two_threads_may_change_two_of_them_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = threading.current_thread()
    others: list[threading.Thread] = []
    publish = Adapter.configure

    def publish_late(adapter: Adapter, found: Tunables) -> None:
        if threading.current_thread() is main and not others:
            others.append(threading.Thread(target=configure, kwargs={"nice": 7}))
            others[0].start()
            others[0].join()
        publish(adapter, found)

    monkeypatch.setattr(Adapter, "configure", publish_late)
    before = tunables()
    try:
        configure(learn="nothing")
        assert (tunables()["learn"], tunables()["nice"]) == ("nothing", 7)
    finally:
        configure(learn=before["learn"], nice=before["nice"])


def test_each_can_be_changed_while_running() -> None:
    before = tunables()
    try:
        configure(nice=7, max_threads=5, give_way=True)
        assert aioktask.max_threads() == 5
        assert "configure(max_threads=5)" in aioktask.plan(Job(print, 100)).limited_by
        with Coordinator() as coordinator:
            assert submit(coordinator).nice == 7
            coordinator.configure(nice=-2, give_way=False)
            handle = submit(coordinator)
            assert handle.nice == -2
            coordinator.configure(nice=9)
            assert not gives_way(submit(coordinator))
            coordinator.configure(give_way=None, nice=None)
            back = submit(coordinator)
            assert back.nice == 7
            assert gives_way(back)
            with aioktask.priority(1):
                assert submit(coordinator).nice == 1
        configure(nice=None)
        with Coordinator() as coordinator:
            assert submit(coordinator, 4).nice == 4
    finally:
        configure(**before)
    assert tunables() == before
