# SPDX-License-Identifier: MIT
# The live page in a real browser: what a person sees and does there.

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import SERVE
from tests.browser.seen import DESKTOP, PHONE, Start, Visit, hide, process, row, rows
from tests.support.gates import until
from tests.support.servers import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"></script><b>bold</b>"


def test_a_job_is_watched_reniced_cancelled_and_its_bar_runs_back(
    start: Start, visit: Visit
) -> None:
    worker = start("one", "resize")
    page = visit(**DESKTOP)
    bar = row(page, "resize").get_by_role("progressbar")
    first = bar.get_attribute("aria-valuetext")
    until(lambda: bar.get_attribute("aria-valuetext") != first)
    assert "who=resize" in row(page, "resize").inner_text()

    page.get_by_role("button", name="Renice resize").click()
    page.get_by_label("Nice, from").fill("7")
    page.get_by_role("button", name="Renice", exact=True).last.click()
    until(lambda: "7" in row(page, "resize").get_by_role("cell").nth(5).inner_text())

    page.get_by_role("button", name="Renice resize").click()
    page.get_by_label("Nice, from").fill("3")
    page.get_by_role("button", name="Leave it").click()
    page.get_by_role("button", name="Renice resize").click()
    page.get_by_label("Nice, from").fill("8")
    page.keyboard.press("Enter")
    until(lambda: "8" in row(page, "resize").get_by_role("cell").nth(5).inner_text())

    page.get_by_role("button", name="Cancel resize").click()
    assert "cannot be taken back" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="Keep it").click()
    for _ in range(3):  # messages, in which it would be stopped
        seen = row(page, "resize").inner_text()
        until(lambda seen=seen: row(page, "resize").inner_text() != seen)  # type: ignore[misc]
    assert "running" in row(page, "resize").inner_text()
    page.get_by_role("button", name="Cancel resize").click()
    page.get_by_role("button", name="Cancel the job").click()
    rows(page).filter(has_text="undoing").wait_for()
    until(lambda: "undoing" in (bar.get_attribute("aria-valuetext") or ""))
    page.locator("#ended [role=row]").filter(has_text="resize").wait_for()
    assert "cancelled at 0%, undone" in page.locator("#ended").inner_text()
    assert worker.hear() == "cancelled 8"


def test_a_job_on_other_processes_has_its_workers_in_rows_and_is_changed_as_any(
    start: Start, visit: Visit
) -> None:
    worker = start("cluster", "spread")
    page = visit(**DESKTOP)
    workers = page.locator("#workers .space [role=row]")
    until(lambda: workers.count() == 2)
    until(lambda: all("working" in each for each in workers.all_inner_texts()))
    first, second = workers.all_inner_texts()
    assert "process-1" in first
    assert "process-2" in second
    assert all("localhost" in each and "spread" in each for each in (first, second))
    until(lambda: workers.first.inner_text() != first)
    page.get_by_role("button", name="Renice spread").click()
    page.get_by_label("Nice, from").fill("4")
    page.get_by_role("button", name="Renice", exact=True).last.click()
    until(lambda: "4" in row(page, "spread").get_by_role("cell").nth(5).inner_text())
    row(page, "spread").get_by_role("button").first.click()
    until(lambda: "process-2: open" in page.get_by_role("dialog").inner_text())
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Cancel spread").click()
    page.get_by_role("button", name="Cancel the job").click()
    assert worker.hear() == "cancelled 4"
    page.locator("#workers-panel").wait_for(state="hidden")


def test_of_two_processes_one_is_stopped_and_goes_on_and_one_is_killed(
    start: Start, visit: Visit
) -> None:
    one, other = start("one", "first"), start("one", "second")
    page = visit(**DESKTOP)
    for worker, name in ((one, "first"), (other, "second")):
        until(lambda worker=worker: "alive" in process(page, worker).inner_text())  # type: ignore[misc]
        assert row(page, name).count() == 1

    os.kill(one.pid, signal.SIGSTOP)
    until(lambda: "does not answer" in process(page, one).inner_text())
    assert page.locator("#summary").inner_text().endswith(" · 1 process does not answer")
    seen = page.locator("#jobs [role=row]").filter(has_text="second").inner_text()
    until(lambda: row(page, "second").inner_text() != seen)  # the other one goes on
    os.kill(one.pid, signal.SIGCONT)
    until(lambda: "alive" in process(page, one).inner_text())

    other.end()
    until(lambda: "gone" in process(page, other).inner_text())
    assert row(page, "second").count() == 0
    assert row(page, "first").count() == 1


