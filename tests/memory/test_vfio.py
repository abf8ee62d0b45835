# SPDX-License-Identifier: MIT
# What of VFIO needs no device: how a range of iovas is checked and cut, what the kernel's answers
# mean, what sysfs tells. What maps is tested with real devices: tests/guest/test_vfio_in_guest.py.

from __future__ import annotations

import contextlib
import errno
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job, plan
from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.memlock import Allowance
from aioktask.memory.vfio import Container, _container, _space
from aioktask.memory.vfio._backend import check_limit
from aioktask.memory.vfio._devices import (
    device_or_group,
    devices_in,
    group_of,
    not_given_up,
    vfio_name,
)
from aioktask.memory.vfio._information import ALL_ADDRESSES, Information, read_information
from aioktask.memory.vfio._space import Taken, check_place, number_of_pieces, piece_size
from tests.support.meanwhile import Scene, play_at_each_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="VFIO of Linux")

MIB = 1 << 20
GIB = 1 << 30


# where a mapping may lie


@st.composite
def allowed_ranges(draw: st.DrawFn) -> list[range]:
    """Ascending, with gaps or side by side, in pages."""
    edges = draw(st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True))
    edges.sort()
    return [range(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=False)]


@given(allowed_ranges(), st.integers(0, 40), st.integers(1, 10))
def test_a_range_is_refused_unless_one_allowed_range_has_all_of_it(
    pages: list[range], first: int, count: int
) -> None:
    allowed = [range(each.start * PAGE, each.stop * PAGE) for each in pages]
    fits = any(set(range(first, first + count)) <= set(each) for each in pages)
    arguments = first * PAGE, 8 * PAGE, count * PAGE
    if fits:
        check_place(*arguments, page=PAGE, allowed=allowed)
    else:
        with pytest.raises(ValueError, match="the IOMMU does not translate all of"):
            check_place(*arguments, page=PAGE, allowed=allowed)


def test_the_message_names_what_is_allowed() -> None:
    allowed = [range(0, 0xFEE00000), range(0xFEF00000, 1 << 39)]
    with pytest.raises(ValueError, match="translate") as info:
        check_place(0xFEDFF000, 0, 2 * PAGE, page=PAGE, allowed=allowed)
    assert str(info.value) == (
        "the IOMMU does not translate all of 0xfedff000 to 0xfee00fff: choose an iova within one "
        "of 0x0 to 0xfedfffff, 0xfef00000 to 0x7fffffffff"
    )
    with pytest.raises(ValueError, match="one of none"):
        check_place(0, 0, PAGE, page=PAGE, allowed=[])


@pytest.mark.parametrize(
    ("iova", "address", "nbytes", "message"),
    [
        (0, 0, 0, "must not be empty"),
        (0, 4096, 65536, "address must be a multiple of the IOMMU's page of 65536, got 0x1000"),
        (0, 65536, 65535, "size must be a multiple of the IOMMU's page of 65536, got 0xffff"),
        (4096, 65536, 65536, "iova must be a multiple of the IOMMU's page of 65536, got 0x1000"),
        ((1 << 64) - 65536, 0, 131072, "would end beyond 64 bits"),
    ],
)
def test_what_no_iommu_maps(iova: int, address: int, nbytes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_place(iova, address, nbytes, page=65536, allowed=[ALL_ADDRESSES])


def test_the_last_page_of_all_is_one_like_others() -> None:
    check_place((1 << 64) - PAGE, 0, PAGE, page=PAGE, allowed=[ALL_ADDRESSES])


# how it is cut


@given(
    st.integers(0, 1 << 20),
    st.integers(1, 1 << 12),
    st.integers(1, 1 << 10),
)
def test_pieces_are_the_chunks_of_the_job(first: int, pages: int, piece: int) -> None:
    job = Job(print, pages * PAGE, start=first * PAGE, chunk=piece * PAGE)
    assert number_of_pieces(first * PAGE, pages * PAGE, piece * PAGE) == plan(job).chunks


@given(
    st.integers(0, 1 << 30),
    st.integers(0, 1 << 30),
    st.sampled_from([PAGE, 2 * MIB, 32 * MIB, 512 * MIB, GIB, 16 * GIB]),
)
def test_no_page_that_the_iommu_can_have_whole_is_cut(first: int, second: int, page: int) -> None:
    iova, address = first * PAGE, second * PAGE
    piece = piece_size(iova, address, page)
    assert piece >= 64 * MIB
    if (iova - address) % page == 0:
        # A cut in the one is a cut in the other.
        cut = -(-address // piece) * piece
        assert cut % page == (cut - address + iova) % page == 0
    else:
        assert piece == 64 * MIB


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8), st.booleans()), max_size=40))
def test_what_is_taken_does_not_overlap(steps: list[tuple[int, int, bool]]) -> None:
    taken = Taken()
    model: list[range] = []
    for first, count, add in steps:
        if add:
            wanted = range(first, first + count)
            others = [each for each in model if set(each) & set(wanted)]
            found = taken.add(wanted)
            assert (found is None) == (not others)
            assert found is None or found in others
            model += [wanted] if found is None else []
        elif model:
            taken.remove(model.pop(first % len(model)))
        assert taken._ranges == sorted(model, key=lambda each: each.start)


