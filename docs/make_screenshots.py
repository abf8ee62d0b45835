# SPDX-License-Identifier: MIT
# The pictures of the live page and of `python -m aioktask top`: of the processes that shown.py
# starts, by a Chromium of the system's and by textual; and that of one job's timeline. Each run
# takes other pictures, since the jobs are real.
"""Take the pictures of the page, of the terminal and of a job."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SCREENSHOTS = DOCS / "screenshots"
PATIENCE_MS = 30_000

# Widths and heights in CSS pixels, and how many of the screen's a pixel has.
DESKTOP = {"viewport": {"width": 1300, "height": 940}, "device_scale_factor": 1}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}

# So many cells of a terminal.
TERMINAL = (112, 32)

# A picture of a page has few colours. With more of them it is larger, and looks the same.
COLOURS = 96
MOST_BYTES = 200_000


def main() -> int:
    """Take them all, and say where they are; 2 where something is missing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("there is no chromium: apt-get install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="aioktask-") as folder, ExitStack() as stack:
        os.environ |= {"XDG_RUNTIME_DIR": folder, "AIOKTASK_SHARE": "off"}
        service = stack.enter_context(shown("service", folder))
        stack.enter_context(shown("nightly", folder))
        # Until jobs have ended, advice was given, and a minute's part of the timeline is full.
        time.sleep(14.0)
        address, token = stack.enter_context(served())
        say(service)
        time.sleep(2.0)
        take_page(chromium, address, token)
        (SCREENSHOTS / "top.svg").write_text(asyncio.run(terminal()), encoding="utf-8")
    (SCREENSHOTS / "timeline.svg").write_text(timeline(), encoding="utf-8")
    return 0


@contextmanager
def shown(kind: str, folder: str) -> Iterator[subprocess.Popen[str]]:
    """A process of shown.py, once its jobs are under way; no folder of this machine is seen."""
    shutil.copy(DOCS / "shown.py", folder)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    with subprocess.Popen(
        ["python", "shown.py", kind],
        cwd=folder,
        env={
            **os.environ,
            "AIOKTASK_PUBLISH": "1",
            "PATH": path,
            "PYTHONPATH": os.fspath(DOCS.parent),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str]) -> None:
    """Have it go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@contextmanager
def served() -> Iterator[tuple[str, str]]:
    """The page's address, and its token."""
    command = [sys.executable, "-m", "aioktask", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = [process.stdout.readline().partition(": ")[2].strip() for _ in range(2)]
            yield told[0], told[1]
        finally:
            process.kill()


def take_page(chromium: str, address: str, token: str) -> None:
    """The page in light, in dark, and on a phone."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        pages = {
            name: logged_in(browser, address, token, {**size, "color_scheme": scheme})
            for name, size, scheme in (
                ("page", DESKTOP, "light"),
                ("page-dark", DESKTOP, "dark"),
                ("page-phone", PHONE, "light"),
            )
        }
        pages["page"].wait_for_timeout(8000)  # so that the lines of the loops are some
        for name, page in pages.items():
            page.mouse.move(0, 0)
            write(name, page.screenshot())
        page = pages["page"]
        page.locator("#jobs .space [role=row]").filter(has_text="report March").locator(
            "button"
        ).first.click()
        write("page-job", page.get_by_role("dialog").screenshot())
        browser.close()


def logged_in(browser: Any, address: str, token: str, options: dict[str, Any]) -> Any:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.locator("#jobs .space [role=row]").filter(has_text="undoing").wait_for()
    return page


def write(name: str, picture: bytes) -> None:
    """Write a picture, with as few colours as it needs."""
    from PIL import Image

    path = SCREENSHOTS / f"{name}.png"
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    few = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{os.path.relpath(path)}: {image.width} x {image.height}, {size} bytes")
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size} bytes, and may have {MOST_BYTES}")


async def terminal() -> str:
    """What `top` shows, as an SVG without a font from elsewhere."""
    from aioktask.top._app import TopApp
    from aioktask.top._source import Processes

    app = TopApp(Processes(), interval=0.5)
    async with app.run_test(size=TERMINAL) as pilot:
        while not app.view.jobs:
            await pilot.pause(0.05)
        chosen = next(at for at, job in enumerate(app.view.jobs) if job.name == "report February")
        await pilot.press(*["down"] * chosen)
        await pilot.pause(1.0)
        picture = app.export_screenshot()
    return re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)


def timeline() -> str:
    """Of a job that somebody urgent waits for after a while, and that then fails."""
    import shown

    from aioktask import Coordinator, Job, configure, failure

    def work(start: int, stop: int) -> None:
        time.sleep(0.004 * (stop - start))
        if start == 230:
            raise ValueError("row 230 has no customer")

    def undo(start: int, stop: int) -> None:
        time.sleep(0.006 * (stop - start))

    configure(max_threads=4)
    job = Job(work, 1000, chunk=1, undo=undo, name="import customers", trace=True)
    with Coordinator() as coordinator:
        handle = coordinator.submit(job)
        while handle.progress().done < 100:
            time.sleep(0.001)
        waiter = threading.Thread(target=shown.wait_urgently, args=(handle,))
        waiter.start()
        waiter.join()
        try:
            handle.result()
        except ValueError as error:
            found = failure(error).timeline
            assert found is not None
            return found.svg()
    raise AssertionError("the job did not fail")


if __name__ == "__main__":
    sys.exit(main())
