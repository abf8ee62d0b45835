# SPDX-License-Identifier: MIT
# How the processes of one user tell each other what there is to see, and pass on changes.
#
# A process that publishes listens on a Unix socket in a directory that only its user may enter,
# whose name is that of the set of slots that it shares; the kernel tells each side the user of the
# other. A request is one line of JSON. So is an answer, but that lists in it come after it, a row a
# line: so neither side keeps the GIL, and its loops waiting, for all of a long one. Who asks waits
# for each process for a bounded time, all at once, so that one that hangs holds nobody up: it is
# told as one that does not answer. What it tells is bounded in length, and may make no sense, as
# that of another version may: then it is told as one that cannot be read, and the others are as
# they are. The socket of a process that died is removed by the next one that finds nobody there.
#
# Nothing is published unless the program, or ``AIOKTASK_PUBLISH``, says so.
"""The processes of this user that publish their jobs."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import json
import math
import os
import socket
import socketserver
import stat
import struct
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aioktask.checks import seconds as seconds_of
from aioktask.engine import events
from aioktask.engine.api.control import cancel_job, history_since, keep_history, renice_job
from aioktask.engine.api.process import current_pool, tunables
from aioktask.engine.api.snapshots import take_snapshot
from aioktask.engine.events import Event, EventKind
from aioktask.engine.tunables import NO_SHARE
from aioktask.observe.command import this_command
from aioktask.observe.courtesy import Courtesy
from aioktask.observe.data import cut, snapshot_data
from aioktask.status import Snapshot

__all__ = [
    "UNREADABLE",
    "Publisher",
    "Told",
    "ask",
    "ask_all",
    "directory",
    "publish",
    "publish_if_asked",
    "unreadable",
]

VARIABLE = "AIOKTASK_PUBLISH"

# How long a process may take for an answer, in seconds.
ANSWER_SECONDS = 1.0

# The longest request, in bytes.
MOST_REQUEST = 65_536

# The longest answer, and the longest line of one, in bytes; and its most rows. A job takes half a
# kilobyte, and no process tells of as many as fit in here within the time that it has.
MOST_ANSWER = 32 << 20
MOST_LINE = 1 << 20
MOST_ROWS = 100_000

# What reading an answer raises that is not what it should be.
UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)

# How long to wait where the system has no descriptor for a connection.
SHORTAGE_SECONDS = 0.1

# So many processes are asked at a time.
MOST_ASKED = 32

# So many pieces of advice are kept, the last ones.
MOST_ADVICE = 50

_PEER = struct.Struct("iII")  # pid, uid, gid: see SO_PEERCRED in socket(7)


def directory(share: str | None = None) -> Path:
    """The directory of the sockets, made if need be.

    Args:
        share: The name of the set of slots; by default that of this process.

    Raises:
        OSError: There is none, and none can be made; or it is not this user's alone (EPERM).
    """
    name = str(tunables()["share"]) if share is None else share
    root = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    path = Path(root, f"aioktask-{os.geteuid()}-{name if name != NO_SHARE else 'unshared'}.jobs")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    private = stat.S_IMODE(found.st_mode) & 0o077 == 0
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not private:
        raise OSError(
            errno.EPERM,
            "not fit for the sockets of this user: it must be a directory of its own, mode 700",
            str(path),
        )
    return path


# Publishing.


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers requests, each in a thread of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, path: str, answer: Callable[[Mapping[str, Any]], object]) -> None:
        self.answer = answer
        super().__init__(path, _Handler)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno != errno.EINVAL:  # else it was closed
                # Descriptors are short: who asks stays in the queue, and this comes again.
                time.sleep(SHORTAGE_SECONDS)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        try:
            return _is_own(request)
        except BaseException:
            self.shutdown_request(request)
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: who asked went away, and nobody else is to be told."""


