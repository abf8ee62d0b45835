# SPDX-License-Identifier: MIT
# Jobs on real processes of this machine, and workers that are killed at every stage.

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioktask import (
    CoordinatorClosed,
    Job,
    JobCancelled,
    UndoFailed,
    failure,
    run_multithreaded_sync,
)
from aioktask.cluster import (
    ClusterFailure,
    ClusterJob,
    Home,
    ProcessCoordinator,
    WorkerLost,
    processes,
    run_in_processes,
)
from aioktask.cluster.processes import ProcessCarrier
from tests.cluster import work
from tests.cluster.ledger import Ledger
from tests.support.gates import eventually, until


@pytest.fixture(scope="module")
def fleet() -> Iterator[ProcessCoordinator]:
    """Two workers for tests that kill none."""
    with ProcessCoordinator(2, max_threads=2) as coordinator:
        yield coordinator
        coordinator._cancel_all()  # what a test that failed left behind


def asyncio_alone(test: object) -> object:
    return pytest.mark.parametrize("anyio_backend", ["asyncio"])(test)  # type: ignore[operator]


@pytest.mark.anyio
async def test_a_job_runs_in_processes_on_any_loop(tmp_path: Path) -> None:
    fn = functools.partial(work.pid_once_two_came, str(tmp_path))
    job = ClusterJob(fn, 4000, min_chunk=10, reduce=work.union)
    report = await run_in_processes(job, 2, max_threads=1)
    assert os.getpid() not in report.value
    assert len(report.value) == 2 == len(report.workers)
    assert sum(part.units for part in report.workers) == 4000
    assert all(part.stretches for part in report.workers)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk": 7},
        {"start": 12345, "align": 16, "min_chunk": 100},
        {"initial": 1000.5},
        {"chunk": 100_000},
    ],
)
def test_a_reduce_has_the_value_of_one_machine_bit_for_bit(
    fleet: ProcessCoordinator, options: dict[str, int]
) -> None:
    size = 70_001
    here = Job(lambda start, stop: work.sines(start, stop, None), size, reduce=work.add, **options)
    there = ClusterJob(work.sines, size, reduce=work.add, **options)
    expected = run_multithreaded_sync(here).value
    assert fleet.submit(there).result().value == expected


def test_an_empty_job_is_done_at_once(fleet: ProcessCoordinator) -> None:
    job = ClusterJob(work.count, 0, reduce=int.__add__, initial=7)
    assert fleet.submit(job).result().value == 7


def test_the_first_error_comes_as_it_is_with_its_worker_and_its_traceback(
    fleet: ProcessCoordinator,
) -> None:
    with pytest.raises(OSError, match="planted") as caught:
        fleet.submit(ClusterJob(work.fail, 1000)).result()
    assert caught.value.errno == 28
    notes = "\n".join(caught.value.__notes__)
    assert "process-" in notes
    assert "in fail" in notes
    told = failure(caught.value)
    assert isinstance(told, ClusterFailure)
    assert told.chunk is not None
    assert any(told.chunk.start in each for each in told.unknown)


def test_an_exception_that_cannot_travel_comes_as_its_text(fleet: ProcessCoordinator) -> None:
    with pytest.raises(RuntimeError, match="OddError: odd"):
        fleet.submit(ClusterJob(work.fail_oddly, 1000)).result()


def test_a_setup_that_raises_fails_the_job(fleet: ProcessCoordinator) -> None:
    with pytest.raises(ValueError, match="no data here"):
        fleet.submit(ClusterJob(work.count, 1000, setup=work.fail_in_setup)).result()


