# SPDX-License-Identifier: MIT
# What the system refused to this process: which call, and with which error, the first time.
#
# A sandbox (seccomp, a container, a limit) may refuse any system call, and nothing that the engine
# asks for is worth a job's failure: it goes on with what there is, and what was refused is noted
# here, for `info` to tell. Names come from a fixed set, apart from paths, and there are MOST at
# most. No lock is needed, even where a signal handler comes between: setdefault is one step.
"""What the system refused to this process."""

from __future__ import annotations

import errno
import os

__all__ = ["denied", "note_denial"]

# More would tell a reader no more.
MOST = 64

# Errors that are no refusal: what was asked for is not there, or came to nothing for once.
_NOT_DENIED = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ENODEV, errno.EINTR, errno.EOPNOTSUPP)
)

_first: dict[str, int] = {}


def note_denial(call: str, error: int | None) -> None:
    """Note that the system refused a call, unless this is no refusal or the call is noted already.

    Args:
        call: What was asked, for a reader.
        error: The errno.
    """
    if error is None or error in _NOT_DENIED or call in _first:
        return
    if len(_first) < MOST:
        _first.setdefault(call, error)


def denied() -> dict[str, str]:
    """What was refused so far, by the call: the error's name and what it means.

    >>> note_denial("a doctest", errno.EPERM)
    >>> denied()["a doctest"]
    'EPERM (Operation not permitted)'
    """
    return {
        call: f"{errno.errorcode.get(error, error)} ({os.strerror(error)})"
        for call, error in _first.copy().items()
    }
