# SPDX-License-Identifier: MIT
# Processes that publish their jobs: each is seen by the others of its user, and by nobody else, and
# none holds up who asks.

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import (
    ChunkCancelled,
    Coordinator,
    Job,
    JobCancelled,
    current_chunk,
    run_multithreaded_sync,
)
from aioktask.engine import events
from aioktask.observe import processes
from aioktask.observe.processes import MOST_ASKED, MOST_LINE, Told, ask, ask_all, directory, publish
from tests.support.gates import CancelledGate, until
from tests.support.patience import PATIENCE
from tests.support.publishing import ROOT, Publishing

# Has one job at a gate, which ends when it is cancelled.
PROGRAM = """
import threading, sys
from aioktask import ChunkCancelled, Coordinator, Job, JobCancelled, current_chunk

went = threading.Event()

def waits(start, stop):
    print("at", flush=True)
    while not went.wait(0.01):
        current_chunk().check_cancelled()

with Coordinator() as coordinator:
    handle = coordinator.submit(Job(waits, 1, name=sys.argv[1], labels={"who": sys.argv[1]}))
    try:
        handle.result()
    except JobCancelled:
        print("cancelled", handle.nice, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


class Child(Publishing):
    def __init__(self, name: str) -> None:
        super().__init__(["-c", PROGRAM, name], "at")


@pytest.fixture
def children() -> Iterator[list[Child]]:
    found: list[Child] = []
    try:
        found += [Child("one"), Child("two")]
        yield found
    finally:
        for child in found:
            child.end()


def by_pid(told: list[Told]) -> dict[int, Told]:
    return {each.pid: each for each in told}


def jobs_of(told: Told) -> list[tuple[str, str]]:
    assert told.answer is not None, told.problem
    return [(each["name"], each["labels"]["who"]) for each in told.answer["jobs"]]


def test_every_process_that_publishes_is_seen_with_its_jobs(children: list[Child]) -> None:
    told = by_pid(ask_all())
    assert {pid: jobs_of(each) for pid, each in told.items()} == {
        children[0].pid: [("one", "one")],
        children[1].pid: [("two", "two")],
    }
    for each in told.values():
        assert each.answer["counts"] == {"running": 1}
        assert "python" in each.answer["command"]
        assert each.answer["limits"]["working"] == 1


WORKERS = """
import multiprocessing, pathlib, sys

def serve(connection):
    from aioktask.observe.processes import publish
    publish()
    connection.send(None)
    connection.recv()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    here, there = context.Pipe()
    sys.argv.append(pathlib.PurePath("data"))  # a program may put anything there
    worker = context.Process(target=serve, args=(there,), name="indexer")
    worker.start()
    here.recv()
    print(worker.pid, flush=True)
    sys.stdin.read()
    here.send(None)
    worker.join()
