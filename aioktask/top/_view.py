# SPDX-License-Identifier: MIT
# What processes, or a live page, told of their jobs, as values: read and checked.
#
# Pure. All text in a row is plain (see `_text`), so nothing that a program named can do anything to
# a terminal. An answer is what another process says, perhaps one with another version of the
# library: one that cannot be read is told as a problem of that process.
"""What there is to see, as `top` reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from aioktask.job import JobPhase, Progress, StreamProgress
from aioktask.observe.processes import UNREADABLE, unreadable
from aioktask.observe.processes import Told as Answer
from aioktask.observe.values import integer, number, text
from aioktask.telling import counted, lasting, told, units_of
from aioktask.top._text import plain

__all__ = [
    "STUCK",
    "HelperRow",
    "JobRow",
    "ProcessRow",
    "View",
    "WorkerRow",
    "view_of",
    "view_of_page",
]

# How what is said of a job begins where a chunk of it does not end.
STUCK = "at one chunk for "


@dataclass(frozen=True, slots=True)
class HelperRow:
    """A thread that serves a job, in words.

    Attributes:
        job: The number of the job that it works on; None for none.
        text: Which one it is, and what it is at.
        stuck: How long it has been at that chunk, in seconds, where that is too long; else 0.
        stack: Where it was then, the innermost call last.
    """

    job: int | None
    text: str
    stuck: float
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """Another process that works on a job, in words.

    Attributes:
        job: The number of the job.
        text: Which one it is, and how it stands.
        gone: Whether it is gone before the job was over.
    """

    job: int
    text: str
    gone: bool


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job, stream or call of a process.

    Attributes:
        pid: Of the process.
        number: Of the job in it.
        kind: "job", "stream" or "call".
        name: The job's, plain.
        labels: As ``key=value``, plain.
        phase: As `aioktask.status.JobStatus` has it.
        fraction: How much of it is done and not undone, from 0 to 1; None where that is not known.
        percent: The same in words; empty where that is not known.
        units: How many units are done, and of how many, in words.
        text: What else there is to say of its progress: the time left, or how it ended.
        rate: Units a second.
        threads: How many work on it, or did at most.
        nice: As it was asked for.
        loan: What is lent to it; None for nothing.
        lender: The number of the job that lends it; None where that is none, or not known.
        seconds: How long it has worked; where it has not begun, how long it has waited.
        ended: How many seconds ago it was over; None where it is not.
        note: What there is to say of it: why it fails or waits, at what it is stuck, how it ended.
        error: What was raised, and by which chunk, in words; empty where nothing was.
    """

    pid: int
    number: int
    kind: str
    name: str
    labels: tuple[str, ...]
    phase: JobPhase
    fraction: float | None
    percent: str
    units: str
    text: str
    rate: float
    threads: int
    nice: int
    loan: int | None
    lender: int | None
    seconds: float
    ended: float | None
    note: str
    error: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from all others."""
        return self.pid, self.number

    @property
    def state(self) -> str:
        """Its phase, or in a word what is the matter with it."""
        if self.phase != "running" or not self.note:
            return self.phase
        if self.note.startswith(STUCK):
            return "stuck"
        return self.phase if self.threads else "waits"

    @property
    def nices(self) -> str:
        """Its nice, and the one that is lent to it."""
        return f"{self.nice}" if self.loan is None else f"{self.nice}>{self.loan}"


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process.

    Attributes:
        pid: Its number.
        command: As it was started; empty where that is not known.
        problem: Why it tells nothing; empty where it does.
        working: How many threads work on jobs.
        limit: How many may.
        reason: What decides that.
        loop: How late its event loops are; empty where there is none to look after.
        counts: How many jobs there are in each phase.
        helpers: Its threads.
        advice: What the library advises: the job's name and the words.
        workers: Those that its jobs have in other processes.
    """

    pid: int
    command: str = ""
    problem: str = ""
    working: int = 0
    limit: int = 0
    reason: str = ""
    loop: str = ""
    counts: tuple[tuple[str, int], ...] = ()
    helpers: tuple[HelperRow, ...] = ()
    advice: tuple[tuple[str, str], ...] = ()
    workers: tuple[WorkerRow, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """All that was told at one time.

    Attributes:
        processes: By number.
        jobs: Those under way.
        ended: Those that are over, the latest first.
    """

    processes: tuple[ProcessRow, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    ended: tuple[JobRow, ...] = ()

    def process(self, pid: int) -> ProcessRow | None:
        """The one of this number, if it told anything."""
        return next((each for each in self.processes if each.pid == pid), None)


# Reading.


def view_of(answers: Iterable[Answer], before: View | None = None) -> View:
    """Read what processes answered.

    Args:
        answers: Of each process.
        before: What was read last: where a process does not answer, its command is known from it.
    """
    processes: list[ProcessRow] = []
    jobs: list[JobRow] = []
    ended: list[JobRow] = []
    for each in answers:
        problem = plain(each.problem)
        if not problem:
            try:
                process, its_jobs, its_ended = _read(each.pid, each.answer)
            except UNREADABLE as error:
                problem = plain(unreadable(each.pid, error).problem)
            else:
                processes.append(process)
                jobs += its_jobs
                ended += its_ended
        if problem:
            known = before.process(each.pid) if before is not None else None
            command = known.command if known is not None else ""
            processes.append(ProcessRow(each.pid, command, problem))
    ended.sort(key=lambda job: job.ended or 0.0)
    return View(tuple(processes), tuple(jobs), tuple(ended))


def _read(pid: int, answer: Any) -> tuple[ProcessRow, list[JobRow], list[JobRow]]:
    limits = answer["limits"]
    threads, share = _integer(limits["threads"]), limits["share"]
    reason = _text(limits["reason"])
    if share is not None:
        threads, reason = _integer(share), "its share, while other processes want the CPUs"
    process = ProcessRow(
        pid=pid,
        command=_command(answer.get("command", "")),
        working=_integer(limits["working"]),
        limit=threads + _integer(limits["blocked"]),  # each that blocks makes room for one more
        reason=reason,
        loop=", ".join(_loop(each) for each in answer["loops"]),
        counts=tuple((_text(phase), _integer(n)) for phase, n in answer["counts"].items()),
        helpers=tuple(_helper(each) for each in answer["helpers"]),
        advice=tuple((_text(e["job"]), _text(e["text"])) for e in answer.get("advice", ())),
        workers=tuple(_worker(each) for each in answer.get("workers", ())),
    )
    # Of a part of a job of another process that one tells.
    jobs = [_job(pid, each) for each in answer["jobs"] if not each.get("part")]
    return process, jobs, [_job(pid, each) for each in answer["ended"] if not each.get("part")]


def _command(value: object) -> str:
    """How a process was started, without the folder that its interpreter is in."""
    program, blank, rest = _text(value).partition(" ")
    return f"{program.rpartition('/')[2]}{blank}{rest}"


def _loop(data: Mapping[str, Any]) -> str:
    late, worst = 1e3 * _seconds(data["late"]), 1e3 * _seconds(data["worst"])
    return f"{_text(data['kind'])} {late:.3g} ms late, {worst:.3g} at worst"


def _helper(data: Mapping[str, Any]) -> HelperRow:
    chunk = data["chunk"]
    at = _units_in(chunk) if chunk else ""
    return HelperRow(
        job=_integer_or_none(data["job"]),
        text=_helper_text(data, at, lasting(_seconds(data["since"]))),
        stuck=_seconds(data["stuck"]),
        stack=tuple(_text(each) for each in data["stack"]),
    )


def _worker(data: Mapping[str, Any]) -> WorkerRow:
    rate, running = _seconds(data["rate"]), data["running"]
    at = ""
    if running is not None:
        at = f"{counted(_integer(running[0]))} to {counted(_integer(running[1]))}"
    return WorkerRow(
        job=_integer(data["job"]),
        text=_worker_text(
            data,
            units=counted(_integer(data["units"])),
            rate=f"{counted(round(rate))}/s" if rate >= 0.5 else "",
            at=at,
            why=_text(data["lost"]) or _waiting(_text(data["waits_for"])),
        ),
        gone=data["state"] == "lost",
    )


def _waiting(why: str) -> str:
    return f"waits for {why}" if why else ""


def _worker_text(data: Mapping[str, Any], *, units: str, rate: str, at: str, why: str) -> str:
    parts = [f"{_text(data['name'])} on {_text(data['host'])}: {_text(data['state'])}"]
    parts.append(f"{units} done")
    if rate:
        parts.append(rate)
    parts.append(f"{_integer(data['working'])} of {_integer(data['threads'])} threads")
    if at:
        parts.append(f"at {at}")
    if why:
        parts.append(why)
    return ", ".join(parts)


def _helper_text(data: Mapping[str, Any], chunk: str, lasts: str) -> str:
    thread, node = _integer(data["thread"]), _integer_or_none(data["node"])
    parts = [f"{_text(data['kind'])} {thread}" if thread else _text(data["kind"])]
    parts.append(f"nice {_integer(data['nice'])}")
    if chunk:
        parts.append(f"at {chunk}")
    if lasts:
        parts.append(f"for {lasts}")
    if node is not None:
        parts.append(f"on node {node}")
    return ", ".join(parts)


def _job(pid: int, data: Mapping[str, Any]) -> JobRow:
    figures = data["progress"]
    phase = figures["phase"]
    if phase not in get_args(JobPhase):
        raise ValueError(f"phase {phase!r} is not known")
    size, eta = figures["size"], figures["eta"]
    where = {
        "done": _integer(figures["done"]),
        "size": None if size is None else _integer(size),
        "threads": _integer(figures["threads"]),
        "elapsed": _seconds(figures["elapsed"]),
        "rate": _seconds(figures["rate"]),
        "phase": phase,
        "eta": None if eta is None else _seconds(eta),
    }
    name = _text(data["name"])
    failed = 0
    progress: Progress | StreamProgress
    if "undone" in figures:
        chunks, undone = _integer(figures["chunks"]), _integer(figures["undone"])
        progress = Progress(**where, chunks=chunks, undone=undone)
    else:
        failed = _integer(figures["failed"])
        progress = StreamProgress(**where, failed=failed)
    elapsed, queued, stuck = (_seconds(data[each]) for each in ("elapsed", "queued", "stuck"))
    ended = None if data["ended"] is None else _seconds(data["ended"])
    shown = told(name, progress)
    chunk = data["error_chunk"]
    units = "" if chunk is None else _units_in(chunk)
    error = _error(_text(data["error"]), units)
    note = _note(_text(data["waits_for"]), lasting(stuck) if stuck else "", error)
    if ended is not None:
        note = _end(shown.text, counted(failed) if failed else "", ended, error)
    return JobRow(
        pid=pid,
        number=_integer(data["number"]),
        kind=_text(data["kind"]),
        name=name,
        labels=tuple(f"{_text(key)}={_text(value)}" for key, value in data["labels"].items()),
        phase=shown.phase,
        fraction=shown.fraction,
        percent=shown.percent.strip(),
        units=_units(units_of(shown.position, shown.size), counted(failed) if failed else ""),
        text=shown.text,
        rate=_seconds(figures["rate"]),
        threads=_integer(data["threads"]),
        nice=_integer(data["nice"]),
        loan=_integer_or_none(data["loan"]),
        lender=_integer_or_none(data.get("lender")),
        seconds=elapsed if phase != "waiting" else queued,
        ended=ended,
        note=note,
        error=error,
    )


def _units(units: str, failed: str) -> str:
    """How many units are done, and how many items of a stream among them raised."""
    return f"{units}, {failed} of them failed" if failed else units


def _units_in(chunk: Sequence[Any]) -> str:
    return f"{counted(_integer(chunk[0]))} to {counted(_integer(chunk[1]))}"


def _error(error: str, units: str) -> str:
    """What was raised, and by which chunk."""
    return f"{error} (units {units})" if error and units else error


def _note(waits_for: str, stuck: str, error: str) -> str:
    """What there is to say of a job that is not over."""
    parts = []
    if stuck:
        parts.append(f"{STUCK}{stuck}")
    if error:
        parts.append(error)
    if waits_for:
        parts.append(f"waits for {waits_for}")
    return "; ".join(parts)


def _end(how: str, failed: str, ended: float, error: str) -> str:
    """What there is to say of a job that is over."""
    parts = [how, f"{failed} failed" if failed else "", f"{lasting(ended)} ago"]
    told = ", ".join(each for each in parts if each)
    return f"{told}: {error}" if error else told


# What is told is added up, and drawn, where nothing looks after an integer that is no float, or has
# more digits than Python writes.
_MOST = 10**100


def _integer_or_none(value: object) -> int | None:
    return None if value is None else _integer(value)


def _integer(value: object) -> int:
    found = integer(value)
    if abs(found) > _MOST:
        raise ValueError("an integer is too large for what it tells")
    return found


def _seconds(value: object) -> float:
    return float(number(value))


def _text(value: object) -> str:
    return plain(text(value))


# Reading what a live page tells, which is in words mostly.


def view_of_page(state: Any) -> View:
    """Read what a live page tells.

    Args:
        state: What it answers for its state, without who may change it.

    Raises:
        TypeError, ValueError, LookupError, AttributeError, OverflowError: It is something else.
    """
    helpers: dict[int, list[HelperRow]] = {}
    for each in state["helpers"]:
        helpers.setdefault(_integer(each["pid"]), []).append(_page_helper(each))
    workers: dict[int, list[WorkerRow]] = {}
    for each in state.get("workers", ()):
        workers.setdefault(_integer(each["pid"]), []).append(_page_worker(each))
    processes = [
        _page_process(
            each, tuple(helpers.get(each["pid"], ())), tuple(workers.get(each["pid"], ()))
        )
        for each in state["processes"]
    ]
    jobs = [_page_job(each) for each in state["jobs"]]
    ended = [_page_job(each) for each in state["ended"]]
    return View(tuple(processes), tuple(jobs), tuple(ended))


def _page_process(
    data: Mapping[str, Any], helpers: tuple[HelperRow, ...], workers: tuple[WorkerRow, ...]
) -> ProcessRow:
    pid, command = _integer(data["pid"]), _command(data["command"])
    problem = ""
    if data["state"] != "alive":
        problem = f"{_text(data['problem'])}, {_text(data['age'])} ago"
    if "limits" not in data:
        return ProcessRow(pid, command, problem)
    limits = data["limits"]
    return ProcessRow(
        pid=pid,
        command=command,
        problem=problem,
        working=_integer(limits["working"]),
        limit=_integer(limits.get("most", limits["threads"])),
        reason="; ".join([_text(limits["reason"]), *map(_text, limits["notes"])]),
        loop=", ".join(f"{_text(each['kind'])} {_text(each['text'])}" for each in data["loops"]),
        counts=tuple((_text(phase), _integer(n)) for phase, n in data["counts"].items()),
        helpers=helpers,
        advice=tuple((_text(each["job"]), _text(each["text"])) for each in data["advice"]),
        workers=workers,
    )


def _page_worker(data: Mapping[str, Any]) -> WorkerRow:
    gone, why = data["state"] == "lost", _text(data["why"])
    return WorkerRow(
        job=_integer(data["job"]),
        text=_worker_text(
            data,
            units=_text(data["units"]),
            rate=_text(data["rate"]),
            at=_text(data["at"]),
            why=why if gone else _waiting(why),
        ),
        gone=gone,
    )


def _page_helper(data: Mapping[str, Any]) -> HelperRow:
    return HelperRow(
        job=_integer_or_none(data["job"]),
        text=_helper_text(data, _text(data["chunk"] or ""), _text(data["lasts"])),
        stuck=_seconds(data["figures"]["stuck"]),
        stack=tuple(_text(each) for each in data["stack"]),
    )


def _page_job(data: Mapping[str, Any]) -> JobRow:
    phase = data["phase"]
    if phase not in get_args(JobPhase):
        raise ValueError(f"phase {phase!r} is not known")
    ended = _seconds(data["ended"]) if data.get("ended") is not None else None
    failed, error = _text(data["failed"]), _error(_text(data["error"]), _text(data["error_chunk"]))
    note = _note(_text(data["waits_for"]), _text(data["stuck"]), error)
    if ended is not None:
        note = _end(_text(data["text"]), failed, ended, error)
    fraction, figures = data["fraction"], data["figures"]
    return JobRow(
        pid=_integer(data["pid"]),
        number=_integer(data["number"]),
        kind=_text(data["kind"]),
        name=_text(data["name"]),
        labels=tuple(map(_text, data["labels"])),
        phase=phase,
        fraction=None if fraction is None else _seconds(fraction),
        percent=_text(data["percent"]),
        units=_units(_text(data["units"]), failed),
        text=_text(data["text"]),
        rate=_seconds(figures["rate"]),
        threads=_integer(data["threads"]),
        nice=_integer(data["nice"]),
        loan=_integer_or_none(data["loan"]),
        lender=_integer_or_none(data["lender"]),
        seconds=_seconds(figures["queued" if phase == "waiting" else "elapsed"]),
        ended=ended,
        note=note,
        error=error,
    )
