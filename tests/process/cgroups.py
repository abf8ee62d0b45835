# SPDX-License-Identifier: MIT
# A cgroup of its own for a child process, of version 1 or 2, which is gone after the test.

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.child import Child
from tests.support.gates import until


@contextlib.contextmanager
def cgroup(controller: str, *places: tuple[str, str]) -> Iterator[Path]:
    """A cgroup with a controller; the test is skipped where none can be made.

    Args:
        controller: What to call it.
        places: Where one may be, and the file by which it is known.
    """
    for mount, file in places:
        group = Path(mount, f"aioktask-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / file).exists():
                yield group
                return
        finally:
            until(lambda each=group: not (each / "cgroup.procs").read_text(), "an empty cgroup")
            group.rmdir()
    pytest.skip(f"no cgroup with a {controller} controller can be made here")


def join(group: Path, child: Child) -> None:
    (group / "cgroup.procs").write_text(str(child.process.pid))
