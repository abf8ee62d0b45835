# SPDX-License-Identifier: MIT
# Having the kernel fault in pages as a read or a write of each would, without changing a byte:
# MADV_POPULATE_READ and MADV_POPULATE_WRITE (Linux 5.14). Several threads of one process may do it
# to one mapping at a time.
"""The chunk that makes pages resident."""

from __future__ import annotations

import errno
import time

from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import Advice

__all__ = ["fault_in"]

ATTEMPTS_WHILE_BUSY = 10
HINTS = {
    errno.EFAULT: "a file that is shorter than its mapping, or no free huge page in the pool",
    errno.EINVAL: "memory that may not be accessed so, or that belongs to a device",
    errno.ENOMEM: "out of memory, a memory limit, or addresses that are not mapped",
}


def fault_in(start: int, stop: int, advice: Advice) -> None:
    """Make the pages from one address to another resident.

    Raises:
        OSError: As madvise(2), most often ENOMEM, with a note of what it may mean.
    """
    attempts = 0
    while True:
        try:
            return libc.madvise(start, stop - start, advice)
        except InterruptedError:
            # Signal handlers have run by now, as this is Python again. What is populated is passed
            # over quickly the next time.
            continue
        except BlockingIOError:
            attempts += 1
            if attempts == ATTEMPTS_WHILE_BUSY:
                raise
            time.sleep(0.001)
        except OSError as error:
            if error.errno in HINTS:
                error.add_note(f"{advice.name}: {HINTS[error.errno]}")
            raise
