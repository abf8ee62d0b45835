# SPDX-License-Identifier: MIT
# What is kept on disk of earlier runs, for `python -m aioktask learned`: listed, and cleared.
#
# What a file says is shown to a terminal, so only what can be printed is, and not too much of it.
"""Lessons on disk, as a user sees them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from aioktask.checks import DISK
from aioktask.engine.learning.kept import MOST_BYTES, Entry, UnfitError, entry_of, is_file_name
from aioktask.engine.machine import store

__all__ = ["Listed", "clear", "directory_of", "learned", "learned_data", "learned_text"]

MOST_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in the directory.

    Attributes:
        name: Of the file.
        entry: What it tells about itself; None where it is not fit to be used.
        why: Why it is not.
    """

    name: str
    entry: Entry | None
    why: str = ""


def directory_of(remember: bool | str, given: str | None) -> str:
    """Where to look: the directory that is given, else what the tunable says, else the default.

    Raises:
        OSError: There is no home directory.
    """
    if given is not None:
        return given
    if isinstance(remember, str) and remember != DISK:
        return remember
    return store.default_directory()


def learned(path: str, names: Sequence[str] = ()) -> list[Listed]:
    """What is in the directory, what was written last first; nothing where it is not there.

    Args:
        path: The directory.
        names: Of jobs, or of functions with or without their module; only what is kept of these.
            Without any, all there is, also what is not fit to be used.

    Raises:
        OSError: It cannot be read, or is not fit to be used; see `store.opened`.
    """
    found = []
    try:
        with store.opened(path) as directory:
            for name in filter(is_file_name, store.names(directory)):
                try:
                    data = store.read(directory, name, MOST_BYTES)
                    if data is not None:
                        found.append(Listed(name, entry_of(data)))
                except (OSError, UnfitError) as error:
                    found.append(Listed(name, None, str(error)))
    except FileNotFoundError:
        return []
    chosen = [each for each in found if not names or _is_of(each, names)]
    return sorted(chosen, key=lambda each: (-_when(each), each.name))


def _when(listed: Listed) -> float:
    return 0.0 if listed.entry is None else listed.entry.when


def clear(path: str, names: Sequence[str]) -> int:
    """Remove what `learned` would list; how many files that were.

    Raises:
        OSError: See `learned`; or a file cannot be removed.
    """
    chosen = learned(path, names)
    if not chosen:
        return 0
    with store.opened(path) as directory:
        removed = 0
        for each in chosen:
            with contextlib.suppress(IsADirectoryError):  # none of ours
                removed += store.remove(directory, each.name)
        return removed


def _is_of(listed: Listed, names: Sequence[str]) -> bool:
    if listed.entry is None:
        return False
    subject = listed.entry.subject
    return any(
        name in (subject.job, subject.function) or subject.function.endswith(f".{name}")
        for name in names
    )


def learned_data(path: str, found: Sequence[Listed]) -> dict[str, object]:
    """For JSON."""
    return {
        "directory": path,
        "learned": [
            {"file": each.name, **asdict(each.entry)} for each in found if each.entry is not None
        ],
        "not used": {each.name: each.why for each in found if each.entry is None},
    }


def learned_text(path: str, found: Sequence[Listed]) -> str:
    """For reading."""
    if not found:
        return f"nothing is kept in {path}"
    lines = [f"kept in {path}"]
    for each in found:
        entry = each.entry
        if entry is None:
            lines.append(f"\n{each.name}\n  not used    {_shown(each.why)}")
            continue
        subject = entry.subject
        sizes = f"{1 << (subject.bits - 1):,} to {(1 << subject.bits) - 1:,} units"
        chunk = "given" if entry.chunk is None else f"{entry.chunk:,} units"
        level = subject.threads if entry.level is None else entry.level
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.when))
        lines.append(
            f"\n{_shown(subject.function)}, job {_shown(repr(subject.job))}\n"
            f"  range       {sizes}, align {subject.align:,}, chunks of {subject.grain:,} or more\n"
            f"  chunk       {chunk}\n"
            f"  threads     {level} of {subject.threads}\n"
            f"  when        {when}\n"
            f"  machine     {_shown(subject.machine)}"
        )
    return "\n".join(lines)


def _shown(text: str) -> str:
    plain = "".join(each if each.isprintable() else "?" for each in text)
    return plain if len(plain) <= MOST_SHOWN else f"{plain[:MOST_SHOWN]}..."