"""


@pytest.mark.parametrize("start", ["spawn", "forkserver", "fork"])
def test_a_worker_of_multiprocessing_says_the_command_of_its_program(
    start: str, tmp_path: Path
) -> None:
    script = tmp_path / "service.py"
    script.write_text(WORKERS)
    program = subprocess.Popen(
        [sys.executable, script, start, "--port", "80"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert program.stdout is not None
        worker = int(program.stdout.readline())
        command = by_pid(ask_all())[worker].answer["command"]
    finally:
        program.communicate()
    suffix = f" (worker indexer of process {program.pid})"
    data = "" if start == "fork" else " data"  # what a forked one was started with is known
    assert command == f"{sys.executable} {script} {start} --port 80{data}{suffix}"


def test_what_keeps_a_process_from_publishing_is_only_shown() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import aioktask; aioktask.Job"],
        env={**os.environ, "AIOKTASK_PUBLISH": "1", "AIOKTASK_MAX_THREAD": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "are not published: the variable 'AIOKTASK_MAX_THREAD' is set" in found.stderr


def test_a_stopped_and_a_killed_process_are_told_as_such_and_hold_nobody_up(
    children: list[Child],
) -> None:
    os.kill(children[0].pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        told = by_pid(ask_all(seconds=0.3))
        assert time.monotonic() - began < PATIENCE / 2
        assert told[children[0].pid].answer is None
        assert "hangs, or is stopped" in told[children[0].pid].problem
        assert jobs_of(told[children[1].pid]) == [("two", "two")]
    finally:
        os.kill(children[0].pid, signal.SIGCONT)
    children[1].process.kill()
    children[1].process.wait()
    assert by_pid(ask_all())[children[1].pid].problem == "it is gone"
    assert set(by_pid(ask_all())) == {children[0].pid}


def test_a_change_that_was_told_as_failed_is_not_made_later(children: list[Child]) -> None:
    pid = children[0].pid
    (job,) = by_pid(ask_all())[pid].answer["jobs"]
    os.kill(pid, signal.SIGSTOP)
    try:
        told = ask(pid, {"do": "cancel", "number": job["number"]}, seconds=0.1)
        assert "hangs, or is stopped" in told.problem
    finally:
        os.kill(pid, signal.SIGCONT)
    for _ in range(3):  # what waited at the socket is through before this is answered
        assert jobs_of(by_pid(ask_all())[pid]) == [("one", "one")]


def test_a_process_is_read_whatever_its_jobs_are_called() -> None:
    publisher = publish()
    try:
        for _ in range(3):
            run_multithreaded_sync(Job(lambda start, stop: None, 1, name="x" * (MOST_LINE + 1)))
        told = ask(os.getpid(), {"do": "snapshot", "history": 60.0})
        assert told.problem == ""
        for of in ("ended", "history"):
            assert max(len(each["name"]) for each in told.answer[of]) == 400
    finally:
        publisher.close()


def test_a_change_goes_to_the_process_that_it_is_for(children: list[Child]) -> None:
    numbers = {pid: each.answer["jobs"][0]["number"] for pid, each in by_pid(ask_all()).items()}
    pid = children[1].pid
    assert ask(pid, {"do": "renice", "number": numbers[pid], "nice": 7}).answer is True
    assert ask(pid, {"do": "cancel", "number": numbers[pid]}).answer is True
    assert children[1].hear() == "cancelled 7"
    assert ask(pid, {"do": "cancel", "number": numbers[pid]}).answer is False
    assert jobs_of(by_pid(ask_all())[children[0].pid]) == [("one", "one")]


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"do": "nothing"}, "LookupError: do must be snapshot, cancel or renice, got 'nothing'"),
        ({"do": "cancel"}, "KeyError: 'number'"),
        ({"do": "cancel", "number": "1"}, "TypeError: number must be an integer, got '1'"),
        ({"do": "renice", "number": 1, "nice": 40}, "ValueError: nice must be from -20 to 19"),
        ({"do": "snapshot", "history": float("inf")}, "ValueError: history must be at least 0"),
        ({"do": "snapshot", "history": "all"}, "TypeError: history must be a number of seconds"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(request_: dict[str, Any], problem: str) -> None:
    publisher = publish()
    try:
        assert problem in ask(os.getpid(), request_).problem
    finally:
        publisher.close()


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"[1]\n", b"{" * 100_000, b"\xff\xfe\n", b"[" * 60_000 + b"\n"]
)
def test_rubbish_harms_nobody(line: bytes) -> None:
    publisher = publish()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(publisher.path))
            connection.settimeout(PATIENCE)
            try:
                connection.sendall(line)
                connection.shutdown(socket.SHUT_WR)
                reply = connection.recv(65536)
                assert not reply or "error" in json.loads(reply)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it was too long
        assert ask(os.getpid(), {"do": "snapshot"}).problem == ""
    finally:
        publisher.close()


def test_nobody_but_the_user_may_enter_the_directory(tmp_path: Path) -> None:
    path = directory("named")
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    with pytest.raises(PermissionError, match="directory of its own, mode 700"):
        directory("named")
    path.rmdir()
    path.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="directory of its own, mode 700"):
        directory("named")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(tempfile.mkdtemp(dir="/tmp"))  # above which others may pass
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(root))
    publisher = publish()
    try:
        for path in (root, publisher.path.parent, publisher.path):
            path.chmod(0o777)  # what a careless administrator does
        program = f"""if True:
            import os, socket
            os.setgid(65534); os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect({os.fspath(publisher.path)!r})
                connection.settimeout({PATIENCE})
                try:
                    connection.sendall(b'{{"do": "snapshot"}}\\n')
                    print(connection.recv(100))
                except OSError as error:
                    print(b"")
        """
        found = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == "b''"
    finally:
        publisher.close()
        shutil.rmtree(root)


def test_history_says_what_threads_served_and_costs_nothing_when_nobody_publishes() -> None:
    from aioktask.engine.api.control import history_since
    from aioktask.engine.api.process import current_pool

    with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(lambda start, stop: None, 10, name="before")).result()
        assert current_pool().state.history is None
        publisher = publish()
        try:
            coordinator.submit(Job(lambda start, stop: None, 10, name="seen")).result()
            told = ask(os.getpid(), {"do": "snapshot", "history": 60})
            entries = told.answer["history"]
            assert {each["name"] for each in entries} == {"seen"}
            assert all(each["began"] >= each["ended"] >= 0 for each in entries)
            assert all(each["kind"] == "work" and not each["lent"] for each in entries)
        finally:
            publisher.close()
    assert current_pool().state.history is None
    assert history_since(0) == []


def test_history_says_where_a_chunk_raised_and_what_ran_inside_which_other_job() -> None:
    def inner(start: int, stop: int) -> None:
        if start == 3:
            raise OSError(5, "planted")

    def outer(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(inner, 8, chunk=1, max_threads=1, name="inner"))

    entered, asked = threading.Event(), threading.Event()

    def waits(start: int, stop: int) -> None:
        entered.set()
        assert asked.wait(PATIENCE)
        current_chunk().check_cancelled()

    def gives_up(start: int, stop: int) -> None:
        raise ChunkCancelled("by itself")

    publisher = publish()
    try:
        with Coordinator(max_threads=1) as coordinator:
            handle = coordinator.submit(Job(outer, 1, name="outer", undo=lambda start, stop: None))
            with pytest.raises(OSError, match="planted"):
                handle.result()
            with pytest.raises(ChunkCancelled, match="by itself"):
                coordinator.submit(Job(gives_up, 1, name="gives up")).result()
            cancelled = coordinator.submit(Job(waits, 1, name="cancelled"))
            assert entered.wait(PATIENCE)
            cancelled.cancel()
            asked.set()
            with pytest.raises(JobCancelled):
                cancelled.result()
        told = ask(os.getpid(), {"do": "snapshot", "history": 60}).answer["history"]
    finally:
        publisher.close()
    found = {each["name"]: each for each in told}
    assert {name: (each["depth"], each["failed"]) for name, each in found.items()} == {
        "inner": (1, True),
        "outer": (0, True),
        "cancelled": (0, False),
        "gives up": (0, True),
    }
    assert found["inner"]["thread"] == found["outer"]["thread"]


def test_whoever_tells_a_long_history_lets_other_threads_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(processes.Courtesy, "__call__", lambda self: calls.append(None))
    publisher = publish()
    try:
        with Coordinator(max_threads=1) as coordinator:
            for number in range(50):
                coordinator.submit(Job(lambda start, stop: None, 1, name=str(number))).result()
        publisher.answer({"do": "snapshot"})
        without = len(calls)
        told: Any = publisher.answer({"do": "snapshot", "history": 60})
        assert len(told["history"]) >= 50
        assert len(calls) - 2 * without >= 50
    finally:
        publisher.close()


def test_a_fork_s_child_has_no_part_in_its_parent_s_socket() -> None:
    publisher = publish()
    try:
        child = os.fork()
        if not child:
            os._exit(0 if "closed" in repr(publisher) and publish() is not publisher else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(os.getpid(), {"do": "snapshot"}).problem == ""
    finally:
        publisher.close()


def test_closing_ends_the_thread_and_removes_the_socket() -> None:
    publisher = publish()
    assert publish() is publisher
    (thread,) = (each for each in threading.enumerate() if each.name == "aioktask published")
    publisher.close()
    publisher.close()
    assert not publisher.path.exists()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert ask_all() == []


def test_closing_ends_the_thread_though_somebody_took_the_socket_away() -> None:
    publisher = publish()
    threads = {each for each in threading.enumerate() if each.name == "aioktask published"}
    publisher.path.unlink()
    publisher.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_a_socket_that_was_made_anew_is_not_taken_away() -> None:
    path = directory() / "1.socket"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(os.fspath(path))
    inode = path.lstat().st_ino
    beside = path.with_suffix(".beside")  # so that the number of the first is not given again
    path.rename(beside)
    with socket.socket(socket.AF_UNIX) as lives:
        lives.bind(os.fspath(path))
        processes._unlink(path, inode)
        assert path.exists()
        processes._unlink(beside, inode)
        assert not beside.exists()


def test_a_thread_that_cannot_start_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="starts no thread") as raised:
            publish()
    assert raised.value.errno == errno.EAGAIN
    assert list(directory().iterdir()) == []
    publish().close()


def test_a_publisher_goes_on_after_memory_was_short(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = publish()
    own, short = processes._is_own, [True]

    def short_once(connection: socket.socket) -> bool:
        if threading.current_thread().name == "aioktask published" and short.pop():
            short.append(False)
            raise MemoryError
        return own(connection)

    monkeypatch.setattr(processes, "_is_own", short_once)
    try:
        ask(os.getpid(), {"do": "snapshot"})
        assert ask(os.getpid(), {"do": "snapshot"}, seconds=PATIENCE).problem == ""
    finally:
        publisher.close()


def test_users_have_numbers_without_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def getsockopt(self, *asked: int) -> bytes:
            return struct.pack("=iII", 1, 3_000_000_000, 1)

    monkeypatch.setattr(os, "geteuid", lambda: 3_000_000_000)
    assert processes._is_own(Connection())  # type: ignore[arg-type]


def test_threads_that_publish_at_a_time_get_one_publisher_that_answers() -> None:
    together = threading.Barrier(8)
    found = []

    def begin() -> None:
        together.wait(PATIENCE)
        found.append(publish())

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    try:
        assert len(set(map(id, found))) == 1
        assert ask(os.getpid(), {"do": "snapshot"}).problem == ""
    finally:
        found[0].close()


def test_publishing_again_and_again_leaves_nothing_behind() -> None:
    listeners = len(events._listeners)
    for _ in range(3):
        publish().close()
    assert len(events._listeners) == listeners


def test_advice_is_told_once_for_each_function() -> None:
    publisher = publish()
    try:
        for text in ("first", "second"):
            details = {"advice": text}
            events.emit(events.Event(events.EventKind.HOLDS_GIL, "a", 1, details, True))
        told = ask(os.getpid(), {"do": "snapshot"}).answer["advice"]
        assert told == [{"event": "job_holds_gil", "job": "a", "text": "second"}]
    finally:
        publisher.close()


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="a cap below the CPUs needs two CPUs",
)
@pytest.mark.max_threads(1)
def test_a_cap_below_the_cpus_is_told_while_it_keeps_jobs_waiting() -> None:
    def advice() -> list[str]:
        told = ask(os.getpid(), {"do": "snapshot"}).answer["advice"]
        return [each["text"] for each in told if each["event"] == "cap_below_cpus"]

    gate = CancelledGate()
    publisher = publish()
    try:
        with Coordinator() as coordinator:
            coordinator.submit(Job(gate.chunk, 1))
            gate.wait_entered()
            assert advice() == []
            coordinator.submit(Job(lambda start, stop: None, 1))
            until(lambda: advice())
            (text,) = advice()
            assert text.startswith("jobs wait for a thread, and this process has 1 for the ")
            assert "lowers the cap below" in text
            gate.open()
        assert advice() == []
    finally:
        gate.open()
        publisher.close()


def test_the_exit_of_a_process_removes_its_socket(runtime_directory: Path) -> None:
    program = "from aioktask.observe.processes import publish; print(publish().path)"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    path = Path(found.stdout.strip())
    assert path.parent.parent == runtime_directory
    assert not path.exists()


def test_those_that_hang_are_waited_for_all_together(runtime_directory: Path) -> None:
    sockets = []
    try:
        for number in range(1, MOST_ASKED * 3):
            silent = socket.socket(socket.AF_UNIX)
            sockets.append(silent)
            silent.bind(os.fspath(directory() / f"{number}.socket"))
            silent.listen()
        began = time.monotonic()
        told = ask_all(seconds=0.5)
        assert time.monotonic() - began < 1.5  # three rounds would take as long
        assert len(told) == len(sockets)
        assert all("did not answer" in each.problem for each in told)
    finally:
        for each in sockets:
            each.close()


class Peer:
    """A process that answers with these bytes, as it may that has another version, or is broken."""

    def __init__(self, pid: int, reply: bytes, *, times: int = 1) -> None:
        self._reply, self._times, self._over = reply, times, threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(directory() / f"{pid}.socket"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self._over.is_set():
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                for _ in range(self._times):
                    connection.sendall(self._reply)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._listener.getsockname())
        self._thread.join(PATIENCE)
        self._listener.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"[]\n",
        b"{}\n",
        b"7\n",
        b"\xff\xfe\n",
        b'{"answer": null}\n',
        b'{"answer": {}, "rows": [1]}\n',
        b'{"answer": {}, "rows": {"jobs": "9"}}\n',
        b'{"answer": {}, "rows": {"jobs": -9}}\n',
        b'{"answer": {}, "rows": {"jobs": 1e9}}\n',
        b'{"answer": {}, "rows": {"jobs": 999999999}}\n',
        b'{"answer": null, "rows": {"jobs": 0}}\n',
        b'{"answer": "x", "rows": {"jobs": 0}}\n',
        b"[" * 200_000 + b"\n",
        b'{"answer": {}, "rows": {"jobs": 1}}\n' + b"[" * 200_000 + b"\n",
        b'"' + b"x" * MOST_LINE + b'"\n',
    ],
)
def test_an_answer_that_makes_no_sense_is_told_as_such_and_the_others_are_seen(
    reply: bytes,
) -> None:
    publisher = publish()
    try:
        with Peer(1, reply):
            told = by_pid(ask_all(seconds=PATIENCE))
            assert told[1].answer is None
            assert "cannot be read here: another version?" in told[1].problem
            assert told[os.getpid()].problem == ""
    finally:
        publisher.close()


def test_an_answer_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_ANSWER", 1 << 20)
    with Peer(1, b"x" * (1 << 20), times=1000):
        assert "longer than 1048576 bytes" in ask(1, {"do": "snapshot"}, seconds=PATIENCE).problem


def test_the_time_for_an_answer_holds_for_reading_it_too() -> None:
    lines = b'{"answer": {}, "rows": {"jobs": 100000}}\n' + b"[]\n" * 100_000
    with pytest.raises(TimeoutError):
        processes._read(lines, time.monotonic())
    with Peer(1, lines):
        assert ask(1, {"do": "snapshot"}, seconds=PATIENCE).problem == ""
        told = ask(1, {"do": "snapshot"}, seconds=0.05)  # so long its rows take many times over
        assert told.answer is None
        assert "in 0.05 s" in told.problem


def test_what_is_no_socket_of_a_process_is_left_alone() -> None:
    found = directory()
    names = ("5.socket", "x.socket", "\u0663.socket")
    for name in names:
        (found / name).write_text("somebody's")
    assert ask_all() == []
    assert ask(5, {"do": "snapshot"}).gone
    assert sorted(each.name for each in found.iterdir()) == sorted(names)


def test_only_a_process_that_is_gone_is_told_as_gone() -> None:
    publisher = publish()
    try:
        told = ask(os.getpid(), {"do": "the job is gone"})
        assert "gone" in told.problem
        assert not told.gone
    finally:
        publisher.close()
    assert ask(os.getpid(), {"do": "snapshot"}).gone


def test_a_job_that_is_cancelled_so_raises_to_its_waiter() -> None:
    publisher = publish()
    gate = CancelledGate()
    try:
        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(gate.chunk, 1))
            gate.wait_entered()
            number = coordinator.snapshot().jobs[0].number
            assert ask(os.getpid(), {"do": "cancel", "number": number}).answer is True
            assert gate.cancelled.wait(PATIENCE)
            gate.open()
            with pytest.raises(JobCancelled):
                handle.result(PATIENCE)
    finally:
        publisher.close()


# The lines of an answer.

rows = st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | rows, max_size=5))
def test_an_answer_is_read_as_it_was_written_and_a_part_of_it_is_none(
    answer: dict[str, Any],
) -> None:
    lines = b"".join(processes._lines_of({"answer": answer}))
    assert processes._read(lines) == {
        "answer": answer,
        "rows": {name: len(each) for name, each in answer.items() if isinstance(each, list)},
    }
    for stop in range(len(lines) - 1):  # without the last end of a line it is whole
        with pytest.raises(ValueError):  # noqa: PT011 - of json, or that rows are missing
            processes._read(lines[:stop])
