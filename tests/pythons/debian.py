# SPDX-License-Identifier: MIT
# Interpreters with the GIL that this machine's Debian does not have: from a newer Debian, in a
# folder of its own, which programs are started in by chroot.
#
# debootstrap fills the folder, fetched by apt and not installed. What such a program needs of this
# machine (/proc, /sys, /dev, the checkout) is mounted in a mount namespace that only it and its
# children are in. So nothing is mounted for anybody else, and however it ends nothing stays so.
"""A newer Debian's interpreters, beside this machine's own."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.pythons.builds import debian_mirror
from tests.support.cache import cache_directory, locked, made_once
from tests.support.packages import Packages, Unavailable, run_tool

__all__ = ["VERSIONS", "Environment", "environment"]

VERSIONS = ("3.13", "3.14", "3.15")
SUITE = "forky"
# The test suites are CPython's own, some of which are run on this library.
PACKAGES = (
    "ca-certificates",
    *(f"python{version}{part}" for version in VERSIONS for part in ("", "-venv")),
    *(f"libpython{version}-testsuite" for version in VERSIONS),
)

# What is copied from this machine, so that pip finds there what it finds here.
_COPIED = (
    "/etc/resolv.conf",
    "/etc/pip.conf",
    "/etc/xdg/pip",
    "/etc/ssl/certs/ca-certificates.crt",
    "~/.config/pip",
)

_ENTER = """
root=$1 checkout=$2
shift 2
for each in proc sys dev; do
    mount --rbind --make-rslave "/$each" "$root/$each"
done
mount --bind "$checkout" "$root/checkout"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
exec chroot "$root" env -C /checkout "$@"
"""


class Environment:
    """A virtual environment of one of its interpreters, with nothing installed.

    Attributes:
        python: The command that starts its interpreter, in the checkout.
    """

    def __init__(self, root: Path, version: str, checkout: Path) -> None:
        inside = f"/environments/{version}"
        enter = ["unshare", "--mount", "sh", "-ec", _ENTER, "enter", str(root), str(checkout)]
        self.python = [*enter, f"{inside}/bin/python"]
        if not (root / inside.lstrip("/")).exists():
            run_tool(*enter, f"python{version}", "-m", "venv", "--upgrade-deps", inside)


def environment(version: str, checkout: Path) -> Environment:
    """An environment of this version, from the cache or made now.

    Raises:
        Unavailable: It is not there and cannot be made here; the message says why.
    """
    if os.geteuid() != 0:
        raise Unavailable("only root may start programs in another root folder")
    if missing := [tool for tool in ("unshare", "chroot", "wget") if shutil.which(tool) is None]:
        raise Unavailable(f"needs {', '.join(missing)}")
    # A cache of its own, so that a build meanwhile does not hold it up.
    cache = cache_directory("pythons") / "debian"
    named = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    with locked(cache):
        root = made_once(cache / f"{SUITE}-{named}", _bootstrap)
        _copy_into(root, _COPIED)
        return Environment(root, version, checkout)


def _bootstrap(target: Path) -> None:
    work = target.parent / "work"
    work.mkdir()
    Packages(work / "packages").unpack(["debootstrap"], work)
    scripts = work / "usr/share/debootstrap"
    run_tool(
        # So that what it mounts meanwhile goes with it.
        *("unshare", "--mount", "env", f"DEBOOTSTRAP_DIR={scripts}"),
        str(work / "usr/sbin/debootstrap"),
        *("--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(SUITE, str(target), debian_mirror(), str(scripts / "scripts/sid")),
    )
    (target / "checkout").mkdir()
    (target / "environments").mkdir()


def _copy_into(root: Path, copied: Sequence[str]) -> None:
    for name in copied:
        path = Path(name).expanduser()
        inside = root / path.relative_to("/")
        if not path.exists():
            continue
        inside.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, inside, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, inside)
