# SPDX-License-Identifier: MIT
# Mappings against what the device sees: `edu` copies bytes to and from them. What is mapped after a
# failure is asked of the kernel: whether it maps the same iovas again, and what it says is locked.
#
# Each test runs with both ways to an IOMMU, and is skipped where the kernel has not that one.

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import mmap
import os
import re
import resource
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast
from unittest import mock

import anyio
import numpy as np
import pytest

from aioktask import Coordinator
from aioktask.memory import allocate
from aioktask.memory._kernel import memlock
from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.memlock import Allowance
from aioktask.memory.vfio import Container, Device, Mapping
from tests.guest.edu import ADDRESSES, TRANSFER, Edu, bound_to_vfio
from tests.guest.facts import HUGE_1G, HUGE_2M
from tests.memory.lock_state import address_of, in_a_child, resident_pages
from tests.memory.sweep import cancelled_at, fails, shim
from tests.support.open_files import open_files

MIB = 1 << 20
IOVA = 64 * MIB
CHUNK = 256 << 10
PIECES = 4
SIZE = PIECES * CHUNK
MAP_HUGETLB = 0x40000

Iommu = Literal["type1", "iommufd"]
NODES: dict[Iommu, str] = {"type1": "/dev/vfio/vfio", "iommufd": "/dev/iommu"}


@pytest.fixture(scope="module", autouse=True)
def devices() -> Iterator[None]:
    with bound_to_vfio(*ADDRESSES):
        yield


@pytest.fixture(params=list(NODES))
def iommu(request: pytest.FixtureRequest) -> Iommu:
    if not Path(NODES[request.param]).exists():
        pytest.skip(f"this kernel has no {NODES[request.param]}")
    return cast("Iommu", request.param)


@pytest.fixture
def container(iommu: Iommu) -> Iterator[Container]:
    with Container(ADDRESSES[0], iommu=iommu) as opened:
        yield opened


@pytest.fixture
def device(container: Container) -> Iterator[Device]:
    with container.device(ADDRESSES[0]) as opened:
        yield opened


@pytest.fixture
def edu(device: Device) -> Iterator[Edu]:
    with Edu(device) as driven:
        yield driven


def memory_of(nbytes: int = SIZE, flags: int = 0) -> mmap.mmap:
    """Memory that begins on a multiple of CHUNK: pieces are cut in its addresses."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
    memory.madvise(mmap.MADV_DONTFORK)  # joined with no other mapping
    return memory


def aligned(nbytes: int = SIZE) -> Any:
    whole = np.frombuffer(memory_of(nbytes + CHUNK), np.uint8)
    begin = -whole.ctypes.data % CHUNK
    return whole[begin : begin + nbytes]


def figure(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def pinned() -> int:
    """What the kernel says is kept in place: type1 counts it in the one, iommufd in the other."""
    return figure("VmLck") + figure("VmPin")


def state_of(container: Container) -> tuple[object, ...]:
    return pinned(), container.dma_available(), repr(container._taken), list(container._held)


def pattern(seed: int, nbytes: int = TRANSFER) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8).tobytes()


def device_reads(edu: Edu, memory: Any, offset: int, iova: int) -> None:
    """The device gets the bytes that are there, told by having it write them elsewhere."""
    view = np.frombuffer(memory, np.uint8)
    before = view.copy()
    before[offset : offset + TRANSFER] = np.frombuffer(pattern(offset), np.uint8)
    view[offset : offset + TRANSFER] = before[offset : offset + TRANSFER]
    edu.read(iova + offset)
    view[offset : offset + TRANSFER] = 0
    edu.write(iova + offset)
    assert np.array_equal(view, before)


def device_is_kept_out(edu: Edu, memory: Any, offset: int, iova: int) -> None:
    view = np.frombuffer(memory, np.uint8)
    before = view.copy()
    edu.write(iova + offset)
    assert np.array_equal(view, before)


def fill_device(edu: Edu, container: Container) -> None:
    """Something that is not zero in the device's own buffer, by way of iovas of their own."""
    source = aligned(PAGE)
    source[:] = 0xA5
    with container.map(source, 0):
        edu.read(0)


