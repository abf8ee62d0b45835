# SPDX-License-Identifier: MIT
# An application with the live page and a job of its own, for real servers with several workers.

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from aioktask import Coordinator, Job
from aioktask.web import lifespan, page


def work(start: int, stop: int) -> None:
    time.sleep(0.005)


@asynccontextmanager
async def with_a_job(app: Any) -> AsyncIterator[None]:
    coordinator: Coordinator = app.state.coordinator
    coordinator.submit(Job(work, 1_000_000, chunk=1, max_threads=1, name=f"of {os.getpid()}"))
    yield


async def ready(request: Request) -> PlainTextResponse:
    return PlainTextResponse("")


app = Starlette(routes=[Route("/ready", ready)], lifespan=lifespan(with_a_job, finish=0.1))
app.mount("/jobs", page(hosts=["test"]))

# The same without a coordinator, so that nothing but the page hears of a signal.
alone = Starlette(routes=[Route("/ready", ready)])
alone.mount("/jobs", page(hosts=["test"]))
