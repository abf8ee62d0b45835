# SPDX-License-Identifier: MIT
# A shim in front of aioktask.memory._kernel.libc, to have something happen at the k-th system call:
# it fails, is interrupted, or the caller is cancelled at that moment.
#
# All other calls, those that undo among them, are the real ones on real memory.

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import anyio
import anyio.from_thread
import anyio.lowlevel

from aioktask.memory._kernel import libc

NAMES = [name for name in libc.__all__ if callable(getattr(libc, name)) and name not in ("Advice",)]


class Calls:
    """The system calls that were made, by name, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.names: list[str] = []

    def count(self, name: str) -> int:
        """Note a call; its number, from 1."""
        with self._lock:
            self.names.append(name)
            return len(self.names)


@contextmanager
def shim(action: Callable[[int, str], object] = lambda number, name: None) -> Iterator[Calls]:
    """Call `action(number, name)` before each call of `libc`; it may raise in the call's place."""
    calls = Calls()

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(libc, name)

        def call(*arguments: object, **options: object) -> object:
            action(calls.count(name), name)
            return real(*arguments, **options)

        return call

    with mock.patch.multiple(libc, **{name: wrap(name) for name in NAMES}):
        yield calls


def fails(at: int, number: int = errno.EIO) -> Callable[[int, str], None]:
    """An action: the call of this number raises OSError with errno `number`, the others are real.

    With EINTR it is interrupted, once.
    """

    def action(call: int, name: str) -> None:
        if call == at:
            raise OSError(number, f"{os.strerror(number)}: {name}, injected at call {at}")

    return action


async def cancelled_at(at: int, run: Callable[[], Awaitable[object]]) -> bool:
    """Await `run()` and cancel it at its system call of this number, wherever that is made.

    Returns:
        Whether it was cancelled: False when it ended without that many calls, or in spite of it.
    """
    token = anyio.lowlevel.current_token()
    here = threading.get_ident()
    with anyio.CancelScope() as scope:

        def action(call: int, name: str) -> None:
            if call == at:
                if threading.get_ident() == here:
                    scope.cancel()
                else:
                    anyio.from_thread.run_sync(scope.cancel, token=token)

        with shim(action):
            await run()
    return scope.cancelled_caught
