# SPDX-License-Identifier: MIT
# How a job ended, in a word, as metrics and spans tell it.
"""The ends of jobs."""

from __future__ import annotations

from aioktask.engine.events import Event, EventKind

__all__ = ["end_of"]

_ENDS = {
    EventKind.FINISHED: "finished",
    EventKind.FAILED: "failed",
    EventKind.CANCELLED: "cancelled",
    EventKind.REFUSED: "refused",
}
# Of a job that was cancelled since a time had passed, by what the event says.
_EXPIRED = {"timed out": "timed_out", "overloaded": "overloaded"}


def end_of(event: Event) -> str | None:
    """How the job ended that this event is the end of; None where it is not the end of one.

    Returns:
        "finished", "failed", "cancelled", "timed_out", "overloaded" (refused, or ended before it
        began, since it could not begin in time), or "refused" (no more jobs are taken).
    """
    if event.kind is EventKind.REFUSED and "retry_after" in event.details:
        return "overloaded"
    end = _ENDS.get(event.kind)
    return end if end is None else _EXPIRED.get(str(event.details.get("why")), end)
