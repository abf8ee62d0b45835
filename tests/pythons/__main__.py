# SPDX-License-Identifier: MIT
# The tests of what threads do, on interpreters that this machine does not have:
#
#   python -m tests.pythons          on all of them
#   python -m tests.pythons 3.13t    on this one
#
# The first run builds each, for some minutes; later ones take it from the cache. One that cannot be
# had here is skipped, with the reason.
"""Run the fault harness and the engine's tests on free-threaded Python."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from tests.pythons.builds import Unavailable, cache_directory, interpreter

ROOT = Path(__file__).parents[2]

PYTHONS = ("3.13t", "3.14t")

# What is run, by name: a hang is found within --timeout, where every line is traced after minutes.
CHECKS = {
    "fault harness": ("tests/api/test_faults.py", "--timeout=600"),
    "engine": ("tests/engine", "--timeout=900"),
}


def say(text: str) -> None:
    print(f"pythons: {text}", flush=True)


def environment(version: str, python: Path) -> Path:
    """A virtual environment of this interpreter, with the library and what its tests need.

    Raises:
        Unavailable: It cannot be made here.
    """
    folder = cache_directory() / f"{version}-environment"
    inside = folder / "bin" / "python"
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [each for each in described["dependency-groups"]["tests"] if "uvloop" not in each]
    pip = [str(inside), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # Nothing is compiled: pip takes the newest release that has a wheel.
    pip.append("--only-binary=:all:")
    steps = [
        [str(python), "-m", "venv", "--upgrade-deps", str(folder)],
        [*pip, *wanted, "--editable", str(ROOT)],
    ]
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            raise Unavailable(f"{' '.join(step[:3])} ... failed, see above")
    # No more than a wish: what its tests need is skipped where it is not there.
    if subprocess.run([*pip, "uvloop"], check=False).returncode:
        say(f"uvloop has no wheel for {version}: its tests are skipped")
    return inside


def run(version: str) -> list[tuple[str, str, str]]:
    """Run all checks on one interpreter: what is told of each, and how it ended."""
    try:
        inside = environment(version, interpreter(version))
    except Unavailable as error:
        say(f"{version} is skipped: {error}")
        return [(version, "all", f"skipped: {error}")]
    rows = []
    for name, arguments in CHECKS.items():
        say(f"{version}, {name}: pytest {' '.join(arguments)}")
        begun = time.monotonic()
        child = subprocess.Popen(
            [str(inside), "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHON_GIL": "0"},
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
    wanted = parser.parse_args().python or PYTHONS
    if unknown := set(wanted) - set(PYTHONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(PYTHONS)}")
    rows = [row for version in wanted for row in run(version)]
    print(flush=True)
    for version, name, how in rows:
        print(f"{version:6} {name:15} {how}")
    return int(any(how.startswith("FAILED") for _, _, how in rows))


if __name__ == "__main__":
    sys.exit(main())
