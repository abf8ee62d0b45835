# SPDX-License-Identifier: MIT
# A Dask cluster that tests of several modules share, since it takes seconds to start one.

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.dasks import Dask, dask_cluster

HERE = Path(__file__).parent


class Shared:
    """The cluster, while there is one."""

    def __init__(self) -> None:
        self._dask: Dask | None = None
        self._ending = contextlib.ExitStack()

    def get(self, folders: pytest.TempPathFactory) -> Dask:
        if self._dask is None:
            started = dask_cluster(folders.mktemp("dask"), 2)
            self._dask = self._ending.enter_context(started)
        return self._dask

    def end(self) -> None:
        self._dask = None
        self._ending.close()


SHARED = Shared()


@pytest.fixture
def two(tmp_path_factory: pytest.TempPathFactory) -> Dask:
    """Two workers, w0 and w1, for tests that kill nothing and leave nothing behind."""
    return SHARED.get(tmp_path_factory)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """End it with the last of these tests, since it takes CPU time: no fixture lives so long."""
    try:
        return (yield)
    finally:
        if nextitem is None or HERE not in nextitem.path.parents:
            SHARED.end()


def pytest_sessionfinish() -> None:
    """End it where a session ends before its last test."""
    SHARED.end()
