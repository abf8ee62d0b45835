# SPDX-License-Identifier: MIT
# A process with jobs to look at. Its arguments say which.
#
#   one NAME       one job that can be undone, with a unit each 20 ms
#   many NUMBER    so many jobs that wait behind one
#   cluster NAME   one job on two other processes, which do not publish what they do for it
#   nested         one whose chunk waits for another job
#   fails          one that fails, short ones, and a stream with items that fail
#   shown          some of each kind, for pictures

from __future__ import annotations

import os
import sys
import threading
import time

from aioktask import (
    ChunkCancelled,
    Coordinator,
    Job,
    JobCancelled,
    configure,
    current_chunk,
    map_ordered_sync,
    run_multithreaded_sync,
)

over = threading.Event()


def work(start: int, stop: int) -> None:
    time.sleep(0.02 * (stop - start))


def work_elsewhere(start: int, stop: int, data: object) -> None:
    work(start, stop)


def waits(start: int, stop: int) -> None:
    while not over.wait(0.01):
        current_chunk().check_cancelled()


def item(number: int) -> None:
    if number % 4 == 3:
        raise ValueError("no such item")


def nests(start: int, stop: int) -> None:
    run_multithreaded_sync(Job(waits, 1, name="inner"))


def fails(start: int, stop: int) -> None:
    time.sleep(0.02)
    if start > 30:
        raise ValueError("not a <b>customer</b>")


def jobs(kind: str, about: str) -> list[Job[None]]:
    if kind == "one":
        return [
            Job(work, 100_000, chunk=1, max_threads=1, undo=work, name=about, labels={"who": about})
        ]
    if kind == "many":
        return [Job(waits, 1, name=f"waits {number}") for number in range(int(about))]
    if kind == "nested":
        return [Job(nests, 1, name="outer")]
    if kind == "fails":
        return [Job(fails, 1000, chunk=1, max_threads=1, name="import <b>customers</b>")]
    return [
        Job(work, 4000, chunk=1, name="resize thumbnails", labels={"tenant": "acme"}, undo=work),
        Job(work, 100_000, chunk=1, name="rebuild the index", nice=5, undo=work),
        Job(waits, 1, name="load a model"),
        Job(fails, 1000, chunk=1, name="import customers", undo=work),
        *(Job(work, 50, chunk=1, name=f"report {number}") for number in range(12)),
    ]


def run_on_cluster(name: str) -> None:
    from aioktask.cluster import ClusterJob, ProcessCoordinator

    os.environ["AIOKTASK_PUBLISH"] = "0"
    with ProcessCoordinator(2, max_threads=1) as coordinator:
        handle = coordinator.submit(ClusterJob(work_elsewhere, 100_000, chunk=1, name=name))
        print("ready", flush=True)
        try:
            handle.result()
        except JobCancelled:
            print("cancelled", handle.nice, flush=True)
    sys.stdin.read()


def main() -> None:
    kind, about = (*sys.argv[1:], "")[:2]
    if kind == "cluster":
        run_on_cluster(about)
        return
    configure(stuck_after=1.0, max_threads=2)
    with Coordinator() as coordinator:
        handles = [coordinator.submit(job) for job in jobs(kind, about)]
        if kind == "fails":
            for _ in range(30):
                coordinator.submit(Job(lambda start, stop: None, 1, name="tiny")).result()
            with map_ordered_sync(item, range(9), name="stream", errors="yield") as found:
                list(found)
        print("ready", flush=True)
        if kind == "shown":
            time.sleep(2.0)
            handles[0].cancel()
        for handle in handles:
            try:
                handle.result()
            except (JobCancelled, ChunkCancelled, ValueError):
                print("cancelled", handle.nice, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
