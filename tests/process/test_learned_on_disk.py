# SPDX-License-Identifier: MIT
# What jobs learn, kept on disk: real scripts one after the other, many at once, killed ones, and
# directories that are of no use. Whatever is wrong there, jobs run, and an event says what it is.

from __future__ import annotations

import ast
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import aioktask
from aioktask.engine.learning.kept import entry_of
from tests.memory.filesystems import mounted
from tests.process.child import RUN_MAIN, Child, on_each_loop
from tests.support.gates import until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="directories of POSIX")

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root, for chown and mount"
)
NOBODY = 65534

# By one thread, so that no stretch goes uncounted because a helper came or went.
PRELUDE = """
import asyncio, logging, os, sys, threading
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(message)s")
import aioktask
from aioktask import Coordinator, Job, plan, run_multithreaded, run_multithreaded_sync

def work(start, stop):
    for unit in range(start, stop):
        pass

def the_job(**how):
    return Job(work, 300_000, max_threads=1, name="counting", **how)

def show(report):
    print("learned", report.learned.chunk, report.learned.remembered, flush=True)
"""

RUN = "show(run_multithreaded_sync(the_job()))"
PLAN = "print('planned', plan(the_job()).chunk)"


@dataclass(frozen=True)
class Told:
    """What a script told of its job.

    Attributes:
        chunk: Units of a chunk at its end.
        remembered: Whether it began with what an earlier process left.
        began: Units of a chunk at its beginning.
        planned: What it said before, where it was asked.
        events: The others, with what they say.
    """

    chunk: int
    remembered: bool
    began: int
    planned: int | None
    events: list[str]


