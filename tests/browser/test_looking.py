# SPDX-License-Identifier: MIT
# What the page tells, and that it stays usable while everything on it changes: by pointer, by keys,
# for whoever reads it aloud, and where the server comes and goes.

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aioktask import tunables
from aioktask.observe.processes import ask
from tests.browser.conftest import SHOWN
from tests.browser.seen import DESKTOP, Start, Visit, has_focus, hide, process, readouts, row
from tests.support.gates import until
from tests.support.servers import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> str:
    """A set of slots for the processes of a test alone. Asked for before those are started."""
    assert tunables()["share"]  # this process keeps its own, which it reads once
    monkeypatch.setenv("AIOKTASK_SHARE", "page-test")
    return "page-test"


def test_why_jobs_wait_is_told_and_what_limits_a_process(start: Start, visit: Visit) -> None:
    service, nightly = start("service", script=SHOWN), start("nightly", script=SHOWN)
    page = visit(**DESKTOP)
    page.get_by_text("lent -5 by a task or thread that waits for it").wait_for()
    waits = row(page, "report").filter(has_text="waits")
    until(lambda: "its coordinator's 1 is at job " in waits.first.inner_text())
    assert re.search(r"began [\d.]+ s ago", waits.first.inner_text())
    assert " left" not in waits.first.inner_text()  # nobody knows
    page.get_by_label("Find").fill("waits report")
    until(lambda: row(page, "report").count() == 3)  # the fourth one has the thread
    page.get_by_label("Find").fill("")
    mails = row(page, "send mails")
    assert mails.locator(".bar[data-unknown]").count() == 1
    assert mails.get_by_role("progressbar").get_attribute("aria-valuenow") is None
    assert "stream 9" in row(page, "send mails").inner_text()
    assert "call 10" in row(page, "lookup").inner_text()
    page.locator("#ended [role=row]").filter(has_text="import customers").wait_for()
    assert re.search(r"failed at 5%, undone \(2\d units\)", page.locator("#ended").inner_text())
    assert any(", at a lent nice, process" in each for each in readouts(page))

    told = process(page, service)
    until(lambda: "6 of 6 work" in told.inner_text())  # five, and one for the call that blocks
    assert "configure(max_threads=5) raises the cap above" in told.inner_text()
    assert re.search(r"asyncio: [\d.]+ ms late, [\d.]+ ms at worst", told.inner_text())
    line = told.locator("polyline")
    points = len((line.get_attribute("points") or "").split())
    until(lambda: len((line.get_attribute("points") or "").split()) > points)

    stuck = page.locator("#stuck")
    until(lambda: "load a model" in stuck.inner_text())
    until(lambda: "in load_weights" in stuck.inner_text())
    assert f"of process {nightly.pid}. A cancel waits until it ends." in stuck.inner_text()
    advice = page.locator("#advice > li").filter(has_text=f"Process {nightly.pid}")
    until(lambda: "jobs wait for a thread, and this process has 1" in advice.inner_text())
    assert "at one chunk" not in page.locator("#advice").inner_text()  # it stands above

    service.say()
    thumbnails = row(page, "resize thumbnails")
    thumbnails.filter(has_text="undoing").wait_for()
    assert thumbnails.locator(".bar[data-undo]").count() == 1  # it is hatched
    bar, fill = thumbnails.get_by_role("progressbar"), thumbnails.locator(".fill")

    def how_far() -> tuple[int, float]:
        scale = re.findall(r"[\d.]+", fill.get_attribute("style") or "")
        return int(bar.get_attribute("aria-valuenow") or 0), float(scale[0])

    first = how_far()
    until(lambda: how_far()[0] < first[0] and how_far()[1] < first[1])