def test_workers_write_into_shared_memory(
    fleet: ProcessCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = shared_memory.SharedMemory(create=True, size=100_000)
    try:
        name = block.name
        job = ClusterJob(
            work.fill,
            100_000,
            setup=lambda: shared_memory.SharedMemory(name=name),
            close=work.detach,
        )
        fleet.submit(job).result()
        assert block.buf is not None
        assert bytes(block.buf[:100_000]) == b"x" * 100_000
    finally:
        block.close()
        block.unlink()


def test_a_cancel_stops_chunks_that_ask_and_undoes(
    fleet: ProcessCoordinator, tmp_path: Path
) -> None:
    folder = str(tmp_path)
    job = ClusterJob(work.until_cancelled, 1000, setup=lambda: folder)
    handle = fleet.submit(job)
    until(lambda: len(os.listdir(tmp_path)) >= 2)
    until(lambda: handle.progress().phase == "running")
    assert handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result()
    assert not handle.cancel()
    assert handle.done()
    assert handle.progress().phase == "cancelled"


def test_a_job_whose_time_is_up_is_undone(fleet: ProcessCoordinator, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.01)
    with pytest.raises(TimeoutError) as caught:
        fleet.submit(ledger.job(), timeout=0.5).result()
    told = failure(caught.value)
    assert told.undone
    assert not told.done
    ledger.check(told)


def test_a_failed_job_undoes_all_of_it_where_it_was_done(
    fleet: ProcessCoordinator, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "fail").touch()
    with pytest.raises(OSError, match="planted") as caught:
        fleet.submit(ledger.job()).result()
    told = failure(caught.value)
    assert isinstance(told, ClusterFailure)
    assert not told.done
    ledger.check(told)
    assert {part.name for part in told.workers if part.undone} == {"process-1", "process-2"}
    assert ledger.counts("closed") == {}  # of no units
    assert [what for what, _ in ledger.lines()].count("closed") == 2


def test_jobs_share_the_workers(fleet: ProcessCoordinator) -> None:
    handles = [fleet.submit(ClusterJob(work.count, 5000, reduce=int.__add__)) for _ in range(5)]
    handles[3].renice(10)
    assert handles[3].nice == 10
    assert [handle.result().value for handle in handles] == [5000] * 5
    assert handles[0].progress().phase == "finished"


def test_a_snapshot_tells_of_the_workers_and_of_the_jobs(
    fleet: ProcessCoordinator, tmp_path: Path
) -> None:
    folder = str(tmp_path)
    handle = fleet.submit(ClusterJob(work.until_cancelled, 1000, setup=lambda: folder, name="odd"))
    until(lambda: [bool(worker.running) for worker in handle.workers()] == [True, True])
    taken = fleet.snapshot()
    assert [worker.name for worker in taken.workers] == ["process-1", "process-2"]
    assert all(worker.pid for worker in taken.workers)
    assert [name for name, _, _ in taken.jobs] == ["odd"]
    handle.cancel()
    *_, last = handle.watch(0.01)
    assert last.phase == "cancelled"


@pytest.mark.anyio
@asyncio_alone
async def test_leaving_by_an_exception_undoes_the_jobs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.01)
    coordinator = ProcessCoordinator(1)
    handle = None
    with contextlib.suppress(ZeroDivisionError):
        async with coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: bool(ledger.counts("done")))
            raise ZeroDivisionError
    assert handle is not None
    with pytest.raises(JobCancelled) as caught:
        await handle
    ledger.check(failure(caught.value))
    with pytest.raises(CoordinatorClosed):
        coordinator.submit(ledger.job())


@pytest.mark.anyio
async def test_a_cancelled_caller_waits_for_the_undo(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.01)
    told = []

    async def run() -> None:
        try:
            await run_in_processes(ledger.job(), 2)
        except BaseException as error:
            told.append(failure(error))
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await eventually(lambda: bool(ledger.counts("done")))
        group.cancel_scope.cancel()
    assert not told[0].done
    ledger.check(told[0])
    assert ledger.counts("undone") == ledger.counts("done")


@pytest.mark.anyio
@asyncio_alone
async def test_a_worker_killed_between_stretches_is_let_go(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "between")
    report = await run_in_processes(ledger.job(), 3)
    assert ledger.counts("done") == dict.fromkeys(range(2000), 1)
    assert [part.stretches for part in report.workers if part.lost] == [1]