class _Handler(socketserver.StreamRequestHandler):
    timeout = ANSWER_SECONDS  # for the one who asks to say what

    server: _Server

    def handle(self) -> None:
        line = self.rfile.readline(MOST_REQUEST)
        if self._nobody_waits():
            return
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise TypeError(f"a request must be an object, got {type(request).__name__}")
            reply: dict[str, object] = {"answer": self.server.answer(request)}
        except (TypeError, ValueError, LookupError, RecursionError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        self.wfile.write(b"".join(_lines_of(reply)))

    def _nobody_waits(self) -> bool:
        """Whether who asked went away, and has been told that there was no answer.

        So it is where this process was stopped meanwhile. A job must not be cancelled after that.
        """
        try:
            self.connection.setblocking(False)
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(self.timeout)


def _lines_of(reply: Mapping[str, object]) -> Iterator[bytes]:
    """The lines of an answer: see `_read`."""
    courtesy = Courtesy()
    answer = reply.get("answer")
    rows = {}
    if isinstance(answer, dict):
        rows = {name: each for name, each in answer.items() if isinstance(each, list)}
        rest = {name: each for name, each in answer.items() if name not in rows}
        reply = {"answer": rest, "rows": {name: len(each) for name, each in rows.items()}}
    yield json.dumps(reply).encode() + b"\n"
    for each in rows.values():
        for row in each:
            courtesy()
            yield json.dumps(row).encode() + b"\n"


class _CutError(ValueError):
    """An answer that ends before all of it has come."""


def _read(reply: bytes, until: float = math.inf) -> dict[str, Any]:
    """An answer: its first line tells how many rows of which lists follow.

    Args:
        reply: All that came.
        until: By when it must be read, in the time of the monotonic clock.

    Raises:
        TimeoutError: That has passed.
        ValueError: It is not whole, or too long.
        TypeError, LookupError, RecursionError: It is none.
    """
    courtesy = Courtesy()
    lines = io.BytesIO(reply)  # not split: a line a byte long would take thirty times as much
    told = _line(lines)
    if not isinstance(told, dict):
        raise TypeError(f"an answer must be an object, got {type(told).__name__}")
    counts = told.get("rows", {})
    if not isinstance(counts, dict):
        raise TypeError(f"rows must be an object, got {type(counts).__name__}")
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise TypeError(f"the rows of {name} must be counted, got {count!r}")
    if sum(counts.values()) > MOST_ROWS:
        raise ValueError(f"it has more than {MOST_ROWS} rows")
    if counts and not isinstance(told["answer"], dict):
        raise TypeError(f"rows must be of an object, got {type(told['answer']).__name__}")
    for name, count in counts.items():
        found = []
        for _ in range(count):
            courtesy()
            if time.monotonic() >= until:
                raise TimeoutError
            found.append(_line(lines))
        told["answer"][name] = found
    return told


def _line(lines: io.BytesIO) -> Any:
    """The next line, as what it stands for."""
    line = lines.readline(MOST_LINE)
    if len(line) == MOST_LINE:
        raise ValueError(f"it has a line of more than {MOST_LINE} bytes")
    try:
        return json.loads(line)
    except ValueError as error:
        if line.endswith(b"\n"):
            raise
        raise _CutError("rows are missing") from error


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user, or of root."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, user, _ = _PEER.unpack(told)
    return user in (os.geteuid(), 0)


class Publisher:
    """This process, as others may see it. There is one at a time: see `publish`.

    Attributes:
        in_children: Whether children that it forks publish themselves too.
    """

    def __init__(self) -> None:
        self.path = directory() / f"{os.getpid()}.socket"
        self._advice: OrderedDict[tuple[str, str], dict[str, object]] = OrderedDict()
        self._closed = False
        self.in_children = False
        # Under another name until it listens: who finds nobody at a socket takes it away.
        beginning = self.path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            beginning.unlink()  # of a process that had this number before
        self._server = _Server(os.fspath(beginning), self.answer)
        try:
            self._inode = beginning.lstat().st_ino
            beginning.rename(self.path)
            threading.Thread(target=self._serve, name="aioktask published", daemon=True).start()
        except BaseException as error:
            self._closed = True
            self._server.server_close()
            for path in (beginning, self.path):
                _unlink(path, self._inode)
            if type(error) is RuntimeError:  # so Python says what the system refused
                what = "the system starts no thread to answer by"
                raise OSError(errno.EAGAIN, what, os.fspath(self.path)) from error
            raise
        keep_history()

    def __repr__(self) -> str:
        return f"<Publisher at {self.path}{': closed' if self._closed else ''}>"

    def _serve(self) -> None:
        # Not by `serve_forever`, which comes by several times a second for nothing.
        while not self._closed:
            try:
                self._server.handle_request()
            except Exception:  # memory is short: who asks stays in the queue
                time.sleep(SHORTAGE_SECONDS)
        self._server.server_close()

    def answer(self, request: Mapping[str, Any]) -> object:
        """What is told of this process, or done to one of its jobs.

        Args:
            request: What to `do`: "snapshot" (with `history`, the seconds of it that are wanted;
                in it `start` and `stop` are of `time.perf_counter`, `began` and `ended` tell how
                long ago that was), "cancel" the job `number`, or "renice" it to `nice`.

        Raises:
            TypeError, ValueError, LookupError: The request makes no sense.
        """
        asked = request.get("do")
        if asked == "snapshot":
            return self._snapshot(seconds_of("history", request.get("history", 0.0)))
        if asked == "cancel":
            return cancel_job(request["number"])
        if asked == "renice":
            return renice_job(request["number"], request["nice"])
        raise LookupError(f"do must be snapshot, cancel or renice, got {asked!r}")

    def _snapshot(self, seconds: float) -> dict[str, Any]:
        courtesy = Courtesy()
        found = take_snapshot(current_pool(), pause=courtesy)
        data = snapshot_data(found, pause=courtesy)
        data["command"] = this_command()
        data["advice"] = [*self._advice.values(), *_advice_now(found)]
        if seconds > 0:
            now = time.perf_counter_ns()
            rows = data["history"] = []
            for each in history_since(now - int(seconds * 1e9)):
                courtesy()
                rows.append(
                    {
                        "thread": each.thread,
                        "depth": each.depth,
                        "job": each.run,
                        "name": cut(each.name),
                        "kind": each.kind,
                        "lent": each.lent,
                        "start": each.start / 1e9,
                        "stop": each.stop / 1e9,
                        "began": (now - each.start) / 1e9,
                        "ended": (now - each.stop) / 1e9,
                        "failed": each.failed,
                    }
                )
        return data

    def hear(self, event: Event) -> None:
        """Keep what the library advises, once for each function."""
        text = _advice_of(event)
        if text:
            key = event.kind.value, event.job
            self._advice.pop(key, None)
            self._advice[key] = {
                "event": event.kind.value,
                "job": cut(event.job),
                "text": cut(text),
            }
            while len(self._advice) > MOST_ADVICE:
                self._advice.popitem(last=False)

    def close(self) -> None:
        """Tell nothing any more. May be called again."""
        # Not beside one that is made, which begins the history that this one ends. Not for long: a
        # signal handler may have come into that.
        locked = _making.acquire(timeout=ANSWER_SECONDS)
        try:
            if self._closed:
                return
            self._closed = True
            if _publishers.get("publisher") is self:
                del _publishers["publisher"]
            keep_history(keep=False)
            _unlink(self.path, self._inode)
        finally:
            if locked:
                _making.release()
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)  # so that its thread finds out

    def forget(self) -> None:
        """In a fork's child: have no part in the parent's socket."""
        self._closed = True
        self._server.socket.close()


