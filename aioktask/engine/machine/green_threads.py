# SPDX-License-Identifier: MIT
# Threads that are none: gevent and eventlet can replace the standard library's threads by
# greenlets, which take turns on one thread of the kernel ("monkey patching").
#
# A helper made of that would run nothing in parallel, wait where the program waits, and have its
# nice set on the main thread. So a program that is patched is told so before anything is started.
"""Refusing to work where threads are greenlets."""

from __future__ import annotations

import sys

from aioktask.engine.lookups import look_up

# The library, the module that replaces, and the function of it that tells what it replaced.
_GREEN = (
    ("gevent", "gevent.monkey", "is_module_patched", ("_thread", "threading", "queue")),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", ("thread",)),
)


_imported = sys.modules


def refuse_green_threads() -> None:
    """Raise where this process's threads are greenlets; takes some tens of ns where they are not.

    Raises:
        RuntimeError: The threads are greenlets.
    """
    if "gevent.monkey" in _imported or "eventlet.patcher" in _imported:
        _refuse()


def _refuse() -> None:
    for library, patcher, tells, names in _GREEN:
        is_patched = getattr(look_up(_imported, patcher), tells, None)
        found = [name for name in names if is_patched is not None and is_patched(name)]
        if found:
            raise RuntimeError(
                f"a job needs the system's threads, and {library} has replaced what this process "
                f"has of them by greenlets, which share one thread ({', '.join(found)} patched by "
                f"{patcher}): {_ADVICE[library]}, or run jobs in a process that is not patched"
            )


_ADVICE = {
    "gevent": "call gevent.monkey.patch_all(thread=False, queue=False)",
    "eventlet": "call eventlet.monkey_patch(thread=False)",
}
