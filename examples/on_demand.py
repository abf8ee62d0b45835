# SPDX-License-Identifier: MIT
# A server that answers while the table it answers from is still being made.
"""Requests over a large table of records, served before all of it is initialised."""

import asyncio
import random
import time

import numpy as np

from aioktask import Job, OnDemand

RECORDS = 1 << 22
REQUESTS = 200
table = np.zeros(RECORDS, [("key", "i8"), ("root", "f8"), ("wave", "f8")])


def initialise(start: int, stop: int) -> None:
    """One section of the table: called on helper threads, once for each section."""
    part = table[start:stop]
    part["key"] = np.arange(start, stop)
    part["root"] = np.sqrt(part["key"])
    part["wave"] = np.sin(part["root"]) * np.exp(-part["root"] / 1e3)


async def answer(ready: OnDemand, key: int) -> float:
    """One request: its records go before the background, and only they are waited for."""
    await ready.ensure(key, key + 100)
    return float(table["root"][key : key + 100].sum())


async def main() -> None:
    keys = random.Random(1).sample(range(RECORDS - 100), REQUESTS)
    began = time.perf_counter()
    times = []
    # nice=10: what is not asked for yet leaves most of the CPUs to other jobs of this program.
    async with OnDemand(
        Job(initialise, RECORDS, min_chunk=1 << 12, nice=10), first=1 << 14
    ) as ready:
        print(f"entered after {(time.perf_counter() - began) * 1e3:.1f} ms")
        for key in keys:
            asked = time.perf_counter()
            total = await answer(ready, key)
            times.append(time.perf_counter() - asked)
            assert np.isclose(total, np.sqrt(np.arange(key, key + 100)).sum())
            if len(times) == 1:
                done = ready.progress().done / RECORDS
                print(f"first answer after {(time.perf_counter() - began) * 1e3:.1f} ms", end="")
                print(f", with {done:.0%} of the table done")
    print(f"all of the table after {(time.perf_counter() - began) * 1e3:.0f} ms")
    times.sort()
    print(f"answers: median {times[REQUESTS // 2] * 1e3:.2f} ms, worst {times[-1] * 1e3:.2f} ms")
    assert (table["key"] == np.arange(RECORDS)).all()


if __name__ == "__main__":
    asyncio.run(main())