@pytest.mark.anyio
@asyncio_alone
async def test_a_worker_killed_in_a_chunk_fails_the_job(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "chunk")
    with pytest.raises(WorkerLost, match="SIGKILL") as caught:
        await run_in_processes(ledger.job(), 3)
    told = failure(caught.value)
    assert isinstance(told, ClusterFailure)
    ledger.check(told)
    assert told.unknown
    assert caught.value.worker in {part.name for part in told.workers if part.unknown}
    assert "idempotent" in str(caught.value)


@pytest.mark.anyio
@asyncio_alone
@pytest.mark.parametrize("stage", ["setup", "chunk", "between"])
async def test_an_idempotent_job_goes_on_without_a_killed_worker(
    tmp_path: Path, stage: str
) -> None:
    ledger = Ledger(tmp_path, stage)
    report = await run_in_processes(ledger.job(idempotent=True), 3)
    assert set(ledger.counts("done")) == set(range(2000))
    assert [part.lost for part in report.workers if part.lost] == ["was killed by SIGKILL"]


@pytest.mark.anyio
@asyncio_alone
async def test_a_worker_killed_before_its_first_stretch_is_let_go(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "setup")
    await run_in_processes(ledger.job(), 2)
    assert ledger.counts("done") == dict.fromkeys(range(2000), 1)


@pytest.mark.anyio
@asyncio_alone
async def test_a_worker_killed_in_the_undo_is_told_with_what_it_had(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "undo")
    (tmp_path / "fail").touch()
    with pytest.raises(UndoFailed) as caught:
        await run_in_processes(ledger.job(), 2)
    assert isinstance(caught.value.__cause__, OSError)
    told = failure(caught.value)
    ledger.check(told)
    assert caught.value.ranges
    named = {unit for each in (*told.unknown, *told.done) for unit in each}
    assert {unit for each in caught.value.ranges for unit in each} <= named


@pytest.mark.anyio
@asyncio_alone
async def test_a_worker_killed_while_it_closes_is_told_and_all_is_done(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "close")
    with pytest.raises(WorkerLost, match="closed") as caught:
        await run_in_processes(ledger.job(), 2)
    assert ledger.counts("done") == dict.fromkeys(range(2000), 1)
    assert failure(caught.value).done == (range(2000),)


def test_a_job_fails_where_every_worker_was_killed_and_so_does_the_next(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "setup")
    with ProcessCoordinator(1) as coordinator:
        for _ in range(2):
            with pytest.raises(WorkerLost, match=r"no worker is left.*SIGKILL"):
                coordinator.submit(ledger.job()).result()


PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from aioktask.cluster import ProcessCoordinator
from tests.cluster.ledger import Ledger
from tests.support.gates import until

