# SPDX-License-Identifier: MIT
# How much memory this process may lock, known before the kernel is asked to.
#
# The kernel's rule (mm/mlock.c): without CAP_IPC_LOCK, what is locked in the process and what is
# asked for may together not exceed RLIMIT_MEMLOCK, and under a limit of 0 it does not even look. A
# capability of a user namespace does not count, and /proc does not tell which namespace one is of:
# who seems privileged is let through, and finds out from the kernel.
"""RLIMIT_MEMLOCK: what is left of it, and the error that says so."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from aioktask.memory._kernel.libc import PAGE

__all__ = ["WHAT_TO_DO", "Allowance", "allowance", "allowance_in"]

WHAT_TO_DO = (
    "raise the limit (`ulimit -l`, LimitMEMLOCK= of systemd, --ulimit memlock= of a container) "
    "or give the process CAP_IPC_LOCK"
)
_CAP_IPC_LOCK = 14
_STATUS = re.compile(r"^(VmLck|CapEff):\s*(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a thread may lock.

    Attributes:
        limit: RLIMIT_MEMLOCK in bytes; None when there is none.
        locked: What the process has locked now, in bytes.
        privileged: Whether the thread has CAP_IPC_LOCK, of whatever user namespace.
    """

    limit: int | None
    locked: int
    privileged: bool

    def refusal(self, nbytes: int) -> OSError | None:
        """The error that the kernel would give for locking so many bytes more, in whole pages."""
        if not nbytes or self.privileged or self.limit is None:
            return None
        if self.limit and self.locked + nbytes <= self.limit // PAGE * PAGE:
            return None
        number = errno.ENOMEM if self.limit else errno.EPERM
        return OSError(
            number,
            f"{os.strerror(number)}: {nbytes} bytes were to be locked, {self.locked} are locked in "
            f"this process, and RLIMIT_MEMLOCK allows {self.limit}: {WHAT_TO_DO}",
        )


def allowance() -> Allowance:
    """What the calling thread may lock at this moment."""
    import resource  # only on Unix

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # Capabilities are each thread's own.
    status = Path("/proc/thread-self/status").read_text()
    return allowance_in(status, None if limit == resource.RLIM_INFINITY else limit)


def allowance_in(status: str, limit: int | None) -> Allowance:
    """What a thread may lock by the text of its /proc/thread-self/status."""
    told = dict(_STATUS.findall(status))
    privileged = int(told["CapEff"], 16) >> _CAP_IPC_LOCK & 1 == 1
    return Allowance(limit, int(told["VmLck"]) << 10, privileged)
