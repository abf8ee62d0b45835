# SPDX-License-Identifier: MIT
"""Run the tests of what changed since the last commit: `make check`.

A changed test runs, and for a changed module those that import it by name. Slow ones and those of
the emulated machine do not.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 45  # after so many no further module is begun: the rest is left to other commands

NO_TESTS = 5  # pytest's status where a module has slow tests only


def changed() -> list[Path]:
    """The Python files that differ from the last commit, new ones included."""
    told = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [Path(line[3:].split(" -> ")[-1]) for line in told.splitlines()]
    return [path for path in paths if path.suffix == ".py" and path.is_file()]


def tests_of(paths: list[Path]) -> list[str]:
    """The test modules that these paths are, or that name them in an import."""
    modules = [path.with_suffix("").parts for path in paths if path.parts[0] != "tests"]
    named = [_named(".".join(folder), module) for *folder, module in modules]
    found = {path for path in paths if path.name.startswith("test_")}
    for test in Path("tests").rglob("test_*.py"):
        if "guest" in test.parts:
            continue
        text = test.read_text(encoding="utf-8")
        if any(each.search(text) for each in named):
            found.add(test)
    return sorted(str(path) for path in found)


def _named(package: str, module: str) -> re.Pattern[str]:
    """A module as an import names it: whole, or `from package import module`."""
    whole = re.escape(f"{package}.{module}")
    return re.compile(
        rf"\b{whole}\b|from {re.escape(package)} import (\([^)]*|.*)\b{re.escape(module)}\b"
    )


def main() -> int:
    tests = tests_of(changed())
    if not tests:
        print("nothing that tests import has changed since the last commit")
        return 0
    begun = time.monotonic()
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header"]
    for number, test in enumerate(tests):
        if time.monotonic() - begun > SECONDS:
            print(f"left to `make test` and `make test-programs`: {' '.join(tests[number:])}")
            break
        status = subprocess.call([*pytest, test, *sys.argv[1:]])
        if status not in (0, NO_TESTS):
            return status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
