# SPDX-License-Identifier: MIT
# Child processes that a chunk starts: whichever way, they are as if a thread of the program had
# started them, and signals end them.

from __future__ import annotations

import signal
import sys

import pytest

from tests.process.child import Child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Each way has a child copy what the kernel tells of it. No shell: dash unblocks all signals.
WAYS = """
import multiprocessing, pathlib, pty, shutil, subprocess, tempfile

STATUS = "/proc/self/status"

def by_subprocess(path):
    subprocess.run(["cp", STATUS, path], check=True)

def by_subprocess_with_preexec(path):
    subprocess.run(["cp", STATUS, path], check=True, preexec_fn=lambda: None)

def by_subprocess_in_a_session(path):
    subprocess.run(["cp", STATUS, path], check=True, start_new_session=True, close_fds=False)

def by_asyncio(path):
    async def main():
        process = await asyncio.create_subprocess_exec("cp", STATUS, path)
        assert await process.wait() == 0
    asyncio.run(main())

def by_fork(path):
    child = os.fork()
    if child == 0:
        try:
            shutil.copyfile(STATUS, path)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def by_fork_and_exec(path):
    child = os.fork()
    if child == 0:
        os.execvp("cp", ["cp", STATUS, path])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def by_forkpty(path):
    child, terminal = pty.fork()
    if child == 0:
        os.execvp("cp", ["cp", STATUS, path])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)

def by_posix_spawn(path):
    child = os.posix_spawnp("cp", ["cp", STATUS, path], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def by_spawnv(path):
    assert os.spawnvp(os.P_WAIT, "cp", ["cp", STATUS, path]) == 0

def by_multiprocessing(method):
    def start(path):
        context = multiprocessing.get_context(method)
        process = context.Process(target=shutil.copyfile, args=(STATUS, path))
        process.start()
        process.join()
        assert process.exitcode == 0
        process.close()
    start.__name__ = f"by_multiprocessing_{method}"
    return start

ways = [
    by_subprocess, by_subprocess_with_preexec, by_subprocess_in_a_session, by_asyncio, by_fork,
    by_fork_and_exec, by_forkpty, by_posix_spawn, by_spawnv,
    *map(by_multiprocessing, ("fork", "spawn", "forkserver")),
]
folder = tempfile.mkdtemp()

def blocked_in_child_of(way):
    path = pathlib.Path(folder, way.__name__)
    way(str(path))
    [mask] = [line.split()[1] for line in path.read_text().splitlines() if "SigBlk" in line]
    path.unlink()
    return [number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1]
"""


@pytest.mark.parametrize("blocked", [[], [int(signal.SIGUSR1), 40]], ids=["none", "two"])
def test_the_child_of_a_chunk_blocks_the_signals_of_a_child_of_the_program(
    blocked: list[int],
) -> None:
    program = f"""
        signal.pthread_sigmask(signal.SIG_BLOCK, {blocked})
        with Coordinator() as coordinator:
            for number, way in enumerate(ways):
                def fn(start, stop):
                    assert threading.current_thread() is not threading.main_thread()
                    note("chunk", ways[start].__name__, *blocked_in_child_of(ways[start]))
                coordinator.submit(Job(fn, 1, start=number)).result(60)

        def of_the_program():
            for way in ways:
                note("thread", way.__name__, *blocked_in_child_of(way))

        thread = threading.Thread(target=of_the_program)
        thread.start()
        thread.join()
        shutil.rmtree(folder)
    """
    with Child(WAYS, program, options=["-W", "ignore"]) as child:
        assert child.end() == 0, child.stderr()
        notes = child.notes()
        seen = {
            where: {words[1]: words[2:] for words in notes if words[0] == where}
            for where in ("thread", "chunk")
        }
        assert seen["chunk"] == seen["thread"]
        assert len(seen["chunk"]) == 12
        assert set(map(tuple, seen["chunk"].values())) == {tuple(map(str, blocked))}


def test_the_child_of_a_chunk_is_ended_by_signals() -> None:
    program = """
        def fn(start, stop):
            process = subprocess.Popen(["sleep", "30"])
            process.send_signal((signal.SIGTERM, signal.SIGINT, signal.SIGALRM)[start])
            note("ended", -process.wait(60))

        with Coordinator() as coordinator:
            coordinator.submit(Job(fn, 3, chunk=1)).result(60)
    """
    with Child("import subprocess", program) as child:
        assert child.end() == 0, child.stderr()
        ended = {int(words[1]) for words in child.notes()}
        assert ended == {signal.SIGTERM, signal.SIGINT, signal.SIGALRM}


def test_a_job_in_the_child_of_a_chunk_has_helpers_that_block_nothing() -> None:
    program = """
        def fn(start, stop):
            child = os.fork()
            if child == 0:
                def inner(start, stop):
                    note("blocked", *signal.pthread_sigmask(signal.SIG_BLOCK, ()))
                try:
                    Coordinator().submit(Job(inner, 1)).result(60)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)

        with Coordinator() as coordinator:
            coordinator.submit(Job(fn, 1)).result(60)
    """
    with Child(program, options=["-W", "ignore"]) as child:
        assert child.end() == 0, child.stderr()
        assert child.notes() == [["blocked"]]