def test_a_hostile_name_is_text(start: Start, visit: Visit) -> None:
    start("one", HOSTILE)
    page = visit(**DESKTOP)
    row(page, "<img").get_by_role("button").first.click()
    assert page.locator("#details-title").inner_text() == HOSTILE
    assert page.locator("img, b").count() == 0
    assert "hacked" not in page.title()


def tasks_of(page: Page, act: Callable[[], None]) -> list[float]:
    """The tasks of the page's main thread meanwhile, in milliseconds of CPU time.

    The time by the clock is that of the processes beside it, too.
    """
    browser = page.context.browser
    assert browser is not None
    browser.start_tracing(
        page=page, categories=["toplevel", "disabled-by-default-devtools.timeline"]
    )
    act()
    events = json.loads(browser.stop_tracing())["traceEvents"]
    return [each["tdur"] / 1000 for each in events if each["name"] in TASKS and "tdur" in each]


TASKS = ("RunTask", "ThreadControllerImpl::RunTask")


def test_of_a_thousand_jobs_only_those_in_view_are_drawn_and_no_task_is_long(
    start: Start, visit: Visit
) -> None:
    start("many", "1000")
    page = visit(**DESKTOP)
    page.locator("#summary").get_by_text("1000 jobs under way").wait_for()
    drawn = page.locator("#jobs .space [role=row]")
    until(lambda: page.locator("#jobs [role=table]").get_attribute("aria-rowcount") == "1001")
    scroll = page.locator("#jobs .scroll")

    def look_around() -> None:
        for part in range(20):
            scroll.evaluate(f"(each) => each.scrollTop = each.scrollHeight * {part} / 20")
            page.wait_for_timeout(100)  # so that the page draws, several times with what comes
            assert drawn.count() <= 20

    tasks = tasks_of(page, look_around)
    print(f"the longest of {len(tasks)} tasks, in ms of CPU time:", sorted(tasks)[-5:])
    # 50 ms, and three times that for a slow machine: what all rows take at once is far more.
    assert max(tasks) < 150
    scroll.evaluate("(each) => each.scrollTop = each.scrollHeight")
    row(page, "waits 999").wait_for()
    assert drawn.last.get_attribute("aria-rowindex") == "1001"


def test_the_focus_stays_where_it_is_while_rows_come_and_go(start: Start, visit: Visit) -> None:
    start("one", "kept")
    page = visit(**DESKTOP)
    button = page.get_by_role("button", name="Renice kept")
    button.focus()
    for name in ("later", "latest"):
        start("one", name)
        row(page, name).wait_for()
        assert button.evaluate("(each) => each === document.activeElement")


def test_pause_keeps_what_is_shown_and_the_timeline_is_moved_by_keys(
    start: Start, visit: Visit
) -> None:
    start("one", "job")
    page = visit(**DESKTOP)
    pause = page.get_by_role("button", name="Pause")
    pause.press("Enter")
    assert pause.get_attribute("aria-pressed") == "true"
    assert "Paused at" in page.locator("#connection").inner_text()
    shown = row(page, "job").inner_text()
    start("one", "other")
    asked = page.evaluate("performance.now()")
    until(lambda: page.evaluate("performance.now()") > asked + 1500)  # some messages came
    assert row(page, "job").inner_text() == shown
    assert row(page, "other").count() == 0
    pause.press("Enter")
    row(page, "other").wait_for()

    timeline, readout = page.locator("#timeline"), page.locator("#readout")
    timeline.focus()
    assert readout.inner_text() == "30 s, up to now"
    timeline.press("+")
    assert readout.inner_text().startswith("20 s")
    timeline.press("ArrowLeft")
    assert "stopped" in readout.inner_text()
    timeline.press("End")
    assert readout.inner_text() == "20 s, up to now"
    timeline.press(" ")
    assert page.locator("#hold").get_attribute("aria-pressed") == "true"


def test_a_wrong_token_is_refused_and_logging_out_hides_all(start: Start, visit: Visit) -> None:
    start("one", "secret")
    page = visit(log_in=False, **DESKTOP)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("That is not the token.").wait_for()
    assert "secret" not in page.content()
    page = visit(**DESKTOP)
    row(page, "secret").wait_for()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").wait_for()
    assert "secret" not in page.content()


