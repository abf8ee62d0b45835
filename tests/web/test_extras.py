# SPDX-License-Identifier: MIT
# What is optional stays optional: the library is imported without a framework, and says which
# extra brings one that is asked for and missing.

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


@pytest.mark.parametrize(
    ("framework", "name", "extra"),
    [("starlette", "aioktask.web.lifespan", "server"), ("aiohttp", "", "aiohttp")],
)
def test_a_framework_that_is_missing_is_named_with_its_extra(
    framework: str, name: str, extra: str
) -> None:
    program = f"""
import sys
sys.modules[{framework!r}] = None
import aioktask.web
try:
    {name or "import aioktask.web.aiohttp"}
except ImportError as error:
    print(error)
"""
    assert f"pip install 'aioktask[{extra}]'" in run(program)


def test_the_names_of_the_package_are_those_for_starlette() -> None:
    pytest.importorskip("starlette", reason="aioktask.web needs Starlette")
    import aioktask.web
    import aioktask.web.starlette

    assert sorted(aioktask.web.__all__) == sorted(aioktask.web.starlette.__all__)
    for name in aioktask.web.__all__:
        assert getattr(aioktask.web, name) is getattr(aioktask.web.starlette, name)
