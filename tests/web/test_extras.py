# SPDX-License-Identifier: MIT
# What is optional stays optional: the library is imported without a framework. What is said where
# one is missing is tested with the other packages, in tests/api.

from __future__ import annotations

import subprocess
import sys

import pytest


def run(program: str) -> str:
    """What a program of its own process prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_library_and_the_package_import_no_framework() -> None:
    program = """
import sys
import aioktask, aioktask.web
aioktask.Job
print([name for name in ("starlette", "fastapi", "aiohttp", "uvicorn") if name in sys.modules])
"""
    assert run(program) == "[]\n"


def test_the_names_of_the_package_are_those_for_starlette() -> None:
    pytest.importorskip("starlette", reason="aioktask.web needs Starlette")
    import aioktask.web
    import aioktask.web._page.app
    import aioktask.web.starlette

    assert sorted(aioktask.web.__all__) == sorted([*aioktask.web.starlette.__all__, "page"])
    assert aioktask.web.page is aioktask.web._page.app.page
    for name in aioktask.web.starlette.__all__:
        assert getattr(aioktask.web, name) is getattr(aioktask.web.starlette, name)