@pytest.mark.parametrize("call", ["add", "remove"])
@pytest.mark.parametrize("meanwhile", ["add", "remove"])
def test_a_finalizer_may_take_iovas_and_let_go_of_them_in_any_line(
    call: str, meanwhile: str
) -> None:
    mine, others = range(8, 12), range(4, 8)

    def begin() -> Scene:
        taken = Taken()
        for each, what in ((mine, call), (others, meanwhile), (range(0, 4), "remove")):
            if what == "remove":
                assert taken.add(each) is None

        def check() -> None:
            left = [each for each, what in ((others, meanwhile), (mine, call)) if what == "add"]
            assert taken._ranges == [range(0, 4), *left]

        return Scene(
            lambda: getattr(taken, call)(mine), lambda: getattr(taken, meanwhile)(others), check
        )

    play_at_each_line(begin, _space)


def test_ranges_longer_than_an_index_are_taken() -> None:
    taken = Taken()
    assert taken.add(ALL_ADDRESSES) is None
    assert taken.add(range(1)) == ALL_ADDRESSES
    assert repr(taken) == "<Taken: 0x0 to 0xffffffffffffffff>"


# what the kernel tells of an IOMMU


def capability(kind: int, body: bytes) -> tuple[int, bytes]:
    return kind, body


def told(
    capabilities: list[tuple[int, bytes]], *, flags: int = 3, bitmap: int = PAGE, gap: int = 0
) -> bytes:
    """An answer of the kernel, with the capabilities in this order, `gap` bytes between them."""
    out = bytearray(24)
    places = []
    for _, body in capabilities:
        out += bytes(gap)
        places.append(len(out))
        out += bytes(8) + body
    places.append(0)
    for (kind, _), place, following in zip(capabilities, places, places[1:], strict=False):
        struct.pack_into("=HHI", out, place, kind, 1, following)
    struct.pack_into("=IIQI", out, 0, len(out), flags, bitmap, places[0])
    return bytes(out)


def iova_capability(ranges: list[range]) -> tuple[int, bytes]:
    pairs = b"".join(struct.pack("=QQ", each.start, each.stop - 1) for each in ranges)
    return 1, struct.pack("=II", len(ranges), 0) + pairs


some_ranges = st.lists(
    st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)).map(
        lambda pair: range(min(pair), max(pair) + 1)
    ),
    max_size=5,
)
unknown = st.tuples(st.sampled_from([2, 4, 65535]), st.binary(max_size=40))


