# SPDX-License-Identifier: MIT
# HTML for notebooks, built from parts so that nothing a program named can be markup.
#
# Whatever is not `Markup` is escaped where it comes in, text and values of attributes alike; only
# the functions here make `Markup`. Styles stand in the elements, since a notebook keeps a cell's
# output without the page around it, and colours are those of the reader's theme where that matters.
"""Escaped HTML, for the rich output of notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["Markup", "card", "element", "meter", "table"]


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """An element.

    Args:
        tag: Its name.
        content: What is in it, one after the other: `Markup` as it is, anything else as text.
        attributes: With ``_`` for ``-``, and for the name `class` ``class_``.

    >>> element("b", "a < b", title='"x"')
    '<b title="&quot;x&quot;">a &lt; b</b>'
    """
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{told}>{''.join(map(_inner, content))}</{tag}>")


def _inner(content: object) -> str:
    return content if isinstance(content, Markup) else _escaped(content)


def _escaped(value: object) -> str:
    return html.escape(printable(str(value)), quote=True)


def printable(text: str) -> str:
    """`text` in one line, with a mark for each character that is none to be read.

    What moves a cursor, ends a line, or turns the direction of writing is not printable.

    >>> printable("a\\x1b[2Jb")
    'a\\ufffd[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def meter(fraction: float | None, told: str, colour: str) -> Markup:
    """A bar that is filled up to a fraction; of None it is striped."""
    outer = (
        "display:inline-block;width:16em;height:.8em;vertical-align:middle;border-radius:.4em;"
        "overflow:hidden;background:rgba(128,128,128,.3)"
    )
    if fraction is None:
        fill = f"repeating-linear-gradient(45deg,{colour} 0 .5em,transparent .5em 1em)"
        inner = element("div", style=f"height:100%;background:{fill}")
        return element("div", inner, role="progressbar", aria_label=told, style=outer)
    percent = 100 * min(max(fraction, 0.0), 1.0)
    inner = element("div", style=f"height:100%;width:{percent:.1f}%;background:{colour}")
    return element(
        "div",
        inner,
        role="progressbar",
        aria_label=told,
        aria_valuemin=0,
        aria_valuemax=100,
        aria_valuenow=int(percent),
        style=outer,
    )


def table(rows: Iterable[Sequence[object]], heads: Sequence[object] = ()) -> Markup:
    """A table: a row for each, with what its columns are in `heads`."""
    cell = "text-align:left;padding:0 .8em 0 0"
    lines = [element("tr", *(element("td", each, style=cell) for each in row)) for row in rows]
    if heads:
        head = element("tr", *(element("th", each, scope="col", style=cell) for each in heads))
        lines.insert(0, head)
    return element("table", *lines)


def card(title: str, *content: object, figures: Iterable[tuple[str, object]] = ()) -> Markup:
    """A heading, what is below it, and figures by name.

    >>> card("Job", figures=[("units", 3)])[:23]
    '<div><div><b>Job</b></d'
    """
    rows = [(element("span", name, style="opacity:.7"), value) for name, value in figures]
    parts = [element("div", element("b", title)), *content]
    return element("div", *parts, *([table(rows)] if rows else []))