def environ(remember: str, **more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    path = os.pathsep.join([str(Path(aioktask.__file__).parents[1]), *sys.path])
    return {**plain, "PYTHONPATH": path, "AIOKTASK_REMEMBER": remember, **more}


def output_of(*program: str, remember: str = "", **more: str) -> str:
    source = PRELUDE + "\n".join(textwrap.dedent(each) for each in program)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        env=environ(remember, **more),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def script(*program: str, remember: str, **more: str) -> Told:
    """Run a script to its end; what it told."""
    return told_by(output_of(*program, remember=remember, **more))


def told_by(output: str) -> Told:
    def found(pattern: str) -> list[str]:
        return re.findall(pattern, output, re.MULTILINE)

    [(chunk, remembered)] = found(r"^learned (\d+) (\w+)$")
    [began] = found(r"^job_submitted job='counting' .*chunk=(\d+)")
    planned = found(r"^planned (\d+)$")
    return Told(
        int(chunk),
        ast.literal_eval(remembered),
        int(began),
        int(planned[0]) if planned else None,
        found(r"^(lesson_.*)$"),
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "lessons"


def files(place: Path) -> list[Path]:
    return sorted(place.glob("*.json"))


def test_the_second_script_begins_with_what_the_first_one_learned(place: Path) -> None:
    first = script(PLAN, RUN, remember=str(place))
    assert not first.remembered
    assert first.planned == 75_000  # padata's rule
    second = script(PLAN, RUN, remember=str(place))
    assert second.remembered
    assert second.began == second.planned == first.chunk
    assert not first.events
    assert not second.events
    [file] = files(place)
    assert os.listdir(place) == [file.name]
    assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    entry = entry_of(file.read_bytes())
    assert entry.subject.function == "__main__.work"
    assert entry.subject.job == "counting"
    assert entry.chunk == second.chunk


# The question gets lost on its way, in the outbox of a turn.
LOST = """
from aioktask.engine.api.process import current_pool

def strike(reading):
    raise MemoryError

current_pool().archive.fetch = strike
"""


def test_no_run_waits_for_ever_for_a_question_that_got_lost(place: Path) -> None:
    source = PRELUDE + LOST + "run_multithreaded_sync(the_job())\nprint('over')"
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env=environ(str(place)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.stdout.endswith("over\n"), ended.stderr


LOOP = """
async def main():
    show(await run_multithreaded(the_job()))
"""
SUBMIT = """
async def main():
    async with Coordinator() as coordinator:
        show(await coordinator.submit(the_job()))
"""


@on_each_loop
@pytest.mark.parametrize("program", [LOOP, SUBMIT], ids=["awaited", "submitted"])
def test_jobs_on_a_loop_begin_with_it_too(place: Path, loop: str, program: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    first = script(RUN, remember=str(place))
    second = script(program, RUN_MAIN[loop], remember=str(place))
    assert second.remembered
    assert second.began == first.chunk


SLOW = """
import aioktask.engine.threads.archive as archive
opened, there = archive.store.opened, threading.Event()
def slow(path, **how):
    there.wait()
    return opened(path, **how)
archive.store.opened = slow
"""


def test_a_plan_in_a_loop_s_thread_does_not_wait_and_knows_what_was_read(place: Path) -> None:
    first = script(RUN, remember=str(place))
    program = """
        async def main():
            print("unread", plan(the_job()).chunk)
            there.set()
            show(await run_multithreaded(the_job()))
            print("planned", plan(the_job()).chunk)

        asyncio.run(main())
    """
    output = output_of(SLOW, program, remember=str(place))
    told = told_by(output)
    assert "unread 75000" in output
    assert told.remembered
    assert told.began == first.chunk


def test_the_thread_that_asks_the_disk_is_there_when_something_is_asked(place: Path) -> None:
    program = f"""
        def archives():
            return [thread.name for thread in threading.enumerate()].count("aioktask archive")

        run_multithreaded_sync(the_job())
        print("before", archives())
        for _ in range(2):
            run_multithreaded_sync(the_job(remember="{place}"))
        print("after", archives())
    """
    output = output_of(program)
    assert "before 0\n" in output
    assert "after 1\n" in output


def test_zero_and_one_mean_what_they_meant_and_nothing_is_kept_unasked(tmp_path: Path) -> None:
    for said in ("", "0", "1"):
        for _ in range(2):
            assert not script(RUN, remember=said, HOME=str(tmp_path)).remembered
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("xdg", [False, True])
def test_disk_is_the_user_s_directory_for_caches(tmp_path: Path, xdg: bool) -> None:
    caches = tmp_path / ("caches" if xdg else ".cache")
    more = {"HOME": str(tmp_path), **({"XDG_CACHE_HOME": str(caches)} if xdg else {})}
    script(RUN, remember="disk", **more)
    assert script(RUN, remember="disk", **more).remembered
    for each in (caches, caches / "aioktask"):
        assert each.stat().st_mode & 0o777 == 0o700
    assert len(files(caches / "aioktask")) == 1


@pytest.mark.parametrize(
    "program",
    [
        'show(run_multithreaded_sync(the_job(remember="{place}")))',
        'aioktask.configure(remember="{place}"); show(run_multithreaded_sync(the_job()))',
        'with Coordinator(remember="{place}") as coordinator:\n'
        "    show(coordinator.submit(the_job()).result())",
    ],
    ids=["job", "process", "coordinator"],
)
def test_each_way_to_ask_for_it_does(place: Path, program: str) -> None:
    asking = program.format(place=place)
    first = script(asking, remember="")
    second = script(asking, remember="")
    assert second.remembered
    assert second.began == first.chunk


def test_what_was_learned_before_it_was_asked_for_is_kept_too(place: Path) -> None:
    program = f"""
        run_multithreaded_sync(the_job())
        run_multithreaded_sync(the_job(remember="{place}"))
    """
    output_of(program, remember="1")
    assert script(RUN, remember=str(place)).remembered


# What is there and is not used.

CHANGED = """
def work(start, stop):
    for unit in range(start, stop):
        unit + 1
"""


def test_a_changed_function_begins_anew_and_finds_its_lesson_again(place: Path) -> None:
    first = script(RUN, remember=str(place))
    changed = script(CHANGED, RUN, remember=str(place))
    assert not changed.remembered
    [event] = changed.events
    assert event.startswith("lesson_not_used job='counting'")
    assert "the code of __main__.work was changed since it was learned" in event
    back = script(RUN, remember=str(place))
    assert back.remembered
    assert back.began == first.chunk
    assert not back.events
    assert len(files(place)) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "damaged"),
        (b"{" * 9000, "damaged"),
        (b'{"version": 999}', "of another version"),
        (b"\x80\x04\x95", "damaged"),
    ],
    ids=["empty", "deep", "another version", "a pickle"],
)
def test_a_file_that_is_no_lesson_is_not_used_and_replaced(
    place: Path, content: bytes, why: str
) -> None:
    script(RUN, remember=str(place))
    [file] = files(place)
    file.write_bytes(content)
    told = script(RUN, remember=str(place))
    assert not told.remembered
    [event] = told.events
    assert why in event
    assert files(place) == [file]
    assert script(RUN, remember=str(place)).remembered


def test_a_file_of_another_machine_is_left_alone(place: Path) -> None:
    script(RUN, remember=str(place))
    [file] = files(place)
    told = json.loads(file.read_bytes())
    told["subject"]["machine"] = "another"
    file.write_text(json.dumps(told))
    [event] = script(RUN, remember=str(place)).events
    assert "something else: machine differ" in event


def not_used(told: Told, error: int, *kinds: str) -> None:
    """The job ran without, and each of these events names the error."""
    assert not told.remembered
    assert [each.split()[0] for each in told.events] == list(kinds)
    assert all(f"Error({error}, " in each for each in told.events), told.events


BOTH = ("lesson_not_used", "lesson_not_kept")


def test_a_directory_that_others_may_write_to_is_not_used(place: Path) -> None:
    script(RUN, remember=str(place))
    place.chmod(0o770)
    for _ in range(2):
        not_used(script(RUN, remember=str(place)), errno.EPERM, *BOTH)
    place.chmod(0o700)
    assert script(RUN, remember=str(place)).remembered


def test_a_symlink_to_a_directory_is_not_used(place: Path, tmp_path: Path) -> None:
    script(RUN, remember=str(place))
    link = tmp_path / "link"
    link.symlink_to(place)
    not_used(script(RUN, remember=str(link)), errno.ELOOP, *BOTH)


@as_root
def test_another_user_s_directory_is_not_used(place: Path) -> None:
    script(RUN, remember=str(place))
    os.chown(place, NOBODY, NOBODY)
    not_used(script(RUN, remember=str(place)), errno.EPERM, *BOTH)


@as_root
def test_a_user_without_rights_runs_jobs_all_the_same(place: Path) -> None:
    script(RUN, remember=str(place))
    become = "os.setgid(65534); os.setuid(65534)"
    not_used(script(become, RUN, remember=str(place)), errno.EACCES, *BOTH)
    told = script(become, RUN, remember="disk", HOME="/nonexistent")
    not_used(told, errno.EACCES, "lesson_not_kept")
    assert "directory='/nonexistent/.cache/aioktask'" in told.events[0]


def test_where_no_directory_can_be_made_jobs_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    not_used(script(RUN, remember=str(file)), errno.ENOTDIR, *BOTH)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    with mounted("tmpfs", tmp_path, "size=8k,mode=700") as tiny:
        yield tiny


@as_root
def test_a_full_disk_costs_the_feature_only(tiny: Path) -> None:
    filler = tiny / "filler"
    filler.write_bytes(bytes(8192))
    not_used(script(RUN, remember=str(tiny)), errno.ENOSPC, "lesson_not_kept")
    assert os.listdir(tiny) == ["filler"]
    filler.unlink()
    script(RUN, remember=str(tiny))
    assert script(RUN, remember=str(tiny)).remembered


@as_root
def test_a_read_only_directory_is_read(tiny: Path) -> None:
    first = script(RUN, remember=str(tiny))
    subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
    told = script(RUN, remember=str(tiny))
    assert told.remembered
    assert told.began == first.chunk
    [event] = told.events
    assert event.startswith("lesson_not_kept")
    assert f"OSError({errno.EROFS}, " in event


# Processes that end in every way.


def test_what_was_learned_is_kept_in_a_quiet_moment_and_a_killed_process_keeps_it(
    place: Path,
) -> None:
    with Child(PRELUDE, RUN, "gate()", environ=environ(str(place))) as child:
        until(lambda: files(place), "the file")
        child.signal(signal.SIGKILL)
        assert child.end() == -signal.SIGKILL
    assert script(RUN, remember=str(place)).remembered


MANY = """
from aioktask.engine.api.process import current_pool
archive = current_pool().archive
number = int(os.environ["TEST_NUMBER"])
print("ready", flush=True)
sys.stdin.read(1)
os.nice(15)  # so that who kills them need not wait long for a CPU
for turn in range(1_000_000):
    run_multithreaded_sync(the_job())
    run_multithreaded_sync(Job(work, 9_000, max_threads=1, name=f"{number}"))
    archive._writes = True  # as in a quiet moment
    archive._parking.unpark()
"""


def test_twenty_processes_that_write_at_once_and_are_killed_leave_whole_files(
    place: Path,
) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE.replace("level=logging.DEBUG, ", "") + MANY],
            env=environ(str(place), TEST_NUMBER=str(number)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(20)
    ]
    looks = 0
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write(b".")
            child.stdin.flush()
        until(lambda: len(files(place)) >= 5, "some files")
        for child in children:
            for file in files(place):  # while others write
                # In this crowd a lesson may seem wrong, so that it is forgotten.
                with contextlib.suppress(FileNotFoundError):
                    entry_of(file.read_bytes())
                    looks += 1
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
    finally:
        for child in children:
            child.kill()
            _, told = child.communicate()
            assert told == b""
    assert looks
    for remembered in (None, True):
        last = script(RUN, remember=str(place))
        assert remembered in (None, last.remembered)
        assert not last.events


