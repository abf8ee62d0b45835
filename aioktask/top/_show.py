# SPDX-License-Identifier: MIT
# Whether `top` is a full screen or plain lines, and what it reads.
#
# Only the full screen needs textual, and only that imports it.
"""What `python -m aioktask top` shows, and where."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import TextIO

from aioktask.top._lines import show_lines
from aioktask.top._source import Page, Processes, Source

__all__ = ["fits_screen", "show", "source_of"]

# As wide as lines are where nobody says how wide that is.
WIDTH = 200


def source_of(
    url: str | None, token: str | None, environ: Mapping[str, str] = os.environ
) -> Source:
    """What is asked for.

    Args:
        url: Of a live page; None for this user's processes.
        token: For the page; by default the variable ``AIOKTASK_TOKEN``.
        environ: Where that variable is looked up.

    Raises:
        ValueError: The address or the token is none, or a token is given without a page.
    """
    if url is None:
        if token is not None:
            raise ValueError("--token is for a page: give its URL too")
        return Processes()
    return Page(url, environ.get("AIOKTASK_TOKEN", "") if token is None else token)


def fits_screen(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether there is a terminal on all sides that can show a full screen."""
    ends = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    terminals = all(each is not None and not each.closed and each.isatty() for each in ends)
    return terminals and environ.get("TERM", "dumb") not in ("", "dumb")


def show(
    source: Source,
    *,
    interval: float = 1.0,
    once: bool = False,
    lines: bool = False,
    as_json: bool = False,
    out: TextIO | None = None,
) -> None:
    """Show what a source tells until the user ends it: in the terminal, or as lines.

    Args:
        source: What is read.
        interval: From one reading to the next, in seconds.
        once: One snapshot, as lines.
        lines: As lines, also in a terminal.
        as_json: As lines of JSON.
        out: Where lines go; by default to standard output.

    Raises:
        ImportError: A screen needs textual, which is not there.
        SourceError: Lines were asked for and the source cannot be read.
        BrokenPipeError: Nobody reads the lines any more.
    """
    if once or lines or as_json or out is not None or not fits_screen():
        show_lines(
            source,
            sys.stdout if out is None else out,
            width=lambda: shutil.get_terminal_size((WIDTH, 24)).columns,
            interval=interval,
            once=once,
            as_json=as_json,
        )
        return
    from aioktask.top._app import TopApp

    TopApp(source, interval=interval).run()
