# SPDX-License-Identifier: MIT
# Debian packages without installing them: fetched by apt, checked by apt, unpacked into a folder.
#
# Uses the machine's package sources and the keys they name, but keeps lists and packages in the
# cache, so it needs no root and changes nothing on the machine. Packages that are installed are
# not fetched: an unpacked program finds its other libraries where the machine has them.
"""Fetch and unpack Debian packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Packages", "Unavailable", "required", "run_tool"]

_TOOLS = ("apt-get", "apt-cache", "dpkg")
# Seconds: for a mirror that answers, however slow; and for any tool, such as the build of an
# interpreter on two CPUs that others use as well. What hangs must not hang the tests.
_PATIENCE = 900
_MOST_PATIENCE = 3600


class Unavailable(Exception):  # noqa: N818 - it is a fact about this machine, not a mistake
    """This machine cannot run what a test needs; the message says what is missing."""


def required() -> bool:
    """Whether all tests must run here: for root on Debian with CI=true, no reason excuses one."""
    release = Path("/etc/os-release")
    debian = release.exists() and "ID=debian" in release.read_text().splitlines()
    return os.environ.get("CI") == "true" and os.geteuid() == 0 and debian


class Packages:
    """Debian packages, kept in `folder`.

    Raises:
        Unavailable: This is no Debian, or its package sources cannot be reached.
    """

    def __init__(self, folder: Path) -> None:
        if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
            raise Unavailable(f"needs Debian's packages; there is no {', '.join(missing)} here")
        self._archives = folder / "archives"
        self._configuration = folder / "apt.conf"
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self._archives / "partial").mkdir(parents=True, exist_ok=True)
        # The cleared hooks are the machine's own, for updates of its own lists.
        self._configuration.write_text(
            "#clear APT::Update::Pre-Invoke;\n"
            "#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n"
            f'Dir::State::lists "{folder / "lists"}";\n'
            f'Dir::Cache "{folder}";\n'
            f'Dir::Cache::archives "{self._archives}";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "3";\n'
            'Acquire::http::Timeout "30";\n'
            'APT::Sandbox::User "";\n'
            'Debug::NoLocking "true";\n'
        )
        # An error where a source does not answer; apt's own way is a warning and older lists.
        self._apt("apt-get", "-o", "APT::Update::Error-Mode=any", "update")

    def dependency(self, package: str, pattern: str) -> str:
        """The first package matching `pattern` that `package` depends on."""
        for line in self._apt("apt-cache", "depends", package).splitlines():
            name = line.rpartition(" ")[2]
            if "Depends:" in line and re.fullmatch(pattern, name):
                return name
        raise Unavailable(f"Debian's {package} depends on no {pattern}")

    def with_missing_dependencies(self, package: str) -> list[str]:
        """Those of `package` and its dependencies that this machine has not installed."""
        simulated = self._apt(
            "apt-get", "--simulate", "--no-install-recommends", "--no-remove", "install", package
        )
        return re.findall(r"^Inst (\S+) ", simulated, re.MULTILINE)

    def unpack(self, packages: Sequence[str], target: Path) -> None:
        """Fetch packages that are not there yet, and unpack their files into `target`."""
        self._apt("apt-get", "download", *packages)
        shown = self._apt("apt-cache", "show", "--no-all-versions", *packages)
        for paragraph in shown.strip().split("\n\n"):
            archive = self._archives / _file_name(paragraph)
            run_tool("dpkg", "--extract", str(archive), str(target), seconds=_PATIENCE)

    def _apt(self, tool: str, *arguments: str) -> str:
        configured = (tool, "--config-file", str(self._configuration), "--quiet")
        return run_tool(*configured, *arguments, cwd=self._archives, seconds=_PATIENCE)


def run_tool(*command: str, cwd: Path | None = None, seconds: float = _MOST_PATIENCE) -> str:
    """What the command prints.

    Args:
        command: The program and its arguments.
        cwd: Where it runs.
        seconds: How long it may take.

    Raises:
        Unavailable: It failed, or did not end.
    """
    try:
        ended = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command)}: no end after {seconds:g} s") from None
    if ended.returncode != 0:
        said = "; ".join((ended.stderr or ended.stdout).strip().splitlines()[-3:])
        raise Unavailable(f"{' '.join(command)}: exit code {ended.returncode}: {said}")
    return ended.stdout


def _file_name(paragraph: str) -> str:
    """What apt calls the file of the package that this paragraph of its list describes."""
    fields = dict(re.findall(r"^(\w+): (.*)$", paragraph, re.MULTILINE))
    version = fields["Version"].replace(":", "%3a")
    return f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
