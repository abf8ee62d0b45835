# SPDX-License-Identifier: MIT
# The numbers of runs: each has one that no other has, whatever threads make runs at a time.

from __future__ import annotations

import threading

from aioktask.engine.state.run import numbers as run_numbers

THREADS, EACH = 4, 5_000


def test_threads_that_make_runs_at_a_time_get_different_numbers() -> None:
    together = threading.Barrier(THREADS)
    found: list[list[int]] = [[] for _ in range(THREADS)]

    def take(mine: list[int]) -> None:
        together.wait(60)
        mine += [next(run_numbers) for _ in range(EACH)]

    threads = [threading.Thread(target=take, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [number for mine in found for number in mine]
    assert len(set(numbers)) == len(numbers) == THREADS * EACH
    for mine in found:
        assert mine == sorted(mine)