# what the device sees


@pytest.mark.anyio
async def test_the_device_reads_and_writes_and_is_kept_out_afterwards(iommu: Iommu) -> None:
    memory = aligned()
    places = (0, PAGE - 1000, CHUNK - 1000, SIZE - TRANSFER)
    async with Container(ADDRESSES[0], iommu=iommu) as container:
        before = state_of(container)
        async with container.device(ADDRESSES[0]) as device:
            with Edu(device) as edu:
                async with container.map(memory, IOVA, chunk=CHUNK) as mapping:
                    assert isinstance(mapping, Mapping)
                    assert (mapping.iova, mapping.nbytes) == (IOVA, SIZE)
                    assert pinned() == cast("int", before[0]) + SIZE
                    for offset in places:
                        device_reads(edu, memory, offset, IOVA)
                for offset in places:
                    device_is_kept_out(edu, memory, offset, IOVA)
        assert state_of(container) == before


@pytest.mark.anyio
async def test_plain_calls_do_the_same(iommu: Iommu) -> None:
    memory = aligned()
    container = await Container(ADDRESSES[0], iommu=iommu)
    device = await container.device(ADDRESSES[0])
    mapping = await container.map(memory, IOVA)
    with Edu(device) as edu:
        device_reads(edu, memory, 5 * PAGE, IOVA)
    assert repr(mapping) == f"<Mapping of {SIZE} bytes to 0x4000000 to 0x40fffff: open>"
    await mapping.aclose()
    await device.aclose()
    await container.aclose()
    assert repr(device) == f"<Device {ADDRESSES[0]}: closed>"
    assert repr(container) == f"<Container of {ADDRESSES[0]}: closed>"


def test_a_thread_may_use_it(container: Container, edu: Edu) -> None:
    memory = aligned()
    with container.map(memory, IOVA, chunk=CHUNK):
        device_reads(edu, memory, CHUNK - 500, IOVA)
    device_is_kept_out(edu, memory, 0, IOVA)


def test_a_device_may_not_write_where_it_may_only_read(container: Container, edu: Edu) -> None:
    memory = aligned()
    memory[:] = 7
    fill_device(edu, container)
    with container.map(memory, IOVA, write=False):
        device_is_kept_out(edu, memory, 0, IOVA)
        edu.read(IOVA)
    target = aligned(PAGE)
    with container.map(target, IOVA):
        edu.write(IOVA)
    assert set(target[:TRANSFER].tolist()) == {7}


