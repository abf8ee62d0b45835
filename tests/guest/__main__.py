# SPDX-License-Identifier: MIT
# `python -m tests.guest build` makes what the machine needs; `... shell` boots it to a shell here.
"""The guest machine by hand."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.guest.bed import as_child
from tests.guest.kit import Kit, prepare
from tests.guest.machine import MACHINE, check_host
from tests.support.packages import Unavailable


def say(text: str) -> None:
    print(f"guest: {text}", file=sys.stderr, flush=True)


def shell(kit: Kit) -> None:
    """A shell in the guest on this terminal, until it ends or Ctrl-A X switches the machine off."""
    check_host(MACHINE)
    with tempfile.TemporaryDirectory() as folder:
        initramfs = Path(folder, "initramfs")
        kit.write_initramfs(initramfs, {"nodeids": [], "options": []}, GUEST_SHELL="1")
        arguments = MACHINE.arguments(
            kernel=kit.vmlinux, initramfs=initramfs, image=kit.image, scratch=kit.scratch
        )
        arguments += MACHINE.channels(console="mon:stdio")
        subprocess.run(
            as_child([*kit.qemu, *arguments]),
            env={**os.environ, **kit.environment},
            check=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.guest", description=__doc__)
    parser.add_argument("what", choices=["build", "shell"])
    what = parser.parse_args().what
    try:
        kit = prepare(say)
        if what == "shell":
            shell(kit)
    except Unavailable as error:
        sys.exit(f"guest: {error}")


if __name__ == "__main__":
    main()
