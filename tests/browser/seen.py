# SPDX-License-Identifier: MIT
# Where things stand on the page, and the screens that it is looked at on.

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Worker

Start = Callable[..., "Worker"]
Visit = Callable[..., "Page"]

DESKTOP = {"viewport": {"width": 1440, "height": 1000}}
PHONE = {"viewport": {"width": 360, "height": 780}}


def row(page: Page, name: str) -> Any:
    """Of a job that is under way and has this in its name: others may wait for it."""
    return rows(page).filter(has=page.locator(".name").filter(has_text=name))


def rows(page: Page) -> Any:
    """Of all jobs that are under way, as far as they are in view."""
    return page.locator("#jobs .space [role=row]")


def process(page: Page, worker: Worker) -> Any:
    title = page.get_by_text(f"Process {worker.pid}", exact=True)
    return page.locator("#processes > li").filter(has=title)


def has_focus(found: Any) -> bool:
    return bool(found.evaluate("(each) => each === document.activeElement"))


def hide(page: Page, *, hidden: bool) -> None:
    """Have the page believe that it is seen, or not: a browser without a window shows all."""
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def readouts(page: Page) -> set[str]:
    """What is said of the timeline under the pointer, at places all over it."""
    return set(
        page.evaluate(
            """() => {
                const canvas = document.querySelector("#canvas");
                const readout = document.querySelector("#readout");
                const { left, top, width, height } = canvas.getBoundingClientRect();
                const found = new Set();
                for (let y = 27; y < height; y += 10) {
                    for (let x = 112; x < width - 8; x += 1) {
                        const clientX = left + x, clientY = top + y;
                        canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
                        found.add(readout.textContent);
                    }
                }
                canvas.dispatchEvent(new PointerEvent("pointerleave"));
                return [...found];
            }"""
        )
    )