def test_why_a_job_failed_and_which_items_did_is_told_as_text(start: Start, visit: Visit) -> None:
    start("fails", "")
    page = visit(**DESKTOP)
    ended = page.locator("#ended .space [role=row]")
    failed = ended.filter(has_text="import <b>customers</b>")
    failed.wait_for()
    told = failed.get_by_role("cell").nth(3).inner_text()
    assert told == "ValueError: not a <b>customer</b> (units 31 to 32)"
    stream = ended.filter(has_text="stream")
    assert "9 done in " in stream.inner_text()
    assert ", 2 failed" in stream.inner_text()
    name = failed.get_by_role("button")
    name.click()
    details = page.get_by_role("dialog")
    assert details.locator("dt:text-is('error') + dd").inner_text() == told
    assert re.fullmatch(r"after \d\.\d s", details.locator("dt:text-is('began') + dd").inner_text())
    details.get_by_role("button", name="Close").click()
    stream.get_by_role("button").click()
    assert details.locator("dt:text-is('error') + dd").inner_text() == "none"
    progress = details.locator("dt:text-is('progress') + dd")
    assert progress.inner_text().startswith("100%, 9 of 9, 2 of them failed, 9 done in ")
    details.get_by_role("button", name="Close").click()

    told = readouts(page)
    (crossed,) = {each.partition(":")[0] for each in told if "a chunk failed" in each}
    assert crossed == "import <b>customers</b> (job 1)"
    assert any(re.match(r"\d+ short jobs, the first one tiny: ", each) for each in told)
    red = page.evaluate(
        """() => {
            const canvas = document.querySelector("#canvas");
            const draw = canvas.getContext("2d");
            const { data } = draw.getImageData(0, 0, canvas.width, canvas.height);
            let found = 0;
            for (let at = 0; at < data.length; at += 4) {
                found += data[at] === 179 && data[at + 1] === 38 && data[at + 2] === 30;
            }
            return found;
        }"""
    )
    assert red > 10  # the cross


def test_a_page_that_shares_a_stream_has_the_marks_from_before_it_came(
    start: Start, visit: Visit
) -> None:
    start("fails", "")
    page = visit(**DESKTOP)
    page.locator("#ended .space [role=row]").filter(has_text="customers").wait_for()
    with page.context.expect_page():
        page.evaluate("window.open('about:blank')")
    other = page.context.pages[-1]
    asked: list[str] = []
    other.on("request", lambda sent: asked.append(sent.url.rpartition("/")[2]))
    other.goto(page.url)
    other.locator("#ended .space [role=row]").filter(has_text="customers").wait_for()
    assert any("a chunk failed" in each for each in readouts(other))
    assert not {"events", "state"}.intersection(asked)


def test_a_chunk_inside_another_job_s_chunk_is_told_by_its_thread(
    start: Start, visit: Visit
) -> None:
    worker = start("nested", "")
    page = visit(**DESKTOP)
    row(page, "inner").wait_for()
    waits = row(page, "outer").get_by_role("cell").nth(6)
    until(lambda: waits.inner_text() == "job 2 (inner), inside a chunk")
    assert "running" in row(page, "outer").inner_text()
    threads = page.locator("#helpers .space [role=row]")
    until(lambda: threads.filter(has_text="inside job 1").count() == 1)
    outer, inner = (threads.nth(each).get_by_role("cell") for each in (0, 1))
    assert outer.nth(0).inner_text() == inner.nth(0).inner_text()
    assert re.fullmatch(rf"\d+ of {worker.pid}", inner.nth(0).inner_text())
    assert outer.nth(2).inner_text() == "outer · 1"
    assert inner.nth(2).inner_text() == "inner · 2, inside job 1"
    canvas, readout = page.locator("#canvas"), page.locator("#readout")
    box = canvas.bounding_box()
    assert box is not None

    def point(line: int) -> str:
        page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 52 + 20 * line)
        return readout.inner_text()

    until(lambda: point(0).startswith("outer (job 1)"))
    until(lambda: point(1).startswith("inner (job 2)"))
    assert ", inside a chunk of another job, process" in readout.inner_text()


