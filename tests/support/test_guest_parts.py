# SPDX-License-Identifier: MIT
# What the guest machine is made of: the cache, the kernel's modules and archive, the figures.

from __future__ import annotations

import lzma
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.kernel import archive, modules_with_dependencies, tree_in_archive, vmlinux
from tests.guest.machine import MACHINE, check_memory
from tests.support.cache import cache_directory, forget_unused, locked, made_once
from tests.support.packages import Unavailable

GIB = 1 << 30

linux = pytest.mark.skipif(sys.platform != "linux", reason="the guest machine needs Linux")


# The cache.


def test_what_is_made_is_not_made_again(tmp_path: Path) -> None:
    def make(target: Path) -> None:
        target.touch()
        calls.append(target.name)

    calls: list[str] = []
    assert made_once(tmp_path / "thing", make) == tmp_path / "thing"
    assert made_once(tmp_path / "thing", make) == tmp_path / "thing"
    assert calls == ["thing"]
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_what_is_made_half_way_is_not_there(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path / "thing", fail)
    assert list(tmp_path.iterdir()) == []


@linux
def test_what_a_killed_run_left_is_thrown_away(tmp_path: Path) -> None:
    def stop(target: Path) -> None:
        # As a killed process leaves it: nothing tidies up.
        (left,) = tmp_path.iterdir()
        (tmp_path / "unfinished-earlier").mkdir()
        (tmp_path / "unfinished-earlier" / left.name).write_text("half")
        target.mkdir()

    made_once(tmp_path / "thing", stop)
    with locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thing"]


def test_what_nobody_used_for_a_month_is_forgotten(tmp_path: Path) -> None:
    for name in ("kit-old", "kit-new", "python-old", "other-old"):
        made_once(tmp_path / name, Path.mkdir if name.startswith("kit") else Path.touch)
        if name.endswith("old"):
            os.utime(tmp_path / name, (0, 0))
    forget_unused(tmp_path, "kit-*")
    forget_unused(tmp_path, "python-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kit-new", "other-old"]


def test_what_is_used_is_not_forgotten(tmp_path: Path) -> None:
    made_once(tmp_path / "kit-used", Path.mkdir)
    os.utime(tmp_path / "kit-used", (0, 0))
    made_once(tmp_path / "kit-used", Path.mkdir)
    forget_unused(tmp_path, "kit-*")
    assert (tmp_path / "kit-used").exists()


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AIOKTASK_GUEST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_directory("guest") == tmp_path / "caches" / "aioktask-guest"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory("guest") == tmp_path / ".cache" / "aioktask-guest"
    monkeypatch.setenv("AIOKTASK_GUEST_CACHE", str(tmp_path / "chosen"))
    assert cache_directory("guest") == tmp_path / "chosen"


# The kernel.


def module(*dependencies: str) -> bytes:
    return b"ELF\0license=GPL\0depends=" + ",".join(dependencies).encode() + b"\0name=it\0"


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "vfio-pci.ko").write_bytes(module("vfio-core", "irq"))
    (tmp_path / "vfio_core.ko.xz").write_bytes(lzma.compress(module("irq")))
    (tmp_path / "irq.ko").write_bytes(module())
    (tmp_path / "unwanted.ko").write_bytes(module())
    found = modules_with_dependencies(tmp_path, ["built_in", "vfio_pci", "irq"])
    assert [name for name, _ in found] == ["irq", "vfio_core", "vfio_pci"]
    assert found[1][1] == module("irq")


def test_the_kernel_is_unpacked_if_it_can_be() -> None:
    packed = lzma.compress(b"the kernel")
    sectors = 2
    image = bytearray(0x400)
    image[0x1F1] = sectors
    # The payload begins 16 bytes into what follows the setup code, and its size comes after it.
    struct.pack_into("<II", image, 0x248, 16, len(packed) + 4)
    image += b"\0" * ((sectors + 1) * 512 + 16 - len(image))
    image += packed + struct.pack("<I", len(b"the kernel")) + b"what follows"
    assert vmlinux(bytes(image)) == b"the kernel"
    other = bytes(image).replace(packed[:6], b"\x28\xb5\x2f\xfd\0\0")
    assert vmlinux(other) == other


def members(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """What is in an archive: names, modes, contents."""
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        assert at % 4 == 0
        field = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + field[11] - 1].decode()
        begin = (at + 110 + field[11] + 3) & ~3
        if name == "TRAILER!!!":
            return
        yield name, field[1], data[begin : begin + field[6]]
        at = (begin + field[6] + 3) & ~3


def test_an_archive_has_every_file_after_its_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "odd").write_bytes(b"12345")
    (tmp_path / "empty").touch()
    script = ("init", stat.S_IFREG | 0o755, 0.0, b"#!")
    deep = ("m/n/deep", stat.S_IFREG | 0o644, 0.0, b"")
    found = list(members(archive([script, deep, *tree_in_archive(tmp_path, "checkout/tests")])))
    assert [(name, data) for name, _, data in found] == [
        ("init", b"#!"),
        ("m", b""),
        ("m/n", b""),
        ("m/n/deep", b""),
        ("checkout", b""),
        ("checkout/tests", b""),
        ("checkout/tests/empty", b""),
        ("checkout/tests/sub", b""),
        ("checkout/tests/sub/odd", b"12345"),
    ]
    assert found[0][1] == stat.S_IFREG | 0o755
    assert all(stat.S_ISDIR(mode) for name, mode, _ in found if name.endswith(("checkout", "sub")))


# The machine.


def test_a_machine_without_the_memory_is_refused() -> None:
    check_memory(MACHINE, f"MemTotal: 1 kB\nMemAvailable: {8 * GIB >> 10} kB\n")
    with pytest.raises(Unavailable, match=r"needs 5\.1 GiB of memory, 4\.0 GiB are available"):
        check_memory(MACHINE, f"MemTotal: 1 kB\nMemAvailable: {4 * GIB >> 10} kB\n")


def test_the_command_says_what_the_machine_consists_of(tmp_path: Path) -> None:
    arguments = MACHINE.arguments(
        kernel=tmp_path / "k",
        initramfs=tmp_path / "i",
        image=tmp_path / "r",
        scratch=tmp_path / "s",
    )
    assert "node,nodeid=1,cpus=2,cpus=3,memdev=memory1" in arguments
    assert "memory-backend-ram,id=memory0,size=4294967296" in arguments
    assert "dist,src=0,dst=1,val=21" in arguments
    assert "edu,addr=0x8" in arguments
    kernel = arguments[arguments.index("-append") + 1]
    assert "hugepagesz=1G hugepages=0:1,1:1 hugepagesz=2M hugepages=0:32,1:32" in kernel
    # Nothing that the guest does may outlast it.
    assert f"if=none,id=image,file={tmp_path / 'r'},format=raw,readonly=on" in arguments
    assert f"if=none,id=scratch,file={tmp_path / 's'},format=raw,snapshot=on" in arguments
