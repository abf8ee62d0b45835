# SPDX-License-Identifier: MIT
# What a stream is in both its forms, on a loop and in a thread: a scope that is entered once, and
# that tells of itself. How values are waited for, and how it is left, differ between the two.
"""The scope of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar

from aioktask.engine.api.feed import StreamHandle
from aioktask.streams._consumer import Consumer, Options

__all__ = ["Scope", "close_iterator"]

Items = TypeVar("Items")


class Scope(Generic[Items]):
    """A stream that was asked for, and is entered later, if at all.

    A form sets `_consumer` as it is entered, and `_items` to None before.
    """

    __slots__ = ("_consumer", "_items", "_options")

    _entered_by: ClassVar[str]  # the statement that enters it, for errors

    def __init__(self, options: Options[Any, Any], items: Items) -> None:
        self._options = options
        self._items: Items | None = items
        self._consumer: Consumer[Any, Any] | None = None

    def __repr__(self) -> str:
        kind, consumer = type(self).__name__, self._consumer
        if consumer is None:
            return f"<{kind} {self._options.name!r}: not entered>"
        state = "over" if consumer.over else "open"
        return f"<{kind} {self._options.name!r}: {state}, {consumer.given} given>"

    @property
    def handle(self) -> StreamHandle:
        """Renices and cancels the stream, and tells its progress.

        Raises:
            RuntimeError: The stream was not entered yet.
        """
        return self._entered().handle

    def _entered(self) -> Consumer[Any, Any]:
        if self._consumer is None:
            raise RuntimeError(f"this stream was not entered: use `{self._entered_by}`")
        return self._consumer

    def _open(self) -> Consumer[Any, Any]:
        """The consumer of a stream that may be asked for values.

        Raises:
            RuntimeError: It was not entered yet, or left before it was over.
        """
        consumer = self._entered()
        consumer.refuse_if_left()
        return consumer

    def _unused_items(self) -> Items:
        """The source of a stream that was not entered yet.

        Raises:
            RuntimeError: It was.
        """
        if self._items is None:
            raise RuntimeError("this stream was entered already: make a new one for each use")
        return self._items

    def __del__(self) -> None:
        """Begin nothing more, where an exception struck before the scope could be left."""
        consumer = getattr(self, "_consumer", None)
        if consumer is not None and not consumer.feed.over:
            self._let_go(consumer)

    def _let_go(self, consumer: Consumer[Any, Any]) -> None:
        """Begin nothing more, and wait for nothing, as a finalizer may on any thread."""
        consumer.stop()


def close_iterator(iterator: Iterator[Any] | None) -> None:
    """Close an ordinary source, if it can be closed."""
    close = getattr(iterator, "close", None)
    if callable(close):
        close()