HANGS = """
import aioktask.engine.threads.archive as archive
hangs = threading.Event()
def hang(*args, **how):
    print("hangs", flush=True)
    hangs.wait()
archive.store.opened = hang
"""


def test_a_directory_that_hangs_keeps_no_job_waiting_and_no_exit(place: Path) -> None:
    script(RUN, remember=str(place))
    output = output_of(HANGS, RUN, PLAN, remember=str(place))
    assert output.count("hangs") == 1
    told = told_by(output)
    assert not told.remembered
    assert told.planned == told.chunk  # from what this process learned


def test_a_run_tells_how_long_it_waited_and_a_plan_waits_no_longer_than_it_says(
    place: Path,
) -> None:
    program = """
        import aioktask.engine.api.run_job as run_job
        print("a plan waits", run_job.PLAN_SECONDS)
        run_job.PLAN_SECONDS = 0.01
        report = run_multithreaded_sync(the_job())
        print("waited", report.queued >= 0.1)
        print("planned", plan(Job(work, 1 << 20, max_threads=1, name="another")).chunk)
    """
    output = output_of(HANGS, program, remember=str(place))
    assert "a plan waits 1.0\n" in output
    assert "waited True\n" in output
    assert f"planned {(1 << 20) // 4}\n" in output  # padata's rule


