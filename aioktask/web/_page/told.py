# SPDX-License-Identifier: MIT
# What the page is told: the answers of all processes as one message, in words where it is words
# that are shown.
#
# A message is bounded, however many jobs there are: so many jobs, ended jobs, threads and workers
# in all, the rest as counts. Names and labels are made printable here, and stay text in the
# browser.
#
# An answer is what another process says, perhaps one with another version of the library. Each is
# read as a whole before anything of it is shown, so one that cannot be read is told as a problem of
# that process alone, which is shown as it was before. Numbers are finite and text is text, so a
# message is always JSON.
#
# Pure, but for one thing: it lets go of the GIL now and then, since a loop of this process may wait
# for it.
"""Messages to the page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aioktask.job import Progress, StreamProgress
from aioktask.markup import printable
from aioktask.observe.courtesy import Courtesy
from aioktask.observe.processes import UNREADABLE, Told, unreadable
from aioktask.observe.values import integer, integer_or_none, nesting, number, text
from aioktask.telling import counted, lasting, rated, units_of
from aioktask.telling import told as in_words

__all__ = ["MOST_JOBS", "Processes", "job_row"]

MOST_JOBS = 2000
MOST_ENDED = 200
MOST_HELPERS = 1000
MOST_WORKERS = 1000
MOST_PROCESSES = 200

# A process that is gone is shown for so long, in seconds.
GONE_SECONDS = 60.0


@dataclass(frozen=True)
class _Read:
    """An answer as it is shown: what there is of the process, and the rows of its lists."""

    command: str
    shown: Mapping[str, Any]
    jobs: Sequence[dict[str, Any]]
    ended: Sequence[dict[str, Any]]
    helpers: Sequence[dict[str, Any]]
    workers: Sequence[dict[str, Any]]
    left_out_workers: int
    under_way: int


_NOTHING = _Read("", {}, (), (), (), (), 0, 0)


@dataclass
class _Process:
    """What is known of a process: its last answer, when that came, and why there is none now."""

    pid: int
    read: _Read = _NOTHING
    at: float = 0.0
    state: str = "alive"
    problem: str = ""
    gone_at: float = 0.0  # when that was found


class Processes:
    """The processes that were heard of, with what each told last."""

    def __init__(self) -> None:
        self._known: dict[int, _Process] = {}

    def hear(self, told: Sequence[Told], now: float) -> None:
        """Take in what all that publish answered, at this time.

        One that was known and does not publish any more is gone.
        """
        pause = Courtesy()
        for each in told:
            known = self._known.setdefault(each.pid, _Process(each.pid))
            heard = each
            if heard.answer is not None:
                try:
                    known.read, known.at = _read(each.pid, each.answer, now, pause), now
                    known.state, known.problem = "alive", ""
                    continue
                except UNREADABLE as error:
                    heard = unreadable(each.pid, error)
            if heard.gone:
                known.state, known.problem = "gone", "it ended, or was killed"
            else:
                known.state, known.problem = "silent", printable(heard.problem)
                known.at = known.at or now
        present = {each.pid for each in told}
        for known in list(self._known.values()):
            if known.pid not in present and known.state != "gone":
                known.state, known.problem = "gone", "it ended"
            if known.state == "gone":
                known.at, known.gone_at = known.at or now, known.gone_at or now
                if now - known.gone_at >= GONE_SECONDS:
                    del self._known[known.pid]
            else:
                known.gone_at = 0.0

    def message(self, now: float) -> dict[str, Any]:
        """All there is to show at this time, as data for JSON."""
        # Those that are gone last: there may be many, and they have no jobs.
        known = sorted(self._known.values(), key=lambda each: (each.state == "gone", each.pid))
        processes = known[:MOST_PROCESSES]
        told = [each.read for each in processes if each.state != "gone"]
        counts = [each.read.under_way for each in known if each.state != "gone"]
        jobs = [row for each in told for row in each.jobs]
        ended = [row for each in told for row in each.ended]
        helpers = [row for each in told for row in each.helpers]
        workers = [row for each in told for row in each.workers]
        unsaid = sum(each.left_out_workers for each in told)
        return {
            "clock": round(now, 3),
            "at": time.strftime("%H:%M:%S"),
            "processes": [_shown(each, now) for each in processes],
            "jobs": sorted(jobs, key=lambda each: bool(each["resting"]))[:MOST_JOBS],
            "under_way": sum(counts),
            "ended": sorted(ended, key=lambda each: float(each["ended"]))[:MOST_ENDED],
            "helpers": helpers[:MOST_HELPERS],
            "left_out_helpers": max(len(helpers) - MOST_HELPERS, 0),
            "workers": workers[:MOST_WORKERS],
            "left_out_workers": max(len(workers) - MOST_WORKERS, 0) + unsaid,
        }


def _shown(process: _Process, now: float) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "command": process.read.command,
        "state": process.state,
        "problem": process.problem,
        "age": lasting(max(now - (process.gone_at or process.at), 0.0)),
        **(process.read.shown if process.state != "gone" else {}),
    }


def _read(pid: int, answer: Mapping[str, Any], at: float, pause: Courtesy) -> _Read:
    """What a process answered at this time.

    Raises:
        One of `UNREADABLE`: It is not what a process of this version tells.
    """
    limits = answer["limits"]
    counts = {text(phase): integer(count) for phase, count in answer["counts"].items()}
    shown = {
        "counts": counts,
        "limits": _limits(limits),
        "slots": _slots(limits["slots"]),
        "loops": [_loop(each) for each in answer["loops"]],
        "advice": [
            {
                "event": text(each["event"]),
                "job": printable(text(each["job"])),
                "text": printable(text(each["text"])),
            }
            for each in answer.get("advice", ())
        ],
    }
    names: dict[int, str] = {}
    jobs, ended, helpers, workers = [], [], [], []
    for each in answer["jobs"]:
        names[integer(each["number"])] = printable(text(each["name"]))
        if not each.get("part"):  # else the process whose job it is a part of tells of that
            jobs.append(job_row(pid, each))
        pause()
    for each in answer["ended"]:
        if each.get("part"):
            continue
        row = job_row(pid, each)
        number(row["ended"])  # it is there
        ended.append(row)
        pause()
    for each in answer["helpers"]:
        helpers.append(_helper(pid, each, names, at))
        pause()
    helpers = _by_thread(helpers)
    for each in answer.get("workers", ()):
        workers.append(_worker(pid, each, names))
        pause()
    left_out = integer(answer.get("left_out_workers", 0))
    command = printable(text(answer.get("command", "")))
    under_way = sum(counts.values())
    return _Read(command, shown, jobs, ended, helpers, workers, left_out, under_way)


def job_row(pid: int, job: Mapping[str, Any]) -> dict[str, Any]:
    """One job as a row.

    Args:
        pid: Of its process.
        job: Of `aioktask.observe.data.snapshot_data`.

    Raises:
        One of `UNREADABLE`: It is not what a process of this version tells.
    """
    progress = _progress(job["kind"], job["progress"])
    rate, elapsed, queued = (
        number(each) for each in (progress.rate, job["elapsed"], job["queued"])
    )
    words = in_words(text(job["name"]), progress)
    fraction = words.fraction
    over = job["ended"] is not None
    failed = progress.failed if isinstance(progress, StreamProgress) else 0
    row: dict[str, Any] = {
        "key": f"{pid}:{integer(job['number'])}",
        "pid": pid,
        "number": job["number"],
        "kind": text(job["kind"]),
        "name": words.name,
        "labels": [
            f"{printable(name)}={printable(value)}" for name, value in job["labels"].items()
        ],
        "phase": text(job["phase"]),
        "fraction": None if fraction is None else round(min(max(number(fraction), 0.0), 1.0), 4),
        "percent": words.percent.strip(),
        "text": words.text,
        "units": units_of(words.position, words.size),
        "failed": counted(integer(failed)) if failed else "",
        "rate": rated(rate),
        "threads": integer(job["threads"]),
        "nice": integer(job["nice"]),
        "loan": integer_or_none(job["loan"]),
        "lender": integer_or_none(job.get("lender")),
        "elapsed": lasting(elapsed),
        "queued": lasting(queued),
        "begun": elapsed > 0,
        "age": lasting(number(job["age"])),
        "waits_for": printable(job["waits_for"]),
        "error": printable(text(job["error"])),
        "error_chunk": _units_in(job["error_chunk"]),
        "stuck": lasting(number(job["stuck"])) if job["stuck"] else "",
        "resting": job["phase"] in ("waiting", "settled"),
        # For programs, such as `top`: units a second, and seconds.
        "figures": {
            "rate": round(rate, 3),
            "elapsed": round(elapsed, 3),
            "queued": round(queued, 3),
        },
    }
    if over:
        row["ended"] = number(job["ended"])
        row["ago"] = lasting(job["ended"])
        row["undone"] = counted(job["undone"]) if job["undone"] else ""
    return row


def _units_in(chunk: Sequence[int] | None) -> str:
    return "" if chunk is None else f"{counted(integer(chunk[0]))} to {counted(integer(chunk[1]))}"


def _progress(kind: str, data: Mapping[str, Any]) -> Progress | StreamProgress:
    return StreamProgress(**data) if kind == "stream" else Progress(**data)


def _helper(
    pid: int, helper: Mapping[str, Any], names: Mapping[int, str], at: float
) -> dict[str, Any]:
    job = integer_or_none(helper["job"])
    since, stuck = number(helper["since"]), number(helper["stuck"])
    return {
        "pid": pid,
        "kind": text(helper["kind"]),
        "thread": integer(helper["thread"]),
        "depth": nesting(helper["depth"]),
        "state": text(helper["state"]),
        "job": job,
        "name": "" if job is None else names.get(job, ""),
        "since": round(at - since, 4),
        "lasts": lasting(since) if job is not None else "",
        "nice": integer_or_none(helper["nice"]),
        "node": integer_or_none(helper["node"]),
        "chunk": _units_in(helper["chunk"]) or None,
        "stuck": lasting(stuck) if stuck else "",
        "figures": {"stuck": round(stuck, 3)},
        "stack": [printable(line) for line in helper["stack"]],
    }


def _worker(pid: int, worker: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    job, name = integer(worker["job"]), printable(text(worker["name"]))
    running, rate = worker["running"], number(worker["rate"])
    return {
        "key": f"{pid}:{job}:{name}",
        "pid": pid,
        "job": job,
        "of": names.get(job, ""),
        "name": name,
        "host": printable(text(worker["host"])),
        "state": text(worker["state"]),
        "units": counted(integer(worker["units"])),
        "rate": f"{counted(round(rate))}/s" if rate >= 0.5 else "",
        "working": integer(worker["working"]),
        "threads": integer(worker["threads"]),
        "at": "" if running is None else f"{counted(running[0])} to {counted(running[1])}",
        "why": printable(text(worker["lost"]) or text(worker["waits_for"])),
    }


def _by_thread(helpers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, those of one thread one after the other, with the job whose chunk each is inside.

    Args:
        helpers: In the order in which those of a thread began.
    """
    threads: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for place, each in enumerate(helpers):
        thread = each["thread"]
        threads.setdefault(("runs", thread) if thread else ("starts", place), []).append(each)
    for thread, rows in threads.items():
        for place, each in enumerate(rows):
            key = ":".join(map(str, (each["pid"], *thread, place)))
            inside = rows[place - 1]["job"] if place and each["depth"] else None
            each |= {"key": key, "inside": inside}
    return [each for rows in threads.values() for each in rows]