@given(
    some_ranges,
    st.integers(0, (1 << 32) - 1),
    st.lists(unknown, max_size=4),
    st.randoms(use_true_random=False),
    st.integers(0, 9),
    st.sets(st.integers(0, 63), min_size=1),
)
def test_an_answer_is_read_whatever_else_is_in_it(
    ranges: list[range],
    available: int,
    others: list[tuple[int, bytes]],
    random: Any,
    gap: int,
    bits: set[int],
) -> None:
    capabilities = [iova_capability(ranges), (3, struct.pack("=I", available)), *others]
    random.shuffle(capabilities)
    bitmap = sum(1 << bit for bit in bits)
    answer = told(capabilities, gap=gap, bitmap=bitmap)
    sizes = tuple(1 << bit for bit in sorted(bits))
    assert read_information(answer) == Information(sizes, tuple(ranges), available)


def test_older_kernels_tell_less() -> None:
    assert read_information(told([])) == Information((PAGE,), (ALL_ADDRESSES,), None)
    ranges = [iova_capability([range(5)])]
    assert read_information(told(ranges, flags=1)).iova_ranges == (ALL_ADDRESSES,)
    assert read_information(told(ranges, flags=2, bitmap=0)).iova_ranges == (range(5),)
    assert read_information(told([], flags=0, bitmap=2 * MIB)).page_sizes == (PAGE,)


@given(st.binary(max_size=200))
def test_nonsense_is_refused_and_never_loops(answer: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_information(answer)


@given(st.integers(0, 100))
def test_an_answer_that_is_cut_off(length: int) -> None:
    answer = told([iova_capability([range(5), range(7, 9)]), (3, struct.pack("=I", 1))])
    if length < len(answer):
        with pytest.raises(ValueError, match=f"description ends at {length}, before"):
            read_information(answer[:length])


def test_capabilities_in_a_circle() -> None:
    answer = bytearray(told([(2, b""), (2, b"")]))
    struct.pack_into("=HHI", answer, 32, 2, 1, 24)
    with pytest.raises(ValueError, match="go in a circle at 24"):
        read_information(bytes(answer))


def test_what_may_be_pinned() -> None:
    check_limit(Allowance(None, 0, False), GIB)
    check_limit(Allowance(0, 0, True), GIB)
    check_limit(Allowance(MIB, MIB - PAGE, False), PAGE)
    for limit in (0, MIB):
        with pytest.raises(OSError, match=f"RLIMIT_MEMLOCK allows {limit}: raise") as info:
            check_limit(Allowance(limit, MIB - PAGE, False), 2 * PAGE)
        assert info.value.errno == errno.ENOMEM


# what sysfs tells


def machine(root: Path, group: int, drivers: dict[str, str | None]) -> None:
    """Devices of one group, each with its driver, as sysfs has them."""
    group_folder = root / f"sys/kernel/iommu_groups/{group}/devices"
    group_folder.mkdir(parents=True)
    for address, driver in drivers.items():
        device = root / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "iommu_group").symlink_to(group_folder.parent)
        (group_folder / address).symlink_to(device)
        if driver is not None:
            (device / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)


def test_the_group_of_a_device_that_vfio_has(tmp_path: Path) -> None:
    machine(tmp_path, 7, {"0000:00:08.0": "vfio-pci", "0000:00:08.1": "mlx5_vfio_pci"})
    assert group_of("0000:00:08.0", tmp_path) == group_of("0000:00:08.1", tmp_path) == 7
    assert devices_in(7, tmp_path) == ["0000:00:08.0", "0000:00:08.1"]
    assert vfio_name("0000:00:08.0", tmp_path) is None
    (tmp_path / "sys/bus/pci/devices/0000:00:08.0/vfio-dev/vfio3").mkdir(parents=True)
    assert vfio_name("0000:00:08.0", tmp_path) == "vfio3"


def test_a_device_whose_vfio_driver_has_a_name_of_its_own(tmp_path: Path) -> None:
    machine(tmp_path, 7, {"0000:00:08.0": "special"})
    (tmp_path / "sys/bus/pci/devices/0000:00:08.0/vfio-dev/vfio3").mkdir(parents=True)
    assert group_of("0000:00:08.0", tmp_path) == 7
    assert not_given_up(7, tmp_path) == []