if __name__ == "__main__":
    ledger = Ledger(Path(sys.argv[1]), unit_seconds=0.005)
    coordinator = ProcessCoordinator(2)
    coordinator.__enter__()
    handle = coordinator.submit(ledger.job())
    running = [True, True]
    until(lambda: [bool(worker.running) for worker in handle.workers()] == running)
    until(lambda: ledger.counts("done"))
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    # else: the program ends, and nobody leaves the coordinator
"""


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_workers_undo_what_is_done_when_the_program_dies(tmp_path: Path, end: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    ended = subprocess.run([sys.executable, str(program), str(tmp_path), end], timeout=100)
    assert ended.returncode == (-signal.SIGKILL if end == "kill" else 0)
    ledger = Ledger(tmp_path)
    until(lambda: [what for what, _ in ledger.lines()].count("closed") == 2)
    assert ledger.counts("undone") == ledger.counts("done")
    assert set(ledger.counts("done").values()) == {1}


def test_a_main_module_without_a_guard_is_named(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\n"
        "from aioktask.cluster import ClusterJob, run_in_processes\n"
        "from tests.cluster import work\n"
        "asyncio.run(run_in_processes(ClusterJob(work.count, 10), 1))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(program)], timeout=60, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert '__name__ == "__main__"' in ended.stderr.splitlines()[-1]


def test_a_worker_that_ended_by_itself_while_it_served_is_told_without_advice_on_the_main_module(
    tmp_path: Path,
) -> None:
    with ProcessCoordinator(1) as coordinator:
        handle = coordinator.submit(ClusterJob(work.leave, 10, chunk=10))
        with pytest.raises(WorkerLost) as caught:
            handle.result()
    told = "the worker 'process-1' ended with status 3 with units that nobody knows of: 0 to 10"
    assert str(caught.value).startswith(told)
    assert "__main__" not in str(caught.value)


def test_a_program_from_standard_input_is_refused_before_workers_are_started() -> None:
    program = (
        "import asyncio\n"
        "from aioktask.cluster import ClusterJob, run_in_processes\n"
        "from tests.cluster import work\n"
        "asyncio.run(run_in_processes(ClusterJob(work.count, 10), 1))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-"], input=program, timeout=60, capture_output=True, text=True
    )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: worker processes import the main module")
    assert "'<stdin>'" in last
    assert "FileNotFoundError" not in ended.stderr


def test_functions_of_a_program_without_a_file_are_refused_without_cloudpickle() -> None:
    program = (
        "import asyncio, functools, sys\n"
        "sys.modules['cloudpickle'] = None\n"
        "from aioktask.cluster import ClusterJob, run_in_processes\n"
        "def three(more, start, stop, data): pass\n"
        "job = ClusterJob(functools.partial(three, 1), 10, name='threes')\n"
        "asyncio.run(run_in_processes(job, 1))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True
    )
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("TypeError: fn of the job 'threes' is defined in a program that has no")
    assert "pip install 'aioktask[processes]'" in last


def test_a_value_that_cannot_be_sent_is_told_as_what_fn_returned(fleet: ProcessCoordinator) -> None:
    job = ClusterJob(work.lock_of_it, 10, reduce=work.first, name="locks")
    with pytest.raises(TypeError, match=r"fn of the job 'locks' returned.* is a lock and cannot"):
        fleet.submit(job).result()


def test_no_thread_and_no_process_is_left_behind() -> None:
    before, children = threading.active_count(), set(multiprocessing.active_children())
    with ProcessCoordinator(1) as coordinator:
        coordinator.submit(ClusterJob(work.count, 10)).result()
    names = [thread.name for thread in threading.enumerate()]
    assert threading.active_count() <= before + 1, names
    assert set(multiprocessing.active_children()) <= children


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="pidfd_open(2)")
def test_a_worker_is_lost_though_a_child_of_it_holds_its_pipe(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with ProcessCoordinator(1) as coordinator:
        handle = coordinator.submit(ClusterJob(work.leave_child_and_die, 10, setup=lambda: folder))
        try:
            with pytest.raises(WorkerLost, match="SIGKILL"):
                handle.result(60)
        finally:
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


FORKING = """
import os, sys
from aioktask.cluster import ClusterJob, ProcessCoordinator
from tests.cluster import work

if __name__ == "__main__":
    with ProcessCoordinator(1) as coordinator:
        handle = coordinator.submit(ClusterJob(work.count, 10, reduce=int.__add__))
        handle.result()
        child = os.fork()
        if not child:
            for refused in (
                lambda: coordinator.submit(ClusterJob(work.count, 10)),
                coordinator.snapshot,
                coordinator.drain,
                handle.progress,
                handle.workers,
                handle.cancel,
            ):
                try:
                    refused()
                except RuntimeError as error:
                    assert "forked process" in str(error)
                else:
                    os._exit(1)
            sys.exit(0)  # runs what is registered for the exit, which is the parent's business
        # `with` is left in the child by SystemExit, and must not end the parent's workers there.
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(coordinator.submit(ClusterJob(work.count, 10, reduce=int.__add__)).result().value)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork(2)")
def test_a_forked_child_has_no_part_in_the_workers(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FORKING)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(program)],
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "10\n"


def pid_of(coordinator: ProcessCoordinator, name: str) -> int:
    carrier = coordinator._driver.carrier
    assert isinstance(carrier, ProcessCarrier)
    pid = carrier.workers[name]._process.pid
    assert pid is not None
    return pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork(2)")
