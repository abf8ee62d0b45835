# SPDX-License-Identifier: MIT
# Regular expressions of the library are compiled as it is imported: without the GIL a fork's child
# hung that compiled one, while another thread of its parent did.

from __future__ import annotations

import ast
from pathlib import Path

import aioktask

ROOT = Path(aioktask.__file__).parent
# The command line and what only that runs.
OF_COMMANDS = ("__main__.py", "bench", "demo", "figures", "tune")


def test_no_function_of_the_library_compiles_a_regular_expression() -> None:
    found = []
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in OF_COMMANDS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [
            each
            for each in ast.walk(tree)
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        found += [
            f"{path.name}:{node.lineno}: re.{node.attr}"
            for each in functions
            for statement in each.body
            for node in ast.walk(statement)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "re"
            and node.attr not in ("Match", "Pattern")
        ]
    assert not found