def test_where_the_stream_brings_nothing_the_page_asks(start: Start, visit: Visit) -> None:
    page = visit(log_in=False, **DESKTOP)
    page.route("**/events", lambda route: None)  # never answered
    start("one", "asked")
    from aioktask.web._page.access import Token

    page.get_by_label("Token").fill(Token().value)
    page.get_by_role("button", name="Log in").click()
    row(page, "asked").wait_for()
    first = row(page, "asked").inner_text()
    until(lambda: row(page, "asked").inner_text() != first)


def test_pages_of_a_browser_share_one_stream_and_the_next_has_it_when_one_goes(
    start: Start, visit: Visit
) -> None:
    asked: list[Page] = []
    polled: list[Page] = []

    def count(page: Page) -> None:
        page.on("request", lambda sent: sent.url.endswith("/events") and asked.append(page))
        page.on("request", lambda sent: sent.url.endswith("/state") and polled.append(page))

    def goes_on(page: Page) -> None:
        for _ in range(2):
            seen = row(page, "job").inner_text()
            until(lambda seen=seen: row(page, "job").inner_text() != seen)  # type: ignore[misc]
        assert page.locator("#connection").get_attribute("data-state") == "live"

    start("one", "job")
    page = visit(**DESKTOP)
    with page.context.expect_page():
        page.evaluate("window.open('about:blank')")
    other = page.context.pages[-1]
    for each in (page, other):
        count(each)
    page.reload()
    page.locator("#connection[data-state=live]").wait_for()
    other.goto(page.url)
    # It knows that it may write, from the one that has the stream.
    row(other, "job").get_by_role("button", name="Renice job").wait_for()
    goes_on(other)
    assert asked == [page]
    hide(page, hidden=True)
    # The driver tells of requests as it is asked something.
    until(lambda: other.title() and asked == [page, other])
    hide(page, hidden=False)
    goes_on(page)
    goes_on(other)
    assert asked == [page, other]
    other.close()
    until(lambda: page.title() and asked == [page, other, page])
    goes_on(page)
    assert polled == []


def test_a_server_ends_at_once_while_the_page_is_open_and_the_page_finds_the_next_one(
    start: Start, visit: Visit, server: Server, tmp_path: Path
) -> None:
    page = visit(**DESKTOP)
    live = page.locator("#connection[data-state=live]")
    live.wait_for()
    server.terminate()
    server.process.wait(2.5)  # less than what it would wait for a stream that does not end
    page.locator("#connection[data-state=lost]").wait_for()
    start("one", "later")
    with Server(SERVE, "/", {}, tmp_path / "next.log", server.port):
        live.wait_for()
        row(page, "later").wait_for()
        seen = row(page, "later").inner_text()
        until(lambda: row(page, "later").inner_text() != seen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_in_any_state(
    start: Start, visit: Visit, scheme: str, size: dict[str, Any], tmp_path: Path
) -> None:
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe")

    def check(state: str) -> None:
        found = module.Axe().run(page).response["violations"]
        told = [(each["id"], [node["target"] for node in each["nodes"]]) for each in found]
        assert told == [], state
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{state}: it is {wide} px too wide"
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, input")]
                .filter((each) => each.offsetParent && each.getBoundingClientRect().height < 24)
                .map((each) => each.outerHTML)"""
        )
        assert small == [], state
        page.screenshot(path=pictures / f"{scheme}-{size['viewport']['width']}-{state}.png")

    pictures = Path(os.environ.get("AIOKTASK_TEST_PICTURES", tmp_path))
    page = visit(log_in=False, color_scheme=scheme, **size)
    page.locator("#login").wait_for()
    check("login")
    page = visit(color_scheme=scheme, reduced_motion="reduce", **size)
    nobody = page.get_by_text("No process publishes its jobs.")
    nobody.wait_for()
    check("empty")
    start("shown")
    page.locator("#stuck-panel").wait_for()
    assert not nobody.is_visible()
    rows(page).filter(has_text="undoing").wait_for()
    check("jobs")
    row(page, "rebuild").get_by_role("button").first.click()
    check("details")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Renice rebuild").click()
    check("renice")
    page.get_by_role("button", name="Leave it").click()
    page.get_by_role("button", name="Cancel rebuild").click()
    check("cancel")
    page.get_by_role("button", name="Keep it").click()
    start("cluster", "spread")
    page.locator("#workers .space [role=row]").nth(1).wait_for()
    page.locator("#workers").scroll_into_view_if_needed()
    check("workers")