def test_a_child_that_is_forked_before_the_workers_start_keeps_no_pipe_open() -> None:
    coordinator = ProcessCoordinator(1)
    (worker,) = coordinator._driver.carrier.workers.values()  # type: ignore[attr-defined]
    end = worker._connection.fileno()
    child = os.fork()
    if not child:
        try:
            os.fstat(end)
        except OSError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EBADF
    with coordinator:
        assert coordinator.submit(ClusterJob(work.count, 10, reduce=int.__add__)).result()


CLOSED = """
import sys
from aioktask.cluster import ClusterJob, ProcessCoordinator

def chunk(start, stop, data):
    print("said", flush=True)

if __name__ == "__main__":
    with ProcessCoordinator(1, max_threads=1) as coordinator:
        coordinator.submit(ClusterJob(chunk, 10, chunk=1)).result()
    open(sys.argv[1], "w").write("through")
"""


def test_what_a_worker_prints_does_not_go_into_its_pipe_where_streams_are_closed(
    tmp_path: Path,
) -> None:
    program, through = tmp_path / "program.py", tmp_path / "through"
    program.write_text(CLOSED)
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&-', sys.executable, program, through]
    subprocess.run(command, check=True, timeout=100, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert through.read_text() == "through"


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="SIGCHLD")
def test_no_worker_is_taken_for_unknown_where_sigchld_is_ignored() -> None:
    program = """if True:
        import signal
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        from aioktask.cluster import ClusterJob, ProcessCoordinator
        from tests.cluster import work

        if __name__ == "__main__":
            with ProcessCoordinator(1) as coordinator:
                coordinator.submit(ClusterJob(work.count, 10, reduce=int.__add__)).result()
    """
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="SIGSTOP")
def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ENDING_SECONDS", 0.2)
    with ProcessCoordinator(1) as coordinator:
        coordinator.submit(ClusterJob(work.count, 10)).result()
        pid = pid_of(coordinator, "process-1")
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="SIGSTOP")
def test_a_worker_that_is_stopped_keeps_nobody_from_the_others() -> None:
    large = b"x" * 200_000
    job = ClusterJob(functools.partial(work.count_with, large), 1000, chunk=10)
    with ProcessCoordinator(2) as coordinator:
        coordinator.submit(ClusterJob(work.count, 10)).result()
        pid = pid_of(coordinator, "process-1")
        os.kill(pid, signal.SIGSTOP)
        try:
            handles = [coordinator.submit(job) for _ in range(3)]  # more than its pipe takes
            until(lambda: [handle.progress().done for handle in handles] == [1000] * 3)
        finally:
            os.kill(pid, signal.SIGCONT)
        for handle in handles:
            handle.result()


def test_what_a_worker_did_that_ended_by_itself_is_unknown() -> None:
    job = ClusterJob(work.exit_late, 2000, undo=work.count)
    with ProcessCoordinator(2) as coordinator:
        with pytest.raises(WorkerLost) as caught:
            coordinator.submit(job).result()
    told = failure(caught.value)
    assert isinstance(told, ClusterFailure)
    lost = [part for part in told.workers if part.lost]
    assert lost
    assert all(part.done == () for part in lost)
    assert any(part.unknown for part in lost)


class NoClassError(Exception):
    """One that raises where it is asked of which class it is."""

    @property
    def __class__(self) -> Any:
        raise ValueError("who asks?")


@pytest.mark.anyio
@asyncio_alone
async def test_leaving_by_an_exception_of_an_odd_class_ends_jobs_and_processes(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.01)
    before = set(multiprocessing.active_children())
    kinds: list[object] = []
    try:
        async with ProcessCoordinator(1, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: handle.progress().done > 0)
            raise NoClassError
    except BaseException as error:
        kinds.append(type(error))
    assert kinds == [NoClassError]
    assert handle.done()
    assert set(multiprocessing.active_children()) <= before
    assert ledger.counts("done") == ledger.counts("undone")


def test_leaving_by_an_exception_tells_of_an_undo_that_failed(tmp_path: Path) -> None:
    folder = str(tmp_path)
    job = ClusterJob(work.say_done, 10_000, chunk=1, setup=lambda: folder, undo=work.undo_fails)

    def leave() -> None:
        with ProcessCoordinator(1) as coordinator:
            coordinator.submit(job)
            until((tmp_path / "done").exists)
            raise ZeroDivisionError

    with pytest.raises(UndoFailed) as caught:
        leave()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