_TOLD_IN_WORDS = (EventKind.HOLDS_GIL, EventKind.BOUND_TO_ONE_CPU, EventKind.HOMES_UNKNOWN)


def _advice_of(event: Event) -> str:
    details = event.details
    if event.kind in _TOLD_IN_WORDS:
        return str(details["advice"])
    if event.kind is EventKind.STUCK:
        seconds = details["seconds"]
        return f"at one chunk for {seconds:.3g} s: a cancel and a stop wait until that ends"
    return ""


def _advice_now(found: Snapshot) -> Iterator[dict[str, object]]:
    """What there is to advise as long as it is like this: a cap below the CPUs that keeps jobs."""
    limits = found.limits
    try:
        cpus = len(os.sched_getaffinity(os.getpid()))
    except (AttributeError, OSError):  # not to be known here
        return
    starved = [each for each in found.jobs if each.threads == 0 and each.waits_for]
    if limits.threads < cpus and limits.working >= limits.threads and starved:
        yield {
            "event": "cap_below_cpus",
            "job": "",
            "text": (
                f"jobs wait for a thread, and this process has {limits.threads} for the {cpus} "
                f"CPUs that it may use: {limits.reason}"
            ),
        }


def _unlink(path: Path, inode: int) -> None:
    """Take a socket away, unless that is another one by now."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if found.st_ino == inode and stat.S_ISSOCK(found.st_mode):
            path.unlink()


_publishers: dict[str, Publisher] = {}  # the one there is
_making = threading.Lock()  # guards the making of it; who publishes waits for it


def _hear(event: Event) -> None:
    publisher = _publishers.get("publisher")
    if publisher is not None:
        publisher.hear(event)


# Once: a listener is never let go of, and there may be many publishers, one after the other.
events.listen(_hear, lambda: False)


def publish(*, in_children: bool = False) -> Publisher:
    """Have other processes of this user see the jobs of this one, and change them.

    `ask_all` and `ask` are how they do. May be called again, also after a fork; the variable
    ``AIOKTASK_PUBLISH=1`` does the same for a program that does not call it.

    Args:
        in_children: Whether children that this process forks do so too, as the workers of a server
            that has loaded the application before.

    Returns:
        What ends that by `close`. The exit of the interpreter does so too.

    Raises:
        OSError: The socket cannot be made, or its directory is not this user's alone.

    >>> publisher = publish()
    >>> os.getpid() in [each.pid for each in ask_all()]
    True
    >>> publisher.close()
    """
    with _making:  # one that is made takes the socket's path from whoever has it
        found = _publishers.get("publisher")
        if found is None:
            found = _publishers["publisher"] = Publisher()
        found.in_children |= in_children
    return found


def publish_if_asked() -> None:
    """Publish where ``AIOKTASK_PUBLISH=1`` says so; what prevents that is only shown."""
    said = os.environ.get(VARIABLE, "").strip()
    if said not in ("", "0", "1"):
        print(f"aioktask: {VARIABLE} must be 0 or 1, got {said!r}", file=sys.stderr)
    if said == "1":
        _publish_if_possible()


def _publish_if_possible(*, in_children: bool = False) -> None:
    try:
        publish(in_children=in_children)
    except (OSError, ValueError) as error:  # the latter of a variable that says nonsense
        print(f"aioktask: the jobs of {os.getpid()} are not published: {error}", file=sys.stderr)


def _close_at_exit() -> None:
    found = _publishers.get("publisher")
    if found is not None:
        found.close()


def _forget_in_child() -> None:
    global _making
    _making = threading.Lock()  # another thread of the parent may have held it
    found = _publishers.pop("publisher", None)
    if found is not None:
        found.forget()
        if found.in_children:
            _publish_if_possible(in_children=True)
        else:
            publish_if_asked()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


# Asking.


@dataclass(frozen=True)
class Told:
    """What one process answered.

    Attributes:
        pid: Of the process.
        answer: What it told; None where it did not.
        problem: Why not, in words; empty where it did.
        gone: Whether it did not since there is nobody at its socket.
    """

    pid: int
    answer: Any
    problem: str = ""
    gone: bool = False


def unreadable(pid: int, error: Exception) -> Told:
    """What stands for the answer of a process that cannot be read.

    Args:
        pid: Of the process.
        error: One of `UNREADABLE`, that reading it raised.

    >>> unreadable(7, KeyError("jobs")).problem
    "what it tells cannot be read here: another version? (KeyError: 'jobs')"
    """
    what = f"{type(error).__name__}: {error}"[:80]
    return Told(pid, None, f"what it tells cannot be read here: another version? ({what})")


def ask(pid: int, request: Mapping[str, object], *, seconds: float = ANSWER_SECONDS) -> Told:
    """Ask one process of this user that publishes its jobs.

    Args:
        pid: Of the process.
        request: As `Publisher.answer` takes it.
        seconds: How long to wait for the answer.
    """
    return _ask(directory() / f"{pid}.socket", request, seconds, time.monotonic() + seconds)


def ask_all(
    request: Mapping[str, object] | Callable[[int], Mapping[str, object]] | None = None,
    *,
    seconds: float = ANSWER_SECONDS,
) -> list[Told]:
    """Ask every process of this user that publishes its jobs, all at once.

    Args:
        request: As `Publisher.answer` takes it, or what makes one for the number of a process; by
            default for a snapshot.
        seconds: How long to wait, for all of them together.

    Returns:
        What each told, by number of the process. One that hangs, is stopped or is gone is told as
        such.
    """

    def asked(path: Path) -> Told:
        wanted = {"do": "snapshot"} if request is None else request
        return _ask(path, wanted(int(path.stem)) if callable(wanted) else wanted, seconds, until)

    paths = [path for path in sorted(directory().glob("*.socket")) if _names_process(path)]
    if not paths:
        return []
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(min(len(paths), MOST_ASKED), "aioktask asks") as threads:
        answers: Iterable[Told] = threads.map(asked, paths)
        return sorted(answers, key=lambda each: each.pid)


def _names_process(path: Path) -> bool:
    return path.stem.isascii() and path.stem.isdecimal() and path.is_socket()


def _ask(path: Path, request: Mapping[str, object], seconds: float, until: float) -> Told:
    """Ask at this socket; wait until a time of the monotonic clock, `seconds` after the begin."""
    pid = int(path.stem)
    late = f"it did not answer in {seconds:.3g} s: it hangs, or is stopped"
    try:
        inode = path.lstat().st_ino
        with socket.socket(socket.AF_UNIX) as connection:
            _wait_until(connection, until)
            connection.connect(os.fspath(path))
            if not _is_own(connection):
                return Told(pid, None, "its socket is another user's")
            connection.sendall(json.dumps(dict(request)).encode() + b"\n")
            reply = _read_all(connection, until)
    except FileNotFoundError:
        return Told(pid, None, "it is gone", gone=True)
    except ConnectionRefusedError:
        _unlink(path, inode)  # nobody will ever listen there again
        return Told(pid, None, "it is gone", gone=True)
    except (TimeoutError, BlockingIOError):  # or so many wait there that no more can
        return Told(pid, None, late)
    except OSError as error:
        return Told(pid, None, str(error))
    except ValueError as error:
        return unreadable(pid, error)
    try:
        told = _read(reply, until)
        if "error" in told:
            return Told(pid, None, str(told["error"]))
        if told["answer"] is None:
            raise TypeError("there is no answer")
    except TimeoutError:
        return Told(pid, None, f"its answer could not be read in {seconds:.3g} s: it is too long")
    except _CutError:
        return Told(pid, None, "it went away as it answered")
    except UNREADABLE as error:
        return unreadable(pid, error)
    return Told(pid, told["answer"])


def _read_all(connection: socket.socket, until: float) -> bytes:
    """All that comes, by a time of the monotonic clock.

    Raises:
        TimeoutError: That has passed.
        ValueError: It is too long.
    """
    found = bytearray()
    while len(found) <= MOST_ANSWER:
        _wait_until(connection, until)
        part = connection.recv(1 << 20)
        if not part:
            return bytes(found)
        found += part
    raise ValueError(f"it is longer than {MOST_ANSWER} bytes")


def _wait_until(connection: socket.socket, until: float) -> None:
    """Have what is next on the connection wait until this time of the monotonic clock.

    Raises:
        TimeoutError: It has passed.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
