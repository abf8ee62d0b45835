# SPDX-License-Identifier: MIT
# Programs that tests use and this machine may not have: from Debian packages, unpacked into the
# cache and not installed, so nothing is changed on the machine and no root is needed.
#
# An unpacked program finds its libraries by LD_LIBRARY_PATH, and fonts by a configuration that
# names the unpacked ones: a script of the program's name sets both and starts it.
"""Programs of Debian packages."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.cache import cache_directory, locked, made_once
from tests.support.packages import Packages, Unavailable, required

__all__ = ["program"]

_SCRIPT = """#!/bin/sh
export LD_LIBRARY_PATH='{libraries}'
[ -e /etc/fonts/fonts.conf ] || export FONTCONFIG_FILE='{root}/fonts.conf'
exec '{file}' "$@"
"""
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{root}/usr/share/fonts</dir><cachedir>{root}/fonts-cache</cachedir></fontconfig>
"""


def program(
    name: str, file: str, more: Sequence[str] = (), *, everyday: bool = False
) -> Path | str:
    """The program, or why a test that needs it is skipped: nothing excuses it where it is required.

    Args:
        name: Of the program, and of the package that it comes in.
        file: Where in the package the program itself is, such as "usr/bin/tmux".
        more: Packages that it needs and that its own does not name.
        everyday: Whether the test is one of those that should take a moment: then nothing is
            fetched, except where nothing excuses.

    Raises:
        Unavailable: It cannot be had here, and must: see `packages.required`.
    """
    if everyday and not required() and shutil.which(name) is None:
        return f"{name} is not installed"
    try:
        return _found_or_unpacked(name, file, more)
    except Unavailable as error:
        if required():
            raise
        return f"{name} is not installed, and cannot be fetched: {error}"


def _found_or_unpacked(name: str, file: str, more: Sequence[str] = ()) -> Path:
    """The program of this machine, else of the cache, else of packages that are fetched now.

    Raises:
        Unavailable: It is not installed and cannot be fetched; the message says why.
    """
    if there := shutil.which(name):
        return Path(there)
    cache = cache_directory("programs")
    folder = cache / name
    try:
        with locked(cache):
            if folder.exists() and not _finds_libraries(folder, file):
                shutil.rmtree(folder)  # made where more of its libraries were installed
            made_once(folder, lambda target: _unpack(target, name, file, more))
    except OSError as error:
        raise Unavailable(f"cannot unpack {name} in {cache}: {error}") from error
    return folder / name


def _finds_libraries(folder: Path, file: str) -> bool:
    libraries = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, _libraries(folder)))}
    told = subprocess.run(
        ["ldd", str(folder / file)],
        env={**os.environ, **libraries},
        capture_output=True,
        text=True,
        check=False,
    )
    return "not found" not in told.stdout


def _libraries(folder: Path) -> list[Path]:
    """The folders in it that have libraries."""
    found = {each.parent for part in ("lib", "usr/lib") for each in (folder / part).rglob("*.so*")}
    return sorted(found)


def _unpack(target: Path, name: str, file: str, more: Sequence[str]) -> None:
    debian = Packages(target.parent / "apt")
    needed = [debian.with_missing_dependencies(each) for each in (name, *more)]
    debian.unpack(sorted({package for each in needed for package in each}), target)
    if not (target / file).exists():
        raise Unavailable(f"Debian's package {name} has no {file}")
    final = cache_directory("programs") / name
    libraries = [final / each.relative_to(target) for each in _libraries(target)]
    (target / "fonts.conf").write_text(_FONTS.format(root=final))
    script = target / name
    script.write_text(
        _SCRIPT.format(
            libraries=os.pathsep.join(map(str, libraries)), root=final, file=final / file
        )
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
