# SPDX-License-Identifier: MIT
# Processes that publish their jobs: each is seen by the others of its user, and by nobody else, and
# none holds up who asks.

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aioktask import Coordinator, Job, JobCancelled
from aioktask.engine import events
from aioktask.observe.processes import MOST_ASKED, Told, ask, ask_all, directory, publish
from tests.support.gates import CancelledGate

PATIENCE = 20.0

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


class Child:
    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, name],
            env={**os.environ, "AIOKTASK_PUBLISH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear() == "at"

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


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


@pytest.mark.parametrize("line", [b"", b"\n", b"[1]\n", b"{" * 100_000, b"\xff\xfe\n"])
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
