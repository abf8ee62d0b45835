# SPDX-License-Identifier: MIT
# Memory that stays where it is: resident and locked, from entering to leaving.
#
# Measured on Linux 6.18 with 2 CPUs, milliseconds for 1 GiB of private memory:
#
#                                             4 KiB pages          huge pages
#                                           cold    resident     cold    resident
#   one plain mlock                          290          75       96         0.3
#   mlock chunk by chunk, 2 threads          913          73       93         0.9
#   mlock on fault, then populate, 2         153          62       54         0.7
#   the same, then mlock to finish           188          98       54         0.8
#   populate, then mlock                     233         114       57         0.7
#
# So pages are locked on fault, which only sets flags and walks over what is resident, and then
# populated in parallel. The lock stays one on fault. Once all pages are there it is no other,
# for the kernel reclaims none of them and refuses to discard any.
#
# Pages are populated by the kind of access that mlock itself makes: by reading where memory is
# shared. By writing, the pages of a file would take twice as long and be dirty afterwards.
"""`pin`: memory that is locked for a while."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, SupportsIndex

from aioktask.checks import check_name
from aioktask.engine.api.coordinator import Coordinator
from aioktask.job import Job
from aioktask.memory._buffer import Buffer, job_over
from aioktask.memory._holding import Holding, Steps
from aioktask.memory._kernel.faulting import fault_in
from aioktask.memory._kernel.libc import PAGE, Advice
from aioktask.memory._kernel.mappings import Mapping
from aioktask.memory._locks import of_this_process
from aioktask.memory._populate import MIN_CHUNK, check_kernel_can_populate

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Pinned", "pin"]

# Some milliseconds of walking over small pages, during which no other thread maps or unmaps.
PIECE = 64 << 20


def pin(
    buffer: ReadableBuffer,
    *,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
    coordinator: Coordinator | None = None,
) -> Pinned:
    """Memory that is resident and locked while it is held, whoever else holds a part of it.

    While it is open, no access to the pages that `buffer` touches waits for a disk or for memory:
    they are there, and they are neither swapped nor written out and dropped. No byte is changed.
    Nothing is done before it is entered, awaited or opened.

    Pins may overlap: a page is unlocked when the last pin of this process that holds it is left,
    unless it was locked before the first one came; then it stays as it was. That is known of mlock
    and mlockall calls which were made before: a munlock by others ends the lock for all, and a page
    that others lock meanwhile is unlocked with the pin. A fork's child has no locks and no pins; in
    the parent, the first write to a private page after a fork copies it.

    The buffer is held until the pin is left: a bytearray cannot be resized and a mmap cannot be
    closed before.

    Args:
        buffer: Contiguous memory, read-only or not: an array, mmap, bytearray, memoryview,
            `array.array`. Whole pages are locked, those at its ends too.
        nice: Of the jobs that lock, populate and unlock; see `Job`.
        max_threads: Of the job that populates; see `Job`. The others have one thread.
        name: Of the jobs, with ".hold", ".lock", ".populate" and ".unlock" behind it; "memory.pin"
            by default.
        coordinator: Of the jobs that lock and populate.

    Raises:
        TypeError: `buffer` has no buffer protocol, or holds references to Python objects.
        ValueError: It is not contiguous; or an argument that `Job` refuses.
        OSError: ENOSYS: the kernel is older than Linux 5.14 or no Linux. On entering: ENOMEM when
            RLIMIT_MEMLOCK would be exceeded and the process lacks CAP_IPC_LOCK (EPERM when the
            limit is 0), or there is no memory; any errno of madvise(2) and mlock2(2). All locks are
            then as they were.

    >>> import mmap
    >>> with mmap.mmap(-1, 1 << 16) as memory:
    ...     with pin(memory) as pinned:
    ...         print(pinned)
    <Pinned of 65536 bytes: open>
    """
    held = Buffer(buffer, "pin", writable=False)
    check_kernel_can_populate("pin")
    return Pinned(
        held,
        nice=nice,
        max_threads=max_threads,
        name="memory.pin" if name is None else check_name(name),
        coordinator=coordinator,
    )


class Pinned(Holding):
    """Memory that is locked from entering to leaving: what `pin` returns.

    Use it with ``async with`` or ``with``, or by plain calls: ``pinned = await pin(...)`` and
    ``await pinned.aclose()``, or in a thread ``pinned = pin(...).open()`` and ``pinned.close()``.

    One that is dropped without being left keeps its memory, locked, until the process ends. One
    that a fork's child has inherited does nothing when it is left there.

    **Cancellation.** Cancelled while it locks and populates, locks become what they were and then
    the cancellation goes on; pages that came stay resident. Leaving is not stopped by a cancel.

    Attributes:
        nbytes: Of the buffer.
    """

    def __init__(
        self,
        buffer: Buffer,
        *,
        nice: SupportsIndex,
        max_threads: SupportsIndex | None,
        name: str,
        coordinator: Coordinator | None,
    ) -> None:
        super().__init__(coordinator)
        self.nbytes = buffer.nbytes
        start = buffer.address // PAGE * PAGE
        stop = -(-(buffer.address + buffer.nbytes) // PAGE) * PAGE
        mappings: list[Mapping] = []

        def in_pieces(function: Callable[[int, int], None], what: str) -> Job[None]:
            return Job(
                function,
                stop - start if buffer.nbytes else 0,
                start=start,
                align=PAGE,
                chunk=PIECE,
                max_threads=1,
                nice=nice,
                name=f"{name}.{what}",
            )

        # The jobs know the buffer and not this object, so that it is gone when it is dropped.
        hold = functools.partial(_hold, buffer, range(start, stop), mappings)
        populating = job_over(
            buffer,
            functools.partial(populate_as_locked, mappings),
            whole_pages=True,
            min_chunk=MIN_CHUNK,
            chunk=None,
            nice=nice,
            max_threads=max_threads,
            name=f"{name}.populate",
        )
        holding = Job(hold, min(buffer.nbytes, 1), nice=nice, name=f"{name}.hold")
        self._take: tuple[Job[None], ...] = (holding, in_pieces(_lock, "lock"), populating)
        self._give_back: tuple[Job[None], ...] = (
            in_pieces(functools.partial(_unlock, buffer), "unlock"),
        )

    def __repr__(self) -> str:
        return f"<Pinned of {self.nbytes} bytes: {self._state}>"

    def _taking(self) -> Steps:
        try:
            yield from self._take
        except BaseException:
            yield from self._giving_back()
            raise

    def _giving_back(self) -> Steps:
        yield from self._give_back
        # With them goes the buffer.
        self._take = self._give_back = ()


def _hold(buffer: Buffer, pages: range, mappings: list[Mapping], _start: int, _stop: int) -> None:
    mappings[:] = of_this_process().hold(buffer, pages.start, pages.stop)


def _lock(start: int, stop: int) -> None:
    of_this_process().lock(start, stop)


def _unlock(buffer: Buffer, start: int, stop: int) -> None:
    of_this_process().let_go(buffer, start, stop)


def populate_as_locked(mappings: Sequence[Mapping], _held: Buffer, start: int, stop: int) -> None:
    """Fault in as mlock does: private memory that may be written is copied now."""

    def is_copied(mapping: Mapping) -> bool:
        return mapping.writable and not mapping.shared

    for copied, alike in itertools.groupby(mappings, is_copied):
        stretch = list(alike)
        first, last = max(start, stretch[0].start), min(stop, stretch[-1].stop)
        if first < last:
            advice = Advice.MADV_POPULATE_WRITE if copied else Advice.MADV_POPULATE_READ
            fault_in(first, last, advice)
