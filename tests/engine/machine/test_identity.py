# SPDX-License-Identifier: MIT
# What a machine is known by: what speeds depend on, and nothing that changes without them.

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.machine import identity
from aioktask.engine.machine.identity import cpu_named_in, describe_machine

if TYPE_CHECKING:
    import pytest

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC 7763 64-Core Processor
cpu MHz\t\t: 2445.{}

processor\t: 1
vendor_id\t: GenuineIntel
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
"""


def test_it_names_the_first_cpu_and_nothing_that_changes() -> None:
    assert cpu_named_in(X86.format("0")) == cpu_named_in(X86.format("9"))
    assert cpu_named_in(X86) == ["AuthenticAMD", "AMD EPYC 7763 64-Core Processor"]
    assert cpu_named_in(ARM) == ["0x41", "0xd0c"]
    assert cpu_named_in("") == cpu_named_in("model name\t:\n") == []


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    assert all(cpu_named_in(text))


def test_cpus_and_the_build_of_python_make_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    monkeypatch.setattr(sys, "abiflags", "")
    here = describe_machine(2)
    assert here == describe_machine(2)
    told = {here, describe_machine(3)}
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    told.add(describe_machine(2))
    monkeypatch.setattr(sys, "abiflags", "t")
    told.add(describe_machine(2))
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    told.add(describe_machine(2))
    assert len(told) == 5
    assert all(each.isprintable() for each in told)


def test_the_host_has_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_machine(2)
    identity._cpu.cache_clear()
    real = os.uname()
    fields = [real.sysname, "another-host", real.release, real.version, real.machine]
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(fields))
    assert describe_machine(2) == here
    identity._cpu.cache_clear()


def test_another_process_finds_the_same() -> None:
    program = "from aioktask.engine.machine.identity import *; print(describe_machine(2))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.rstrip("\n") == describe_machine(2)
