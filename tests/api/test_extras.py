# SPDX-License-Identifier: MIT
# Each package that only a part of the library needs: where it is missing or broken, what needs it
# says so, and says what to install. In processes of their own, in which it cannot be imported.

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aioktask.extras import EXTRAS

ROOT = Path(__file__).parents[2]

HANDLE = """
from aioktask import Coordinator, Job
from aioktask.progress import rich_bar, tqdm_bar
with Coordinator() as coordinator:
    handle = coordinator.submit(Job(lambda start, stop: None, 1))
"""
TIMELINE = """
from aioktask import Job, run_multithreaded_sync
timeline = run_multithreaded_sync(Job(lambda start, stop: None, 1, trace=True)).timeline
"""
COMMAND = """
import sys
from aioktask.__main__ import main
sys.stderr = sys.stdout  # where errors of the command line are told
"""
# What asks for a package, and what has to be there before.
ASKS: dict[str, tuple[str, str, str]] = {
    "aioktask.joblib": ("joblib", "", "import aioktask.joblib"),
    "aioktask.web": ("starlette", "", "from aioktask.web import lifespan"),
    "aioktask.web.page": ("starlette", "", "import aioktask.web._page.app"),
    "a host that is not in ASCII": (
        "idna",
        "from aioktask.web._page.access import Hosts",
        "Hosts(['b\\xfccher.example'])",
    ),
    "serve": ("uvicorn", "", "import aioktask.web._page.serve"),
    "aioktask.web.aiohttp": ("aiohttp", "", "import aioktask.web.aiohttp"),
    "a Dask cluster": ("distributed", "", "import aioktask.cluster.dask"),
    "a Dask array as the data of a job": ("distributed", "", "import aioktask.cluster.blocks"),
    "an executor for a Dask worker": ("distributed", "", "import aioktask.cluster.executor"),
    "rich_bar()": ("rich", HANDLE, "rich_bar(handle)"),
    "tqdm_bar()": ("tqdm", HANDLE, "tqdm_bar(handle)"),
    "aioktask.observe.metrics": ("prometheus-client", "", "import aioktask.observe.metrics"),
    "aioktask.observe.traces": ("opentelemetry-api", "", "import aioktask.observe.traces"),
    "the picture of a timeline": ("matplotlib", TIMELINE, "timeline.svg()"),
    "--svg": ("matplotlib", COMMAND, "main(['tune', 'math:sqrt', '1', '--svg', 'picture.svg'])"),
    "the screen": (
        "textual",
        COMMAND + "import aioktask.top._show as module\nmodule.fits_screen = lambda: True\n",
        "main(['top'])",
    ),
}
MODULES = {"opentelemetry-api": "opentelemetry", "prometheus-client": "prometheus_client"}


def said(program: str) -> str:
    """What a program in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
@pytest.mark.parametrize("what", ASKS)
def test_a_package_that_cannot_be_imported_is_named_with_what_to_install(
    what: str, broken: bool, tmp_path: Path
) -> None:
    package, before, asks = ASKS[what]
    if what == "serve":
        pytest.importorskip("starlette", reason="the page needs Starlette")
    module = MODULES.get(package, package)
    (tmp_path / f"{module}.py").write_text("raise ImportError('of another release')\n")
    blocks = f"sys.modules[{module!r}] = None"
    breaks = f"sys.path.insert(0, {str(tmp_path)!r})"
    program = f"""
import sys
{breaks if broken else blocks}
{before}
try:
    {asks}
except ImportError as error:
    print(type(error).__name__, error.name, error)
except SystemExit as exit:
    print("left with", exit.code)
"""
    told = said(program)
    kind = "ImportError None" if broken else f"ModuleNotFoundError {module}"
    why = "of another release" if broken else rf".*\b{module}\b.*"
    wanted = rf"{re.escape(what)} needs {package} \({why}\): pip install 'aioktask\[(.*)\]'"
    found = re.search(wanted, told)
    assert found is not None, told
    assert found[1] == EXTRAS[package]
    assert "left with 2" in told or kind in told


def test_each_extra_brings_what_is_said_to_come_with_it() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(re.match(rf"{package}\b", needed) for needed in extras[extra]), package
    # Nothing needs cloudpickle: without it functions that are defined in functions are refused.
    asked = {package for package, *_ in ASKS.values()}
    assert asked == set(EXTRAS) - {"cloudpickle"}
