# SPDX-License-Identifier: MIT
# The guest's root file system: the Python that runs the tests, and what they import from others.
#
# Everything lies where this machine has it, so that the interpreter and its libraries find each
# other as they do here; installed distributions alone lie in /site. What belongs to the checkout
# is not in it: that changes from run to run. Relies on ldd, and on the lists of files that
# installers leave beside each distribution. `mkfs.ext4 -d` fills the image without root.
"""An ext4 image with a Python and the tests' dependencies."""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.packages import Unavailable

__all__ = ["PYTHON", "SITE", "distributions", "image_key", "make_image"]

# The interpreter itself, not a virtual environment's link to it.
PYTHON = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
SITE = "site"
# Parts of the standard library that no test needs.
_LEFT_OUT = shutil.ignore_patterns(
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "config-*",
    "*.opt-?.pyc",
    "*.a",
)
_APPLETS = ("sh", "env", "ls", "cat", "mount", "umount", "dmesg", "ps", "sysctl", "true", "sleep")
_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "etc", "checkout", "scratch")


def distributions(pyproject: Path) -> dict[str, importlib.metadata.Distribution]:
    """What the project and its tests depend on, all the way down, by name.

    Raises:
        Unavailable: One of them is not installed here.
    """
    described = tomllib.loads(pyproject.read_text())
    wanted = [
        *described["project"]["dependencies"],
        *described["dependency-groups"]["tests"],
    ]
    found: dict[str, importlib.metadata.Distribution] = {}
    while wanted:
        requirement = Requirement(wanted.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not needed or name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise Unavailable(f"the tests' dependency {name} is not installed") from None
        wanted.extend(found[name].requires or [])
    return found


def image_key(installed: dict[str, importlib.metadata.Distribution]) -> str:
    """A name for an image of this Python and these distributions, of the way it is made too."""
    parts = [sys.version, str(PYTHON), Path(__file__).read_text()]
    parts += sorted(f"{name}=={found.version}" for name, found in installed.items())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def make_image(
    target: Path, busybox: Path, installed: dict[str, importlib.metadata.Distribution]
) -> None:
    """Write the image to `target`; a folder beside it is used meanwhile."""
    root = target.with_name("root")
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "usr").mkdir()
    for merged in ("bin", "lib", "lib64", "sbin"):
        if Path("/", merged).is_symlink():
            (root / "usr" / merged).mkdir()
            (root / merged).symlink_to(f"usr/{merged}")
    _add_python(root)
    _add_site(root / SITE, installed)
    _add_libraries(root)
    _add_commands(root, busybox)
    _make_ext4(target, root)


def _at(root: Path, path: Path) -> Path:
    """Where in the image this machine's `path` belongs, with its folder made."""
    target = root / path.parent.resolve().relative_to("/") / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _add_python(root: Path) -> None:
    shutil.copy2(PYTHON, _at(root, PYTHON))
    # In a virtual environment, too, these are those of the Python it was made with.
    for library in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        shutil.copytree(library, _at(root, Path(library)), ignore=_LEFT_OUT, dirs_exist_ok=True)


def _add_site(site: Path, installed: dict[str, importlib.metadata.Distribution]) -> None:
    for found in installed.values():
        for file in found.files or ():
            # Scripts lie outside of site-packages.
            if file.parts[0] == ".." or file.suffix == ".pyi":
                continue
            source = Path(str(found.locate_file(file)))
            if source.is_file():
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    _compile(site)


def _compile(site: Path) -> None:
    """Compile all of it here, since the guest compiles slowly and cannot keep the result.

    pytest compiles the distributions of its plugins anew, hypothesis and anyio among them, with
    assertions that say more; a session that imports them leaves them compiled that way. Where that
    fails, the guest is slower to begin and no worse.
    """
    compileall.compile_dir(site, quiet=2, stripdir=str(site.parent), prependdir="/")
    with tempfile.TemporaryDirectory() as folder:
        imports = "import anyio, hypothesis, hypothesis.stateful, numpy, structlog, trio, uvloop"
        Path(folder, "test_imports.py").write_text(f"{imports}\n\ndef test_imports(): pass\n")
        subprocess.run(
            [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", folder, folder],
            cwd=folder,
            env={"PYTHONPATH": str(site), "PATH": os.environ.get("PATH", "")},
            capture_output=True,
            check=False,
        )


def _add_libraries(root: Path) -> None:
    """The shared libraries that anything in the image is linked with."""
    linked = [PYTHON, *(path for path in root.rglob("*.so*") if path.is_file())]
    for library in _shared_libraries(linked):
        # A library that lies beside what needs it is there already.
        if not library.is_relative_to(root):
            shutil.copy2(library, _at(root, library))
    # Where they are, for a Python whose libraries are in no usual place.
    known = Path("/etc/ld.so.cache")
    if known.exists():
        shutil.copy2(known, root / "etc" / known.name)


def _shared_libraries(linked: Iterable[Path]) -> set[Path]:
    listed = subprocess.run(
        ["ldd", *map(str, linked)], capture_output=True, text=True, check=False
    ).stdout
    paths = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)
    return {Path(path) for path in paths}


def _add_commands(root: Path, busybox: Path) -> None:
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    commands = (root / "bin").resolve()
    commands.mkdir(exist_ok=True)
    shutil.copy2(busybox, commands / "busybox")
    for applet in _APPLETS:
        if not (commands / applet).exists():
            (commands / applet).symlink_to("busybox")


def _make_ext4(target: Path, root: Path) -> None:
    contents = sum(path.lstat().st_size for path in root.rglob("*"))
    files = sum(1 for _ in root.rglob("*"))
    megabytes = int((contents + files * 4096) / 2**20 * 1.2) + 32
    # Nothing is ever written to it, so it needs no journal.
    run_mkfs(target, f"{megabytes}M", "-O", "^has_journal", "-N", str(files + 512), "-d", str(root))


def run_mkfs(target: Path, size: str, *options: str) -> None:
    """Make an ext4 file system in the new file `target`.

    Raises:
        Unavailable: There is no mkfs.ext4 here, or it failed.
    """
    # Debian's path of an ordinary user has no /usr/sbin.
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Unavailable("needs mkfs.ext4 (Debian: e2fsprogs)")
    command = [program, "-q", "-m", "0", *options, str(target), size]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Unavailable(f"{' '.join(command)}: {ended.stderr.strip()}")
