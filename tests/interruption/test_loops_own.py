# SPDX-License-Identifier: MIT
# What asyncio itself makes of a handler that raises inside the loop, with nothing of this library:
# why the storms of signals spare the loop's own code.

from __future__ import annotations

import asyncio
import asyncio.base_events
import linecache
import sys
from types import FrameType
from typing import Any


def some_turns(loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(10):
        loop.call_soon(loop.stop)
        loop.run_forever()


def test_a_loop_loses_what_a_handler_ends() -> None:
    """Raised between the steps that take a callback out and call it, it ends the task's only call.

    The task is never resumed, and cancelling it does nothing, so `asyncio.run` waits for ever as it
    cancels all tasks. Signals come there too: the interpreter looks for them as `popleft` returns.
    """
    turn: Any = asyncio.base_events.BaseEventLoop._run_once  # type: ignore[attr-defined]
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    task = loop.create_task(asyncio.wait_for(future, None))
    some_turns(loop)  # now it waits
    future.set_result(None)
    taken = False

    def look(frame: FrameType, event: str, argument: object) -> Any:
        return strike if frame.f_code is turn.__code__ else None

    def strike(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal taken
        if taken:
            sys.settrace(None)
            raise KeyboardInterrupt
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        taken = event == "line" and "_ready.popleft()" in line
        return strike

    before = sys.gettrace()
    sys.settrace(look)
    try:
        some_turns(loop)
        struck = False
    except KeyboardInterrupt:
        struck = True
    finally:
        sys.settrace(before)
    task.cancel()
    some_turns(loop)
    resumed = task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert struck
    assert not resumed
