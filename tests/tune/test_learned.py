# SPDX-License-Identifier: MIT
# What is kept on disk, listed and cleared: which files are meant, in which order, and that nothing
# in them can do a terminal harm. The command itself: tests/process/test_learned_on_disk.py.

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.kept import Entry, Subject, encode, file_name, is_file_name
from aioktask.engine.learning.lessons import Lesson
from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.machine import store
from aioktask.tune.learned import (
    MOST_SHOWN,
    Listed,
    clear,
    directory_of,
    learned,
    learned_data,
    learned_text,
)

pytestmark = pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="directories of POSIX")

NOTHING = Lesson(None, None, 1.0)


def subject(function: str = "a.module.work", job: str = "job", threads: int = 2) -> Subject:
    return Subject(function, "0" * 64, job, 1, 1, 10, threads, "a machine")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "lessons"
    made.mkdir(0o700)
    return made


def put(place: Path, about: Subject, when: float = 0.0, lesson: Lesson = NOTHING) -> str:
    name = file_name(about)
    (place / name).write_bytes(encode(about, lesson, when))
    return name


def put_damaged(place: Path) -> str:
    name = f"{'f' * 16}-{'0' * 16}-{'0' * 16}.json"
    (place / name).write_bytes(b"?")
    return name


def test_where_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "default_directory", lambda: "/the/caches")
    for remember in (True, False, "disk"):
        assert directory_of(remember, None) == "/the/caches"
    assert directory_of("/said", None) == "/said"
    assert directory_of("/said", "/given") == "/given"


def test_where_there_is_no_directory_nothing_is_kept(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert learned(nowhere) == []
    assert clear(nowhere, ()) == 0
    assert learned_text(nowhere, []) == f"nothing is kept in {nowhere}"


def test_what_was_written_last_comes_first_and_what_is_not_used_last(place: Path) -> None:
    damaged = put_damaged(place)
    whens = [30.0, 10.0, 20.0]
    kept = [put(place, subject(job=f"{when}"), when) for when in whens]
    (place / "notes.txt").touch()
    found = learned(str(place))
    assert [each.name for each in found] == [kept[0], kept[2], kept[1], damaged]
    assert [each.entry is None for each in found] == [False] * 3 + [True]
    assert found[-1].why.startswith("it is damaged")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("work", {"work", "another work"}),
        ("Group.work", {"another work"}),
        ("a.module.work", {"work"}),
        ("b.module.Group.work", {"another work"}),
        ("a job", {"work"}),
        ("ork", set()),
        ("a.module", set()),
        ("job", set()),
        ("", set()),
    ],
)
def test_a_name_is_that_of_a_job_or_of_a_function_with_or_without_its_module(
    name: str, meant: set[str], place: Path
) -> None:
    put_damaged(place)
    names = {
        put(place, subject("a.module.work", "a job")): "work",
        put(place, subject("b.module.Group.work", "another")): "another work",
        put(place, subject("a.module.other", "third")): "other",
    }
    found = learned(str(place), [name])
    assert {names[each.name] for each in found} == meant
    assert {names[each.name] for each in learned(str(place), [name, "third"])} == {*meant, "other"}
    left = {each for each in os.listdir(place) if each not in {one.name for one in found}}
    assert clear(str(place), [name]) == len(meant)
    assert set(os.listdir(place)) == left


def test_without_names_all_goes_that_is_ours(place: Path) -> None:
    put_damaged(place)
    put(place, subject())
    (place / "notes.txt").touch()
    assert clear(str(place), ()) == 2
    assert os.listdir(place) == ["notes.txt"]


def test_a_directory_that_others_may_write_to_is_neither_listed_nor_cleared(place: Path) -> None:
    name = put(place, subject())
    place.chmod(0o777)
    for call in (lambda: learned(str(place)), lambda: clear(str(place), ())):
        with pytest.raises(PermissionError, match="others may write"):
            call()
    assert os.listdir(place) == [name]


def test_each_file_says_what_it_is_about_and_what_was_learned(place: Path) -> None:
    sizes, scaling = Sizes(1 << 9, 1, 2), Scaling(2)
    sizes._curve.best, sizes.rate, scaling.level = 4, 1.0, 1
    put(place, subject(job="both"), 2.0, Lesson(sizes, scaling, 1.0))
    put(place, subject(job="neither"), 1.0)
    text = learned_text(str(place), learned(str(place)))
    head, both, neither = text.split("\n\n")
    assert head == f"kept in {place}"
    assert "a.module.work, job 'both'\n  range       512 to 1,023 units, align 1" in both
    assert "chunk       16 units" in both
    assert "threads     1 of 2" in both
    assert "chunk       given" in neither
    assert "threads     2 of 2" in neither  # that is not learned
    assert "machine     a machine" in neither


def test_for_json_both_kinds_are_told(place: Path) -> None:
    name, damaged = put(place, subject(), 5.0), put_damaged(place)
    data = learned_data(str(place), learned(str(place)))
    assert data["directory"] == str(place)
    [told] = data["learned"]  # type: ignore[misc]
    assert (told["file"], told["when"], told["subject"]["job"]) == (name, 5.0, "job")
    assert list(data["not used"]) == [damaged]  # type: ignore[call-overload]


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=300))
def test_only_what_can_be_printed_is_shown_and_not_too_much_of_it(
    function: str, job: str, machine: str
) -> None:
    about = Subject(function, "0" * 64, job, 1, 1, 10, 2, machine)
    found = [Listed("a", Entry(about, 0.0, None, None)), Listed("b", None, job)]
    text = learned_text("/place", found)
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 11
    assert max(map(len, lines)) <= 2 * (MOST_SHOWN + 3) + len("  not used    , job ")


def test_a_name_of_a_file_is_not_read_from_what_is_in_it(place: Path) -> None:
    name = put(place, subject())
    assert is_file_name(name)
    assert [each.name for each in learned(str(place))] == [name]