@pytest.mark.parametrize(
    ("driver", "now", "unbind"),
    [(None, "no driver has it", False), ("e1000", "the driver e1000 has it", True)],
)
def test_how_to_bind_a_device(tmp_path: Path, driver: str, now: str, unbind: bool) -> None:
    machine(tmp_path, 7, {"0000:00:08.0": driver})
    with pytest.raises(OSError, match=f"VFIO does not have 0000:00:08.0: {now}") as info:
        group_of("0000:00:08.0", tmp_path)
    assert info.value.errno == errno.ENODEV
    device = tmp_path / "sys/bus/pci/devices/0000:00:08.0"
    assert f"echo vfio-pci > {device}/driver_override; " in str(info.value)
    assert (f"echo 0000:00:08.0 > {device}/driver/unbind; " in str(info.value)) == unbind
    assert str(info.value).endswith(f"echo 0000:00:08.0 > {tmp_path}/sys/bus/pci/drivers_probe")


def test_devices_and_groups_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no PCI device 0000"):
        group_of("0000:00:08.0", tmp_path)
    with pytest.raises(OSError, match="there is no IOMMU group 3"):
        devices_in(3, tmp_path)
    (tmp_path / "sys/bus/pci/devices/0000:00:08.0").mkdir(parents=True)
    with pytest.raises(OSError, match="behind no IOMMU: switch it on"):
        group_of("0000:00:08.0", tmp_path)


def test_what_keeps_a_group_from_being_taken(tmp_path: Path) -> None:
    drivers = {"0000:00:08.0": "vfio-pci", "0000:00:08.1": None, "0000:00:08.2": "e1000"}
    machine(tmp_path, 7, {**drivers, "0000:00:08.3": "pcieport", "0000:00:08.4": "ahci"})
    assert not_given_up(7, tmp_path) == ["0000:00:08.2 (e1000)", "0000:00:08.4 (ahci)"]


# what a container refuses


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("0000:00:08.0", "0000:00:08.0"),
        ("00:08.0", "0000:00:08.0"),
        ("10000:E1:00.7", "10000:e1:00.7"),
        (12, 12),
        (0, 0),
    ],
)
def test_how_a_device_or_group_may_be_called(given: str | int, meant: str | int) -> None:
    assert device_or_group(given) == meant


@pytest.mark.parametrize(
    ("devices", "options", "error", "message"),
    [
        ((), {}, ValueError, "at least one device or group, got none"),
        (("08.0",), {}, ValueError, "must be a PCI address as '0000:00:08.0'.* got '08.0'"),
        (("0000:00:08.8",), {}, ValueError, "PCI address"),
        (("../../etc",), {}, ValueError, "PCI address"),
        (("7",), {}, ValueError, "PCI address"),
        ((-1,), {}, ValueError, "must be at least 0, got -1"),
        ((True,), {}, TypeError, "IOMMU group must be an integer, got True"),
        ((1.5,), {}, TypeError, "IOMMU group must be an integer"),
        ((1,), {"iommu": "vfio"}, ValueError, "iommu must be 'type1' or 'iommufd', got 'vfio'"),
    ],
)
def test_bad_arguments(
    devices: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Container(*devices, **options)


@pytest.mark.anyio
async def test_a_machine_without_vfio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_container, "_ROOT", tmp_path)
    container = Container("00:08.0", 3)
    assert repr(container) == "<Container of 0000:00:08.0, 3: new>"
    with pytest.raises(OSError, match="neither /dev/vfio/vfio nor /dev/iommu is there") as info:
        await container
    assert info.value.errno == errno.ENODEV
    assert repr(container).endswith("closed>")
    await container.aclose()
    for iommu in ("type1", "iommufd"):
        with pytest.raises(OSError, match="there is no PCI device"):
            await Container("00:08.0", iommu=iommu)