def test_a_wait_for_a_directory_that_hangs_is_interrupted(place: Path) -> None:
    program = """
        import aioktask.engine.state.admission as admission
        admission.PATIENCE_NS = 10**12
        try:
            run_multithreaded_sync(the_job())
        except KeyboardInterrupt:
            say("interrupted")
    """
    with Child(PRELUDE, HANGS, program, environ=environ(str(place))) as child:
        child.hear("hangs")
        child.signal(signal.SIGINT)
        child.hear("interrupted")
        assert child.end() == 0


def test_a_fork_s_child_remembers_for_itself(place: Path) -> None:
    program = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        run_multithreaded_sync(the_job())
        child = os.fork()
        if not child:
            run_multithreaded_sync(Job(work, 300_000, max_threads=1, name="of the child"))
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print("child ended")
    """
    assert "child ended" in output_of(program, remember=str(place))
    jobs = {entry_of(file.read_bytes()).subject.job for file in files(place)}
    assert jobs == {"counting", "of the child"}


def test_a_process_without_threads_to_spare_runs_jobs_without_it(place: Path) -> None:
    script(RUN, remember=str(place))
    program = """
        import aioktask.engine.threads.archive as archive
        def refused(*args):
            raise RuntimeError("can't start new thread")
        archive.start_thread = refused
    """
    told = script(program, RUN, remember=str(place))
    assert not told.remembered


def test_the_command_line_lists_and_clears(place: Path) -> None:
    def learned(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "aioktask", "learned", *arguments],
            env=environ(str(place)),
            capture_output=True,
            text=True,
            check=False,
        )

    assert learned().stdout == f"nothing is kept in {place}\n"
    script(RUN, remember=str(place))
    output_of(
        "run_multithreaded_sync(Job(work, 9_000, max_threads=1, name='\\x1b[31mred'))",
        remember=str(place),
    )
    (place / "notes.txt").touch()
    assert len(files(place)) == 2
    listed = learned().stdout
    assert "\x1b" not in listed
    assert "__main__.work, job 'counting'" in listed
    chunks = [entry_of(file.read_bytes()).chunk for file in files(place)]
    assert all(f"\n  chunk       {chunk:,} units\n" in listed for chunk in chunks)
    data = json.loads(learned("--json", "counting").stdout)
    assert [each["subject"]["job"] for each in data["learned"]] == ["counting"]
    files(place)[0].with_name(f"{'0' * 16}-{'0' * 16}-{'0' * 16}.json").write_bytes(b"?")
    assert "not used    it is damaged" in learned().stdout
    assert learned("--clear", "nothing").stdout == f"removed 0 from {place}\n"
    assert learned("--clear", "counting").stdout == f"removed 1 from {place}\n"
    (place / f"{'1' * 16}-{'0' * 16}-{'0' * 16}.json").mkdir()
    assert learned("--clear").stdout == f"removed 2 from {place}\n"
    (place / f"{'1' * 16}-{'0' * 16}-{'0' * 16}.json").rmdir()
    assert os.listdir(place) == ["notes.txt"]
    place.chmod(0o777)
    refused = learned()
    assert refused.returncode == 2
    assert "others may write to it (mode 777)" in refused.stderr
    assert refused.stderr.count("\n") == 1
