# SPDX-License-Identifier: MIT
# A free-threaded CPython, built from the source that Debian's mirror has beside its packages.
#
# It is the original source: Debian's own, patched for its packages, makes interpreters that cannot
# make virtual environments. apt fetches and checks it, with lists of its own, so nothing is changed
# on the machine and no root is needed. What was built stays in the cache.
"""Interpreters that no distribution has."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from tests.support.cache import cache_directory, locked, made_once
from tests.support.packages import Unavailable, run_tool

__all__ = ["Unavailable", "debian_mirror", "interpreter"]

_TOOLS = ("apt-get", "cc", "make", "tar")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Where a source is looked for, the newest first: a mirror may list what it does not have (yet).
_SUITES = ("sid", "forky", "trixie")

# With CPython's own tests, some of which are run on this library.
_CONFIGURE = ("--disable-gil", "--quiet")
_FLAGS = "OPT=-DNDEBUG -O2 -g0"
# Modules are compiled when they are first imported, instead of all of them, thrice, with tests: the
# step that would do that prints its help. pip comes with virtual environments.
_INSTALL = ("COMPILEALL_OPTS=--help", "ENSUREPIP=no")


def interpreter(version: str) -> Path:
    """The interpreter of a version such as 3.13t, from the cache or built now.

    Raises:
        Unavailable: It is not there and cannot be built here; the message says why.
    """
    cache = cache_directory("pythons")
    named = hashlib.sha256(" ".join((*_CONFIGURE, _FLAGS, *_INSTALL)).encode()).hexdigest()[:12]
    with locked(cache):
        prefix = cache / f"{version}-{named}"
        made_once(prefix, lambda target: _build(version, prefix, target))
    return prefix / "bin" / f"python{version}"


def _build(version: str, prefix: Path, target: Path) -> None:
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise Unavailable(f"needs Debian's packages and a compiler: no {', '.join(missing)} here")
    # In the folder of unfinished things that the cache clears.
    work = target.parent / "work"
    archive = _source(version.removesuffix("t"), work)
    tree = work / "tree"
    tree.mkdir()
    run_tool("tar", "--extract", "--strip-components=1", "--file", str(archive), cwd=tree)
    run_tool("./configure", f"--prefix={prefix}", *_CONFIGURE, cwd=tree)
    run_tool("make", f"-j{os.cpu_count() or 1}", _FLAGS, cwd=tree)
    run_tool("make", _FLAGS, f"DESTDIR={work / 'installed'}", *_INSTALL, "install", cwd=tree)
    (work / "installed" / prefix.relative_to("/")).rename(target)


def _source(version: str, work: Path) -> Path:
    """The archive of the original source.

    Raises:
        Unavailable: No suite of Debian has it.
    """
    mirror = debian_mirror()
    said = []
    for suite in _SUITES:
        folder = work / suite
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "archives" / "partial").mkdir(parents=True)
        signed = f" [signed-by={_KEYRING}]" if _KEYRING.exists() else ""
        (folder / "sources.list").write_text(f"deb-src{signed} {mirror} {suite} main\n")
        options = [
            f"Dir::Etc::sourcelist={folder / 'sources.list'}",
            "Dir::Etc::sourceparts=/dev/null",
            f"Dir::State::lists={folder / 'lists'}",
            f"Dir::Cache={folder}",
            "Acquire::Languages=none",
            "Acquire::http::Timeout=30",
            "APT::Sandbox::User=",
            "APT::Update::Error-Mode=any",
        ]
        apt = ["apt-get", "--quiet", *(part for each in options for part in ("-o", each))]
        try:
            run_tool(*apt, "update", cwd=folder)
            run_tool(
                *apt, "source", "--download-only", "--tar-only", f"python{version}", cwd=folder
            )
        except Unavailable as error:
            said.append(f"{suite}: {error}")
            continue
        return next(folder.glob("*.orig.tar.*z*"))
    why = "; ".join(said)
    raise Unavailable(f"no suite of Debian has the source of Python {version} here: {why}")


def debian_mirror() -> str:
    """The mirror that this machine's apt takes Debian's packages from."""
    shown = run_tool("apt-get", "indextargets", "--format", "$(ORIGIN) $(SUITE) $(REPO_URI)")
    for line in shown.splitlines():
        if found := re.fullmatch(r"Debian \S+ (\S+/debian/?)", line):
            return found[1]
    raise Unavailable("this machine's apt has no mirror of Debian (after `apt-get update`)")
