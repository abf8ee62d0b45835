# SPDX-License-Identifier: MIT
# The tests on interpreters that this machine does not have:
#
#   python -m tests.pythons                  everything, on all of them
#   python -m tests.pythons 3.14 3.13t       on these
#   python -m tests.pythons --short 3.14     what differs most between interpreters
#
# Those with the GIL come from a newer Debian in a folder of its own (`debian`), the free-threaded
# ones are built (`builds`). The first run makes each, for some minutes; later ones take it from the
# cache. One that cannot be had here is skipped, with the reason.
"""Run the tests on other interpreters, free-threaded ones too."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from tests.pythons import debian
from tests.pythons.builds import Unavailable, interpreter
from tests.support.packages import required, run_tool
from tests.support.record import CHECK, FILE, Entry, append, read, table

ROOT = Path(__file__).parents[2]

FREE_THREADED = ("3.13t", "3.14t")
PYTHONS = (*debian.VERSIONS, *FREE_THREADED)

# What has to be there. All else is no more than a wish: a new interpreter may have no wheel of it
# yet, and tests that need it are skipped without.
NEEDED = ("anyio", "hypothesis", "pytest", "trio")

PYTEST = ("-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", "--durations=15")

# What is run, by name: a hang is found within --timeout, where every line is traced after minutes.
CHECKS = {
    "everyday": ("--timeout=900",),
    "sweep": ("-m", "sweep", "tests/interruption", "--timeout=900"),
}
# What an interpreter decides: how threads, finalizers and signals come in between, the calls of the
# library from them, what can be pickled, what a fork's child and the exit find, ctypes. Without
# `test_turns`, which decides itself which thread goes on, and takes longest.
SHORT = {
    "threads": (
        "tests/engine/threads/test_keeper.py",
        "tests/engine/threads/test_pool.py",
        "tests/engine/state",
        "tests/engine/loops",
        "tests/engine/machine/test_os_threads.py",
        "tests/engine/test_priority.py",
        "--timeout=300",
    ),
    "api": ("tests/api", "--timeout=300"),
    "process": (
        *(
            f"tests/process/test_{name}.py"
            for name in ("children", "exit", "fork", "signals", "threads")
        ),
        "tests/interruption/test_cases.py",
        "tests/interruption/test_merged_finalizers.py",
        "--timeout=300",
    ),
    "memory": (
        "tests/memory/test_clear_populate.py",
        "tests/memory/test_copy_release.py",
        "tests/memory/test_holding.py",
        "tests/arrays",
        "--timeout=300",
    ),
}


def say(text: str) -> None:
    print(f"pythons: {text}", flush=True)


def environment(version: str) -> list[str]:
    """The command that starts the interpreter, with the library and what its tests need.

    Raises:
        Unavailable: It cannot be had here.
    """
    if version in FREE_THREADED:
        built = interpreter(version)
        folder = built.parents[1].with_name(f"{built.parents[1].name}-environment")
        run_tool(str(built), "-m", "venv", "--upgrade-deps", str(folder))
        python, checkout = [str(folder / "bin" / "python")], str(ROOT)
    else:
        python, checkout = debian.environment(version, ROOT).python, "."
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    every = described["dependency-groups"]["tests"]
    needed = [each for each in every if each.startswith(NEEDED)]
    wishes = [each for each in every if each not in needed]
    # Nothing is compiled: pip takes the newest release that has a wheel.
    pip = [*python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip.append("--only-binary=:all:")
    run_tool(*pip, *needed, "--editable", checkout)
    try:
        run_tool(*pip, *wishes)
    except Unavailable:
        for wish in wishes:
            try:
                run_tool(*pip, wish)
            except Unavailable:
                say(f"{wish} has no wheel for {version}: tests that need it are skipped")
    return python


def run(version: str, checks: dict[str, tuple[str, ...]], told: Path) -> bool:
    """Run these checks on one interpreter, each of which writes down what it came to.

    Args:
        told: A file in the checkout, which the interpreters see under the same relative path.

    Returns:
        Whether all is as it should be: all passed, or the interpreter cannot be had here, and need
        not be.
    """
    try:
        python = environment(version)
    except Unavailable as error:
        say(f"{version} is {'MISSING' if required() else 'skipped'}: {error}")
        append(told, Entry("all", 0, version, {}, f"not to be had here: {error}"))
        return not required()
    free = {"PYTHON_GIL": "0"} if version in FREE_THREADED else {}
    well = True
    for name, arguments in checks.items():
        if version in FREE_THREADED and name == "sweep":  # of those with the GIL
            continue
        say(f"{version}, {name}: pytest {' '.join(arguments)}")
        begun = time.monotonic()
        before = len(read(told))
        status = subprocess.call(
            [*python, *PYTEST, *arguments],
            cwd=ROOT,
            env={**os.environ, **free, FILE: str(told.relative_to(ROOT)), CHECK: name},
        )
        if len(read(told)) == before:
            seconds = time.monotonic() - begun
            append(told, Entry(name, seconds, version, {}, f"died with exit code {status}"))
        well = well and status == 0
    return well


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("python", nargs="*", help=f"of {', '.join(PYTHONS)}; by default all")
    parser.add_argument("--short", action="store_true", help="what differs most between them")
    asked = parser.parse_args()
    wanted = asked.python or PYTHONS
    if unknown := set(wanted) - set(PYTHONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(PYTHONS)}")
    told = ROOT / "build" / f"pythons-{os.getpid()}.jsonl"
    checks = SHORT if asked.short else CHECKS
    try:
        well = [run(version, checks, told) for version in wanted]
        entries = read(told)
    finally:
        told.unlink(missing_ok=True)
    print(f"\n{table(entries)}", flush=True)
    if file := os.environ.get(FILE):  # of whoever keeps a record of more than this
        for each in entries:
            append(Path(file), each)
    return int(not all(well))


if __name__ == "__main__":
    sys.exit(main())
