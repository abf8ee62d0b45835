# SPDX-License-Identifier: MIT
# What the guest tells of its tests, line by line, and what becomes of it here.
#
# Each line is a JSON object with a `kind`. Pure: lines in, verdicts out; no socket, no machine. It
# guarantees that a test has the outcome the guest told with all of its phases, or that it failed:
# a test passes only when its teardown was told, never because nothing more came. Relies on pytest's
# own reports, which can be made into plain data and back (as pytest-xdist does).
"""The stream of reports out of the guest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Stream", "failed", "line", "read_report", "skipped", "tail", "write_report"]

# Where the guest has the checkout.
CHECKOUT = "/checkout"

READY = "ready"
STARTED = "started"
REPORT = "report"
PROBLEM = "problem"
FINISHED = "finished"


def line(kind: str, **values: object) -> bytes:
    """A message as the guest sends it."""
    return json.dumps({"kind": kind, **values}).encode() + b"\n"


def write_report(config: pytest.Config, report: pytest.TestReport) -> bytes:
    """The message about one phase of a test."""
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    # What a test attaches need not be plain data; its text will do.
    return json.dumps({"kind": REPORT, "report": data}, default=str).encode() + b"\n"


def read_report(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    """The report as pytest made it in the guest."""
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    assert isinstance(report, pytest.TestReport), data
    # JSON knows no tuples, and pytest tells a skip's reason by its being one.
    if isinstance(report.longrepr, list):
        path, line_number, reason = report.longrepr
        report.longrepr = (_path_here(config, path), line_number, reason)
    path, number, name = report.location
    report.location = (path, number, name)
    report.user_properties = [(key, value) for key, value in report.user_properties]
    report.sections = [(title, text) for title, text in report.sections]
    return report


def _path_here(config: pytest.Config, path: str) -> str:
    """Where on this machine a file of the guest's checkout is."""
    inside = Path(path)
    if inside.is_relative_to(CHECKOUT):
        return str(config.rootpath / inside.relative_to(CHECKOUT))
    return path


def failed(item: pytest.Item, text: str) -> pytest.TestReport:
    """The report of a test that the guest could not run to its end."""
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=text,
        when="call",
    )


def skipped(item: pytest.Item, reason: str) -> pytest.TestReport:
    """The report of a test for which there is no guest."""
    path, number, _ = item.location
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="skipped",
        longrepr=(path, (number or 0) + 1, f"Skipped: {reason}"),
        when="setup",
    )


class Stream:
    """The guest's messages so far.

    Attributes:
        ready: The guest has collected its tests and begins to run them.
        running: The test that it told to have begun and has not told the end of; None for none.
        problems: What it told about its own troubles: modules it could not import, and the like.
        end: Why nothing more will come; None while more may.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._unfinished_line = b""
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._complete: set[str] = set()
        self.ready = False
        self.running: str | None = None
        self.problems: list[str] = []
        self.end: str | None = None

    def feed(self, received: bytes) -> None:
        """Take what came over the channel, cut anywhere."""
        *lines, self._unfinished_line = (self._unfinished_line + received).split(b"\n")
        for message in lines:
            try:
                self._take(json.loads(message))
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                sent = repr(message[:200])
                self.close(f"it sent what is no message, beginning {sent} ({error!r})")

    def close(self, reason: str) -> None:
        """Nothing more will come. The first reason counts."""
        if self.end is None:
            self.end = reason

    def reports(self, nodeid: str) -> list[pytest.TestReport] | None:
        """The phases of a test that the guest has finished with; None for one that it has not."""
        return self._reports[nodeid] if nodeid in self._complete else None

    def explain(self, nodeid: str) -> str:
        """Why a test has no outcome now that nothing more will come."""
        if nodeid == self.running:
            began = "while this test was running"
        elif self.running is not None:
            began = f"while {self.running} was running, before this test"
        else:
            began = "without having run this test"
        return "\n\n".join([f"The guest ended {began}: {self.end}.", *self.problems])

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if self.end is not None:
            return
        if kind == READY:
            self.ready = True
        elif kind == STARTED:
            self.running = message["nodeid"]
        elif kind == REPORT:
            self._take_report(read_report(self._config, message["report"]))
        elif kind == PROBLEM:
            self.problems.append(message["text"])
        elif kind == FINISHED:
            self.close(f"its pytest ended with exit code {message['exitstatus']}")
        else:
            raise ValueError(f"no such kind: {kind}")

    def _take_report(self, report: pytest.TestReport) -> None:
        phases = self._reports.setdefault(report.nodeid, [])
        phases.append(report)
        if report.when == "teardown":
            self.running = None
            told = {phase.when for phase in phases}
            # A setup that did not pass has no call after it.
            if told == {"setup", "call", "teardown"} or (
                told == {"setup", "teardown"} and not phases[0].passed
            ):
                self._complete.add(report.nodeid)
            else:
                self.problems.append(f"{report.nodeid}: told only of {sorted(map(str, told))}")


def tail(text: str, lines: int) -> str:
    """The last lines, which say why a machine stopped."""
    found: Iterable[str] = text.splitlines()[-lines:]
    return "\n".join(found)