def test_how_many_rows_are_out_of_view_is_told(start: Start, visit: Visit) -> None:
    start("many", "20")
    page = visit(**DESKTOP)
    row(page, "waits 0").wait_for()
    more, scroll = page.locator("#jobs .more"), page.locator("#jobs .scroll")
    until(lambda: more.inner_text() == "13 more below")
    assert page.get_by_role("table").first.get_attribute("aria-rowcount") == "21"
    assert row(page, "waits 0").get_attribute("aria-rowindex") == "2"
    scroll.evaluate("(each) => each.scrollTop = each.scrollHeight")
    until(lambda: more.inner_text() == "13 more above")
    assert row(page, "waits 19").get_attribute("aria-rowindex") == "21"
    scroll.evaluate("(each) => each.scrollTop = 2 * 58")
    until(lambda: more.inner_text() == "2 more above, 11 more below")
    page.get_by_label("Find").fill("waits 1")
    until(lambda: "more" in more.inner_text() and "13" not in more.inner_text())
    page.get_by_label("Find").fill("waits 19")
    until(lambda: not more.is_visible())
    assert not page.locator("#ended .more").is_visible()


def test_slots_and_who_holds_them_are_told(share: str, start: Start, visit: Visit) -> None:
    one, other = start("one", "first"), start("one", "second")
    page = visit(**DESKTOP)
    for each in (one, other):
        until(lambda each=each: "of the set page-test" in process(page, each).inner_text())  # type: ignore[misc]
    held = rf"held: .*process ({one.pid}|{other.pid}) 1"
    until(lambda: re.search(held, process(page, one).inner_text()))


@pytest.mark.parametrize("width", [320, 400, 900, 941, 1000, 1200, 1291, 1320, 1500])
def test_no_button_and_no_head_is_cut_off_at_any_width(
    start: Start, visit: Visit, width: int
) -> None:
    start("one", "a job whose name and labels are rather long")
    page = visit(viewport={"width": width, "height": 900})
    row(page, "a job").wait_for()
    cut = page.evaluate(
        """() => {
            const inside = document.querySelector("#jobs .scroll").getBoundingClientRect();
            const found = [...document.querySelectorAll("#jobs .space button")];
            if (innerWidth > 940) found.push(...document.querySelectorAll("#jobs .head span"));
            return found.filter((each) => {
                const box = each.getBoundingClientRect();
                return box.right > inside.right || box.left < inside.left
                    || box.bottom > inside.bottom;
            }).map((each) => each.textContent);
        }"""
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_timeline_tells_what_is_under_the_pointer_and_is_moved_by_it(
    start: Start, visit: Visit
) -> None:
    worker = start("one", "drawn")
    page = visit(**DESKTOP)
    readout, canvas = page.locator("#readout"), page.locator("#canvas")

    def point(seconds: float) -> None:
        """To what the first thread did so long ago, of the 30 s that are seen."""
        box = canvas.bounding_box()
        assert box is not None
        x = box["x"] + box["width"] - 8 - seconds * (box["width"] - 118) / 30
        page.mouse.move(x - 1, box["y"] + 51)
        page.mouse.move(x, box["y"] + 52)

    row(page, "drawn").wait_for()
    until(lambda: point(0.3) or "drawn (job 1): " in readout.inner_text())
    assert f", process {worker.pid}, thread" in readout.inner_text()
    until(lambda: point(0.02) or "s so far, process" in readout.inner_text())
    point(29.0)
    assert readout.inner_text() == "30 s, up to now"
    job = ask(worker.pid, {"do": "snapshot"}).answer["jobs"][0]
    while job["progress"]["done"] < 250:  # so that the undo is long enough to be looked at
        page.wait_for_timeout(50)
        job = ask(worker.pid, {"do": "snapshot"}).answer["jobs"][0]
    ask(worker.pid, {"do": "cancel", "number": 1})
    until(lambda: point(0.02) or re.match("undo of drawn .* so far, ", readout.inner_text()))
    until(lambda: point(0.3) or "undo of drawn (job 1)" in readout.inner_text())

    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 400, box["y"] + 52)
    page.mouse.down()
    page.mouse.move(box["x"] + 402, box["y"] + 52)  # a hand that presses moves a bit
    page.mouse.up()
    assert page.locator("#hold").get_attribute("aria-pressed") == "false"
    page.mouse.move(box["x"] + 400, box["y"] + 52)
    page.mouse.down()
    page.mouse.move(box["x"] + 600, box["y"] + 52, steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + 600, box["y"] - 30)
    until(lambda: re.fullmatch(r"30 s, up to \d+ s ago, stopped", readout.inner_text()))
    assert page.locator("#hold").get_attribute("aria-pressed") == "true"


