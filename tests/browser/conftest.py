# SPDX-License-Identifier: MIT
# A real Chromium, without a window, that looks at the live page, and real processes that it shows.
#
# The driver's synchronous form runs a loop in the thread that uses it, which pytest's own plugins
# for loops do not like to find there: so no test here is asynchronous.

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import program
from tests.support.publishing import Publishing
from tests.support.servers import ROOT, Server

try:
    from playwright.sync_api import Browser, Page, sync_playwright
except ImportError:
    MISSING = "playwright is not installed"
else:
    MISSING = ""

PATIENCE_MS = 30_000

SERVE = ["-m", "aioktask", "serve", "--port", "{port}", "--allow", "test"]
JOBS = Path(__file__).with_name("jobs.py")
SHOWN = ROOT / "docs" / "shown.py"  # what the documentation's pictures are of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need a browser, and take long."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if MISSING:
        pytest.skip(MISSING)
    chromium = program("chromium", "usr/lib/chromium/chromium", ["fonts-dejavu-core"])
    if isinstance(chromium, str):
        pytest.skip(chromium)
    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not pytest's own: the path of a Unix socket has 108 bytes at most.
    with tempfile.TemporaryDirectory(prefix="aioktask-") as found:
        monkeypatch.setenv("XDG_RUNTIME_DIR", found)
        yield Path(found)


class Worker(Publishing):
    """A process with jobs, as `jobs.py` or another script has them, which publishes them."""

    def __init__(self, *arguments: str, script: Path = JOBS) -> None:
        super().__init__([os.fspath(script), *arguments], "ready", quiet=True)


@pytest.fixture
def start(runtime_directory: Path) -> Iterator[Callable[..., Worker]]:
    """Starts a process with jobs; it is ended with the test."""
    with ExitStack() as stack:

        def begin(*arguments: str, script: Path = JOBS) -> Worker:
            worker = Worker(*arguments, script=script)
            stack.callback(worker.end)
            return worker

        yield begin


@pytest.fixture
def token(runtime_directory: Path) -> str:
    from aioktask.observe.processes import directory
    from aioktask.web._page.access import TOKEN_FILE, Token

    return Token(directory(os.environ.get("AIOKTASK_SHARE")) / TOKEN_FILE).value


@pytest.fixture
def server(runtime_directory: Path, token: str, tmp_path: Path) -> Iterator[Server]:
    """`python -m aioktask serve`."""
    with Server(SERVE, "/", {}, tmp_path / "server.log") as running:
        yield running


@pytest.fixture
def visit(browser: Browser, server: Server, token: str) -> Iterator[Callable[..., Page]]:
    """Opens the page, logged in; what it says on the console must be nothing, at the end."""
    said: list[str] = []
    with ExitStack() as stack:

        def go(*, log_in: bool = True, **options: Any) -> Page:
            context = browser.new_context(**options)
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            page.on("pageerror", lambda error: said.append(f"{error}"))
            page.on("console", lambda message: _note(said, message))
            page.goto(f"http://localhost:{server.port}/")
            if log_in:
                page.get_by_label("Token").fill(token)
                page.get_by_role("button", name="Log in").click()
                page.locator("#view").wait_for()
            return page

        yield go
    assert said == []


def _note(said: list[str], message: Any) -> None:
    """What was said of scripts; that something was refused or cut is no mistake of theirs."""
    if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
        said.append(message.text)