def test_a_read_only_buffer_is_mapped_for_reading(
    container: Container, edu: Edu, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(pattern(1, 2 * PAGE))
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with pytest.raises(ValueError, match="vfio map writes to its buffer, and this mmap is read"):
        container.map(memory, IOVA)
    with container.map(memory, IOVA, write=False):
        edu.read(IOVA + PAGE)
    target = aligned(PAGE)
    with container.map(target, IOVA):
        edu.write(IOVA)
    assert target[:TRANSFER].tobytes() == pattern(1, 2 * PAGE)[PAGE : PAGE + TRANSFER]


def test_what_the_process_writes_later_is_what_the_device_sees(
    container: Container, edu: Edu
) -> None:
    memory = aligned()  # not touched: each page is there, and is no copy-on-write page of zeros
    with container.map(memory, IOVA, write=False):
        memory[:] = 0x3C
        edu.read(IOVA)
    target = aligned(PAGE)
    with container.map(target, IOVA):
        edu.write(IOVA)
    assert set(target[:TRANSFER].tolist()) == {0x3C}


def test_a_page_of_1_gib_is_mapped_by_one_call(container: Container, edu: Edu) -> None:
    memory = memory_of(HUGE_1G, MAP_HUGETLB | 30 << 26)
    before = pinned()
    view = np.frombuffer(memory, np.uint8)
    begin, end = 100 * MIB, 100 * MIB + TRANSFER
    with shim() as calls, container.map(memory, 0) as mapping:
        assert pinned() == before + HUGE_1G
        assert [len(each) for each in mapping._pieces] == [HUGE_1G]
        view[begin:end] = np.frombuffer(pattern(2), np.uint8)
        edu.read(begin)
        edu.write(3 * PAGE)
        assert view[3 * PAGE : 3 * PAGE + TRANSFER].tobytes() == pattern(2)
    assert calls.names.count("madvise") == 1
    assert pinned() == before
    # Where the IOMMU cannot have a page as large, others shall not wait as long.
    with container.map(memory, PAGE) as mapping:
        assert {len(each) for each in mapping._pieces} == {64 * MIB}
    assert pinned() == before
    del view
    memory.close()


def test_pages_of_2_mib(container: Container, edu: Edu) -> None:
    memory = memory_of(2 * HUGE_2M, MAP_HUGETLB | 21 << 26)
    for iova in (IOVA, IOVA + PAGE):
        with container.map(memory, iova):
            device_reads(edu, memory, HUGE_2M - 1000, iova)
    memory.close()


@pytest.mark.anyio
async def test_a_region_in_huge_pages_that_is_populated_already(iommu: Iommu) -> None:
    before = pinned()
    async with (
        allocate(2 * HUGE_2M, pages="2MiB") as region,
        Container(ADDRESSES[0], iommu=iommu) as container,
        container.device(ADDRESSES[0]) as device,
        container.map(region.buffer, IOVA),
    ):
        with Edu(device) as edu:
            device_reads(edu, region.buffer, HUGE_2M - 1000, IOVA)
        assert pinned() == before + 2 * HUGE_2M
    assert pinned() == before


def test_two_containers_do_not_see_each_others_memory(iommu: Iommu) -> None:
    one, other = aligned(), aligned()
    before = pinned()
    with (
        Container(ADDRESSES[0], iommu=iommu) as left,
        left.device(ADDRESSES[0]) as device,
        Edu(device) as edu,
    ):
        with left.map(one, IOVA):
            with (
                Container(ADDRESSES[1], iommu=iommu) as right,
                right.device(ADDRESSES[1]) as second,
                Edu(second) as their_edu,
                right.map(other, IOVA),
            ):
                device_reads(their_edu, other, PAGE, IOVA)
                device_reads(edu, one, 2 * PAGE, IOVA)
                assert not one[PAGE : 2 * PAGE].any()
                assert pinned() == before + 2 * SIZE
            device_is_kept_out(edu, other, PAGE, IOVA)
            device_reads(edu, one, PAGE, IOVA)
    assert pinned() == before


def test_one_container_with_two_devices(iommu: Iommu) -> None:
    memory = aligned()
    with (
        Container(*ADDRESSES, iommu=iommu) as both,
        both.device(ADDRESSES[0]) as one,
        both.device(ADDRESSES[1]) as other,
        Edu(one) as edu,
        Edu(other) as other_edu,
        both.map(memory, IOVA),
    ):
        memory[:TRANSFER] = np.frombuffer(pattern(3), np.uint8)
        edu.read(IOVA)
        device_reads(other_edu, memory, PAGE, IOVA)
        edu.write(IOVA + 2 * PAGE)
        assert memory[2 * PAGE : 2 * PAGE + TRANSFER].tobytes() == pattern(3)


def test_a_group_by_its_number(iommu: Iommu) -> None:
    link = os.readlink(f"/sys/bus/pci/devices/{ADDRESSES[0]}/iommu_group")
    memory = aligned()
    with (
        Container(int(os.path.basename(link)), iommu=iommu) as container,
        container.device("00:08.0") as device,
        Edu(device) as edu,
        container.map(memory, IOVA),
    ):
        device_reads(edu, memory, 0, IOVA)


# what it tells


def test_what_a_container_tells_of_the_iommu(container: Container, iommu: Iommu) -> None:
    assert container.iommu == iommu
    assert container.page_sizes[0] == PAGE
    assert any(IOVA in each for each in container.iova_ranges)
    # Where messages of interrupts go is no memory.
    assert not any(0xFEE00000 in each for each in container.iova_ranges)


def test_every_piece_is_one_mapping(container: Container) -> None:
    available = container.dma_available()
    # Neither end at a multiple of the chunk.
    memory = aligned(3 * CHUNK)[PAGE : -2 * PAGE]
    with container.map(memory, IOVA, chunk=CHUNK) as mapping:
        sizes = [CHUNK - PAGE, CHUNK, CHUNK - 2 * PAGE]
        assert [len(each) for each in mapping._pieces] == sizes
        if available is not None:
            assert container.dma_available() == available - 3
    assert container.dma_available() == available


def test_the_default_is_type1_where_it_is_there() -> None:
    with Container(ADDRESSES[0]) as container:
        assert container.iommu == "type1"


@pytest.mark.anyio
async def test_no_system_call_is_made_on_the_loops_thread(iommu: Iommu) -> None:
    threads: dict[str, set[int]] = {}

    def action(_: int, name: str) -> None:
        threads.setdefault(name, set()).add(threading.get_ident())

    memory = aligned()
    with shim(action):
        async with Container(ADDRESSES[0], iommu=iommu) as container:
            mapping = container.map(memory, IOVA, chunk=CHUNK)
            async with container.device(ADDRESSES[0]), mapping:
                pass
    assert {"open_device", "ioctl", "madvise"} <= set(threads)
    assert all(threading.get_ident() not in each for each in threads.values())


# what it refuses


@pytest.mark.parametrize(
    ("begin", "end", "iova", "message"),
    [
        (0, 0, IOVA, "must not be empty"),
        (1, PAGE + 1, IOVA, "buffer's address must be a multiple of the IOMMU's page of 4096"),
        (0, PAGE + 1, IOVA, "buffer's size must be a multiple .* got 0x1001"),
        (0, PAGE, IOVA + 1, "iova must be a multiple of the IOMMU's page of 4096, got 0x4000001"),
        (0, PAGE, -PAGE, "iova must be at least 0, got -4096"),
        (0, PAGE, (1 << 64) - PAGE + PAGE, "would end beyond 64 bits"),
        (0, 2 * PAGE, (1 << 64) - PAGE, "would end beyond 64 bits"),
        (0, PAGE, 0xFEE00000, "does not translate all of 0xfee00000 to 0xfee00fff: .* one of 0x0"),
        (0, 2 * PAGE, 0xFEE00000 - PAGE, "does not translate all of"),
        (0, PAGE, (1 << 64) - PAGE, "does not translate all of"),
    ],
)
def test_where_nothing_can_be_mapped(
    container: Container, begin: int, end: int, iova: int, message: str
) -> None:
    memory = aligned()
    with shim() as calls, pytest.raises(ValueError, match=message):
        container.map(memory[begin:end], iova)
    assert calls.names == []
    assert resident_pages(memory) == set()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"read": False, "write": False}, ValueError, "read or write, or both"),
        ({"chunk": 1000}, ValueError, "chunk must be a multiple of .* 4096, got 1000"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"nice": 20}, ValueError, "nice must be"),
        ({"max_threads": 0}, ValueError, "max_threads must be at least 1"),
        ({"iova": 1.5}, TypeError, "iova must be an integer"),
        ({"name": 3}, TypeError, "name must be a string"),
    ],
)
def test_bad_arguments(
    container: Container, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        container.map(aligned(), **{"iova": IOVA, **options})


def test_a_closed_container_maps_nothing(iommu: Iommu) -> None:
    container = Container(ADDRESSES[0], iommu=iommu)
    with pytest.raises(RuntimeError, match="this Container is new, not open"):
        container.map(aligned(), IOVA)
    with container:
        mapping = container.map(aligned(), IOVA)
        device = container.device(ADDRESSES[0])
    for unopened in (mapping, device):
        with pytest.raises(RuntimeError, match="this Container is closed, not open"):
            unopened.open()


def test_iovas_that_this_container_maps_already(container: Container, edu: Edu) -> None:
    memory = aligned()
    with container.map(memory, IOVA):
        before = state_of(container)
        for iova in (IOVA, IOVA - PAGE, IOVA + SIZE - PAGE, IOVA - SIZE + PAGE):
            with (
                shim() as calls,
                pytest.raises(FileExistsError, match="maps iova 0x4000000 to 0x40fffff already"),
            ):
                container.map(aligned(), iova).open()
            assert calls.names == []
            assert state_of(container) == before
        with container.map(aligned(), IOVA + SIZE), container.map(aligned(), IOVA - SIZE):
            device_reads(edu, memory, 0, IOVA)
        assert state_of(container) == before


def test_a_device_that_the_container_does_not_have(container: Container) -> None:
    with pytest.raises(ValueError, match=ADDRESSES[1]):
        container.device(ADDRESSES[1]).open()
    # Only type1 looks for it first.
    with pytest.raises((OSError, ValueError), match=r"0000:00:1e\.7"):
        container.device("00:1e.7").open()


def test_a_group_that_is_in_use(container: Container, iommu: Iommu) -> None:
    with pytest.raises(OSError, match=r".") as info:
        Container(ADDRESSES[0], iommu=iommu).open()
    assert info.value.errno in (errno.EBUSY, errno.EINVAL)


def test_more_mappings_than_the_kernel_allows(container: Container) -> None:
    with mock.patch.object(container._backend, "dma_available", return_value=3):
        before = pinned()
        with pytest.raises(OSError, match="are 4 mappings, and this container may make 3") as info:
            container.map(aligned(), IOVA, chunk=CHUNK).open()
        assert info.value.errno == errno.ENOSPC
        assert pinned() == before
        with container.map(aligned(3 * CHUNK), IOVA, chunk=CHUNK):
            pass


# leaving


def test_leaving_a_container_leaves_what_was_made_through_it(iommu: Iommu) -> None:
    before = pinned()
    memory = memory_of()
    with Container(ADDRESSES[0], iommu=iommu) as container:
        mapping = container.map(memory, IOVA, chunk=CHUNK).open()
        container.map(aligned(), 2 * IOVA).open()  # nobody keeps it
        device = container.device(ADDRESSES[0]).open()
        with pytest.raises(BufferError):
            memory.close()
        assert pinned() == before + 2 * SIZE
    assert pinned() == before
    memory.close()
    mapping.close()
    device.close()
    with pytest.raises(RuntimeError, match="this Device is closed"):
        device.fileno()
    with Container(ADDRESSES[0], iommu=iommu):
        pass


@pytest.mark.anyio
async def test_leaving_is_not_stopped_by_a_cancel(iommu: Iommu) -> None:
    before = pinned()
    memory = aligned()
    with anyio.CancelScope() as scope:
        async with Container(ADDRESSES[0], iommu=iommu) as container:
            async with container.device(ADDRESSES[0]), container.map(memory, IOVA, chunk=CHUNK):
                scope.cancel()
    assert pinned() == before
    assert repr(container).endswith("closed>")


def in_a_fork(check: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def scenario_a_forks_child_leaves_its_parents_mappings_alone() -> None:
    memory = memory_of()
    container = Container(ADDRESSES[0], iommu=asked_for()).open()
    mapping = container.map(memory, IOVA, chunk=CHUNK).open()
    unopened = container.map(aligned(PAGE), 2 * IOVA)
    device = container.device(ADDRESSES[0]).open()
    edu = Edu(device)

    def child() -> None:
        with pytest.raises(RuntimeError, match="opened by the parent"):
            unopened.open()
        mapping.close()
        container.close()

    assert in_a_fork(child) == 0
    device_reads(edu, memory, CHUNK - 100, IOVA)
    device_reads(edu, memory, SIZE - TRANSFER, IOVA)
    container.close()
    assert pinned() == 0


def scenario_the_kernel_unmaps_for_a_process_that_dies() -> None:
    def child() -> None:
        container = Container(ADDRESSES[0], iommu=asked_for()).open()
        container.map(aligned(), IOVA, chunk=CHUNK).open()
        os._exit(7)

    assert in_a_fork(child) == 7
    with Container(ADDRESSES[0], iommu=asked_for()) as container:
        memory = aligned()
        with (
            container.device(ADDRESSES[0]) as device,
            Edu(device) as edu,
            container.map(memory, IOVA),
        ):
            device_reads(edu, memory, 0, IOVA)


# failing half-way


def others_map(container: Container, memory: Any, offset: int, iova: int) -> None:
    """A mapping of which the container object does not know."""
    place = address_of(memory) + offset
    container._backend.map(place, iova + offset, CHUNK, read=True, write=True)


def nothing_is_mapped(container: Container, iova: int, nbytes: int) -> None:
    """The kernel takes all of it anew."""
    with container.map(aligned(nbytes), iova, chunk=CHUNK):
        pass


@pytest.mark.parametrize("taken", range(PIECES))
def test_iovas_that_somebody_else_mapped(container: Container, edu: Edu, taken: int) -> None:
    theirs, memory = aligned(), aligned()
    with container.map(aligned(), 2 * IOVA):
        others_map(container, theirs, taken * CHUNK, IOVA)
        before = state_of(container)
        with shim() as calls, pytest.raises(FileExistsError) as info:
            container.map(memory, IOVA, chunk=CHUNK).open()
        assert any("mapped already, and not by this" in note for note in info.value.__notes__)
        assert state_of(container) == before
        # Theirs works still, and all around it is free.
        device_reads(edu, theirs, taken * CHUNK, IOVA)
        for begin, end in ((0, taken), (taken + 1, PIECES)):
            if begin < end:
                nothing_is_mapped(container, IOVA + begin * CHUNK, (end - begin) * CHUNK)
        fill_device(edu, container)
        for piece in set(range(PIECES)) - {taken}:
            device_is_kept_out(edu, memory, piece * CHUNK, IOVA)
        container._backend.unmap(IOVA + taken * CHUNK, CHUNK)
        nothing_is_mapped(container, IOVA, SIZE)
        assert calls.names.count("ioctl") >= taken + 1


def asked_for() -> Iommu:
    return cast("Iommu", os.environ["AIOKTASK_TEST_IOMMU"])


def drop_ipc_lock() -> None:
    """Give up CAP_IPC_LOCK, which threads that are started later have not then either."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    words = [
        word & ~(1 << 14) if index < 3 else word
        for index, word in enumerate(struct.unpack("=6I", data.raw))
    ]
    assert libc.capset(header, struct.pack("=6I", *words)) == 0
    assert not memlock.allowance().privileged


def limit(nbytes: int) -> None:
    """The soft limit, which the process may raise again."""
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (nbytes, hard))


def scenario_a_limit_is_known_before_anything_is_done() -> None:
    drop_ipc_lock()
    memory = aligned()
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (SIZE - 1, SIZE + CHUNK))
    with Container(ADDRESSES[0], iommu=asked_for()) as container:
        before = state_of(container)
        mapping = container.map(memory, IOVA)
        with (
            shim() as calls,
            pytest.raises(OSError, match=f"{SIZE} bytes were to be pinned, 0 are locked") as info,
        ):
            mapping.open()
        assert info.value.errno == errno.ENOMEM
        assert f"RLIMIT_MEMLOCK allows {SIZE - 1}: raise the limit" in str(info.value)
        assert "madvise" not in calls.names
        assert resident_pages(memory) == set()
        assert state_of(container) == before
        limit(0)
        with pytest.raises(OSError, match="RLIMIT_MEMLOCK allows 0") as info:
            container.map(memory, IOVA).open()
        assert info.value.errno == errno.ENOMEM
        limit(SIZE)
        with container.map(memory, IOVA):
            pass


def scenario_the_kernel_refuses_at_each_piece() -> None:
    drop_ipc_lock()
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * SIZE, 8 * SIZE))
    earlier, memory = aligned(CHUNK), aligned()
    with (
        Container(ADDRESSES[0], iommu=asked_for()) as container,
        container.device(ADDRESSES[0]) as device,
        Edu(device) as edu,
        container.map(earlier, 2 * IOVA),
        # As for who cannot know.
        mock.patch.object(memlock, "allowance", return_value=Allowance(None, 0, True)),
    ):
        before = state_of(container)
        for pages in (1, CHUNK // PAGE - 1):
            for piece in range(PIECES):
                limit(CHUNK + piece * CHUNK + pages * PAGE)
                mapping = container.map(memory, IOVA, chunk=CHUNK)
                with (
                    mock.patch.object(
                        container._backend, "map", wraps=container._backend.map
                    ) as mapped,
                    pytest.raises(OSError, match=r".") as info,
                ):
                    mapping.open()
                assert info.value.errno == errno.ENOMEM
                assert any("RLIMIT_MEMLOCK" in note for note in info.value.__notes__)
                assert mapped.call_count == piece + 1
                assert state_of(container) == before
                device_reads(edu, earlier, piece * PAGE, 2 * IOVA)
                limit(8 * SIZE)
                nothing_is_mapped(container, IOVA, SIZE)
        fill_device(edu, container)
        for piece in range(PIECES):
            device_is_kept_out(edu, memory, piece * CHUNK, IOVA)


def scenario_ctrl_c_at_each_piece() -> None:
    memory = aligned()
    with (
        Container(ADDRESSES[0], iommu=asked_for()) as container,
        container.map(aligned(CHUNK), 2 * IOVA),
    ):
        before = state_of(container)
        for piece in range(PIECES):
            numbers = itertools.count()

            def signalled(
                *arguments: Any, at: int = piece, made: Any = numbers, **how: Any
            ) -> None:
                if next(made) == at:
                    os.kill(os.getpid(), signal.SIGINT)
                type(container._backend).map(container._backend, *arguments, **how)

            with (
                mock.patch.object(container._backend, "map", signalled),
                pytest.raises(KeyboardInterrupt),
            ):
                container.map(memory, IOVA, chunk=CHUNK).open()
            # How many pieces were mapped after it, nobody can say: the keeper cancels in its time.
            assert next(numbers) > piece
            assert state_of(container) == before
            nothing_is_mapped(container, IOVA, SIZE)


SCENARIOS = [
    scenario_a_forks_child_leaves_its_parents_mappings_alone,
    scenario_the_kernel_unmaps_for_a_process_that_dies,
    scenario_a_limit_is_known_before_anything_is_done,
    scenario_the_kernel_refuses_at_each_piece,
    scenario_ctrl_c_at_each_piece,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__[9:])
def test_in_a_process_of_its_own(
    scenario: Callable[[], None], iommu: Iommu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOKTASK_TEST_IOMMU", iommu)
    in_a_child(scenario, privileged=True)


# the sweep: something happens at each of the system calls


def calls_of(run: Callable[[], object]) -> int:
    with shim() as calls:
        run()
    return len(calls.names)


def map_once(container: Container, memory: Any) -> None:
    container.map(memory, IOVA, chunk=CHUNK).open()


def close_all(container: Container) -> None:
    for each in list(container._held):
        if isinstance(each, Mapping):
            each.close()


def test_each_call_fails(container: Container, edu: Edu) -> None:
    memory, earlier = aligned(), aligned(CHUNK)
    count = calls_of(functools.partial(map_once, container, memory))
    close_all(container)
    assert count > PIECES
    with container.map(earlier, 2 * IOVA):
        before = state_of(container)
        for at in range(1, count + 1):
            with shim(fails(at)), pytest.raises(OSError, match="injected at call") as info:
                map_once(container, memory)
            assert info.value.errno == errno.EIO
            assert state_of(container) == before
            nothing_is_mapped(container, IOVA, SIZE)
        device_reads(edu, earlier, 0, 2 * IOVA)


def test_each_call_is_interrupted(container: Container, edu: Edu) -> None:
    memory = aligned()
    before = state_of(container)
    count = calls_of(functools.partial(map_once, container, memory))
    close_all(container)
    for at in range(1, count + PIECES + 1):
        with shim(fails(at, errno.EINTR)):
            map_once(container, memory)
            device_reads(edu, memory, CHUNK - 100, IOVA)
            close_all(container)
        assert state_of(container) == before


class Stop(Exception):  # noqa: N818 - what a signal handler may raise
    """Raised by a handler of the application's own."""


@pytest.mark.parametrize("after", [False, True])
def test_a_signal_handler_raises_at_each_piece(
    container: Container, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """In the thread that maps, before or after the kernel has mapped, where nobody can tell."""
    memory = aligned()
    before = state_of(container)
    real = container._backend.map
    for piece in range(PIECES):
        numbers = iter(range(PIECES))

        def interrupted(*arguments: Any, at: int = piece, made: Any = numbers, **how: Any) -> None:
            mine = next(made) == at
            if mine and not after:
                raise Stop
            real(*arguments, **how)
            if mine:
                raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(container._backend, "map", interrupted)
            with pytest.raises(Stop):
                map_once(container, memory)
        assert state_of(container) == before
        nothing_is_mapped(container, IOVA, SIZE)


@pytest.mark.anyio
async def test_it_is_cancelled_at_each_call(iommu: Iommu) -> None:
    memory, earlier = aligned(), aligned(CHUNK)
    async with (
        Container(ADDRESSES[0], iommu=iommu) as container,
        container.device(ADDRESSES[0]) as device,
        container.map(earlier, 2 * IOVA),
    ):
        before = state_of(container)

        async def run() -> None:
            async with container.map(memory, IOVA, chunk=CHUNK) as mapping:
                assert len(mapping._pieces) == PIECES

        with shim() as calls:
            await run()
        cancelled = []
        for at in range(1, len(calls.names) + 1):
            cancelled.append(await cancelled_at(at, run))
            assert state_of(container) == before
        # All but those that unmap.
        assert sum(cancelled) >= len(calls.names) - PIECES > PIECES
        async with container.map(aligned(), IOVA, chunk=CHUNK):
            pass
        with Edu(device) as edu:
            device_reads(edu, earlier, 0, 2 * IOVA)
            device_is_kept_out(edu, memory, 0, IOVA)


def test_opening_fails_at_each_call(iommu: Iommu) -> None:
    files = len(open_files())
    container = Container(ADDRESSES[0], iommu=iommu)
    count = calls_of(container.open)
    container.close()
    assert count >= 5
    for at in range(1, count + 1):
        with shim(fails(at)), pytest.raises(OSError, match="injected at call"):
            Container(ADDRESSES[0], iommu=iommu).open()
        assert len(open_files()) == files
    with Container(ADDRESSES[0], iommu=iommu):
        pass


@pytest.mark.anyio
async def test_opening_is_cancelled_at_each_call(iommu: Iommu) -> None:
    files = len(open_files())

    async def run() -> None:
        async with Container(ADDRESSES[0], iommu=iommu):
            pass

    at = 1
    while await cancelled_at(at, run):
        assert len(open_files()) == files
        at += 1
    assert at > 5


@pytest.mark.anyio
async def test_a_coordinator_that_ends_ends_what_it_maps(iommu: Iommu) -> None:
    memory = aligned()
    async with Container(ADDRESSES[0], iommu=iommu) as container:
        before = state_of(container)
        async with Coordinator() as coordinator:
            mapping = await container.map(memory, IOVA, coordinator=coordinator)
        await mapping.aclose()
        with pytest.raises(RuntimeError):
            await container.map(memory, IOVA, coordinator=coordinator)
        assert state_of(container) == before


# how a device is made ready


def test_a_device_that_no_driver_has(iommu: Iommu) -> None:
    unbind = Path(f"/sys/bus/pci/devices/{ADDRESSES[1]}/driver/unbind")
    unbind.write_text(ADDRESSES[1])
    try:
        with pytest.raises(OSError, match=r"no driver has it\. Bind it, as root") as info:
            Container(*ADDRESSES, iommu=iommu).open()
        assert info.value.errno == errno.ENODEV
        assert f"echo {ADDRESSES[1]} > /sys/bus/pci/drivers_probe" in str(info.value)
    finally:
        Path("/sys/bus/pci/drivers_probe").write_text(ADDRESSES[1])
    with Container(*ADDRESSES, iommu=iommu):
        pass


def test_a_device_that_another_driver_has(iommu: Iommu) -> None:
    bound = Path("/sys/bus/pci/drivers/virtio-pci").iterdir()
    disk = next(each.name for each in bound if each.name.startswith("0000:"))
    with pytest.raises(OSError, match="the driver virtio-pci has it"):
        Container(disk, iommu=iommu).open()