def test_the_timeline_is_moved_and_zoomed_by_buttons_within_bounds(
    start: Start, visit: Visit
) -> None:
    start("one", "job")
    page = visit(**DESKTOP)
    readout, hold = page.locator("#readout"), page.locator("#hold")
    press = {
        name: page.get_by_role("button", name=name, exact=True)
        for name in ("Earlier", "Later", "Zoom in", "Zoom out")
    }
    until(lambda: readout.inner_text() == "30 s, up to now")
    press["Zoom out"].click()
    assert readout.inner_text() == "1 min, up to now"
    press["Zoom in"].click()
    for _ in range(8):
        press["Zoom in"].click()
    assert readout.inner_text() == "5 s, up to now"
    for _ in range(8):
        press["Zoom out"].click()
    assert readout.inner_text() == "5 min, up to now"
    for _ in range(3):
        press["Zoom in"].click()
    assert readout.inner_text() == "30 s, up to now"
    press["Earlier"].click()
    assert re.fullmatch(r"30 s, up to 1\d s ago, stopped", readout.inner_text())
    for _ in range(40):
        press["Earlier"].click()
    found = re.fullmatch(r"30 s, up to (\d+) s ago, stopped", readout.inner_text())
    assert found is not None
    assert int(found[1]) in range(265, 275)  # what is kept, and no further
    assert hold.get_attribute("aria-pressed") == "true"
    hold.click()
    assert readout.inner_text() == "30 s, up to now"
    press["Earlier"].click()
    for _ in range(3):
        press["Later"].click()
    assert readout.inner_text() == "30 s, up to now"
    hold.click()
    assert hold.get_attribute("aria-pressed") == "true"
    until(lambda: re.fullmatch(r"30 s, up to [1-9] s ago, stopped", readout.inner_text()))
    timeline = page.locator("#timeline")
    timeline.press("Control+-")  # that is the browser's
    assert readout.inner_text().startswith("30 s, ")
    timeline.press("-")
    assert readout.inner_text().startswith("1 min, ")
    for _ in range(2):
        timeline.press("ArrowRight")
    assert readout.inner_text() == "1 min, up to now"


def test_the_focus_stays_with_its_row_out_of_view_and_goes_to_the_table_with_its_end(
    start: Start, visit: Visit
) -> None:
    worker = start("many", "300")
    page = visit(**DESKTOP)
    row(page, "waits 0").first.wait_for()
    button = page.get_by_role("button", name="Renice waits 3", exact=True)
    button.focus()
    scroll = page.locator("#jobs .scroll")
    scroll.evaluate("(each) => each.scrollTop = each.scrollHeight")
    row(page, "waits 299").wait_for()
    assert has_focus(button)
    number = int(
        page.evaluate("document.activeElement.closest('[role=row]').dataset.key.split(':')[1]")
    )
    ask(worker.pid, {"do": "cancel", "number": number})
    button.wait_for(state="detached")
    assert has_focus(scroll)
    scroll.press("Home")
    row(page, "waits 2").first.wait_for()


def test_the_focus_stays_with_a_row_that_overtakes_others(start: Start, visit: Visit) -> None:
    worker = start("many", "6")
    page = visit(**DESKTOP)
    order = page.locator("#jobs .space [role=row] .name")
    until(lambda: order.all_inner_texts() == [f"waits {number}" for number in range(6)])
    button = page.get_by_role("button", name="Renice waits 4")
    button.focus()
    ask(worker.pid, {"do": "renice", "number": 5, "nice": -5})
    ask(worker.pid, {"do": "cancel", "number": 1})
    until(lambda: order.all_inner_texts() == [f"waits {number}" for number in (1, 4, 2, 3, 5)])
    assert has_focus(button)


def test_jobs_are_found_by_words(start: Start, visit: Visit) -> None:
    first, _ = start("one", "first"), start("one", "second")
    page = visit(**DESKTOP)
    row(page, "second").wait_for()
    page.get_by_label("Find").fill("RUNNING who=first")
    assert row(page, "second").count() == 0
    assert row(page, "first").count() == 1
    assert page.locator("#jobs-note").inner_text() == "1 found"
    page.get_by_label("Find").fill(f"{first.pid}")
    assert row(page, "second").count() == 0
    assert row(page, "first").count() == 1
    page.get_by_label("Find").fill("")
    assert row(page, "second").count() == 1


