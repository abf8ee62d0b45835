# SPDX-License-Identifier: MIT
# The memory operations that are measured: each with real memory of its kind, the library's way to
# do it with nothing tuned, the C loops that do the same, and the one call that a user would write.
#
# What a run leaves behind is taken back before the next, outside of the timing. A huge page that is
# given back or locked in parts comes back as small pages: then the next run would meet other memory
# than is said, so no chunk there is smaller than a huge page. A pool of reserved huge pages is made
# for the time of the benchmark, by root, and given back.
"""Operations on memory, to be compared."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from aioktask import Job, files, memory, run_multithreaded, run_multithreaded_sync
from aioktask.bench.cloops import Loop
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import Advice
from aioktask.tune.machine import available_memory

__all__ = [
    "GIB",
    "Operation",
    "Subject",
    "address_of",
    "anonymous",
    "fitting",
    "operations",
    "populate_plainly",
    "tree_kinds",
    "trees",
]

GIB = 1 << 30
HUGE_PAGE = 2 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
MAP_HUGETLB = 0x40000
MFD_HUGETLB = 4

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Subject:
    """Memory of some kind, and ways to do one thing to all of it.

    Attributes:
        nbytes: How much.
        ours: The library's way, as a coroutine function.
        plain: Single calls over all of it, by name, as a user would write them.
        part: One such call from an offset on, over so many bytes.
        loops: The C loops that do the same.
        address: For the C loops.
        source: For the C loop that copies.
        file: For the C loops that fill a file.
        least: The smallest chunk for the C loops.
        before: Called before each run, not timed.
    """

    nbytes: int
    ours: Callable[[], object]
    plain: Mapping[str, Call]
    part: Callable[[int, int], object]
    loops: Sequence[Loop] = ()
    address: int = 0
    source: int = 0
    file: int = -1
    least: int = mmap.PAGESIZE
    before: Call | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """What is compared: its name in tables, and how to have a subject for a while."""

    name: str
    subject: Callable[[], AbstractContextManager[Subject]] = field(repr=False)


@contextmanager
def anonymous(nbytes: int, *, huge: bool) -> Iterator[mmap.mmap]:
    """Private anonymous memory, in small pages or, where there are some, transparent huge ones."""
    memory_map = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        with suppress(AttributeError, OSError):  # a system without huge pages has small ones anyway
            memory_map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        yield memory_map
    finally:
        _close(memory_map)


@contextmanager
def reserved(nbytes: int) -> Iterator[None]:
    """So many bytes in free pages of 2 MiB, for a while.

    Raises:
        OSError: This process may not, or the kernel finds too few; the pool is as it was.
    """
    pool = POOL / "nr_hugepages"
    # Surplus pages go by themselves, and would stay if they were counted here.
    before = int(pool.read_text()) - int((POOL / "surplus_hugepages").read_text())
    try:
        wanted = before + -(-nbytes // HUGE_PAGE)
        pool.write_text(str(wanted))
        if int(pool.read_text()) < wanted:
            raise OSError(f"the kernel found too few huge pages for {nbytes >> 20} MiB")
        yield
    finally:
        pool.write_text(str(before))


def address_of(memory_map: mmap.mmap) -> int:
    """Where the mapping begins."""
    byte = ctypes.c_char.from_buffer(memory_map)
    return ctypes.addressof(byte)


def populate_plainly(memory_map: mmap.mmap, nbytes: int | None = None) -> None:
    """One call over its first `nbytes`, or all of it."""
    length = len(memory_map) if nbytes is None else nbytes
    libc.madvise(address_of(memory_map), length, Advice.MADV_POPULATE_WRITE)


def fitting(nbytes: int) -> int:
    """So much, or as much of it as leaves half of what is available."""
    available = available_memory()
    while available is not None and nbytes > available // 2:
        nbytes //= 2
    return nbytes


def operations(quick: bool) -> list[Operation]:
    """All that touch memory."""
    # What is quick is done to more: in less than 10 ms a job's own cost would count.
    largest, large, small = (fitting(128 << 20 if quick else gib * GIB) for gib in (8, 2, 1))

    def of(
        name: str, make: Callable[..., AbstractContextManager[Subject]], *arguments: object
    ) -> Operation:
        return Operation(name, lambda: make(*arguments))

    return [
        of("populate, 4 KiB pages", _populate, small, "small"),
        of("populate, transparent huge pages", _populate, small, "huge"),
        of("populate, reserved 2 MiB pages", _populate, small, "reserved"),
        of("clear", _clear, large),
        of("copy", _copy, small),
        of("release, 4 KiB pages", _release, small, "small"),
        of("release, transparent huge pages", _release, largest, "huge"),
        of("fill a file on hugetlbfs", _fill, large),
        of("pin, 4 KiB pages", _pin, small, "small"),
        of("pin, transparent huge pages", _pin, small, "huge"),
    ]


@contextmanager
def _memory(nbytes: int, kind: str) -> Iterator[mmap.mmap]:
    """Resident, in pages of a kind: "small", "huge", "reserved", or "any" for what there is."""
    with ExitStack() as stack:
        if kind == "reserved":
            stack.enter_context(reserved(nbytes))
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
            found = mmap.mmap(-1, nbytes, flags=flags)
            stack.callback(_close, found)
        else:
            found = stack.enter_context(anonymous(nbytes, huge=kind != "small"))
        populate_plainly(found)  # so that the host has memory for it
        if kind == "huge":
            _check_huge(found)
        yield found


def _check_huge(found: mmap.mmap) -> None:
    told = run_multithreaded_sync(memory.residency(found)).value
    if told.huge + told.maybe_huge < 0.9 * told.nbytes:
        raise OSError(
            f"of {told.nbytes >> 20} MiB only {told.huge >> 20} came in transparent huge pages"
        )


def _least(kind: str) -> int:
    return mmap.PAGESIZE if kind == "small" else HUGE_PAGE


def _close(found: mmap.mmap) -> None:
    gc.collect()  # tasks and tracebacks hang in cycles, and may hold a job over this memory
    with suppress(BufferError):  # then it goes with the last of them
        found.close()


def _dropped(found: mmap.mmap) -> Call:
    return lambda: found.madvise(mmap.MADV_DONTNEED)


def _advised(found: mmap.mmap, advice: Advice) -> Callable[[int, int], object]:
    address = address_of(found)
    return lambda offset, length: libc.madvise(address + offset, length, advice)


@contextmanager
def _populate(nbytes: int, kind: str) -> Iterator[Subject]:
    advice = Advice.MADV_POPULATE_WRITE
    with _memory(nbytes, kind) as found:
        yield Subject(
            nbytes,
            _runs(memory.populate(found)),
            {"mmap.madvise(MADV_POPULATE_WRITE)": lambda: found.madvise(advice)},
            _advised(found, advice),
            [Loop.POPULATE],
            address_of(found),
            least=_least(kind),
            before=_dropped(found),
        )


@contextmanager
def _clear(nbytes: int) -> Iterator[Subject]:
    with _memory(nbytes, "any") as found:
        address = address_of(found)
        yield Subject(
            nbytes,
            _runs(memory.clear(found)),
            {
                "ndarray.fill(0)": lambda: np.frombuffer(found, np.uint8).fill(0),
                "one memset": lambda: libc.zero(address, nbytes),
            },
            lambda offset, length: libc.zero(address + offset, length),
            [Loop.CLEAR],
            address,
        )


@contextmanager
def _copy(nbytes: int) -> Iterator[Subject]:
    with _memory(nbytes, "any") as to, _memory(nbytes, "any") as origin:
        address, source = address_of(to), address_of(origin)
        yield Subject(
            nbytes,
            _runs(memory.copy(to, origin)),
            {"np.copyto": lambda: np.copyto(np.frombuffer(to), np.frombuffer(origin))},
            lambda offset, length: libc.move(address + offset, source + offset, length),
            [Loop.COPY],
            address,
            source,
        )


@contextmanager
def _release(nbytes: int, kind: str) -> Iterator[Subject]:
    with _memory(nbytes, kind) as found:
        yield Subject(
            nbytes,
            _runs(memory.release(found)),
            {"mmap.madvise(MADV_DONTNEED)": _dropped(found)},
            _advised(found, Advice.MADV_DONTNEED),
            [Loop.RELEASE],
            address_of(found),
            least=_least(kind),
            before=lambda: populate_plainly(found),
        )


@contextmanager
def _fill(nbytes: int) -> Iterator[Subject]:
    with reserved(nbytes), open(os.memfd_create("bench", MFD_HUGETLB), "r+b") as file:
        yield Subject(
            nbytes,
            lambda: run_multithreaded(memory.fallocate(file, nbytes)),
            {"os.posix_fallocate": lambda: os.posix_fallocate(file.fileno(), 0, nbytes)},
            lambda offset, length: os.posix_fallocate(file.fileno(), offset, length),
            [Loop.FILL, Loop.ALLOCATE],
            file=file.fileno(),
            least=HUGE_PAGE,
            before=lambda: os.ftruncate(file.fileno(), 0),
        )


@contextmanager
def _pin(nbytes: int, kind: str) -> Iterator[Subject]:
    with _memory(nbytes, kind) as found:
        pinned: list[memory.Pinned] = []
        address = address_of(found)

        async def ours() -> None:
            pinned.append(await memory.pin(found))

        def before() -> None:
            while pinned:
                pinned.pop().close()
            libc.munlock(address, nbytes)
            found.madvise(mmap.MADV_DONTNEED)

        try:
            yield Subject(
                nbytes,
                ours,
                {"one mlock": lambda: libc.mlock2(address, nbytes, on_fault=False)},
                lambda offset, length: libc.mlock2(address + offset, length, on_fault=False),
                [Loop.PIN, Loop.LOCK],
                address,
                least=_least(kind),
                before=before,
            )
        finally:
            before()


def _runs(job: Job[None]) -> Callable[[], object]:
    return lambda: run_multithreaded(job)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of files to be removed.

    Attributes:
        name: In tables.
        parent: The directory that it is made in.
        directories: How many, side by side.
        each: Empty files in each of them.
        stock: Trees that were made before.
    """

    name: str
    parent: Path
    directories: int
    each: int
    stock: list[Path] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.parent / f"{self.directories} by {self.each}"

    def make(self) -> None:
        """Make the directories as they are before each run."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.stock:
            self.stock.pop().rename(self.path)
        else:
            self._make(self.path)

    def make_stock(self, runs: int) -> None:
        """For so many runs to come."""
        for number in range(runs):
            path = self.parent / f"{self.path.name}, {number}"
            self._make(path)
            self.stock.append(path)

    def _make(self, path: Path) -> None:
        for number in range(self.directories):
            directory = path / f"{number}"
            directory.mkdir(parents=True)
            for file in range(self.each):
                os.close(os.open(directory / f"{file}", os.O_CREAT | os.O_WRONLY))

    def ours(self) -> object:
        return run_multithreaded(files.remove_tree(self.path))


def tree_kinds(quick: bool) -> list[Tree]:
    """The trees that are removed, in memory and on a disk; none of them is made."""
    most = 400 if quick else 4000
    return [
        Tree(
            f"remove {most // each} directories of {each} files in {place}",
            Path(place),
            most // each,
            each,
        )
        for place in ("/dev/shm", tempfile.gettempdir())
        if os.access(place, os.W_OK)
        for each in (100, 5)
    ]


@contextmanager
def trees(quick: bool, runs: int, only: str = "") -> Iterator[list[Tree]]:
    """Trees with this in their names, enough for so many runs of each, gone at the end.

    All are made before the first is removed: ext4 without a journal passes over each file that was
    removed in the last minute whenever it makes one, and takes a minute for some thousand.
    """
    with ExitStack() as stack:
        found = []
        for kind in tree_kinds(quick):
            if only in kind.name:
                parent = stack.enter_context(tempfile.TemporaryDirectory(dir=kind.parent))
                tree = replace(kind, parent=Path(parent), stock=[])
                tree.make_stock(runs)
                found.append(tree)
        yield found
