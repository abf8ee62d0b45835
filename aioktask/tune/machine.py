# SPDX-License-Identifier: MIT
# The machine and the versions, for `info` and beside every table of figures.
#
# What the library itself goes by comes from its own readers; the rest is read here, and what cannot
# be read is left out.
"""What this machine is, as data and as text."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

from aioktask.checks import name_of
from aioktask.engine.api.process import current_pool
from aioktask.engine.machine.native_threads import NativeLibrary, NativeThreads, Scope
from aioktask.engine.machine.probe import probe
from aioktask.engine.machine.slots import Slots, slots_path
from aioktask.engine.machine.topology import Topology
from aioktask.engine.priority import gil_is_on, may_lower, process_nice, thread_nice
from aioktask.engine.tunables import NO_SHARE, PROCESS, Tunables
from aioktask.figures.table import size_text

__all__ = ["available_memory", "info", "info_text", "machine_text", "packages_text"]

LOOPS = ("asyncio", "uvloop", "trio")
PACKAGES = (
    "aioktask",
    "numpy",
    "anyio",
    "structlog",
    "uvloop",
    "trio",
    "joblib",
    "dask",
    "numba",
    "numexpr",
    "threadpoolctl",
)


def info() -> dict[str, object]:
    """What the library sees of the machine, and the versions of what it works with.

    Raises:
        ValueError: ``AIOKTASK_MAX_THREADS`` is no number of threads.
    """
    pool = current_pool()
    pool.adapter.refresh()
    share = pool.adapter.tunables.share
    cap, topology = pool.adapter.cap, pool.adapter.topology
    return {
        "cap": {"threads": cap.threads, "reason": cap.reason},
        "tunables": _tunables(pool.adapter.tunables),
        "slots": _slots(share, len(topology.cpus)),
        "nice": _nice(),
        "native_threads": _native_threads(pool.adapter.tunables.limit_native_threads),
        "denied": probe(None if share == NO_SHARE else share),
        "cpus": sorted(topology.cpus),
        "online": sorted(topology.online),
        "nodes": [
            {
                "id": node.id,
                "cpus": sorted(node.cpus),
                "distances": list(node.distances),
                "memory": node.memory,
            }
            for node in topology.nodes
        ],
        "quota": _quota(topology),
        "processor": _processor(),
        "memory_available": available_memory(),
        "transparent_huge_pages": _huge_pages(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil": _gil(),
        "loops": [loop for loop in LOOPS if loop == "asyncio" or _version(loop)],
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def info_text(facts: Mapping[str, object]) -> str:
    """`info()` for reading."""
    cap, quota = facts["cap"], facts["quota"]
    nodes, loops = facts["nodes"], facts["loops"]
    assert isinstance(cap, dict)
    assert isinstance(nodes, list)
    assert isinstance(loops, list)
    lines = [
        ("threads", f"{cap['threads']}: {cap['reason']}"),
        ("CPUs", f"{_cpulist(facts['cpus'])} (affinity) of {_cpulist(facts['online'])} (online)"),
    ]
    if isinstance(quota, dict):
        text = f"{quota['cpus']:.4g} CPUs: {quota['quota_us']} us in {quota['period_us']} us"
        lines.append(("quota", f"{text}, from {quota['source']}"))
    else:
        lines.append(("quota", "none on the path of this process's cgroup to the root"))
    lines += [("slots", _slots_text(facts["slots"])), ("nice", _nice_text(facts["nice"]))]
    lines.append(("native", _native_text(facts["native_threads"])))
    lines.append(("denied", _denied_text(facts["denied"])))
    for node in nodes:
        distances = " ".join(map(str, node["distances"])) or "unknown"
        text = f"CPUs {_cpulist(node['cpus'])}, {size_text(node['memory'])}, distances {distances}"
        lines.append((f"node {node['id']}", text))
    available = facts["memory_available"]
    if isinstance(available, int):
        lines.append(("available", f"{size_text(available)} of memory"))
    lines += [
        ("huge pages", f"transparent: {facts['transparent_huge_pages'] or 'unknown'}"),
        ("processor", str(facts["processor"] or "unknown")),
        ("system", f"{facts['system']} {facts['machine']}"),
        ("Python", f"{facts['python']}, {facts['gil']}"),
        ("loops", ", ".join(loops)),
        ("tunables", _tunables_text(facts["tunables"])),
        ("packages", packages_text(facts)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines)


def machine_text(facts: Mapping[str, object]) -> str:
    """The machine and its Python, in a line to stand above a table."""
    cpus = facts["cpus"]
    assert isinstance(cpus, list)
    processor = facts["processor"] or facts["machine"]
    return f"{len(cpus)} CPUs ({processor}), {facts['system']}, {facts['python']} ({facts['gil']})"


def packages_text(facts: Mapping[str, object]) -> str:
    """The versions of what there is, in a line."""
    packages = facts["packages"]
    assert isinstance(packages, dict)
    return ", ".join(f"{name} {found}" for name, found in packages.items())


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that may be used without pushing anything out; None where that is not known.

    The kernel's estimate, and no more than the memory cgroup of a container has left.
    """
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    found = [int(match[1]) * 1024] if match else []
    cgroup = root / "sys/fs/cgroup"
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, used = _read(cgroup / limit).strip(), _read(cgroup / usage).strip()
        if most.isdecimal() and used.isdecimal():
            found.append(max(int(most) - int(used), 0))
    return min(found, default=None)


