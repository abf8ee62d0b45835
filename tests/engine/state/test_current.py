# SPDX-License-Identifier: MIT
# Whether a thread may wait for the engine, from its first line on.

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType

from aioktask.engine.machine.os_threads import start_thread
from aioktask.engine.state.current import refuse_waiting


def refusals(start: Callable[[Callable[[], None]], threading.Thread]) -> list[str]:
    """What a profiling function is told that would wait at each of its calls in a thread."""
    told: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        try:
            refuse_waiting("a wait")
        except RuntimeError as refusal:
            told.append(str(refusal))
        else:
            told.append("")

    before = threading.getprofile()
    threading.setprofile(profile)
    try:
        start(lambda: None).join()
    finally:
        threading.setprofile(before)  # type: ignore[arg-type]
    assert told
    return told


def test_in_a_thread_of_the_engine_nothing_may_wait_from_its_first_line_on() -> None:
    """Else a profiling function would wait for the very thread that it keeps from its work."""
    assert all("inside the engine" in each for each in refusals(lambda do: start_thread(do, "t")))


def test_in_a_thread_of_the_program_anything_may_wait() -> None:
    def start(do: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=do)
        thread.start()
        return thread

    # But while the library finds out whose thread this is.
    assert refusals(start)[-1] == ""