@pytest.mark.anyio
@asyncio_alone
async def test_a_cancellation_that_comes_while_it_leaves_is_not_lost(tmp_path: Path) -> None:
    folder = str(tmp_path)
    (tmp_path / "hold").touch()
    job = ClusterJob(work.say_done, 10_000, chunk=1, setup=lambda: folder, undo=work.undo_waits)

    async def leave() -> None:
        async with ProcessCoordinator(1) as coordinator:
            coordinator.submit(job)
            await eventually((tmp_path / "done").exists)
            raise ZeroDivisionError

    task = asyncio.create_task(leave())
    await eventually((tmp_path / "undoing").exists)
    task.cancel()
    (tmp_path / "hold").unlink()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_function_of_the_program_may_wait_for_one_who_reads(fleet: ProcessCoordinator) -> None:
    seen: list[int] = []
    submitted = threading.Event()

    def homes(workers: object) -> list[Home]:
        submitted.wait(60)
        reading = threading.Thread(target=lambda: seen.append(handle.progress().size))
        reading.start()
        reading.join(60)
        return []

    handle = fleet.submit(ClusterJob(work.count, 1000, homes=homes))
    submitted.set()
    handle.result()
    assert seen == [1000]


def exit_here(workers: object) -> list[Home]:
    raise SystemExit(3)


def test_a_function_of_the_program_that_exits_fails_its_job_alone(
    fleet: ProcessCoordinator,
) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - of what kind is not the point
        fleet.submit(ClusterJob(work.count, 1000, homes=exit_here)).result(60)
    assert not isinstance(caught.value, TimeoutError)
    fleet.submit(ClusterJob(work.count, 1000)).result(60)


