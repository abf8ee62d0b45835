# SPDX-License-Identifier: MIT
# A server that answers on a TCP socket while a job keeps every CPU busy.
"""A client asks for the progress of a job, every few milliseconds, until it is done."""

import asyncio
import time

import numpy as np

from aioktask import Coordinator, Handle, Job

ROWS = 1 << 23


def make_job() -> Job[None]:
    x, y = np.linspace(0.0, 1.0, ROWS), np.zeros(ROWS)

    def work(start: int, stop: int) -> None:  # on helper threads, never on the event loop
        y[start:stop] = x[start:stop]
        for _ in range(20):
            y[start:stop] = np.sqrt(y[start:stop] * y[start:stop] + 1.0)

    return Job(work, ROWS, chunk=1 << 14, name="square roots")


async def ask(port: int) -> tuple[str, float]:
    """One request: the answer, and how many seconds it took."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = (await reader.readline()).decode().strip()
    writer.close()
    await writer.wait_closed()
    return answer, time.perf_counter() - began


async def serve(handle: Handle[None]) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        progress = handle.progress()  # of any moment, from any thread
        writer.write(f"{progress.done / progress.size:.0%} done\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        answers = []
        while not handle.done():
            answers.append(await ask(port))
            await asyncio.sleep(0.005)
        answers.append(await ask(port))
    for told, _ in answers[:: max(1, len(answers) // 5)]:
        print("the server says:", told)
    slowest = max(seconds for _, seconds in answers)
    print(f"{len(answers)} requests were answered, the slowest in {slowest * 1e3:.1f} ms")


async def main() -> None:
    # The coordinator is the scope of its jobs. A server has one for as long as it lives; leaving it
    # waits for the jobs, and leaving it by an exception ends and undoes them.
    async with Coordinator() as coordinator:
        handle = coordinator.submit(make_job())  # runs whether or not anyone waits for it
        await serve(handle)
        report = await handle
    print(f"the job took {report.elapsed:.2f} s on {report.peak_threads} threads")


asyncio.run(main())
