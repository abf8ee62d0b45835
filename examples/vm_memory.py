# SPDX-License-Identifier: MIT
"""The memory of a virtual machine: taken, faulted in by all CPUs, pinned, and given back.

A virtual machine monitor that hands a device through does this before the guest starts: the pages
must be there (a fault later costs the guest milliseconds) and must stay where they are (the device
writes to them). One thread needs seconds for each 10 GiB of it, and nothing else goes on meanwhile.
"""

import asyncio
import itertools
import time

from aioktask import memory, run_multithreaded

MIB = 1 << 20
SIZE = 256 * MIB


async def guest_memory() -> memory.Region:
    """In reserved huge pages if the administrator has put enough aside, else transparent ones."""
    try:
        return await memory.allocate(SIZE, pages="2MiB")
    except OSError as error:
        print(error)
        return await memory.allocate(SIZE, pages="transparent", populate=True)


async def heartbeat(beats: list[float]) -> None:
    """The monitor's own work: it answers its control socket while the memory is prepared."""
    while True:
        beats.append(time.perf_counter())
        await asyncio.sleep(0.001)


async def main() -> None:
    beats: list[float] = []
    pulse = asyncio.create_task(heartbeat(beats))
    began = time.perf_counter()
    region = await guest_memory()
    try:
        ready = time.perf_counter()
        print(f"{region}: ready after {(ready - began) * 1e3:.0f} ms")
        async with memory.pin(region.buffer):
            print(f"pinned after {(time.perf_counter() - ready) * 1e3:.1f} ms more")
            found = (await run_multithreaded(memory.residency(region.buffer))).value
            print(f"resident: {found.resident // MIB} MiB of {found.nbytes // MIB}")
            print(f"in huge pages: {found.huge // MIB} MiB; by node: {dict(found.nodes)}")
    except OSError as error:
        # Of an ordinary user: `ulimit -l` is often 8 MiB. Nothing stays pinned then.
        print(f"not pinned: {error}")
    finally:
        await region.aclose()
    pulse.cancel()
    worst = max((b - a for a, b in itertools.pairwise(beats)), default=0.0)
    print(f"given back; the loop's longest pause was {worst * 1e3:.1f} ms")


if __name__ == "__main__":
    asyncio.run(main())
