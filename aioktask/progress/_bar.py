# SPDX-License-Identifier: MIT
# A bar waits for jobs as their handles do, and has a display show where they stand meanwhile.
#
# The task or thread that waits draws, so a job that nobody shows costs nothing, and a bar needs no
# thread; the `with` form, where nobody waits, has one. A display that fails costs the display and
# never the job: a terminal may be gone, a pipe broken, a disk full.
"""Bars."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from aioktask.checks import seconds
from aioktask.engine.api.feed import StreamHandle
from aioktask.engine.api.handle import Handle, look_until_over, look_until_over_in_thread
from aioktask.engine.loops.loop import refuse_running_loop
from aioktask.job import Report, StreamProgress
from aioktask.progress._display import Display
from aioktask.telling import Told, left, told

__all__ = ["AnyHandle", "Bar", "checked_handles"]

R = TypeVar("R")

AnyHandle = Handle[Any] | StreamHandle


def checked_handles(what: str, handles: Sequence[object]) -> tuple[AnyHandle, ...]:
    """`handles`, if they are that, and there is one.

    Raises:
        TypeError: They are not, or there is none.
    """
    if not handles:
        raise TypeError(f"{what} needs a handle: {what}(coordinator.submit(job))")
    for each in handles:
        if not isinstance(each, (Handle, StreamHandle)):
            raise TypeError(f"{what} takes handles of jobs and streams, got {each!r}")
    return cast("tuple[AnyHandle, ...]", tuple(handles))


class Bar(Generic[R]):
    """What shows one or more jobs and waits for them: see `rich_bar`.

    Await it, on asyncio, uvloop or trio; or call `result` in a thread without a loop; or use it as
    ``with bar:``, which shows the jobs while its block runs and waits for none of them: the last
    that it says is how they ended or, of those under way, where the block was left.
    """

    __slots__ = ("_display", "_handles", "_interval", "_make", "_shown_by", "_stop")

    def __init__(
        self, handles: Sequence[AnyHandle], make: Callable[[], Display], interval: float
    ) -> None:
        self._handles = handles
        self._make = make
        self._interval = seconds("interval", interval, may_be_zero=False)
        self._display: Display | None = None
        self._shown_by: threading.Thread | None = None  # of the `with` form
        self._stop = threading.Event()

    def __repr__(self) -> str:
        return f"<Bar of {', '.join(map(repr, self._handles))}>"

    def __await__(self) -> Generator[Any, None, R]:
        return self._wait().__await__()

    async def _wait(self) -> R:
        try:
            self._refuse_twice()
            try:
                self._open()
                await look_until_over(self._runs(), self._show, self._interval)
            finally:
                self._close()
            return self._together([await self._outcome(each) for each in self._handles])
        finally:
            del self  # which an exception's traceback would lead to

    async def _outcome(self, handle: AnyHandle) -> Report[Any] | StreamProgress:
        return handle.progress() if isinstance(handle, StreamHandle) else await handle

    def result(self) -> R:
        """Wait in this thread until all of the jobs are over, and show them meanwhile.

        Returns:
            The job's report, of a stream its last progress; of several a tuple of these.

        Raises:
            RuntimeError: This thread runs an event loop, so await the bar instead; or the bar is
                shown already.
            BaseException: How the job ended, as `Handle.result` raises it; of several the first one
                in their order that did not succeed.
        """
        try:
            refuse_running_loop("result() of a bar", "await the bar instead")
            self._refuse_twice()
            try:
                self._open()
                look_until_over_in_thread(self._runs(), self._show, self._interval)
            finally:
                self._close()
            found = [
                each.progress() if isinstance(each, StreamHandle) else each.result()
                for each in self._handles
            ]
            return self._together(found)
        finally:
            del self

    def __enter__(self) -> Bar[R]:
        self._refuse_twice()
        self._stop.clear()
        self._shown_by = threading.Thread(target=self._go_on_showing, name="aioktask bar")
        self._shown_by.daemon = True
        try:
            self._open()
            self._shown_by.start()
        except BaseException:
            self._shown_by = None
            self._close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        thread, self._shown_by = self._shown_by, None
        if thread is not None:
            thread.join()
        self._close(lambda: [left(each.name, each.progress(), exc) for each in self._handles])

    def _go_on_showing(self) -> None:
        while not self._stop.wait(self._interval):
            self._show()

    def _runs(self) -> list[Handle[Any]]:
        return [
            each.as_handle() if isinstance(each, StreamHandle) else each for each in self._handles
        ]

    def _together(self, found: list[Report[Any] | StreamProgress]) -> R:
        return cast("R", found[0] if len(found) == 1 else tuple(found))

    # The display.

    def _rows(self) -> list[Told]:
        return [told(each.name, each.progress()) for each in self._handles]

    def _refuse_twice(self) -> None:
        if self._display is not None or self._shown_by is not None:
            raise RuntimeError("this bar is shown already: make another one")

    def _open(self) -> None:
        rows = self._rows()  # refused in a fork's child, before anything is shown
        self._display = self._make()
        self._try(lambda display: display.show(rows))

    def _show(self) -> None:
        self._try(lambda display: display.show(self._rows()))

    def _close(self, rows: Callable[[], list[Told]] | None = None) -> None:
        display, self._display = self._display, None  # once, whatever its end comes to
        if display is not None:
            with contextlib.suppress(Exception):  # it may hide the cursor, or hold what is printed
                display.close((rows or self._rows)())

    def _try(self, act: Callable[[Display], None]) -> None:
        display = self._display
        if display is None:
            return
        try:
            act(display)
        except Exception:
            self._close()