def _limits(limits: Mapping[str, Any]) -> dict[str, Any]:
    share, background = integer_or_none(limits["share"]), integer(limits["background"])
    threads, blocked = integer(limits["threads"]), integer(limits["blocked"])
    notes = []
    if share is not None:
        notes.append(f"{share} while other processes want the same CPUs")
    if background < threads:
        notes.append(f"{background} for jobs that leave the CPUs to other processes")
    if blocked:
        notes.append(f"{blocked} in calls that block")
    return {
        "threads": threads,
        "most": threads + blocked,  # each that blocks makes room for one more
        "working": integer(limits["working"]),
        "reason": printable(limits["reason"]),
        "notes": notes,
    }


def _slots(slots: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if slots is None:
        return None
    return {
        "name": printable(slots["name"]),
        "held": integer(slots["held"]),
        "busy": integer(slots["busy"]),
        "refused": printable(slots["refused"]),
        "holders": [
            {"pid": integer(each["pid"]), "held": integer(each["held"])}
            for each in slots["holders"]
        ],
    }


def _loop(loop: Mapping[str, Any]) -> dict[str, Any]:
    late, worst = number(loop["late"]) * 1e3, number(loop["worst"]) * 1e3
    return {
        "kind": text(loop["kind"]),
        "late": round(late, 3),
        "text": f"{_ms(late)} late, {_ms(worst)} at worst in 10 s",
    }


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 9.95 else f"{value:,.0f} ms"