def _quota(topology: Topology) -> dict[str, object] | None:
    quota = topology.quota
    if quota is None:
        return None
    return {
        "cpus": quota.cpus,
        "quota_us": quota.quota_us,
        "period_us": quota.period_us,
        "source": str(quota.source),
    }


def _slots(name: str, cpus: int) -> dict[str, object]:
    """The set of slots that this process would share, and how many others are busy in it."""
    if name == NO_SHARE:
        return {"name": name}
    try:
        slots = Slots(slots_path(name))
        try:
            return {"name": name, "path": str(slots.path), "slots": cpus, "busy": slots.busy()}
        finally:
            slots.close()
    except OSError as error:
        return {"name": name, "refused": str(error)}


def _slots_text(facts: object) -> str:
    assert isinstance(facts, dict)
    name = facts["name"]
    if name == NO_SHARE:
        return "none: this process shares with no other one"
    if "refused" in facts:
        return f"{name!r}: not shared: {facts['refused']}"
    shared = f"{name!r}: {facts['slots']} shared with {facts['busy']} busy processes now"
    return f"{shared}, in {facts['path']}"


def _nice() -> dict[str, object]:
    """The nice of the loop's thread, and of helpers."""
    base = process_nice()
    levels = {nice: thread_nice(nice, base, gil=gil_is_on()) for nice in (0, 10, 19)}
    return {"process": base, "helpers": levels, "may_lower": may_lower(base)}


def _nice_text(facts: object) -> str:
    assert isinstance(facts, dict)
    levels = ", ".join(f"{level} for jobs of {nice}" for nice, level in facts["helpers"].items())
    back = "can" if facts["may_lower"] else "cannot"
    return f"process {facts['process']}; helpers {levels}; a thread {back} be lowered again"


def _native_threads(mode: bool | str) -> dict[str, object]:
    """The native libraries that are loaded, and what becomes of their threads in helpers."""
    natives = NativeThreads()
    natives.look()
    libraries = [
        {
            "name": each.name,
            "path": each.path,
            "threads": each.count(),
            "of": each.scope.value,
            "left_alone": _left_alone(each, mode),
        }
        for each in natives.libraries
    ]
    return {"why_none": natives.why_not or natives.failed, "libraries": libraries}


def _left_alone(library: NativeLibrary, mode: bool | str) -> str:
    """Why helpers do not limit the library; empty if they do."""
    if not mode:
        return "limit_native_threads is off"
    if library.scope is Scope.PROCESS and mode != PROCESS:
        return f"its number is the process's, which limit_native_threads={PROCESS} limits"
    return library.note


def _native_text(facts: object) -> str:
    assert isinstance(facts, dict)
    if facts["why_none"]:
        return f"threads of libraries are not limited: {facts['why_none']}"
    told = []
    for each in facts["libraries"]:
        why = f"left alone, {each['left_alone']}" if each["left_alone"] else "one in a helper"
        told.append(f"{each['name']} with {each['threads']} threads: {why}")
    return "; ".join(told) or "no library with threads of its own is loaded"


def _denied_text(facts: object) -> str:
    assert isinstance(facts, dict)
    told = "; ".join(f"{call}: {error}" for call, error in facts.items())
    return told or "nothing that jobs ask of the system"


def _tunables(tunables: Tunables) -> dict[str, object]:
    """The values, and a function by its name."""
    data = tunables.data()
    if tunables.initializer is not None:
        data["initializer"] = name_of(tunables.initializer)
    return data


def _tunables_text(facts: object) -> str:
    assert isinstance(facts, dict)
    return ", ".join(f"{name}={value}" for name, value in facts.items())


def _gil() -> str:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "GIL"
    on = getattr(sys, "_is_gil_enabled", lambda: True)()
    return f"free-threaded build, GIL {'on' if on else 'off'}"


def _processor() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return match[1].strip() if match else platform.processor()


def _huge_pages() -> str:
    text = _read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree" if package == "aioktask" else ""


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""


def _cpulist(cpus: object) -> str:
    """The kernel's format: 0-3,8."""
    assert isinstance(cpus, Iterable)
    spans: list[list[int]] = []
    for cpu in cpus:
        if spans and spans[-1][1] == cpu - 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in spans) or "none"