def test_a_job_whose_workers_are_let_go_of_ends(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with ProcessCoordinator(1) as coordinator:
        handle = coordinator.submit(ClusterJob(work.until_cancelled, 1000, setup=lambda: folder))
        until(lambda: bool(os.listdir(tmp_path)))
        coordinator._driver.end()  # as nobody should who has a job
        with pytest.raises(CoordinatorClosed):
            handle.result(60)


def test_a_job_that_fails_while_nobody_waits_is_logged_as_an_error(
    fleet: ProcessCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    import aioktask.observe.events  # noqa: F401 - it listens from now on

    handle = fleet.submit(ClusterJob(work.fail, 100, name="unheeded"))
    until(handle.done)
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert any("unheeded" in each.getMessage() for each in errors)


def stopped_pid(folder: Path) -> int:
    """The process that stopped itself in the middle of a message."""
    until(lambda: (folder / "stopped").exists() and (folder / "stopped").read_text() != "")
    return int((folder / "stopped").read_text())


def test_a_worker_that_is_killed_in_the_middle_of_a_message_is_lost(tmp_path: Path) -> None:
    fn = functools.partial(work.stop_in_a_chunk, str(tmp_path))
    with ProcessCoordinator(2, max_threads=1) as coordinator:
        handle = coordinator.submit(ClusterJob(fn, 1000, min_chunk=10))
        os.kill(stopped_pid(tmp_path), signal.SIGKILL)
        with pytest.raises(WorkerLost, match="was killed by SIGKILL"):
            handle.result(30.0)


def test_leaving_does_not_wait_for_the_rest_of_a_message_of_a_stopped_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "ENDING_SECONDS", 0.2)
    setup = functools.partial(work.stop_in_a_message, str(tmp_path))
    with ProcessCoordinator(2, max_threads=1) as coordinator:
        job = ClusterJob(work.count, 1000, setup=setup, reduce=int.__add__)
        assert coordinator.submit(job).result(30.0).value == 1000
        pid = stopped_pid(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_says_what_cannot_be_read_is_lost() -> None:
    with ProcessCoordinator(1, max_threads=1) as coordinator:
        handle = coordinator.submit(ClusterJob(work.say_what_cannot_be_read, 10, chunk=10))
        with pytest.raises(WorkerLost, match=r"be heard .MemoryError: planted") as caught:
            handle.result(60)
    assert failure(caught.value).unknown == (range(10),)


class FailingOnce:
    """A connection of which one call fails otherwise than where the other end is gone."""

    def __init__(self, connection: Any, what: str) -> None:
        self._connection = connection
        self._what = what
        self._left = 2  # messages: the first one is said, or heard

    def __getattr__(self, name: str) -> Any:
        if name == self._what:
            self._left -= 1
            if not self._left:
                raise OSError(errno.ENOMEM, "planted")
        return getattr(self._connection, name)


@pytest.mark.parametrize(
    ("what", "told"),
    [("recv", "could not be heard"), ("send", "could not be told anything")],
)
def test_a_worker_to_which_the_pipe_fails_is_killed_and_lost(what: str, told: str) -> None:
    coordinator = ProcessCoordinator(1, max_threads=1)
    carrier = coordinator._driver.carrier
    assert isinstance(carrier, ProcessCarrier)
    worker = carrier.workers["process-1"]
    worker._connection = FailingOnce(worker._connection, what)  # type: ignore[assignment]
    with coordinator:
        handle = coordinator.submit(ClusterJob(work.count, 100, chunk=1))
        with pytest.raises(WorkerLost, match=rf"{told} .OSError: \[Errno 12\] planted"):
            handle.result(60)


def test_a_worker_that_can_say_nothing_ends_at_once(tmp_path: Path) -> None:
    with ProcessCoordinator(1, max_threads=1) as coordinator:
        fn = functools.partial(work.fail_to_say, str(tmp_path))
        handle = coordinator.submit(ClusterJob(fn, 10, chunk=10))
        with pytest.raises(WorkerLost, match="was killed by SIGKILL") as caught:
            handle.result(60)
    assert failure(caught.value).unknown == (range(10),)


@pytest.mark.anyio
@asyncio_alone
async def test_a_timeout_that_is_none_is_refused_before_a_process_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []
    monkeypatch.setattr(processes._Process, "start", lambda *given: started.append(given))
    with pytest.raises(TypeError, match="timeout must be a number of seconds, got 'soon'"):
        await run_in_processes(ClusterJob(work.count, 10), 2, timeout="soon")  # type: ignore[arg-type]
    assert not started


FORKED_WHILE_STARTING = """
import os
from aioktask.cluster import ClusterJob, ProcessCoordinator, processes
from tests.cluster import work

if __name__ == "__main__":
    processes._starting.acquire()  # as a thread that the child does not have
    child = os.fork()
    if not child:
        with ProcessCoordinator(1, max_threads=1) as coordinator:
            coordinator.submit(ClusterJob(work.count, 10)).result(60)
        print("done")
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork(2)")
def test_a_child_that_is_forked_while_a_worker_starts_has_workers_of_its_own(
    tmp_path: Path,
) -> None:
    program = tmp_path / "program.py"
    program.write_text(FORKED_WHILE_STARTING)
    ended = subprocess.run([sys.executable, str(program)], timeout=100, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == b"done\n"


def test_where_there_are_too_few_threads_for_the_workers_none_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    children = set(multiprocessing.active_children())
    carrier = ProcessCarrier(2, 1)
    first, second = carrier.workers.values()

    def no_threads(hear: object) -> None:
        until(first._process.is_alive)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(second, "start", no_threads)
    with pytest.raises(RuntimeError, match="can't start"):
        carrier.begin(lambda message: None)
    assert set(multiprocessing.active_children()) <= children


def test_what_is_left_of_a_failed_job_is_done_by_jobs_that_its_failure_makes(
    fleet: ProcessCoordinator,
) -> None:
    job = ClusterJob(work.fail_late, 1000, chunk=10)
    with pytest.raises(OSError, match="planted") as caught:
        fleet.submit(job).result()
    told = failure(caught.value)
    assert told.job is job
    left = [each for each in told.remaining if each.stop <= 500]
    done = [fleet.submit(rest).result() for rest in told.job.over(left)]  # type: ignore[arg-type]
    assert sum(part.units for each in done for part in each.workers) == sum(map(len, left))
