# SPDX-License-Identifier: MIT
# What coordinator and workers say to each other, and carriers to the coordinator: frozen values
# that pickle small, and know nothing of how they travel.
#
# Every one of a session names it, so that one connection serves all. Exceptions and values travel
# as bytes, since only who asked for them may have the modules that they need.
"""The messages of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Began",
    "Cancel",
    "Close",
    "Closed",
    "Command",
    "Ended",
    "Joined",
    "Leaves",
    "Limit",
    "Lost",
    "Message",
    "Open",
    "OpenFailed",
    "Opened",
    "Progressed",
    "Recall",
    "Renice",
    "Run",
    "Stretch",
    "Undo",
    "Undone",
]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A range that one worker is to do once.

    Attributes:
        start: The first unit.
        stop: One past the last unit.
        worker: Whom it is for.
        lease: What names this sending of it; no other sending has the same.
    """

    start: int
    stop: int
    worker: str
    lease: str

    @property
    def range(self) -> range:
        return range(self.start, self.stop)


# To a worker.


@dataclass(frozen=True, slots=True)
class Open:
    """Unpack the job, and make its data."""

    session: str
    job: bytes
    nice: int


@dataclass(frozen=True, slots=True)
class Run:
    """Do a stretch after those that were sent before; tell of it about so often, in seconds."""

    session: str
    stretch: Stretch
    tell_every: float
    nice: int
    max_threads: int | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """Begin nothing more of a stretch, and say what of it is done."""

    session: str
    lease: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop at the next chunk and begin nothing more: the job ends."""

    session: str


@dataclass(frozen=True, slots=True)
class Renice:
    """This is the session's nice from now on."""

    session: str
    nice: int


@dataclass(frozen=True, slots=True)
class Limit:
    """So many threads at most serve the session in each worker."""

    session: str
    max_threads: int


@dataclass(frozen=True, slots=True)
class Undo:
    """Undo all that the ledger has."""

    session: str


@dataclass(frozen=True, slots=True)
class Close:
    """The job is over, and what is done stays done: close the data, and forget the session."""

    session: str


Command = Open | Run | Recall | Cancel | Renice | Limit | Undo | Close


# From a worker.


@dataclass(frozen=True, slots=True)
class Opened:
    session: str
    worker: str
    threads: int
    pid: int


@dataclass(frozen=True, slots=True)
class OpenFailed:
    session: str
    worker: str
    error: bytes


@dataclass(frozen=True, slots=True)
class Began:
    """The first call of the stretch is next: from now on it may be done."""

    session: str
    worker: str
    lease: str


@dataclass(frozen=True, slots=True)
class Progressed:
    session: str
    worker: str
    lease: str
    done: int
    threads: int
    waits_for: str = ""  # in words, where no thread works on it


@dataclass(frozen=True, slots=True)
class Ended:
    """A stretch is over on its worker.

    Attributes:
        how: "done"; "recalled" or "cancelled", perhaps in part; "failed"; "refused": it has not
            begun and never will, since the session is over there, or it is for another worker;
            "used": its lease was used before, so what became of it is told by another message.
        done: What of it is done.
        unknown: What of it may be: the rest of failed chunks.
        errors: What chunks raised, packed, however it ended; the first one first.
        chunk: The chunk that raised the first one.
        nodes: Of a reduce, packed: the nodes of the tree that are left.
        chunks: How many chunks were done.
        seconds: From the first claim to the last chunk's end.
    """

    session: str
    worker: str
    lease: str
    how: Literal["done", "recalled", "cancelled", "failed", "refused", "used"]
    done: tuple[range, ...] = ()
    unknown: tuple[range, ...] = ()
    errors: tuple[bytes, ...] = ()
    chunk: range | None = None
    nodes: bytes = b""
    chunks: int = 0
    seconds: float = 0.0
    cpu_time: float = 0.0
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Undone:
    session: str
    worker: str
    undone: tuple[range, ...]
    kept: tuple[range, ...]
    errors: tuple[bytes, ...]
    unknown: tuple[range, ...] = ()  # what was struck while it was being undone


@dataclass(frozen=True, slots=True)
class Leaves:
    """A worker is about to go, of all sessions, and from now on it may undo what it has done."""

    worker: str


@dataclass(frozen=True, slots=True)
class Closed:
    session: str
    worker: str
    error: bytes = b""


# From a carrier.


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is there.

    Attributes:
        worker: Its name, which was never used before.
        host: Of its machine.
        names: By which else homes may name it.
    """

    worker: str
    host: str
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone. Nothing of it comes after this.

    Attributes:
        worker: Its name; empty where none can be reached, now or later.
        reason: Why, in words that follow the worker's name.
        all_heard: Whether everything that it said has been heard before this: so a stretch of
            which it did not say that it begins has not begun.
        may_undo: Whether it may undo what it has done, or may have, with nobody who hears of that:
            so what it told as done may be so no more.
    """

    worker: str
    reason: str
    all_heard: bool
    may_undo: bool


Message = (
    Opened | OpenFailed | Began | Progressed | Ended | Undone | Leaves | Closed | Joined | Lost
)
