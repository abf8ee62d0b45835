# SPDX-License-Identifier: MIT
# The event loops on which a benchmark runs what is awaited: asyncio's own, and uvloop's.
"""Event loops to measure on: `loops`."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable

__all__ = ["loops"]


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop] | None]:
    """What makes a loop, by name; None where that is not installed."""
    if importlib.util.find_spec("uvloop") is None:
        return {"asyncio": asyncio.new_event_loop, "uvloop": None}
    import uvloop

    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
