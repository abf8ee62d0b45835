# SPDX-License-Identifier: MIT
# `rich_bar` and `tqdm_bar`: which display fits the place that a bar is shown in.
#
# In a notebook both show the same, which needs no widgets; where nothing moves, in a log file or a
# pipe, both write the same few lines. rich and tqdm are asked for only as a bar is made.
"""`rich_bar` and `tqdm_bar`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO, TypeVar, overload

from aioktask.engine.api.feed import StreamHandle
from aioktask.engine.api.handle import Handle
from aioktask.extras import missing_package
from aioktask.job import Report, StreamProgress
from aioktask.progress._bar import AnyHandle, Bar, checked_handles
from aioktask.progress._display import Display, Lines, Notebook, in_notebook, standard_error

if TYPE_CHECKING:
    import rich.progress

__all__ = ["rich_bar", "tqdm_bar"]

T = TypeVar("T")


class _Nowhere:
    """The display of a program without a standard error."""

    def show(self, rows: Any) -> None:
        """Show nothing."""

    def close(self, rows: Any) -> None:
        """Show nothing."""


@overload
def rich_bar(
    handle: Handle[T],
    /,
    *,
    progress: rich.progress.Progress | None = None,
    interval: float = 0.1,
) -> Bar[Report[T]]: ...


@overload
def rich_bar(
    handle: StreamHandle,
    /,
    *,
    progress: rich.progress.Progress | None = None,
    interval: float = 0.1,
) -> Bar[StreamProgress]: ...


@overload
def rich_bar(
    first: AnyHandle,
    second: AnyHandle,
    /,
    *others: AnyHandle,
    progress: rich.progress.Progress | None = None,
    interval: float = 0.1,
) -> Bar[tuple[Report[Any] | StreamProgress, ...]]: ...


def rich_bar(
    *handles: Any, progress: rich.progress.Progress | None = None, interval: float = 0.1
) -> Bar[Any]:
    """A bar of a job, or of several, drawn by rich.

    ``await rich_bar(handle)`` shows the job and waits for it as ``await handle`` does: it returns
    its report or raises how it ended. In a thread without a loop that is
    ``rich_bar(handle).result()``. ``with rich_bar(handle):`` shows it while the block runs and does
    not wait for it; so a stream is shown while its values are asked for.

    The bar runs back while a job is undone, and says how the job ended. In a log file or a pipe it
    is a few plain lines on standard error, in a notebook an HTML bar that needs no widgets.

    Args:
        handles: Of jobs and streams, a row for each. With several, all are waited for; what is
            returned is a tuple, and what is raised how the first of them in this order ended that
            did not succeed. The others' handles tell of theirs.
        progress: The program's own display, in which each job gets a row; it is neither started nor
            stopped here. By default all bars share one, on rich's own console where that is a
            terminal, else on standard error.
        interval: Seconds from one look to the next, above 0.

    Raises:
        TypeError, ValueError: An argument is not what it may be.
        ImportError: rich is not installed, or too old.

    **Cancellation**: cancelled while it waits the bar is closed, and the jobs go on.

    >>> from aioktask import Coordinator, Job
    >>> with Coordinator() as coordinator:
    ...     handle = coordinator.submit(Job(lambda start, stop: None, 100))
    ...     report = rich_bar(handle).result()
    """
    found = checked_handles("rich_bar()", handles)
    try:
        from rich.progress import Progress

        from aioktask.progress import _rich
    except ImportError as error:
        raise missing_package("rich_bar()", "rich", error) from error
    if progress is not None and not isinstance(progress, Progress):
        raise TypeError(f"progress must be a rich.progress.Progress or None, got {progress!r}")

    def make() -> Display:
        if progress is not None:
            return _rich.GivenRows(progress)
        if in_notebook():
            return Notebook()
        console = _rich.live_console()
        return _lines() if console is None else _rich.OwnRows(console)

    return Bar(found, make, interval)


@overload
def tqdm_bar(
    handle: Handle[T], /, *, file: TextIO | None = None, interval: float = 0.1
) -> Bar[Report[T]]: ...


@overload
def tqdm_bar(
    handle: StreamHandle, /, *, file: TextIO | None = None, interval: float = 0.1
) -> Bar[StreamProgress]: ...


@overload
def tqdm_bar(
    first: AnyHandle,
    second: AnyHandle,
    /,
    *others: AnyHandle,
    file: TextIO | None = None,
    interval: float = 0.1,
) -> Bar[tuple[Report[Any] | StreamProgress, ...]]: ...


def tqdm_bar(*handles: Any, file: TextIO | None = None, interval: float = 0.1) -> Bar[Any]:
    """A bar of a job, or of several, drawn by tqdm.

    It is used, and behaves, as `rich_bar`; what the program writes by ``tqdm.write`` goes above it.

    Args:
        handles: Of jobs and streams, a row for each, as for `rich_bar`.
        file: Where to: by default standard error. Where it is no terminal a few plain lines are
            written.
        interval: Seconds from one look to the next, above 0.

    Raises:
        TypeError, ValueError: An argument is not what it may be.
        ImportError: tqdm is not installed, or too old.

    **Cancellation**: cancelled while it waits the bar is closed, and the jobs go on.

    >>> from aioktask import Coordinator, Job
    >>> with Coordinator() as coordinator:
    ...     handle = coordinator.submit(Job(lambda start, stop: None, 100))
    ...     report = tqdm_bar(handle).result()
    """
    found = checked_handles("tqdm_bar()", handles)
    try:
        from aioktask.progress import _tqdm
    except ImportError as error:
        raise missing_package("tqdm_bar()", "tqdm", error) from error
    if file is not None and not callable(getattr(file, "write", None)):
        raise TypeError(f"file must be a text file or None, got {file!r}")

    def make() -> Display:
        if file is None and in_notebook():
            return Notebook()
        target = standard_error() if file is None else file
        if target is not None and target.isatty():
            return _tqdm.Meters(target)
        return _lines(target)

    return Bar(found, make, interval)


def _lines(file: TextIO | None = None) -> Display:
    target = standard_error() if file is None else file
    return _Nowhere() if target is None else Lines(target)