def test_a_change_is_announced_once_in_a_while(start: Start, visit: Visit) -> None:
    start("one", "first")
    page = visit(**DESKTOP)
    status, summary = page.get_by_role("status"), page.locator("#summary")
    until(lambda: status.inner_text())
    announced = status.inner_text()
    start("one", "second")
    row(page, "second").wait_for()
    assert "2 processes" in summary.inner_text()
    assert status.inner_text() == announced
    until(lambda: "2 processes" in status.inner_text())


def test_a_question_is_about_the_job_and_says_why_nothing_came_of_it(
    start: Start, visit: Visit
) -> None:
    worker = start("one", "asked about")
    page = visit(**DESKTOP)
    page.get_by_role("button", name="Renice asked about").click()
    dialog = page.get_by_role("dialog")
    assert f"asked about, job 1 of process {worker.pid}." in dialog.inner_text()
    nice = page.get_by_label("Nice, from")
    assert nice.input_value() == "0"
    assert has_focus(nice)
    page.keyboard.type("3")
    assert nice.input_value() == "3"  # in place of the one that it has
    nice.fill("25")
    dialog.get_by_role("button", name="Renice").click()
    assert dialog.is_visible()  # it is no nice
    nice.press("Escape")
    assert not dialog.is_visible()
    page.get_by_role("button", name="Cancel asked about").click()
    about = page.locator("#cancel-text")
    assert f"asked about, job 1 of process {worker.pid}: " in dialog.inner_text()
    seen = about.inner_text()
    until(lambda: about.inner_text() != seen)  # it goes on while it is asked about
    ask(worker.pid, {"do": "cancel", "number": 1})
    page.locator("#ended [role=row]").filter(has_text="asked about").wait_for(state="attached")
    until(lambda: about.inner_text().endswith(" It is over: cancelled."))
    dialog.get_by_role("button", name="Cancel the job").click()
    dialog.get_by_text("It is over already.").wait_for()
    assert dialog.get_by_role("button", name="Cancel the job").is_enabled()
    worker.end()
    dialog.get_by_role("button", name="Cancel the job").click()
    dialog.get_by_text(f"Process {worker.pid}: it is gone.").wait_for()
    dialog.get_by_role("button", name="Keep it").click()
    start("one", "another")
    page.get_by_role("button", name="Cancel another").click()
    assert "it is gone" not in dialog.inner_text()


def test_details_follow_a_job_to_its_end(start: Start, visit: Visit) -> None:
    worker = start("one", "looked into")
    page = visit(**DESKTOP)
    page.get_by_role("button", name="looked into", exact=True).click()
    details = page.get_by_role("dialog")
    progress = details.locator("dt:text-is('progress') + dd")
    seen = progress.inner_text()
    until(lambda: progress.inner_text() != seen)
    ask(worker.pid, {"do": "cancel", "number": 1})
    details.locator("dt:text-is('state') + dd").filter(has_text="cancelled").wait_for()


def test_while_it_is_paused_it_says_so_whatever_the_server_does(
    start: Start, visit: Visit, server: Server, tmp_path: Path
) -> None:
    from tests.browser.conftest import SERVE

    start("one", "job")
    page = visit(**DESKTOP)
    row(page, "job").wait_for()
    page.get_by_role("button", name="Pause").click()
    connection = page.locator("#connection")
    paused = connection.inner_text()
    assert paused.startswith("Paused at ")
    server.terminate()
    server.wait()
    page.locator("#connection[data-state=lost]").wait_for()
    with Server(SERVE, "/", {}, tmp_path / "next.log", server.port):
        page.locator("#connection[data-state=paused]").wait_for()
        assert connection.inner_text() == paused
        page.get_by_role("button", name="Pause").click()
        until(lambda: connection.inner_text() == "Live")


