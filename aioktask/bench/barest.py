# SPDX-License-Identifier: MIT
# What the machine itself makes requests wait: the barest there are, without a server, a loop or an
# interpreter's lock in common.
#
# Processes sleep until moments that are fixed beforehand, each for itself, and then use their CPU
# for as long as a request does. What these wait beside processes that want every CPU, no way to
# serve requests beside such work on this machine can do without.
"""Requests that are nothing but work, alone and beside processes that want every CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from aioktask.bench.processes import DIE, Child, cpus, python_program, spinning, started

__all__ = ["NICE", "bare_requests"]

NICE = 10
# Processes that requests are spread over, for each CPU: none waits for the one before.
EACH = 4
# Until all are told, in seconds.
SOON = 0.2

# Told how long requests take, it tells how many rounds that is; told the rounds and the moments,
# how long after its moment each request was done.
REQUESTS = (
    DIE
    + """
import json

def work(rounds):
    began = time.thread_time()
    for _ in range(rounds):
        pass
    return time.thread_time() - began

for line in sys.stdin:
    asked = json.loads(line)
    if "service" in asked:
        rounds = 1000
        while work(rounds) < asked["service"]:
            rounds *= 2
        took = sorted(work(rounds) for _ in range(9))[4]
        print(round(rounds * asked["service"] / took), flush=True)
        continue
    due, took = asked["first"], []
    for _ in range(asked["count"]):
        time.sleep(max(due - time.monotonic(), 0))
        work(asked["rounds"])
        took.append(time.monotonic() - due)
        due += asked["every"]
    print(json.dumps(took), flush=True)
"""
)


def bare_requests(service: float, rate: float, seconds: float) -> tuple[list[float], list[float]]:
    """How long requests take from their moment on: alone, and beside a process on each CPU.

    Args:
        service: Seconds of CPU time that each of them needs.
        rate: Requests a second, at even distances.
        seconds: For how long, each time.
    """
    with started([python_program(REQUESTS)] * (EACH * cpus())) as children:
        children[0].ask(service=service)
        rounds = children[0].answer()
        _asked(children, rounds, rate, 0.2 * seconds)
        alone = _asked(children, rounds, rate, seconds)
        with spinning(nice=NICE):
            return alone, _asked(children, rounds, rate, seconds)


def _asked(children: Sequence[Child], rounds: int, rate: float, seconds: float) -> list[float]:
    every = len(children) / rate
    first = time.monotonic() + SOON
    for number, child in enumerate(children):
        moment: dict[str, Any] = {"first": first + number / rate, "every": every}
        child.ask(rounds=rounds, count=max(round(seconds / every), 1), **moment)
    return [each for child in children for each in child.answer()]
