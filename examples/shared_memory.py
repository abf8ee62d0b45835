# SPDX-License-Identifier: MIT
"""A database's shared memory: its file allocated, its pages faulted in, then used by a worker.

A segment in /dev/shm is a file without storage at first: a process that touches a page when the
file system is full is killed (SIGBUS), perhaps hours after the start. `fallocate` finds that out
beforehand, with an error, and leaves the file as it was; `populate` has the pages in this process's
page tables, so that the first queries are as quick as the later ones.
"""

import asyncio
import errno
import mmap
import multiprocessing
import tempfile
import time

import numpy as np

from aioktask import memory, run_multithreaded

MIB = 1 << 20
SIZE = 128 * MIB


def worker(path: str) -> None:
    """Another process of the database: it maps the same segment and sums it up."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as segment:
        pages = np.frombuffer(segment, np.int64)
        pages[0] = int(pages[1:].sum())
        del pages


async def main() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="database-") as file:
        began = time.perf_counter()
        try:
            await run_multithreaded(memory.fallocate(file, SIZE))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            print(f"{error}: all that was allocated has been given back, start with less")
            return
        allocated = time.perf_counter()
        segment = mmap.mmap(file.fileno(), SIZE)
        await run_multithreaded(memory.populate(segment))
        populated = time.perf_counter()
        print(f"allocated {SIZE // MIB} MiB in {(allocated - began) * 1e3:.0f} ms, ", end="")
        print(f"populated in {(populated - allocated) * 1e3:.0f} ms")

        np.frombuffer(segment, np.int64)[1:] = 1
        process = multiprocessing.get_context("spawn").Process(target=worker, args=(file.name,))
        process.start()
        await asyncio.to_thread(process.join)
        print(f"the worker found {int(np.frombuffer(segment, np.int64)[0]):,} ones")


if __name__ == "__main__":
    asyncio.run(main())
