# SPDX-License-Identifier: MIT
# The programs of the page "Run a service": each is whole, and answers as the page says.

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from aioktask.extras import EXTRAS

PAGE = Path(__file__).parents[2] / "docs" / "run-a-service.md"

pytestmark = [pytest.mark.max_threads(2), pytest.mark.anyio]


def program(*words: str) -> dict[str, Any]:
    """What the only program of the page with these words makes, by name."""
    (text,) = [
        each
        for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if all(word in each for word in words)
    ]
    made: dict[str, Any] = {"__name__": "service"}
    exec(compile(text, str(PAGE), "exec"), made)
    return made


async def ask(app: Any, path: str) -> Any:
    """What an application of ASGI answers while its lifespan runs."""
    httpx = pytest.importorskip("httpx")
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_the_service_of_starlette() -> None:
    pytest.importorskip("starlette")
    made = program("from starlette", "Route(")
    assert "seconds" in await ask(made["app"], "/fill")
    assert made["table"].all()
    assert await ask(made["app"], "/ready") == ""


async def test_the_service_of_fastapi() -> None:
    pytest.importorskip("fastapi")
    assert await ask(program("FastAPI(")["app"], "/sum?numbers=10") == "45"


async def test_the_endpoint_that_watches_for_its_client() -> None:
    pytest.importorskip("starlette")
    assert callable(program("async with cancel_on_disconnect")["endpoint"])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_service_of_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import TestClient, TestServer

    monkeypatch.setattr(web, "run_app", lambda app, **settings: None)
    made = program("from aiohttp")
    async with TestClient(TestServer(made["app"])) as client:
        answer = await client.get("/fill")
        assert answer.status == 200
    assert made["table"].all()


def test_the_page_says_what_to_install_before_each_program_that_needs_it() -> None:
    said = ""
    for kind, text in re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if kind == "sh":
            said += text
            continue
        for module in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE):
            if module in ("aioktask", "numpy", "typing"):
                continue
            by = f"aioktask[{EXTRAS[module]}]" if module in EXTRAS else module
            assert re.search(rf"^pip install .*{re.escape(by)}", said, re.MULTILINE), module
