# SPDX-License-Identifier: MIT
# A job that fails half-way and leaves nothing behind.
"""Make many files of a fixed size; when one cannot be made, none is left."""

import asyncio
import errno
import os
import tempfile
from pathlib import Path

from aioktask import Job, current_chunk, failure, run_multithreaded

FILES, FULL_AT = 400, 250
directory = Path(tempfile.mkdtemp(prefix="aioktask-"))


def path(number: int) -> Path:
    return directory / f"block-{number:03}"


def make(start: int, stop: int) -> None:
    """Make the files start to stop: called for each chunk, on several threads at a time."""
    chunk = current_chunk()
    for number in range(start, stop):
        if number == FULL_AT:  # as if the disk were full here
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path(number)))
        path(number).write_bytes(bytes(4096))
        # Should this chunk fail, undo is called for what was told here. A chunk that tells nothing
        # must clean up after itself when it fails.
        chunk.advance(number + 1)


def remove(start: int, stop: int) -> None:
    """Undo: called for all that was done, in no order, once for each file."""
    for number in range(start, stop):
        path(number).unlink()


async def main() -> None:
    try:
        await run_multithreaded(Job(make, FILES, chunk=16, undo=remove, name="make files"))
    except OSError as error:  # the chunk's own exception, with a note about the job
        print("failed:", error)
        print("note:  ", *error.__notes__)
        told = failure(error)  # what is known beside the exception
        print("undone:", ", ".join(f"{each.start} to {each.stop}" for each in told.undone))
        assert not told.done


asyncio.run(main())
left = list(directory.iterdir())
print("left:  ", len(left), "files")
assert not left
directory.rmdir()
