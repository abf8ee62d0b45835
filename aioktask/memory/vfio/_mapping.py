# SPDX-License-Identifier: MIT
# Memory that a device may read and write, from entering to leaving.
#
# The kernel holds a lock of the container while it maps, so another call waits for as long. Mapping
# pages that are not there takes 20 times as long as mapping those that are. Hence two stages: the
# pages are populated by several threads, without that lock, and then mapped by one thread, in
# pieces.
#
# A piece is noted before it is mapped, and the note is taken back when the kernel refuses: then the
# call has rolled itself back, and whatever is mapped there is somebody else's. What is noted is
# unmapped in the end, piece by piece, whole mappings as the kernel wants it. The container lets
# nobody else map there meanwhile, so to unmap twice does no harm.
"""A mapping for DMA."""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any

from aioktask.engine.api.coordinator import Coordinator
from aioktask.job import Job
from aioktask.memory._buffer import Buffer, job_over
from aioktask.memory._holding import Holding, Steps
from aioktask.memory._kernel.mappings import mappings_between
from aioktask.memory._kernel.page_size import largest_page
from aioktask.memory._pin import populate_as_locked
from aioktask.memory._populate import MIN_CHUNK, populate_pages
from aioktask.memory.vfio._space import number_of_pieces, piece_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioktask.memory.vfio._container import Container

__all__ = ["Mapping"]


class Mapping(Holding):
    """Memory that devices may access, from entering to leaving: what `Container.map` returns.

    Use it with ``async with`` or ``with``, or by plain calls:
    ``mapping = await container.map(...)`` and ``await mapping.aclose()``, or in a thread
    ``mapping = container.map(...).open()`` and ``mapping.close()``.

    The buffer is held until then: a bytearray cannot be resized and a mmap cannot be closed before.
    Leaving the container leaves its mappings too. One that is dropped without being left stays
    until the container is left. When the process ends, however it ends, the kernel unmaps.

    **Cancellation.** Cancelled while it populates and maps, every piece that was mapped is unmapped
    and then the cancellation goes on; pages that came stay resident. Leaving is not stopped by a
    cancel.

    Attributes:
        iova: Where the device sees the first byte.
        nbytes: How many there are.
    """

    def __init__(
        self,
        container: Container,
        buffer: Buffer,
        iova: int,
        *,
        read: bool,
        write: bool,
        chunk: int | None,
        options: dict[str, Any],
        name: str,
        coordinator: Coordinator | None,
    ) -> None:
        super().__init__(coordinator)
        self.iova = iova
        self.nbytes = buffer.nbytes
        self._container = container
        self._address = buffer.address
        self._read = read
        self._write = write
        self._piece = chunk  # chosen when the pages are known, if it is not fixed
        self._options = options
        self._name = name
        self._pieces: list[range] = []  # iovas that are mapped, or were about to be
        self._populating: Job[None] | None = self._populate_job(buffer)

    def __repr__(self) -> str:
        last = self.iova + self.nbytes - 1
        return f"<Mapping of {self.nbytes} bytes to {self.iova:#x} to {last:#x}: {self._state}>"

    def _taking(self) -> Steps:
        self._container._hold(self, range(self.iova, self.iova + self.nbytes))
        try:
            yield self._job("check", self._check, 1)
            assert self._populating is not None
            yield self._populating
            assert self._piece is not None
            yield self._job("map", self._map, self.nbytes, start=self._address, chunk=self._piece)
        except BaseException:
            yield from self._giving_back()
            raise

    def _giving_back(self) -> Steps:
        # A fork's child has the same container as its parent, whose mappings they are.
        if self._pieces and not self._container._inherited:
            yield self._job("unmap", self._unmap, len(self._pieces), chunk=1)
        self._pieces.clear()
        self._container._let_go(self, range(self.iova, self.iova + self.nbytes))
        # With it goes the buffer.
        self._populating = None

    def _check(self, _start: int, _stop: int) -> None:
        """What takes too long for the loop's thread, and capabilities, which each thread has."""
        if self._piece is None:
            page = largest_page(self._address, self.nbytes)
            self._piece = piece_size(self.iova, self._address, page)
        backend = self._container._backend
        backend.check_memory_limit(self.nbytes)
        wanted = number_of_pieces(self._address, self.nbytes, self._piece)
        available = backend.dma_available()
        if available is not None and wanted > available:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: {self.nbytes} bytes in pieces of {self._piece} are "
                f"{wanted} mappings, and this container may make {available} more: pass a larger "
                f"chunk, or raise the module parameter dma_entry_limit of vfio_iommu_type1",
            )

    def _map(self, start: int, stop: int) -> None:
        iova = start - self._address + self.iova
        self._pieces.append(range(iova, iova + stop - start))
        try:
            self._container._backend.map(
                start, iova, stop - start, read=self._read, write=self._write
            )
        except OSError:
            self._pieces.pop()
            raise

    def _unmap(self, start: int, stop: int) -> None:
        for piece in self._pieces[start:stop]:
            self._container._backend.unmap(piece.start, len(piece))

    def _populate_job(self, buffer: Buffer) -> Job[None]:
        function: Callable[[Buffer, int, int], object] = populate_pages
        if not self._write:
            # The buffer may be one that cannot be written. Private memory that can is faulted in as
            # by a write all the same: else the device would see a page of zeros for ever that the
            # process's first write replaces (before Linux 6.2).
            mappings = mappings_between(buffer.address, buffer.address + buffer.nbytes)
            function = functools.partial(populate_as_locked, mappings)
        return job_over(
            buffer,
            function,
            whole_pages=True,
            min_chunk=MIN_CHUNK,
            chunk=None,
            name=f"{self._name}.populate",
            **self._options,
        )

    def _job(
        self,
        what: str,
        function: Callable[[int, int], None],
        size: int,
        *,
        start: int = 0,
        chunk: int | None = None,
    ) -> Job[None]:
        return Job(
            function,
            size,
            start=start,
            chunk=chunk,
            max_threads=1,
            nice=self._options["nice"],
            name=f"{self._name}.{what}",
        )