def test_what_happened_in_a_pause_is_on_the_timeline_after_it(start: Start, visit: Visit) -> None:
    worker = start("one", "hidden")
    page = visit(**DESKTOP)
    row(page, "hidden").wait_for()
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    ask(worker.pid, {"do": "cancel", "number": 1})
    until(lambda: not ask(worker.pid, {"do": "snapshot"}).answer["jobs"])
    asked = page.evaluate("performance.now()")
    until(lambda: page.evaluate("performance.now()") > asked + 1500)  # it was told
    pause.click()
    page.locator("#ended [role=row]").filter(has_text="hidden").wait_for()
    canvas, readout = page.locator("#canvas"), page.locator("#readout")
    box = canvas.bounding_box()
    assert box is not None
    seen = set()
    for x in range(int(box["width"]) - 8, int(box["width"]) - 400, -2):
        page.mouse.move(box["x"] + x, box["y"] + 52)
        seen.add(readout.inner_text().partition(":")[0])
    assert "undo of hidden (job 1)" in seen


def test_a_stream_that_is_refused_is_asked_for_again_and_then_nothing_else_is(
    start: Start, visit: Visit, token: str
) -> None:
    asked: list[str] = []
    page = visit(log_in=False, **DESKTOP)
    page.on("request", lambda sent: asked.append(sent.url.rpartition("/")[2]))
    refusals = iter([True, True])

    def answer(route: Any) -> None:
        if next(refusals, False):
            route.fulfill(status=503, body="not now")
        else:
            route.continue_()

    page.route("**/events", answer)
    start("one", "asked")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    row(page, "asked").wait_for()
    until(lambda: page.title() and asked.count("events") >= 3)
    changes(page, "asked", 3)
    states = asked.count("state")
    assert states >= 1
    changes(page, "asked", 4)
    assert asked.count("state") == states


def test_a_stream_that_is_refused_for_good_is_not_asked_for_all_the_time(
    start: Start, visit: Visit, token: str
) -> None:
    asked: list[str] = []
    page = visit(log_in=False, **DESKTOP)
    page.on("request", lambda sent: asked.append(sent.url.rpartition("/")[2]))
    page.route("**/events", lambda route: route.fulfill(status=503, body="never"))
    start("one", "asked")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    changes(page, "asked", 1)
    asked.clear()
    page.wait_for_timeout(3000)  # in which it should ask about three times
    assert page.title()
    assert 0 < asked.count("events") <= asked.count("state") + 1 <= 6


def test_where_a_stream_ends_before_it_tells_anything_the_page_asks(
    start: Start, visit: Visit, token: str
) -> None:
    """As under a deadline of a second, or while a coordinator ends and the server goes on."""
    page = visit(log_in=False, **DESKTOP)
    body = 'retry: 200\n\nevent: hello\ndata: {"access": "write"}\n\nevent: end\ndata: again\n\n'
    kind = {"Content-Type": "text/event-stream"}
    page.route("**/events", lambda route: route.fulfill(status=200, body=body, headers=kind))
    start("one", "asked")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    changes(page, "asked", 2)


def test_an_answer_that_is_not_the_page_s_is_said_and_asked_again(
    start: Start, visit: Visit
) -> None:
    worker = start("one", "asked about")
    page = visit(**DESKTOP)
    page.get_by_role("button", name="Cancel asked about").click()
    dialog = page.get_by_role("dialog")
    sure = dialog.get_by_role("button", name="Cancel the job")
    html = {"Content-Type": "text/html"}
    answers = [
        (200, html, "<title>Log in</title>", "The answer is not this page's"),
        (502, html, "<h1>Bad gateway</h1>", "The server answers with status 502."),
        (503, {"Content-Type": "text/plain"}, "", "The server answers with status 503."),
    ]
    for status, headers, body, said in answers:
        answer = functools.partial(_fulfill, status=status, headers=headers, body=body)
        page.route("**/cancel", answer)
        sure.click()
        dialog.get_by_text(said).wait_for()
        assert sure.is_enabled()
        page.unroute("**/cancel", answer)
    sure.click()
    dialog.wait_for(state="hidden")
    until(lambda: not ask(worker.pid, {"do": "snapshot"}).answer["jobs"])


