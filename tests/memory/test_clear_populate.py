# SPDX-License-Identifier: MIT
# The memory jobs against the bytes and pages themselves: what they change, hold and refuse, and
# what becomes of a failing system call.

from __future__ import annotations

import array
import ctypes
import errno
import gc
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import run_multithreaded_sync
from aioktask.job import Job
from aioktask.memory import _populate, clear, populate
from aioktask.memory._kernel import faulting, libc
from tests.support.pieces import run_in_pieces

linux = pytest.mark.skipif(sys.platform != "linux", reason="madvise(2) of Linux")

PAGE = mmap.PAGESIZE
MIB = 1 << 20
BOTH = [clear, pytest.param(populate, marks=linux)]

Make = Callable[..., Job[None]]


def run(job: Job[None], chunk: int = 2 * PAGE, threads: int = 3) -> None:
    assert run_in_pieces(job, chunk, threads) is None


def address_of(memory: Any) -> int:
    """The address of a writable buffer, which is let go of again."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def resident(memory: mmap.mmap) -> list[bool]:
    """Whether each page of `memory` is in core, as the kernel says."""
    vector = (ctypes.c_ubyte * (len(memory) // PAGE))()
    c_library = ctypes.CDLL(None, use_errno=True)
    arguments = ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(len(memory)), vector
    assert c_library.mincore(*arguments) == 0, os.strerror(ctypes.get_errno())
    return [bool(byte & 1) for byte in vector]


def protect(memory: mmap.mmap, start: int, nbytes: int, protection: int) -> None:
    address = ctypes.c_void_p(address_of(memory) + start)
    assert ctypes.CDLL(None).mprotect(address, ctypes.c_size_t(nbytes), protection) == 0


# clear


@given(st.data())
def test_clear_zeroes_its_bytes_and_no_others(data: st.DataObject) -> None:
    whole = bytearray(b"\xaa" * data.draw(st.integers(0, 3 * PAGE)))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    chunk = data.draw(st.sampled_from([1000, PAGE, 10 * PAGE]))
    with memoryview(whole) as view, view[start:stop] as middle:
        job = clear(middle)
        assert job.size == stop - start
        run(job, chunk)
        del job
    assert whole == b"\xaa" * start + bytes(stop - start) + b"\xaa" * (len(whole) - stop)


BUFFERS: dict[str, Callable[[], Any]] = {
    "ndarray": lambda: np.full((3, 5), 7.5),
    "fortran-ndarray": lambda: np.asfortranarray(np.full((3, 5), 7.5)),
    "0-d ndarray": lambda: np.array(7.5),
    "dates": lambda: np.full(5, 9, "M8[s]"),
    "records": lambda: np.full(5, 9, [("One", "i2"), ("b", "f8")]),
    "mmap": lambda: filled(mmap.mmap(-1, 3 * PAGE)),
    "bytearray": lambda: bytearray(b"x" * 1000),
    "memoryview": lambda: memoryview(bytearray(b"x" * 1000))[7:900],
    "fortran-memoryview": lambda: memoryview(np.asfortranarray(np.ones((3, 5), "i4"))),
    "record-memoryview": lambda: memoryview(np.full(5, 9, [("One", "i2"), ("b", "f8")])),
    "array.array": lambda: array.array("d", [1.0] * 99),
    "ctypes": lambda: (ctypes.c_int * 50)(*range(50)),
}
EMPTY: dict[str, Callable[[], Any]] = {
    "ndarray": lambda: np.ones((3, 0)),
    "no-width": lambda: np.zeros(4, "V0"),
    "bytearray": bytearray,
    "memoryview": lambda: memoryview(bytearray(b"abc"))[2:2],
    "array.array": lambda: array.array("i"),
}


def filled(memory: mmap.mmap) -> mmap.mmap:
    memory[:] = b"x" * len(memory)
    return memory


def content(buffer: Any) -> bytes:
    return buffer.tobytes() if hasattr(buffer, "tobytes") else bytes(memoryview(buffer))


@pytest.mark.parametrize("make", BUFFERS.values(), ids=list(BUFFERS))
def test_clear_takes_anything_with_a_writable_buffer(make: Callable[[], Any]) -> None:
    buffer = make()
    before = content(buffer)
    assert any(before)
    job = clear(buffer)
    assert job.size == len(before)
    assert job.bind().value is None
    run(job)
    assert content(buffer) == bytes(len(before))


@linux
@pytest.mark.parametrize("make", BUFFERS.values(), ids=list(BUFFERS))
def test_populate_takes_the_same_and_changes_nothing(make: Callable[[], Any]) -> None:
    buffer = make()
    before = content(buffer)
    run(populate(buffer))
    assert content(buffer) == before


@pytest.mark.parametrize("operation", BOTH)
@pytest.mark.parametrize("make", EMPTY.values(), ids=list(EMPTY))
def test_a_buffer_of_no_bytes_is_a_job_of_size_0(operation: Make, make: Callable[[], Any]) -> None:
    job = operation(make())
    assert job.size == 0
    run(job)


def read_only_array() -> Any:
    a = np.zeros(3)
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("operation", BOTH)
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: b"abc", ValueError, "this bytes is read-only"),
        (read_only_array, ValueError, "this ndarray is read-only"),
        (lambda: memoryview(bytearray(3)).toreadonly(), ValueError, "this memoryview is read-only"),
        (lambda: np.zeros(6)[::2], ValueError, "this ndarray has gaps"),
        (lambda: np.zeros((4, 4))[:, :2], ValueError, "this ndarray has gaps"),
        (lambda: np.zeros(3)[::-1], ValueError, "this ndarray has gaps"),
        (lambda: memoryview(bytearray(6))[::2], ValueError, "this memoryview has gaps"),
        (lambda: np.array([None]), TypeError, "references to Python objects.*arrays.fill"),
        (lambda: np.zeros(2, [("a", "O")]), TypeError, "ndarray holds references"),
        (lambda: memoryview(np.array([None])), TypeError, "memoryview holds references"),
        (lambda: (ctypes.py_object * 2)(), TypeError, "holds references"),
        (lambda: [1, 2], TypeError, "buffer protocol .* got list"),
        (lambda: None, TypeError, "got NoneType"),
    ],
)
def test_a_buffer_that_cannot_be_written_as_bytes_is_refused(
    operation: Make, make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"{operation.__name__} .*{message}"):
        operation(make())


@pytest.mark.parametrize("operation", BOTH)
def test_options_pass_through(operation: Make) -> None:
    memory = bytearray(10)
    job = operation(memory)
    assert (job.name, job.nice, job.max_threads) == (f"memory.{operation.__name__}", 0, None)
    job = operation(memory, chunk=3 * PAGE, nice=5, max_threads=2, name="mine")
    assert (job.name, job.nice, job.max_threads, job.chunk) == ("mine", 5, 2, 3 * PAGE)
    with pytest.raises(ValueError, match=rf"multiple of align \({PAGE}\), got 1000"):
        operation(memory, chunk=1000)


# where chunks begin and end


@pytest.mark.parametrize("operation", BOTH)
def test_chunks_end_on_pages_and_on_huge_pages_where_there_is_much(operation: Make) -> None:
    small, large = mmap.mmap(-1, MIB), mmap.mmap(-1, 256 * MIB)
    assert operation(small).align == PAGE
    assert operation(large).align == 2 * MIB
    assert operation(large, chunk=PAGE).align == PAGE
    assert operation(large).min_chunk == (128 * MIB if operation is clear else 2 * MIB)


def test_clear_ranges_over_the_addresses_of_its_bytes() -> None:
    memory = mmap.mmap(-1, 4 * PAGE)
    with memoryview(memory) as view, view[5:-7] as middle:
        job = clear(middle)
        assert (job.start, job.stop) == (
            address_of(memory) + 5,
            address_of(memory) + 4 * PAGE - 7,
        )
        del job


@linux
def test_populate_begins_at_the_page_that_holds_the_first_byte() -> None:
    memory = mmap.mmap(-1, 4 * PAGE)
    with memoryview(memory) as view, view[PAGE + 5 : 3 * PAGE + 1] as middle:
        job = populate(middle)
        assert job.start == address_of(memory) + PAGE
        assert job.stop == address_of(memory) + 3 * PAGE + 1
        run(job)
        del job
    assert resident(memory) == [False, True, True, True]


# what is held


@pytest.mark.parametrize("operation", BOTH)
def test_a_bytearray_cannot_be_resized_while_the_job_lives(operation: Make) -> None:
    memory = bytearray(b"abc")
    job = operation(memory)
    run(job)
    with pytest.raises(BufferError):
        memory.append(1)
    del job
    gc.collect()
    memory.append(1)


@pytest.mark.parametrize("operation", BOTH)
@pytest.mark.parametrize("wrap", [lambda m: m, memoryview, lambda m: np.frombuffer(m, "u1")])
def test_a_mmap_cannot_be_closed_while_the_job_lives(
    operation: Make, wrap: Callable[[Any], Any]
) -> None:
    memory = mmap.mmap(-1, PAGE)
    job = operation(wrap(memory))
    gc.collect()
    with pytest.raises(BufferError):
        memory.close()
    run(job)
    del job
    gc.collect()
    memory.close()


@pytest.mark.parametrize("operation", BOTH)
def test_an_array_that_nobody_else_holds_stays_until_the_job_is_gone(operation: Make) -> None:
    class Memory(bytearray):
        def __del__(self) -> None:
            gone.append(1)

    gone: list[int] = []
    job = operation(np.frombuffer(Memory(1000), "i4"))
    gc.collect()
    assert gone == []
    run(job)
    del job
    gc.collect()
    assert gone == [1]


# through the engine, in chunks of its choice


def test_clear_of_much_memory_from_an_odd_address_to_an_odd_address() -> None:
    whole = np.full(200 * MIB, 0xAA, "u1")
    report = run_multithreaded_sync(clear(whole[12345:-54321]))
    assert report.value is None
    assert report.chunks > 1
    assert (whole[:12345] == 0xAA).all()
    assert not whole[12345:-54321].any()
    assert (whole[-54321:] == 0xAA).all()


@linux
def test_populate_of_much_memory() -> None:
    memory = mmap.mmap(-1, 64 * MIB)
    assert run_multithreaded_sync(populate(memory)).chunks > 1
    assert all(resident(memory))


# populate


@linux
def test_populate_makes_every_page_resident() -> None:
    memory = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[5 * PAGE] = 7
    assert resident(memory).count(True) == 1
    run(populate(memory))
    assert all(resident(memory))
    assert memory[5 * PAGE] == 7


@linux
def test_populate_of_a_shared_file_mapping(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    with path.open("wb+") as file:
        file.truncate(16 * PAGE)
        file.seek(3 * PAGE)
        file.write(b"data")
        file.flush()
        memory = mmap.mmap(file.fileno(), 0)
    run(populate(memory))
    assert all(resident(memory))
    memory.flush()
    assert path.read_bytes() == bytes(3 * PAGE) + b"data" + bytes(13 * PAGE - 4)


@linux
def test_populate_of_a_private_file_mapping_copies_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"data" * PAGE)
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    run(populate(memory))
    assert all(resident(memory))
    with path.open("rb+") as file:
        file.write(b"more" * PAGE)
    assert memory[:] == b"data" * PAGE


@linux
def test_populate_beyond_the_end_of_a_file_fails_with_a_hint(tmp_path: Path) -> None:
    with (tmp_path / "short").open("wb+") as file:
        file.truncate(4 * PAGE)
        memory = mmap.mmap(file.fileno(), 0)
        file.truncate(PAGE)
    with pytest.raises(OSError, match=rf"madvise\(0x[0-9a-f]+, {4 * PAGE}, MADV_POPULATE") as info:
        run(populate(memory), chunk=1 << 40)
    assert info.value.errno == errno.EFAULT
    assert "shorter than its mapping" in info.value.__notes__[0]


@linux
def test_populate_of_memory_that_may_not_be_written_fails(tmp_path: Path) -> None:
    memory = mmap.mmap(-1, 8 * PAGE)
    protect(memory, 2 * PAGE, PAGE, mmap.PROT_READ)
    with pytest.raises(OSError, match="Invalid argument: madvise") as info:
        run(populate(memory))
    assert info.value.errno == errno.EINVAL
    protect(memory, 0, 8 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    run(populate(memory))
    (tmp_path / "data").write_bytes(bytes(PAGE))
    with (tmp_path / "data").open("rb") as file:
        read_only = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with pytest.raises(ValueError, match="this mmap is read-only"):
        populate(read_only)


@linux
def test_madvise_tells_errno_and_what_was_asked() -> None:
    # One byte above a page's start is no page's start.
    memory = mmap.mmap(-1, PAGE)
    asked = address_of(memory) + 1
    with pytest.raises(OSError, match=rf"madvise\({asked:#x}, 10, MADV_POPULATE_WRITE") as info:
        libc.madvise(asked, 10, libc.Advice.MADV_POPULATE_WRITE)
    assert info.value.errno == errno.EINVAL


def failing(monkeypatch: pytest.MonkeyPatch, errors: list[int]) -> list[int]:
    """Let madvise fail with these errors, one a call, and say how many calls there were."""
    calls: list[int] = []

    def madvise(address: int, nbytes: int, advice: int) -> None:
        calls.append(nbytes)
        if len(calls) <= len(errors):
            raise OSError(errors[len(calls) - 1], "as the test says")

    monkeypatch.setattr(libc, "madvise", madvise)
    return calls


@linux
def test_populate_goes_on_after_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    job = populate(bytearray(100))
    calls = failing(monkeypatch, [errno.EINTR] * 50)
    run(job)
    assert len(calls) >= 51


@linux
def test_a_signal_handler_ends_an_interrupted_populate(monkeypatch: pytest.MonkeyPatch) -> None:
    class EnoughError(Exception):
        pass

    def enough(*_: object) -> None:
        raise EnoughError

    def madvise(*_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise InterruptedError(errno.EINTR, "as the test says")

    job = populate(bytearray(100))
    monkeypatch.setattr(libc, "madvise", madvise)
    before = signal.signal(signal.SIGUSR1, enough)
    try:
        with pytest.raises(EnoughError):
            job.fn(job.start, job.stop)
    finally:
        signal.signal(signal.SIGUSR1, before)


@linux
def test_populate_tries_again_while_the_kernel_is_busy_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = populate(bytearray(10))
    calls = failing(monkeypatch, [errno.EAGAIN] * 3)
    job.fn(job.start, job.stop)
    assert len(calls) == 4
    calls = failing(monkeypatch, [errno.EAGAIN] * 1000)
    with pytest.raises(BlockingIOError):
        job.fn(job.start, job.stop)
    assert len(calls) == faulting.ATTEMPTS_WHILE_BUSY


@linux
def test_populate_does_not_retry_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    job = populate(bytearray(10))
    calls = failing(monkeypatch, [errno.ENOMEM])
    with pytest.raises(OSError, match="as the test says") as info:
        job.fn(job.start, job.stop)
    assert (info.value.errno, len(calls)) == (errno.ENOMEM, 1)


@pytest.fixture
def kernel_not_asked_yet() -> Any:
    _populate.kernel_can_populate.cache_clear()
    yield
    _populate.kernel_can_populate.cache_clear()


@pytest.mark.usefixtures("kernel_not_asked_yet")
def test_a_kernel_without_populate_is_asked_once_and_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = failing(monkeypatch, [errno.EINVAL] * 9)
    for _ in range(2):
        with pytest.raises(OSError, match=r"Linux 5.14; aioktask.memory.clear") as info:
            populate(bytearray(10))
        assert info.value.errno == errno.ENOSYS
    assert calls == [PAGE]


@pytest.mark.usefixtures("kernel_not_asked_yet")
def test_elsewhere_than_on_linux_populate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(OSError, match=r"needs .* Linux 5.14") as info:
        populate(bytearray(10))
    assert info.value.errno == errno.ENOSYS
