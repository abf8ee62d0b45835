# SPDX-License-Identifier: MIT
# Each test has a directory of sockets for itself, so it sees its own processes and no others.

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.top.told import Child


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("AIOKTASK_TOKEN", raising=False)
    return tmp_path


@pytest.fixture
def child() -> Iterator[Callable[[str], Child]]:
    """Starts processes that publish a job of this name, and ends them."""
    started: list[Child] = []

    def start(name: str) -> Child:
        started.append(Child(name))
        return started[-1]

    yield start
    for each in started:
        each.end()
