# SPDX-License-Identifier: MIT
# What every test shares: the loops it runs on, how hard hypothesis looks, how often threads switch,
# what the collector looks at.
#
# An async test carries `pytest.mark.anyio` and runs on each of LOOPS. A test that is about one of
# them alone says so: `@pytest.mark.parametrize("anyio_backend", ["trio"])`.

from __future__ import annotations

import faulthandler
import gc
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import record, sampling
from tests.support.patience import PATIENCE
from tests.support.sampling import SAMPLE

LOOPS: dict[str, Any] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "asyncio+uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}

# No deadlines: how long one example takes says more about the machine's neighbours than about it.
# Each session tries other examples: few in each, since there are many sessions.
hypothesis.settings.register_profile(
    "everyday", deadline=None, print_blob=True, derandomize=False, max_examples=40
)
hypothesis.settings.register_profile(
    "long",
    deadline=None,
    derandomize=False,
    print_blob=True,
    max_examples=2000,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(os.environ.get("AIOKTASK_TEST_PROFILE", "everyday"))


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The loop that an async test runs on, as anyio's plugin wants it."""
    return request.param


# The tests' dependency group brings uvloop, but not to Windows, and there are no wheels of it for
# free-threaded Python 3.13.
HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SAMPLE in config.stash:
        config.stash[SAMPLE].arrange(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is left when the time is over, and what is about uvloop where there is none."""
    if SAMPLE in item.config.stash:
        item.config.stash[SAMPLE].admit()
    if not HAS_UVLOOP and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        for asked in item.callspec.params.values():
            if isinstance(asked, str | tuple) and asked in ("uvloop", LOOPS["asyncio+uvloop"]):
                pytest.skip("uvloop is not installed")


@pytest.fixture(autouse=True)
def _most_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """What `pytest.mark.max_threads` says holds while the test runs."""
    mark = request.node.get_closest_marker("max_threads")
    if mark is None:
        yield
        return
    import aioktask

    aioktask.set_max_threads(*mark.args)
    yield
    aioktask.set_max_threads(None)


@pytest.fixture(autouse=True, scope="module")
def _collections_look_at_the_module_alone() -> Iterator[None]:
    """Many tests call for the collector, which would look at all that pytest holds each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# Where this session is written down, and since when it runs.
RECORDED = pytest.StashKey[tuple[Path, str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    if sample := sampling.asked_for():
        config.stash[SAMPLE] = sample
    # Taken out of the environment, since tests start sessions of their own.
    if file := os.environ.pop(record.FILE, None):
        check = os.environ.pop(record.CHECK, "tests")
        config.stash[RECORDED] = Path(file).absolute(), check, time.monotonic()
    # Tests count threads: what other processes do must not change how many there are.
    os.environ.setdefault("AIOKTASK_SHARE", "off")
    os.environ.setdefault("AIOKTASK_GIVE_WAY", "0")
    interval = os.environ.get("AIOKTASK_TEST_SWITCHINTERVAL")
    if interval is not None:
        sys.setswitchinterval(float(interval))


def pytest_unconfigure() -> None:
    """End the process, and show what its threads do, where it does not end by itself: it waits for
    jobs, and what a test that failed has left may never come to its end."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=sys.__stderr__)


def pytest_report_header() -> str:
    profile = os.environ.get("AIOKTASK_TEST_PROFILE", "everyday")
    gil = "on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "off"
    interval = sys.getswitchinterval()
    return f"aioktask: profile {profile}, thread switch interval {interval:g} s, GIL {gil}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if SAMPLE in config.stash:
        terminalreporter.write_line(config.stash[SAMPLE].told())
    if RECORDED in config.stash:
        file, check, began = config.stash[RECORDED]
        ended = record.counted((name, len(of)) for name, of in terminalreporter.stats.items())
        seconds = time.monotonic() - began
        record.append(file, record.Entry(check, seconds, record.this_python(), ended))
