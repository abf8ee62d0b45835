# SPDX-License-Identifier: MIT
# A Dask cluster that tests of several modules share, since it takes seconds to start one.

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.dasks import Dask, dask_cluster


@pytest.fixture(scope="package")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """Two workers, w0 and w1, for tests that kill nothing and leave nothing behind."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), 2) as dask:
        yield dask
