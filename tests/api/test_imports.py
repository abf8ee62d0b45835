# SPDX-License-Identifier: MIT
# Any module of the package may be the first that is imported, in several threads at once.
#
# A thread that imports a module holds the module's lock, then imports the package that the module
# is in, then what the module itself imports. Where these "holds one, wants another" make a circle,
# two threads can wait for each other; Python notices and lets one of them have a module that is
# only half there. So the test is that there is no circle, and a sample of pairs shows that this is
# what matters.

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.util
import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioktask

ROOT = Path(aioktask.__file__).parent
PUBLIC = (
    "aioktask",
    "aioktask.arrays",
    "aioktask.files",
    "aioktask.memory",
    "aioktask.memory.vfio",
    "aioktask.ondemand",
    "aioktask.progress",
    *(["aioktask.web"] if importlib.util.find_spec("starlette") else []),
)
MORE_PAIRS = 20


def module_name(path: Path) -> str:
    parts = ("aioktask", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def is_for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_when_loaded(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that happen while the module is imported, not when its functions are called."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for name in ("body", "orelse", "handlers", "finalbody"):
                if not (name == "body" and is_for_types_only(node)):
                    yield from imports_when_loaded(getattr(node, name, []))


def names_of(module: str) -> dict[str, str]:
    """The names that a package brings when one is asked for, and the modules they are in."""
    is_package = module in FILES and FILES[module].name == "__init__.py"
    return getattr(importlib.import_module(module), "_NAMES", {}) if is_package else {}


def wanted_by(module: str) -> set[str]:
    """The modules whose locks a thread wants while it holds this one's."""
    wanted = {module.rpartition(".")[0]}
    for node in imports_when_loaded(ast.parse(FILES[module].read_text()).body):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
            continue
        assert node.level == 0
        assert node.module is not None
        wanted.add(node.module)
        for alias in node.names:
            if alias.name in names_of(node.module):
                wanted |= set(names_of(node.module).values())
            else:
                wanted.add(f"{node.module}.{alias.name}")
    packages = {each.rpartition(".")[0] for each in wanted} - {module}
    return {each for each in wanted | packages if each in FILES}


def test_no_two_imports_can_wait_for_each_other() -> None:
    graph = {module: wanted_by(module) for module in FILES}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


IN_TWO_THREADS = """
import importlib, os, sys, threading, time
import anyio, anyio.lowlevel, asyncio, ctypes, numpy, structlog  # which have circles of their own
sys.setswitchinterval(1e-6)

def place_of(error):
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename

def import_both(names):
    barrier, wrong = threading.Barrier(2), []
    def first(name):
        barrier.wait()
        try:
            for _ in range(1000):
                try:
                    importlib.import_module(name)
                    break
                except KeyError as error:
                    # The interpreter takes each module that is loaded out of sys.modules for a
                    # moment, where another thread that imports what is in it may look for it
                    # meanwhile; and again, before the first one has gone on.
                    if error.args != ("aioktask",) or "frozen importlib" not in place_of(error):
                        raise
                    time.sleep(0.001)
            module = sys.modules[name]
            for public in getattr(module, "__all__", ()):
                getattr(module, public)
        except ModuleNotFoundError as error:
            if not error.name or error.name.partition(".")[0] == "aioktask":
                wrong.append(f"{' and '.join(names)}: {name}: {error!r}")
            # Else a package is not installed that has no wheels for this Python.
        except BaseException as error:
            wrong.append(f"{' and '.join(names)}: {name}: {error!r}")
    threads = [threading.Thread(target=first, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for line in wrong:
        print(line, flush=True)

for line in sys.stdin:
    child = os.fork()
    if not child:
        import_both(line.split())
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="pairs are tried in forked children")
def test_any_two_modules_may_be_the_first_in_two_threads() -> None:
    commands = ("__main__", "aioktask.bench", "aioktask.figures", "aioktask.tune")
    modules = [each for each in FILES if not any(name in each for name in commands)]
    pairs = list(itertools.combinations(PUBLIC, 2))
    pairs += random.Random(1).sample(list(itertools.combinations(modules, 2)), MORE_PAIRS)
    done = subprocess.run(
        [sys.executable, "-c", IN_TWO_THREADS],
        input="\n".join(" ".join(pair) for pair in pairs),
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT.parent,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == ""


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_s_names_are_those_it_shows_to_type_checkers(package: str) -> None:
    shown: dict[str, str] = {}
    for node in ast.parse(FILES[package].read_text()).body:
        if is_for_types_only(node):
            for each in imports_when_loaded(node.body):  # type: ignore[attr-defined]
                assert isinstance(each, ast.ImportFrom)
                for alias in each.names:
                    inner = f"{each.module}.{alias.name}"
                    shown[alias.name] = inner if inner in FILES else str(each.module)
    module = importlib.import_module(package)
    assert shown == module._NAMES
    assert sorted(module.__all__) == sorted(shown)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PUBLIC)
def test_a_name_that_is_none_of_a_package_s_is_an_attribute_error(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_the_first_name_brings_all_that_a_job_needs() -> None:
    found = (
        "import sys, aioktask\n"
        "assert not [each for each in sys.modules if each.startswith('aioktask.')]\n"
        "aioktask.Job\n"
        "before = set(sys.modules)\n"
        "from aioktask import *\n"
        "from aioktask.memory import *\n"
        "from aioktask.arrays import *\n"
        "run_multithreaded_sync(Job(print, 0))\n"
        "aioktask.engine, aioktask.errors, aioktask.observe\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", found], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.split() == ["[]"]
