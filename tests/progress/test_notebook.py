# SPDX-License-Identifier: MIT
# Bars and rich output in a real kernel of Jupyter's.

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.patience import PATIENCE

jupyter_client = pytest.importorskip("jupyter_client", reason="jupyter_client is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

# What jupyter_client and pyzmq warn of among themselves is not about this library.
pytestmark = pytest.mark.filterwarnings("default")


BEFORE = """
import os, threading
os.environ["AIOKTASK_SHARE"] = "off"
from aioktask import Coordinator, Job, snapshot
from aioktask.progress import rich_bar, tqdm_bar

def fails(start, stop):
    if start == 70:
        raise OSError("planted")

def nothing(start, stop):
    pass

def job(fn, **options):
    return Job(fn, 100, chunk=1, max_threads=1, name="<i>resize</i>", **options)

coordinator = Coordinator()
"""


class Notebook:
    """A kernel, and what the outputs of its cells show."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, cell: str) -> list[tuple[str, Any]]:
        """Run a cell; its messages by kind, in their order."""
        asked = self._client.execute(cell)
        found: list[tuple[str, Any]] = []
        ends = time.monotonic() + PATIENCE
        while True:
            message = self._client.get_iopub_msg(timeout=max(ends - time.monotonic(), 0.01))
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return found
            if kind not in ("status", "execute_input"):
                found.append((kind, content))


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    manager, client = jupyter_client.manager.start_new_kernel(startup_timeout=PATIENCE)
    try:
        found = Notebook(client)
        assert found.run(BEFORE) == []
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def html_of(content: Any) -> str:
    return str(content["data"]["text/html"])


@pytest.mark.parametrize("bar", ["rich_bar", "tqdm_bar"])
def test_a_bar_is_one_output_that_changes(notebook: Notebook, bar: str) -> None:
    found = notebook.run(
        f"""
gate = threading.Event()
def stops(start, stop):
    if start == 40:
        gate.wait()
handle = coordinator.submit(job(stops))
import asyncio
asyncio.get_running_loop().call_later(0.5, gate.set)
report = await {bar}(handle, interval=0.05)
report.chunks
"""
    )
    kinds = [kind for kind, _ in found]
    assert kinds[0] == "display_data"
    assert set(kinds[1:-1]) == {"update_display_data"}
    assert kinds[-1] == "execute_result"
    shown = [html_of(content) for _, content in found[:-1]]
    assert any(" 40%" in each for each in shown)
    assert "100 done in" in shown[-1]
    assert len({content["transient"]["display_id"] for _, content in found[:-1]}) == 1
    assert all("&lt;i&gt;resize&lt;/i&gt;" in each and "<i>" not in each for each in shown)


@pytest.mark.parametrize("bar", ["rich_bar", "tqdm_bar"])
def test_a_bar_says_how_a_job_ended_and_raises_it(notebook: Notebook, bar: str) -> None:
    found = notebook.run(f"await {bar}(coordinator.submit(job(fails, undo=nothing)))")
    bars = [content for kind, content in found if kind.endswith("display_data")]
    assert "failed at 70%, undone" in html_of(bars[-1])
    errors = [content for kind, content in found if kind == "error"]
    assert [(each["ename"], each["evalue"]) for each in errors] == [("OSError", "planted")]


def test_result_in_a_cell_says_to_await(notebook: Notebook) -> None:
    found = notebook.run("rich_bar(coordinator.submit(job(nothing))).result()")
    assert found[-1][0] == "error"
    assert "await the bar instead" in found[-1][1]["evalue"]


def test_a_bar_shown_by_a_thread_belongs_to_its_cell(notebook: Notebook) -> None:
    found = notebook.run(
        """
handle = coordinator.submit(job(nothing))
with rich_bar(handle, interval=0.01):
    await handle
None
"""
    )
    assert found[0][0] == "display_data"
    assert {kind for kind, _ in found[1:]} <= {"update_display_data"}
    assert "100 done in" in html_of(found[-1][1])


@pytest.mark.parametrize(
    ("cell", "title"),
    [
        ("handle = coordinator.submit(job(nothing)); await handle; handle", "Job"),
        ("await coordinator.submit(job(nothing))", "Report"),
        ("await coordinator.submit(job(nothing)); snapshot()", "Snapshot"),
    ],
)
def test_what_a_cell_ends_with_is_shown_in_html(notebook: Notebook, cell: str, title: str) -> None:
    (_, content), *others = notebook.run(cell)
    assert others == []
    assert f"<b>{title}</b>" in html_of(content)
    assert "<i>" not in html_of(content)
