# SPDX-License-Identifier: MIT
# The tests of executor_consumers.py, each in a process of its own: see there.

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONSUMERS = Path(__file__).with_name("executor_consumers.py")
NAMES = [
    each.name
    for each in ast.parse(CONSUMERS.read_text()).body
    if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
]


@pytest.mark.parametrize("name", NAMES)
def test_in_a_process_of_its_own(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"{CONSUMERS}::{name}"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "passed" not in done.stdout:
        skipped = re.search(r"^SKIPPED .*?: (.*)$", done.stdout, re.MULTILINE)
        assert skipped is not None, done.stdout
        pytest.skip(skipped[1])
