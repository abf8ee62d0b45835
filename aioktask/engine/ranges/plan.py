# SPDX-License-Identifier: MIT
# How a range is cut: thread counts, chunk sizes and boundaries, the leaves of a reduce.
#
# Pure. Guarantees that boundaries are absolute multiples of the chunk size and of `align`, part
# edges apart, and that a size is never 0. Relies on Job having refused nonsense.
"""Decisions about how a job is split, after padata's rule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

from aioktask.engine.lookups import look_up
from aioktask.job import Job

# padata's load_balance_factor: this many chunks for each thread, so that a slow one can be helped
# out.
CHUNKS_PER_THREAD = 4

# A reduce has at most about this many leaves, whatever the machine: enough for 256 threads to
# balance.
MOST_LEAVES = 4096

# Pieces that end a range are multiples of the grain, or of its half, and so on down to this part.
PIECES_OF_GRAIN = 64

# A chunk of more than this share of the job is worth a word in `plan()`.
LONG_CHUNK_SHARE = 1 / 4


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job would be run now: what `plan(job)` returns.

    Attributes:
        name: The job's name.
        threads: The most threads that would work on it; 0 for a job of size 0.
        chunk: The chunk size, in units; chunks end on absolute multiples of it.
        chunks: How many chunks there are, short ones at edges included.
        limited_by: Which limit decided the number of threads.
        notes: What is worth knowing beside that, a sentence each.
        spans: The ranges that are cut separately: the parts, or the whole range.
    """

    name: str
    threads: int
    chunk: int
    chunks: int
    limited_by: str
    notes: tuple[str, ...]
    spans: tuple[range, ...]

    def boundaries(self) -> Iterator[range]:
        """Every chunk as a range, ascending. Made one by one: there may be millions."""
        for span in self.spans:
            yield from cut(span.start, span.stop, self.chunk)


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `number`."""
    return -(-number // multiple) * multiple


def cut(start: int, stop: int, chunk: int) -> Iterator[range]:
    """The chunks of start to stop: they end on multiples of `chunk`, the last one at `stop`."""
    while start < stop:
        end = min(start - start % chunk + chunk, stop)
        yield range(start, end)
        start = end


def count_chunks(start: int, stop: int, chunk: int) -> int:
    """How many chunks `cut` yields."""
    return 0 if start >= stop else (stop - 1) // chunk - start // chunk + 1


def worthwhile_threads(job: Job[Any]) -> int:
    """How many threads the size is worth, at least 1: size / max(min_chunk, align), rounded down.

    Source: ``padata_do_multithreaded``, Linux 6.12 (with `align` in the divisor, which a fix of
    2024 added: before it, a job of few aligned chunks started helpers that found nothing).
    """
    return max(job.size // max(job.min_chunk, job.align), 1)


def undo_grain(job: Job[Any]) -> int:
    """The grain of the undo: cuts are at its multiples, so no unit of work is undone in halves."""
    return job.chunk or round_up(job.min_chunk, job.align)


def piece_grain(job: Job[Any]) -> int:
    """The grain of the pieces that end the range, where the chunk size is learned.

    They are no smaller than `min_chunk`, but for what is left at the end. Where chunks are large,
    threads that are to end together need pieces of any size from there on: so the grain is a small
    part of it. Where there is an undo, that may cut at no boundary but its own.

    >>> piece_grain(Job(print, 10**9, min_chunk=1 << 14)), piece_grain(Job(print, 9, min_chunk=5))
    (256, 5)
    """
    grain = undo_grain(job)
    if job.undo is not None or job.chunk is not None:
        return grain
    parts = 1
    while parts < PIECES_OF_GRAIN and grain % (2 * parts * job.align) == 0:
        parts *= 2
    return grain // parts


def even_piece(job: Job[Any], threads: int) -> int:
    """Units of each piece of a range of a few chunks that so many threads share evenly.

    Returns:
        The size; 0 where the range is cut at the boundaries of chunks all the same: there is only
        one, or the boundaries are given.

    >>> even_piece(Job(print, 1600, min_chunk=640), 2), even_piece(Job(print, 1600, chunk=640), 2)
    (800, 0)
    """
    grain, cut = undo_grain(job), piece_grain(job)
    if threads < 2 or cut == grain or job.parts or job.reduce is not None:
        return 0
    pieces = max(job.size // (threads * grain), 1) * threads
    return round_up(-(-job.size // pieces), cut)


def chunk_size(size: int, threads: int, *, min_chunk: int, align: int) -> int:
    """padata's chunk: max(size / (4 x threads), min_chunk), rounded up to align.

    >>> chunk_size(1_000_000, 2, min_chunk=1, align=4096)
    126976
    """
    return round_up(max(size // (threads * CHUNKS_PER_THREAD), min_chunk), align)


def leaf_size(job: Job[Any]) -> int:
    """The leaf of a reduce, from the job's description alone, so that every machine cuts alike."""
    if job.chunk is not None:
        return job.chunk
    return round_up(max(job.min_chunk, -(-job.size // MOST_LEAVES)), job.align)


def job_chunk(job: Job[Any], threads: int) -> int:
    """The chunk size of a job that `threads` threads may work on."""
    if job.reduce is not None:
        return leaf_size(job)
    if job.chunk is not None:
        return job.chunk
    return chunk_size(job.size, threads, min_chunk=job.min_chunk, align=job.align)


def spans(job: Job[Any], chunk: int) -> tuple[range, ...]:
    """The ranges of a job that are cut separately, ascending: its parts, or the whole range.

    In a reduce, part edges are moved to leaf edges (a part keeps the leaf that it begins in), since
    the leaves may not depend on where the memory lies.
    """
    if not job.parts:
        return (range(job.start, job.stop),) if job.size else ()
    edges = [job.start]
    for part in job.parts[1:]:
        edge = part.start
        if job.reduce is not None:
            edge = max(round_up(edge, chunk), edges[-1])
        edges.append(min(edge, job.stop))
    edges.append(job.stop)
    return tuple(range(a, b) for a, b in pairwise(edges) if a < b)


def node_of(job: Job[Any], unit: int) -> int | None:
    """The NUMA node that a unit of the job belongs to; None for anywhere."""
    index = bisect_right(job.parts, unit, key=attrgetter("start"))
    return job.parts[index - 1].node if index else None


@dataclass(frozen=True, slots=True)
class Split:
    """The numbers of a plan."""

    threads: int
    chunk: int
    spans: tuple[range, ...]

    @property
    def chunks(self) -> int:
        return sum(count_chunks(span.start, span.stop, self.chunk) for span in self.spans)


class Facts(NamedTuple):
    """What follows from a job alone, so that it is found out once for all of its runs.

    Attributes:
        threads: The most that may serve it.
        chunk: The size of chunks, where the job is one chunk on every machine; else 0.
        undo_is_async: Whether its undo is a coroutine function.
    """

    threads: int
    chunk: int
    undo_is_async: bool


def facts_of(job: Job[Any]) -> Facts:
    """The facts of a job, found out once and kept with it."""
    facts: Facts | None = look_up(vars(job), "_facts")
    if facts is None:
        facts = Facts(most_threads(job), one_chunk(job), job.undo_is_async)
        object.__setattr__(job, "_facts", facts)
    return facts


def one_chunk(job: Job[Any]) -> int:
    """The chunk size of a job that is one chunk on every machine; 0 for any other.

    One claim takes all of such a job, and nothing can be learned of it. One that declares memory is
    none, since it may have to wait for that.
    """
    if job.reduce is not None or job.parts or not job.size or job.memory is not None:
        return 0
    chunk = job.chunk
    if chunk is None:
        if worthwhile_threads(job) > 1:  # the size of the chunks depends on the threads
            return 0
        chunk = chunk_size(job.size, 1, min_chunk=job.min_chunk, align=job.align)
    return chunk if (job.start + job.size - 1) // chunk == job.start // chunk else 0


def most_threads(job: Job[Any]) -> int:
    """The most threads that may serve the job, whatever the machine."""
    worth = worthwhile_threads(job)
    return worth if job.max_threads is None else min(worth, job.max_threads)


def split(job: Job[Any], cap: int) -> Split:
    """How the job is split when at most `cap` threads serve it."""
    threads = min(most_threads(job), cap)
    chunk = job_chunk(job, threads)
    return Split(threads, chunk, spans(job, chunk))


def make_plan(job: Job[Any], caps: Iterable[tuple[int, str]]) -> Plan:
    """The plan of a job under `caps`: pairs of a number of threads and what sets it."""
    worth = worthwhile_threads(job)
    limits = [(worth, f"the size: {job.size} / max(min_chunk, align) is {worth} or a little more")]
    if job.max_threads is not None:
        limits.append((job.max_threads, f"the job's max_threads={job.max_threads}"))
    limits.extend(caps)
    cap, limited_by = min(limits, key=lambda limit: limit[0])
    numbers = split(job, cap)
    chunks = numbers.chunks
    if chunks < numbers.threads:
        limited_by = f"the number of chunks: {chunks}"
    return Plan(
        name=job.name,
        threads=min(numbers.threads, chunks),
        chunk=numbers.chunk,
        chunks=chunks,
        limited_by=limited_by,
        notes=tuple(_notes(job, numbers.chunk, chunks)),
        spans=numbers.spans,
    )


def with_even_pieces(made: Plan, piece: int) -> Plan:
    """The plan of a run whose threads share its range in pieces of so many units, with a note."""
    note = f"too short to learn anything: its threads share it evenly, in pieces of {piece} units"
    return replace(made, notes=(*made.notes, note))


def with_memory(made: Plan, threads: int, reason: str) -> Plan:
    """The plan where memory leaves room for so many chunks at once."""
    if threads >= made.threads:
        return made
    return replace(made, threads=threads, limited_by=reason)


def with_learned(
    made: Plan, job: Job[Any], chunk: int | None, threads: int | None, advice: str = ""
) -> Plan:
    """The plan with what earlier runs learned of the job: chunk size, threads; None for nothing."""
    notes = list(made.notes)
    if chunk is not None and job.size:
        notes = [f"learned by earlier runs: chunks of {chunk} units; short ones end the range"]
        chunks = sum(count_chunks(span.start, span.stop, chunk) for span in made.spans)
        made = replace(made, chunk=chunk, chunks=chunks, threads=min(made.threads, chunks))
    if threads is not None and threads < made.threads:
        reason = f"what earlier runs learned: more than {threads} get no more done"
        made = replace(made, threads=threads, limited_by=reason)
    if advice:
        notes.append(advice)
    return replace(made, notes=tuple(notes))


def _notes(job: Job[Any], chunk: int, chunks: int) -> Iterator[str]:
    if job.size == 0:
        yield "size is 0: the job is done when it is submitted"
    elif chunk >= max(job.size * LONG_CHUNK_SHARE, 2):
        setting = "chunk" if job.chunk is not None else "min_chunk or align"
        why = f"{setting} makes chunks long" if chunks < CHUNKS_PER_THREAD else "chunks are long"
        yield (
            f"{why} ({chunk} of {job.size} units): cancelling the job and serving other jobs "
            "wait for the end of a chunk"
        )
    if job.reduce is not None:
        yield f"reduce: the leaves are {chunk} units on every machine, for a reproducible value"
