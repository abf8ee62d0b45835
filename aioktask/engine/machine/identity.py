# SPDX-License-Identifier: MIT
# Which machine this is, for what was measured on one and may be of no use on another.
#
# It is told by what speeds depend on most: the kind of CPU, how many of them the process may use,
# and the interpreter, by its name, its minor version and its build (whether it is free-threaded,
# and whether its GIL is on; whether it is a debugging one). Not by the host's name, so that a
# container finds what the last one like it left, and not by the patch version of Python.
"""What a machine is known by."""

from __future__ import annotations

import functools
import os
import sys

from aioktask.engine.machine.denials import note_denial

__all__ = ["cpu_named_in", "describe_machine"]

_CPUS = "/proc/cpuinfo"
# Enough for the first CPU; to tell of all takes the kernel long on a large machine.
_FIRST_CPU_BYTES = 4096
_FIELDS = ("vendor_id", "model name", "CPU implementer", "CPU part", "cpu", "uarch")


def describe_machine(cpus: int) -> str:
    """What this machine is known by, as a reader and a program may compare it.

    Args:
        cpus: How many the process may use.
    """
    gil = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else " without GIL"
    build = f"{sys.version_info[0]}.{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
    return f"{_cpu()}, {cpus} CPUs, {sys.implementation.name} {build}{gil}"


@functools.cache
def _cpu() -> str:
    """The kind of CPU; that of its instructions, where nothing else tells."""
    text = ""
    try:
        descriptor = os.open(_CPUS, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            text = os.read(descriptor, _FIRST_CPU_BYTES).decode("ascii", "replace")
        finally:
            os.close(descriptor)
    except OSError as error:
        note_denial(f"read {_CPUS}", error.errno)
    return " ".join([*cpu_named_in(text), os.uname().machine if hasattr(os, "uname") else ""])


def cpu_named_in(text: str) -> list[str]:
    """What the kernel's text about CPUs calls the first of them; nothing where it names none."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return [found[name] for name in _FIELDS if found.get(name)]