@pytest.mark.anyio
async def test_nothing_is_opened_in_a_cancelled_scope() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Container("00:08.0"):
            pytest.fail("it was opened")
    assert scope.cancelled_caught


def test_a_container_that_is_not_open_has_nothing() -> None:
    container = Container(1)
    for name in ("iommu", "page_sizes", "iova_ranges"):
        with pytest.raises(RuntimeError, match="this Container is new, not open"):
            getattr(container, name)
    for call in (container.dma_available, lambda: container.device("00:08.0")):
        with pytest.raises(RuntimeError, match="this Container is new, not open"):
            call()
    with pytest.raises(RuntimeError, match="this Container is new, not open"):
        container.map(bytearray(PAGE), 0)


class Files:
    """A backend whose files are the test's, as far as devices are concerned."""

    name = "type1"
    information = Information()

    def __init__(self, devices: object, root: Path) -> None:
        self.opened = False
        self.misused = 0  # how often a device was asked for while they were closed

    def open(self) -> None:
        self.opened = True

    def close(self) -> None:
        self.opened = False

    def open_device(self, address: str) -> io.FileIO:
        self.misused += not self.opened
        return io.FileIO("/dev/null")


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """What opens containers on `Files`."""
    monkeypatch.setattr(_container, "_BACKENDS", {"type1": Files})
    return lambda: Container(1, iommu="type1").open()


def test_a_finalizer_may_close_a_container_in_any_line_of_who_opens_a_device(
    container: Callable[[], Any],
) -> None:
    """Either it is refused, or the device is: none is open in a container that is closed."""
    outcomes: set[tuple[str, str]] = set()

    def begin() -> Scene:
        opened = container()
        device = opened.device("0000:00:08.0")

        def attempt(what: Callable[[], object]) -> None:
            with contextlib.suppress(RuntimeError):  # it is not open, or in use elsewhere
                what()

        def check() -> None:
            outcomes.add((opened._state, device._state))
            assert not opened._backend.misused
            assert (opened._state, device._state) != ("closed", "open")
            opened.close()
            assert device._state == "closed"
            assert not opened._held
            assert not opened._backend.opened

        return Scene(lambda: attempt(device.open), lambda: attempt(opened.close), check)

    play_at_each_line(begin, _container)
    assert outcomes == {("closed", "closed"), ("open", "open")}


def test_a_finalizer_may_close_a_container_in_any_line_of_who_takes_iovas(
    container: Callable[[], Any],
) -> None:
    def begin() -> Scene:
        opened = container()
        holder = opened.device("0000:00:08.0")  # stands for a mapping, which needs an IOMMU
        holder._state = "opening"
        iovas = range(PAGE)

        def hold() -> None:
            with contextlib.suppress(RuntimeError):
                opened._hold(holder, iovas)

        def close() -> None:
            with contextlib.suppress(RuntimeError):
                opened.close()

        def check() -> None:
            held = holder in opened._held
            assert opened._taken._ranges == ([iovas] if held else [])
            assert opened._state == ("open" if held else "closed")
            opened._let_go(holder, iovas)
            assert not opened._taken._ranges
            opened.close()

        return Scene(hold, close, check)

    play_at_each_line(begin, _container)


def test_whose_iovas_are_taken_is_not_held(container: Callable[[], Any]) -> None:
    opened = container()
    mine, others = (opened.device("0000:00:08.0") for _ in range(2))
    opened._hold(mine, range(0, 2 * PAGE))
    with pytest.raises(FileExistsError, match="maps iova 0x0 to 0x1fff already"):
        opened._hold(others, range(PAGE, 3 * PAGE))
    assert list(opened._held) == [mine]
    opened._let_go(others, range(PAGE, 3 * PAGE))
    assert opened._taken._ranges == [range(0, 2 * PAGE)]
    opened._let_go(mine, range(0, 2 * PAGE))
    opened.close()
