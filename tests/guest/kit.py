# SPDX-License-Identifier: MIT
# All that is needed to boot, from the cache or made now: QEMU, the kernel, the image.
#
# Three things in the cache, each with the key of what it was made of in its name: the kit (QEMU
# unless it is installed, busybox, the kernel and its modules), the image (a Python and the tests'
# dependencies) and an empty scratch disk. A cache that has them all is used as it is, without the
# network. The checkout and the request travel in the initramfs, which is made for each boot.
"""The parts of the guest machine."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guest import image, kernel
from tests.guest.machine import MODULES
from tests.support import packages
from tests.support.cache import cache_directory, forget_unused, locked, made_once
from tests.support.packages import Packages, Unavailable

__all__ = ["Kit", "prepare"]

CHECKOUT = Path(__file__).resolve().parents[2]
_QEMU = "qemu-system-x86_64"
_NEEDED_DISK = 2 << 30
_SCRATCH_SIZE = "256M"
# What of the checkout the guest gets; compiled files spare it the compiling.
_IN_GUEST = ("aioktask", "tests", "examples", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Kit:
    """The parts.

    Attributes:
        folder: QEMU's files unless it is installed, `busybox`, `vmlinux` and `modules`.
        image: The root file system.
        scratch: An empty file system to write to.
        qemu: The beginning of QEMU's command.
        environment: What QEMU needs beside this process's own.
    """

    folder: Path
    image: Path
    scratch: Path
    qemu: Sequence[str]
    environment: dict[str, str]

    @property
    def vmlinux(self) -> Path:
        return self.folder / "vmlinux"

    def write_initramfs(
        self, target: Path, request: dict[str, list[str]], **variables: str
    ) -> None:
        """The modules, the checkout as it is now, and what to do with it.

        Args:
            variables: More for the environment of the tests.
        """
        now = time.time()
        script = stat.S_IFREG | 0o755
        plain = stat.S_IFREG | 0o644
        entries: list[kernel.Entry] = [
            ("init", script, now, (CHECKOUT / "tests" / "guest" / "init").read_bytes()),
            ("bin/busybox", script, now, (self.folder / "busybox").read_bytes()),
            ("environment", plain, now, _environment(variables).encode()),
            ("checkout/request.json", plain, now, json.dumps(request).encode()),
            *((name, stat.S_IFDIR | 0o755, now, b"") for name in ("proc", "sys", "dev", "root")),
        ]
        entries += kernel.tree_in_archive(self.folder / "modules", "modules")
        for name in _IN_GUEST:
            if (CHECKOUT / name).exists():
                entries += kernel.tree_in_archive(CHECKOUT / name, f"checkout/{name}")
        target.write_bytes(kernel.archive(entries))


def _environment(more: dict[str, str]) -> str:
    """The guest's environment, as a shell reads it."""
    given = {name: value for name, value in os.environ.items() if name.startswith("AIOKTASK_")}
    variables = {
        **given,
        "AIOKTASK_IN_GUEST": "1",
        "GUEST_PYTHON": str(image.PYTHON),
        "HOME": "/tmp",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
        "LANG": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"/checkout:/{image.SITE}",
        "PYTHONUNBUFFERED": "1",
        **more,
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def prepare(say: Callable[[str], None]) -> Kit:
    """The parts, those that the cache lacks made now.

    Args:
        say: Told what is being made, since that takes a minute.

    Raises:
        Unavailable: This machine cannot make them; the message says why.
    """
    cache = cache_directory("guest")
    try:
        with locked(cache):
            return _prepare(cache, say)
    except OSError as error:
        raise Unavailable(f"cannot build the guest in {cache}: {error}") from error


def _prepare(cache: Path, say: Callable[[str], None]) -> Kit:
    def missing(path: Path) -> Path:
        if not path.exists():
            if shutil.disk_usage(cache).free < _NEEDED_DISK:
                raise Unavailable(f"needs {_NEEDED_DISK >> 30} GiB of free disk for {cache}")
            say(f"making {path}")
        return path

    installed_qemu = shutil.which(_QEMU)
    folder = cache / f"kit-{_kit_key(installed_qemu)}"
    qemu, environment = _qemu(folder, installed_qemu)
    if folder.exists() and not _starts(qemu, environment):
        # A cache from elsewhere: here fewer of the libraries are installed.
        shutil.rmtree(folder)
    made_once(
        missing(folder), lambda target: _make_kit(target, cache / "apt", installed_qemu is None)
    )
    installed = image.distributions(CHECKOUT / "pyproject.toml")
    root = missing(cache / f"python-{image.image_key(installed)}.ext4")
    made_once(root, lambda target: image.make_image(target, folder / "busybox", installed))
    scratch = missing(cache / f"scratch-{_SCRATCH_SIZE}.ext4")
    made_once(scratch, lambda target: image.run_mkfs(target, _SCRATCH_SIZE))
    for kind in ("kit-*", "python-*"):
        forget_unused(cache, kind)
    return Kit(folder, root, scratch, qemu, environment)


def _qemu(folder: Path, installed: str | None) -> tuple[list[str], dict[str, str]]:
    """The command's beginning and its environment: the installed QEMU, else the kit's."""
    if installed is not None:
        return [installed], {}
    tree = folder / "qemu"
    command = [str(tree / "usr/bin" / _QEMU)]
    for firmware in ("qemu", "seabios"):
        command += ["-L", str(tree / "usr/share" / firmware)]
    libraries = [str(tree / part / "x86_64-linux-gnu") for part in ("usr/lib", "lib")]
    return command, {"LD_LIBRARY_PATH": ":".join(libraries)}


def _starts(qemu: Sequence[str], environment: dict[str, str]) -> bool:
    command = [*qemu, "--version"]
    ended = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, check=False
    )
    return ended.returncode == 0


def _kit_key(installed_qemu: str | None) -> str:
    release = Path("/etc/os-release")
    parts = [
        release.read_text() if release.exists() else "",
        "installed" if installed_qemu else "unpacked",
        " ".join(MODULES),
        *(inspect.getsource(part) for part in (packages, kernel, _make_kit)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _make_kit(target: Path, apt: Path, with_qemu: bool) -> None:
    debian = Packages(apt)
    work = target.with_name("work")
    kernel_package = debian.dependency("linux-image-amd64", r"linux-image-\d.*")
    debian.unpack(["busybox-static", kernel_package], work)
    target.mkdir()
    shutil.copy2(_first(work, ("usr/bin/busybox", "bin/busybox")), target / "busybox")
    (bzimage,) = (work / "boot").glob("vmlinuz-*")
    (target / "vmlinux").write_bytes(kernel.vmlinux(bzimage.read_bytes()))
    modules = _first(work, ("lib/modules", "usr/lib/modules"))
    (target / "modules").mkdir()
    for number, (name, data) in enumerate(kernel.modules_with_dependencies(modules, MODULES)):
        (target / "modules" / f"{number:02}-{name}.ko").write_bytes(data)
    if with_qemu:
        debian.unpack(debian.with_missing_dependencies("qemu-system-x86"), target / "qemu")


def _first(tree: Path, names: Sequence[str]) -> Path:
    """Where a package of this or of another release has its file."""
    return next(tree / name for name in names if (tree / name).exists())
