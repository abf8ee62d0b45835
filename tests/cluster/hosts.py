# SPDX-License-Identifier: MIT
# Hosts of a network: namespaces of this kernel, each with an address, joined by a switch, whose
# cables can be pulled and put back.
#
# All of it, and every process on it, is in one namespace of processes and one of mounts, whose
# first process lives for as long as it can read from the test. Where that is gone, however it
# ended, the kernel ends all processes there, and with the last of them the networks: nothing is
# left behind, and no name of it was ever on the machine.

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.gates import until
from tests.support.packages import required

# The first process: the switch, a place for names of networks, and then it waits. What it inherits
# as its own children it is not told of, so none of them stays as a zombie.
FIRST = """
mount -t tmpfs tmpfs /run &&
ip link add switch type bridge &&
ip link set switch up &&
trap '' CHLD &&
echo ready &&
exec cat
"""


class Hosts:
    """A switch, and the hosts that were added to it."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        mapped = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        self._unshare = subprocess.Popen(
            [
                *("unshare", *mapped, "--net", "--pid", "--mount", "--mount-proc"),
                *("--fork", "--kill-child", "sh", "-c", FIRST),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert self._unshare.stdout is not None
            said = self._unshare.stdout.readline()
            if said != "ready\n":
                raise OSError(f"no networks of processes can be made here: {said.strip()}")
            self._first = only_child(self._unshare.pid)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End all processes there, and the networks with them."""
        assert self._unshare.stdin is not None
        assert self._unshare.stdout is not None
        self._unshare.stdin.close()
        self._unshare.wait()
        self._unshare.stdout.close()

    def add(self, name: str) -> str:
        """Add a host; its address."""
        address = self.addresses[name] = f"10.77.0.{len(self.addresses) + 1}"
        self._ip("netns", "add", name)
        self._ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("link", "set", f"to-{name}", "up")
        self.put_back(name)
        self._ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        self._ip("-n", name, "link", "set", "lo", "up")
        return address

    def pull(self, name: str) -> None:
        """Pull a host's cable out of the switch: what it sends goes nowhere, and nobody is told."""
        self._ip("link", "set", f"to-{name}", "nomaster")

    def put_back(self, name: str) -> None:
        """Put the cable of a host into the switch."""
        self._ip("link", "set", f"to-{name}", "master", "switch")

    def inside(self, name: str) -> list[str]:
        """What is written before a command that is to run on a host."""
        return [*self._enter(), "ip", "netns", "exec", name]

    def _enter(self) -> list[str]:
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._first}", *user, "--net", "--pid", "--mount", "--wd=."]

    def _ip(self, *arguments: str) -> None:
        ended = subprocess.run(
            [*self._enter(), "ip", *arguments], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"ip {' '.join(arguments)}: {ended.stderr}"


def children_of(pid: int) -> list[int]:
    """The children of a process, in the order in which it started them."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        found = []
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            found += map(int, (task / "children").read_text().split())
        return found
    return []


def only_child(pid: int) -> int:
    """The process that `unshare` or `nsenter` started, as this namespace of processes knows it."""
    until(lambda: children_of(pid), f"the process {pid} has a child")
    return children_of(pid)[0]


@functools.cache
def why_no_hosts() -> str:
    """What is missing here; empty where hosts can be made."""
    missing = [each for each in ("unshare", "nsenter", "ip", "mount") if shutil.which(each) is None]
    if missing:
        return f"there is no {', '.join(missing)} here"
    try:
        hosts = Hosts()
    except OSError as error:
        return str(error)
    try:
        hosts.add("probe")
    except AssertionError as error:
        return f"no hosts can be added to a network here: {error}"
    finally:
        hosts.end()
    return ""


@contextlib.contextmanager
def hosts_of(names: Sequence[str]) -> Iterator[Hosts]:
    """Hosts of these names; the test is skipped where there can be none."""
    reason = why_no_hosts()
    if reason and required():
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    hosts = Hosts()
    try:
        for name in names:
            hosts.add(name)
        yield hosts
    finally:
        hosts.end()


def is_there(pid: int) -> bool:
    """Whether a process lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
