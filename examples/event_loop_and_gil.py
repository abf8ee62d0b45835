# SPDX-License-Identifier: MIT
"""What a function that holds the GIL does to an event loop, and what helps.

Prints how late a ticker of 1 ms is beside three jobs: one in pure Python, the same with a shorter
switch interval, and one whose function releases the GIL.
"""

import asyncio
import sys
import time

import numpy as np

from aioktask import Job, run_multithreaded


def count(start: int, stop: int) -> None:
    for _ in range(start, stop):
        pass


x = np.linspace(0.0, 100.0, 1 << 24)
out = np.empty_like(x)


def sines(start: int, stop: int) -> None:
    np.sin(x[start:stop], out=out[start:stop])


async def lateness(name: str, job: Job[None]) -> None:
    late = []
    task = asyncio.create_task(run_multithreaded(job))
    while not task.done():
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append((time.perf_counter() - due) * 1e3)
    late.sort()
    middle, almost, worst = late[len(late) // 2], late[int(len(late) * 0.99)], late[-1]
    elapsed = (await task).elapsed
    print(f"{name:<34}{middle:>8.1f}{almost:>8.1f}{worst:>8.1f}{elapsed:>8.2f}")


async def main() -> None:
    print(f"{'':34}{'p50 ms':>8}{'p99 ms':>8}{'worst':>8}{'job s':>8}")
    units = 20_000_000
    await lateness("to learn that it holds the GIL", Job(count, units))
    await lateness("pure Python", Job(count, units))
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    await lateness("pure Python, switch interval 0.5 ms", Job(count, units))
    sys.setswitchinterval(before)
    await lateness("NumPy, releases the GIL", Job(sines, len(x)))


asyncio.run(main())