def _fulfill(route: Any, **answer: Any) -> None:
    route.fulfill(**answer)


@pytest.mark.parametrize("done", [True, False])
def test_a_late_answer_about_one_job_leaves_the_question_about_the_next(
    start: Start, visit: Visit, done: bool
) -> None:
    start("one", "slow one")
    start("one", "next one")
    page = visit(**DESKTOP)
    held: list[Any] = []
    page.route("**/cancel", lambda route: held.append(route))
    page.get_by_role("button", name="Cancel slow one").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel the job").click()
    until(lambda: page.title() and held)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Cancel next one").click()
    assert "next one" in dialog.inner_text()
    with page.expect_response("**/cancel"):
        held[0].fulfill(json={"done": done, "text": "of the slow one"})
    seen = page.locator("#cancel-text").inner_text()
    until(lambda: page.locator("#cancel-text").inner_text() != seen)
    assert "next one" in dialog.inner_text()
    assert "of the slow one" not in dialog.inner_text()
    assert dialog.get_by_role("button", name="Cancel the job").is_enabled()


def test_who_logs_out_does_so_in_all_pages_of_the_browser(start: Start, visit: Visit) -> None:
    start("one", "secret")
    page = visit(**DESKTOP)
    row(page, "secret").wait_for()
    with page.context.expect_page():
        page.evaluate("window.open('about:blank')")
    other = page.context.pages[-1]
    other.goto(page.url)
    row(other, "secret").wait_for()
    other.get_by_role("button", name="Log out").click()
    for each in (other, page):
        each.get_by_label("Token").wait_for()
        assert not row(each, "secret").is_visible()


def test_the_menu_of_the_pointer_moves_no_timeline(start: Start, visit: Visit) -> None:
    start("one", "job")
    page = visit(**DESKTOP)
    changes(page, "job", 1)
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    y = box["y"] + 52
    page.mouse.move(box["x"] + 400, y)
    page.mouse.down(button="right")
    for x in range(400, 500, 20):
        page.mouse.move(box["x"] + x, y)
    page.mouse.up(button="right")
    assert page.locator("#hold").get_attribute("aria-pressed") == "false"
    page.mouse.move(box["x"] + 400, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 440, y)
    page.mouse.up()
    assert page.locator("#hold").get_attribute("aria-pressed") == "true"


def changes(page: Page, name: str, times: int) -> None:
    """Until what is shown of a job has changed so often."""
    for _ in range(times):
        seen = row(page, name).inner_text()
        until(lambda seen=seen: row(page, name).inner_text() != seen)  # type: ignore[misc]


def test_a_tab_that_is_hidden_asks_for_nothing_until_it_is_seen(start: Start, visit: Visit) -> None:
    start("one", "job")
    page = visit(**DESKTOP)
    changes(page, "job", 1)
    hide(page, hidden=True)
    seen = row(page, "job").inner_text()
    page.wait_for_timeout(2000)  # in which four messages would have come
    assert row(page, "job").inner_text() == seen
    hide(page, hidden=False)
    changes(page, "job", 2)


def test_who_may_only_look_has_no_buttons_until_that_changes(
    start: Start, browser: Any, runtime_directory: Path, tmp_path: Path
) -> None:
    start("one", "job")
    command = [
        "-m",
        "uvicorn",
        "--port",
        "{port}",
        "--log-level",
        "warning",
        "tests.browser.reader:app",
    ]
    writers = tmp_path / "writers"
    environment = {"AIOKTASK_TEST_WRITERS": str(writers)}
    with Server(command, "/", environment, tmp_path / "reader.log") as reader:
        page = browser.new_context(**DESKTOP).new_page()
        page.goto(f"http://localhost:{reader.port}/")
        row(page, "job").wait_for()
        assert page.get_by_role("button", name="Cancel").count() == 0
        assert page.get_by_role("button", name="Renice").count() == 0
        assert row(page, "job").get_by_role("cell").count() == 7
        writers.touch()
        for hidden in (True, False):  # so that it asks anew
            hide(page, hidden=hidden)
        page.get_by_role("button", name="Cancel job").wait_for()
        page.context.close()
