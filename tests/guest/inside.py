# SPDX-License-Identifier: MIT
# The guest's side: runs the tests that are asked for and tells of each phase as it ends.
#
# `python -m tests.guest.inside` is what the guest's init starts. Which tests, and pytest's options,
# are in the request; the answers go out through the virtual serial port named "reports", each as
# soon as it is known, so that what ends this process or this machine takes no earlier result along.
"""Run the requested tests inside the guest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.guest import reports


class Reporter:
    """A plugin that keeps to the requested tests and tells what becomes of them."""

    def __init__(self, port: BinaryIO, nodeids: Sequence[str]) -> None:
        self._port = port
        self._nodeids = nodeids
        self._config: pytest.Config | None = None

    def tell(self, message: bytes) -> None:
        self._port.write(message)
        self._port.flush()

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """The requested tests and no others, in the order in which they are waited for."""
        found = {item.nodeid: item for item in items}
        items[:] = [found[nodeid] for nodeid in self._nodeids if nodeid in found]
        absent = [nodeid for nodeid in self._nodeids if nodeid not in found]
        if absent:
            text = "\n".join(["The guest does not find these tests:", *absent])
            self.tell(reports.line(reports.PROBLEM, text=text))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            text = f"The guest cannot import {report.nodeid}:\n{report.longreprtext}"
            self.tell(reports.line(reports.PROBLEM, text=text))

    def pytest_collection_finish(self) -> None:
        self.tell(reports.line(reports.READY))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell(reports.line(reports.STARTED, nodeid=nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert self._config is not None
        self.tell(reports.write_report(self._config, report))


def open_port(name: str) -> BinaryIO:
    """The virtual serial port of that name."""
    for known in Path("/sys/class/virtio-ports").iterdir():
        if (known / "name").read_text().strip() == name:
            # Buffered, since the port takes no more than a part of a long message at a time.
            return Path("/dev", known.name).open("wb")
    raise FileNotFoundError(f"no virtual serial port is called {name}")


def run(request: dict[str, list[str]], port: BinaryIO) -> int:
    """Run the tests of a request; pytest's exit code, which is told as well."""
    nodeids = request["nodeids"]
    files = dict.fromkeys(nodeid.partition("::")[0] for nodeid in nodeids)
    reporter = Reporter(port, nodeids)
    exitstatus = int(pytest.main([*request["options"], *files], plugins=[reporter]))
    reporter.tell(reports.line(reports.FINISHED, exitstatus=exitstatus))
    return exitstatus


if __name__ == "__main__":
    with open_port("reports") as port:
        sys.exit(run(json.loads(Path("request.json").read_text()), port))
