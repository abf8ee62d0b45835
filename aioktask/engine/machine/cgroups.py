# SPDX-License-Identifier: MIT
# The cgroups that this process is in, as directories: from its own up to the root, v1 and v2.
#
# Pure readers over a root path, so that a test can show them any machine. They never raise because
# of what they find. Relies on the formats of proc_pid_cgroup and proc_pid_mountinfo (man 5).
"""The directories of the process's cgroups, found by /proc."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aioktask.engine.machine.kernel_files import read_text

__all__ = ["own_directories"]

_ESCAPED = re.compile(r"\\([0-3][0-7]{2})")

# How many cgroups are looked at to find one whose name the namespace hides.
_SEARCH_LIMIT = 4096


def own_directories(root: Path, controller: str) -> Iterator[tuple[Path, str]]:
    """The cgroups that the process is in and that can be seen, for each mount the innermost first.

    Each comes with the type of its file system, "cgroup" (v1) or "cgroup2". A limit anywhere on the
    path binds, in either hierarchy.

    Args:
        root: Where `proc` and `sys` are.
        controller: Whose hierarchy of v1 is meant, such as "cpu" or "memory".
    """
    own = _own_groups(root, controller)
    for point, kind, mount_root in _cgroup_mounts(root, controller):
        place = _place_in_mount(own[kind], mount_root) if kind in own else None
        if place is None:
            continue
        top = root / point.lstrip("/")
        hidden, names = place
        if hidden:
            names = _find_hidden(root, top, hidden, names)
        for depth in range(len(names), -1, -1):
            yield top.joinpath(*names[:depth]), kind


def _own_groups(root: Path, controller: str) -> dict[str, str]:
    """The process's cgroup in the v2 hierarchy and in the v1 hierarchy that has the controller.

    Named hierarchies (`name=systemd`) have no controllers and thus no limits.
    """
    groups = {}
    for line in read_text(root / "proc/self/cgroup").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path and controller in controllers.split(","):
            groups["cgroup"] = path
        elif path and number == "0":
            groups["cgroup2"] = path
    return groups


def _cgroup_mounts(root: Path, controller: str) -> list[tuple[str, str, str]]:
    """Mount point, type and mount's root of each mount that could hold a limit."""
    mounts = {}
    for line in read_text(root / "proc/self/mountinfo").split("\n"):
        head, _, tail = line.partition(" - ")
        fields, (kind, *_, options) = head.split(" "), ["", *tail.split(" ")][-3:]
        if len(fields) >= 6:  # a later mount on the same point hides the earlier one
            mounts[_unescape(fields[4])] = kind, options.split(","), _unescape(fields[3])
    return [
        (point, kind, mount_root)
        for point, (kind, options, mount_root) in mounts.items()
        if kind == "cgroup2" or (kind == "cgroup" and controller in options)
    ]


def _unescape(field: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)


def _place_in_mount(path: str, mount_root: str) -> tuple[int, tuple[str, ...]] | None:
    """Where in a mount the process's cgroup is; None if it is not below the mount's root.

    Both are given as seen from the root of the cgroup namespace, from which `..` leads out, and
    only as far as needed. So a mount whose root is `/../..` holds a process at `/`, two levels
    down, but the names of these levels are hidden: what comes back is their number, and the names
    that follow.
    """
    path_up, path_names = _split(path)
    root_up, root_names = _split(mount_root)
    if path_up == root_up and path_names[: len(root_names)] == root_names:
        return 0, path_names[len(root_names) :]
    if path_up < root_up and not root_names:
        return root_up - path_up, path_names
    return None


def _split(path: str) -> tuple[int, tuple[str, ...]]:
    names = tuple(name for name in path.split("/") if name)
    up = next((depth for depth, name in enumerate(names) if name != ".."), len(names))
    return up, names[up:]


def _find_hidden(root: Path, top: Path, hidden: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names from `top` to the cgroup that lists this process; none if it is not found."""
    process = read_text(root / "proc/self/stat").partition(" ")[0]
    pattern = "/".join(["*"] * hidden + [glob.escape(name) for name in names] + ["cgroup.procs"])
    try:
        for found in islice(glob.iglob(pattern, root_dir=top), _SEARCH_LIMIT):
            if process in read_text(top / found).split():
                return Path(found).parts[:-1]
    except ValueError:  # a malformed path, with a null byte
        pass
    return ()
