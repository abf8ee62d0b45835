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
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from tests.pythons import debian
from tests.pythons.builds import Unavailable, cache_directory, interpreter, run_tool

ROOT = Path(__file__).parents[2]

FREE_THREADED = ("3.13t", "3.14t")
PYTHONS = (*debian.VERSIONS, *FREE_THREADED)

# What does not have to be there: a new interpreter may have no wheel of it yet.
WISHES = ("uvloop", "matplotlib")

# What is run, by name: a hang is found within --timeout, where every line is traced after minutes.
FAULTS = ("tests/api/test_faults.py", "--timeout=600")
CHECKS = {
    "everyday": ("--timeout=900",),
    "fault harness": FAULTS,
    "sweep": ("-m", "sweep", "tests/interruption", "--timeout=900"),
}
SHORT = {"fault harness": FAULTS, "engine": ("tests/engine", "--timeout=900")}


def say(text: str) -> None:
    print(f"pythons: {text}", flush=True)


def environment(version: str) -> list[str]:
    """The command that starts the interpreter, with the library and what its tests need.

    Raises:
        Unavailable: It cannot be had here.
    """
    if version in FREE_THREADED:
        folder = cache_directory() / f"{version}-environment"
        run_tool(str(interpreter(version)), "-m", "venv", "--upgrade-deps", str(folder))
        python, checkout = [str(folder / "bin" / "python")], str(ROOT)
    else:
        python, checkout = debian.environment(version, ROOT).python, "."
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    every = described["dependency-groups"]["tests"]
    wanted = [each for each in every if not any(wish in each for wish in WISHES)]
    # Nothing is compiled: pip takes the newest release that has a wheel.
    pip = [*python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip.append("--only-binary=:all:")
    run_tool(*pip, *wanted, "--editable", checkout)
    # No more than a wish: what its tests need is skipped where it is not there.
    for wish in WISHES:
        try:
            run_tool(*pip, wish)
        except Unavailable:
            say(f"{wish} has no wheel for {version}: its tests are skipped")
    return python


def run(version: str, checks: dict[str, tuple[str, ...]]) -> list[tuple[str, str, str]]:
    """Run these checks on one interpreter: what is told of each, and how it ended."""
    try:
        python = environment(version)
    except Unavailable as error:
        say(f"{version} is skipped: {error}")
        return [(version, "all", f"skipped: {error}")]
    free = {"PYTHON_GIL": "0"} if version in FREE_THREADED else {}
    rows = []
    for name, arguments in checks.items():
        if version in FREE_THREADED and name == "sweep":  # of those with the GIL
            continue
        say(f"{version}, {name}: pytest {' '.join(arguments)}")
        begun = time.monotonic()
        child = subprocess.Popen(
            [*python, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", *arguments],
            cwd=ROOT,
            env={**os.environ, **free},
            stdout=subprocess.PIPE,
            text=True,
        )
        last = ""
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        how = "passed" if child.wait() == 0 else "FAILED"
        counts = re.sub(r" in [0-9.]+s.*$", "", last.strip("= "))
        rows.append((version, name, f"{how} in {time.monotonic() - begun:.0f} s: {counts}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("python", nargs="*", help=f"of {', '.join(PYTHONS)}; by default all")
    parser.add_argument("--short", action="store_true", help="what differs most between them")
    asked = parser.parse_args()
    wanted = asked.python or PYTHONS
    if unknown := set(wanted) - set(PYTHONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(PYTHONS)}")
    rows = [row for version in wanted for row in run(version, SHORT if asked.short else CHECKS)]
    print(flush=True)
    for version, name, how in rows:
        print(f"{version:6} {name:15} {how}")
    return int(any(how.startswith("FAILED") for _, _, how in rows))


if __name__ == "__main__":
    sys.exit(main())
