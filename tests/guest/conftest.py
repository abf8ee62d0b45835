# SPDX-License-Identifier: MIT
# The tests of this folder run in the guest machine; each is reported here as a test of its own.
#
# On this machine a test is only collected. The first one boots the guest with all of them; a test's
# reports are then those that the guest's pytest made: outcome, traceback, reason, output, duration.
# A machine that froze is booted anew, with the tests that it did not come to: see `bed`.
# Inside the guest the same files run as tests usually do.
"""Marks the tests of this folder and reports what the guest tells of them."""

from __future__ import annotations

import os
import traceback

import pytest

from tests.guest.bed import Bed
from tests.guest.facts import NodeFacts, read_nodes
from tests.guest.machine import Limits
from tests.guest.reports import failed, skipped
from tests.support.packages import Unavailable, required
from tests.support.sampling import SAMPLE

IN_GUEST = os.environ.get("AIOKTASK_IN_GUEST") == "1"

# The guest of this session, and what kept it from booting: `Unavailable` skips, all else fails.
BED = pytest.StashKey[Bed]()
NO_BED = pytest.StashKey[Exception]()
# What ran when a machine froze, once for each: a test may do that once, a session so often.
FROZEN = pytest.StashKey[list[str | None]]()
MOST_FROZEN = 3

# Jobs that follow CPUs that come and go: on a slow machine a minute each.
LONGEST = "test_follow_in_guest.py"

# The guest's own timeout of a test, in seconds; 0 where it has none of its own.
TIMEOUT = pytest.StashKey[float]()
# What this machine grants beyond it, since the guest's says more: it prints every thread's stack.
GRACE = 60.0


@pytest.fixture
def nodes() -> tuple[NodeFacts, ...]:
    """The guest's NUMA nodes, by number; each fact is read when it is asked for."""
    return read_nodes()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.guest)
    if not IN_GUEST:
        # The guest keeps the test's own timeout. Here the first test waits for a build and a boot.
        item.stash[TIMEOUT] = _own_timeout(item)
        item.add_marker(pytest.mark.timeout(0), append=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes last, in an order that is always the same."""
    of_guest = [each for each in items if each.get_closest_marker("guest") is not None]
    of_guest.sort(key=lambda item: (item.path.name == LONGEST, item.path.name))
    others = [each for each in items if each.get_closest_marker("guest") is None]
    items[:] = others + of_guest


def _own_timeout(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    asked = (mark.args[0] if mark.args else mark.kwargs.get("timeout")) if mark else None
    return float(asked or 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if IN_GUEST or item.get_closest_marker("guest") is None:
        return None
    if BED not in item.session.stash:
        _boot(item.session)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    sample = item.config.stash.get(SAMPLE, None)
    reason = sample.why_not() if sample is not None else ""
    for report in [skipped(item, reason)] if reason else _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> list[pytest.TestReport]:
    session = item.session
    found: list[pytest.TestReport] | str
    while True:
        error = session.stash.get(NO_BED, None)
        if isinstance(error, Unavailable):
            told = f"no guest machine here: {error}"
            return [failed(item, told) if required() else skipped(item, told)]
        if error is not None:
            return [failed(item, "".join(traceback.format_exception(error)))]
        bed = session.stash[BED]
        found = bed.reports(item.nodeid)
        if not isinstance(found, str):
            return found
        frozen = session.stash.setdefault(FROZEN, [])
        if not bed.frozen or bed.running in frozen or len(frozen) == MOST_FROZEN:
            return [failed(item, found)]
        frozen.append(bed.running)
        bed.say(f"it froze while {bed.running} was running, and is booted anew")
        _boot(session, item)


def _boot(session: pytest.Session, first: pytest.Item | None = None) -> None:
    """Start the guest with every guest test of the session, or with those from this one on."""
    items = [item for item in session.items if item.get_closest_marker("guest") is not None]
    if first is not None:
        items = items[items.index(first) :]
    config = session.config
    timeout = float(config.getoption("timeout", None) or Limits().test)
    longest = max(timeout, *(item.stash[TIMEOUT] for item in items))
    options = [
        # None of the everyday run's selection: the guest gets the tests by name.
        *("-m", ""),
        *("-p", "no:cacheprovider"),
        f"--timeout={timeout:g}",
        f"--tb={config.option.tbstyle}",
        *["--showlocals"] * bool(config.option.showlocals),
        *["--verbose"] * max(config.option.verbose, 0),
        "--color=no",
    ]
    terminal = config.pluginmanager.get_plugin("terminalreporter")

    def say(text: str) -> None:
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"guest: {text}")

    bed = Bed(
        config,
        {"nodeids": [item.nodeid for item in items], "options": options},
        Limits(test=longest + GRACE),
        say,
    )
    session.stash[BED] = bed
    try:
        bed.boot()
    except Exception as error:
        session.stash[NO_BED] = error


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Also after an interrupt."""
    if BED in session.stash:
        session.stash[BED].stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    session = terminalreporter._session
    if session is not None and BED in session.stash and NO_BED not in session.stash:
        for running in session.stash.get(FROZEN, []):
            terminalreporter.write_line(f"guest: a machine froze while {running} was running")
        terminalreporter.write_line(f"guest: {session.stash[BED].summary()}")
