# SPDX-License-Identifier: MIT
# The names for Starlette and FastAPI, and nothing else: they need Starlette, which comes with the
# extra `server`, so they are imported when one of them is asked for. What is for aiohttp is in
# `aioktask.web.aiohttp`, and needs aiohttp alone.
"""A coordinator in a web server: its lifespan, disconnects, deadlines, refusals; a live page."""

from typing import TYPE_CHECKING

__all__ = [
    "CancelOnDisconnect",
    "ClientDisconnected",
    "Deadline",
    "cancel_on_disconnect",
    "coordinator_of",
    "deadline",
    "exception_handlers",
    "lifespan",
    "page",
]

# Where they are, for `aioktask.lazy`.
_NAMES = dict.fromkeys(__all__, "aioktask.web.starlette") | {"page": "aioktask.web._page.app"}

if TYPE_CHECKING:
    from aioktask.web._page.app import page
    from aioktask.web.starlette import (
        CancelOnDisconnect,
        ClientDisconnected,
        Deadline,
        cancel_on_disconnect,
        coordinator_of,
        deadline,
        exception_handlers,
        lifespan,
    )
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
