# SPDX-License-Identifier: MIT
# What was refused is noted once a call, and what is only missing is not.

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aioktask.engine.machine import denials, kernel_files
from aioktask.engine.machine.denials import denied, note_denial
from aioktask.engine.machine.kernel_files import PART_BYTES, read_bytes, read_text, try_read
from aioktask.engine.machine.topology import Watched
from tests.engine.machine.test_os_threads import nothing_denied

__all__ = ["nothing_denied"]


def test_the_first_error_of_each_call_is_noted() -> None:
    note_denial("one", errno.EPERM)
    note_denial("two", errno.ENOSYS)
    note_denial("one", errno.EACCES)
    assert {call: text.partition(" ")[0] for call, text in denied().items()} == {
        "one": "EPERM",
        "two": "ENOSYS",
    }


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.EINTR, None])
def test_what_is_not_there_was_not_denied(error: int | None) -> None:
    note_denial("one", error)
    assert denied() == {}


def test_an_error_without_a_name_is_noted_by_its_number() -> None:
    note_denial("one", 4000)
    assert denied()["one"].startswith("4000 ")


def test_what_is_noted_is_bounded() -> None:
    for number in range(10 * denials.MOST):
        note_denial(str(number), errno.EPERM)
    assert len(denied()) == denials.MOST


def refuse(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refused(*arguments: object, **options: object) -> object:
        raise OSError(error, "no")

    monkeypatch.setattr(kernel_files, "open", refused, raising=False)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_a_file_that_may_not_be_read_is_empty_and_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int
) -> None:
    refuse(monkeypatch, error)
    assert read_bytes(tmp_path / "file", "a file") == try_read(tmp_path / "file") == b""
    assert list(denied()) == ["read a file", f"read {tmp_path / 'file'}"]


def test_a_file_that_is_missing_is_empty_and_not_noted(tmp_path: Path) -> None:
    assert read_text(tmp_path / "none") == read_text(f"{tmp_path}/\0") == ""
    assert denied() == {}


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_quota_that_cannot_be_seen_for_want_of_descriptors_has_not_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int
) -> None:
    online = tmp_path / "sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text("0-3\n")
    watched = Watched(tmp_path)
    assert watched.read() is not None
    assert watched.read() is None
    with monkeypatch.context() as patch:
        refuse(patch, error)
        assert watched.read() is None
    assert watched.read() is None
    online.write_text("0-1\n")
    with monkeypatch.context() as patch:
        refuse(patch, error)
        assert watched.read() is None
    assert watched.read() is not None


def test_a_long_file_is_read_to_its_end(tmp_path: Path) -> None:
    text = bytes(range(256)) * (3 * PART_BYTES // 256) + b"end"
    (tmp_path / "file").write_bytes(text)
    assert try_read(tmp_path / "file") == text
