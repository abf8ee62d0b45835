# SPDX-License-Identifier: MIT
# Signals, in real processes: Ctrl-C, SIGTERM and alarms at every awkward moment, on the plain main
# thread and under each loop.
#
# A test is judged by what its child wrote into a file that both can see, and by its exit status.
# The `Child` here serves all tests of this folder: its program notes in a log what it does, says a
# word on a pipe when it got somewhere, and stops at a gate until the test lets it on.

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.process.child import LONG_JOB, ONCE, RUN_MAIN, Child, on_each_loop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")


def test_interrupt_ends_running_chunks_undoes_and_raises() -> None:
    program = """
        try:
            run_multithreaded_sync(job)
        finally:
            note("left")
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    """
    with Child(LONG_JOB, program) as child:
        child.hear("begun", 3)
        child.signal(signal.SIGINT)
        assert child.end() == -signal.SIGINT
        assert child.undone_again(64) == 3  # those that ran, and no other began
        assert child.notes()[-1] == ["left"]
        assert child.stderr().splitlines()[-1] == "KeyboardInterrupt"


def test_interrupts_one_job_after_another() -> None:
    program = """
        for turn in range(6):
            job = Job(
                fill_when_unwanted, 8, start=8 * turn, chunk=1, max_threads=2, undo=clear,
                name="numbers",
            )
            try:
                run_multithreaded_sync(job)
            except KeyboardInterrupt as error:
                note("interrupted")
                assert [len(each) for each in failure(error).undone] in ([2], [1, 1])
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        run_multithreaded_sync(Job(fill, 8, start=48, chunk=1, undo=clear))
    """
    with Child(program) as child:
        for _ in range(6):
            child.hear("begun", 2)
            child.signal(signal.SIGINT)
        assert child.end() == 0, child.stderr()
        counts = child.counts(0, 56)
        assert Counter(counts[:48]) == {(1, 1): 12, (0, 0): 36}
        assert counts[48:] == [ONCE] * 8
        assert child.notes().count(["interrupted"]) == 6


def test_interrupt_of_a_job_whose_undo_fails_says_so() -> None:
    program = """
        def fail(start, stop):
            raise OSError(5, "planted")

        try:
            run_multithreaded_sync(Job(fill_when_unwanted, 2, chunk=1, max_threads=2, undo=fail))
        except aioktask.UndoFailed as failed:
            assert failed.ranges == (range(2),)
            assert isinstance(failed.__cause__, KeyboardInterrupt)
            note("failed")
    """
    with Child(program) as child:
        child.hear("begun", 2)
        child.signal(signal.SIGINT)
        assert child.end() == 0, child.stderr()
        assert child.notes()[-1] == ["failed"]


def assert_never_between(child: Child, rounds: int) -> Counter[str]:
    """Four units a round: in each, all are done, or all that was done is undone."""
    for number, words in enumerate(each for each in child.notes() if each[0] == "round"):
        assert words[1] == str(number)
    counts = child.counts(0, 4 * rounds)
    outcomes: Counter[str] = Counter()
    for number in range(rounds):
        units = counts[4 * number : 4 * number + 4]
        if ["returned", str(number)] in child.notes():
            assert units == [ONCE] * 4, number
            outcomes["returned"] += 1
        elif units == [ONCE] * 4:
            outcomes["done"] += 1
        else:
            assert set(units) <= {(0, 0), (1, 1)}, (number, units)
            outcomes["undone" if (1, 1) in units else "nothing"] += 1
    return outcomes


def test_interrupt_at_any_line_of_the_call_leaves_all_done_or_all_undone() -> None:
    # Before every line that the main thread runs while the library handles the signal, one round
    # each: the signal, and time for the other threads to act on it. (Python's own handler, before
    # and after, would raise out of the tracing function, where no handler ever runs in earnest.)
    program = """
        main_thread = threading.main_thread()
        aioktask.max_threads()  # which reads files, once a process
        default = signal.default_int_handler
        lines = wanted = 0

        def undo(start, stop):
            if threading.current_thread() is not main_thread:
                time.sleep(0.002)  # so that the main thread sometimes waits for a helper's
            clear(start, stop)

        def trace(frame, event, argument):
            global lines
            if frame.f_code.co_filename == "<string>":
                return None
            if event == "line" and signal.getsignal(signal.SIGINT) is not default:
                lines += 1
                if lines == wanted:
                    signal.raise_signal(signal.SIGINT)
                    time.sleep(0.0005)
            return trace

        shot = True
        while shot:
            number, wanted, lines = wanted, wanted + 1, 0
            note("round", number)
            job = Job(fill, 4, start=4 * number, chunk=1, undo=undo, max_threads=2)
            try:
                sys.settrace(trace)
                run_multithreaded_sync(job)
                sys.settrace(None)
                note("returned", number)
            except KeyboardInterrupt:
                sys.settrace(None)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            shot = lines >= wanted
        say("rounds", wanted)
    """
    with Child(program) as child:
        rounds = int(child.hear_line("rounds"))
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""
        outcomes = assert_never_between(child, rounds)
        assert outcomes["returned"] == 1  # the last round, which got no signal
        assert outcomes["undone"] > 10


def test_interrupt_as_the_job_ends_leaves_all_done_or_all_undone() -> None:
    program = """
        def job_of(number):
            return Job(fill, 4, start=4 * number, chunk=1, undo=clear, max_threads=3)

        before = time.perf_counter()
        for number in range(20):
            run_multithreaded_sync(job_of(number))
            note("returned", number)
        say("usual", (time.perf_counter() - before) / 20)
        for number in range(20, 220):
            try:
                say("go")
                run_multithreaded_sync(job_of(number))
                note("returned", number)
                gate()  # which the signal opens
            except KeyboardInterrupt:
                note("interrupted", number)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    """
    with Child(program) as child:
        usual = float(child.hear_line("usual"))
        timing = random.Random(5)
        for _ in range(200):
            child.hear("go")
            shot = time.perf_counter() + timing.uniform(0, 1.5 * usual)
            while time.perf_counter() < shot:
                pass
            child.signal(signal.SIGINT)
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""
        assert_never_between(child, 220)
        assert sum(words[0] == "interrupted" for words in child.notes()) == 200


GIVE_UP = """
try:
    run_multithreaded_sync(Job(fn, 2, chunk=1, max_threads=2, undo=undo, name="numbers"))
except KeyboardInterrupt as error:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    say("gave up:", error)
"""


def test_second_interrupt_gives_up_waiting_and_names_what_is_left() -> None:
    program = """
        helper_has_begun = threading.Event()

        def fn(start, stop):
            if threading.current_thread() is threading.main_thread():
                helper_has_begun.wait()
            else:
                helper_has_begun.set()
                begin(start, stop)
                until(unwanted)
                say("cancelled")
                gate()
            note("done", start, stop)

        undo = clear
    """
    with Child(program, GIVE_UP) as child:
        child.hear("begun")
        child.signal(signal.SIGINT)
        child.hear("cancelled")
        child.signal(signal.SIGINT)
        message = child.hear_line("gave up:")
        assert "'numbers'" in message
        assert "0 to 2" in message
        child.open()
        assert child.end() == 0, child.stderr()
        assert child.undone_again(2) == 2  # a helper ended it behind the back of the main thread


def test_second_interrupt_gives_up_a_chunk_of_the_main_thread() -> None:
    program = """
        def fn(start, stop):
            begin(start, stop)
            until(unwanted)
            say("cancelled")
            gate()
            note("done", start, stop)

        undo = clear
    """
    with Child(program, GIVE_UP) as child:
        child.hear("begun", 2)
        child.signal(signal.SIGINT)
        child.hear("cancelled", 2)
        child.signal(signal.SIGINT)
        message = child.hear_line("gave up:")
        assert "'numbers'" in message
        assert "0 to 2" in message
        child.open()
        assert child.end() == 0, child.stderr()
        assert child.undone_again(2) == 1  # the helper's: the other chunk never ended


def test_second_interrupt_gives_up_an_undo() -> None:
    program = """
        fn = fill_when_unwanted

        def undo(start, stop):
            note("by", threading.current_thread() is threading.main_thread())
            say("undoing")
            gate()
            note("undone", start, stop)
    """
    with Child(program, GIVE_UP) as child:
        child.hear("begun", 2)
        child.signal(signal.SIGINT)
        child.hear("undoing", 2)
        child.signal(signal.SIGINT)
        message = child.hear_line("gave up:")
        assert "'numbers'" in message
        assert "0 to 2" in message
        child.open(2)
        assert child.end() == 0, child.stderr()
        # A call of undo that the main thread made was cut short, those of helpers were not.
        cut_short = child.notes().count(["by", "True"])
        assert sorted(child.counts(0, 2)) == sorted(
            [(1, 0)] * cut_short + [(1, 1)] * (2 - cut_short)
        )


@pytest.mark.parametrize("handler", ["lambda number, frame: say('handled')", "signal.SIG_IGN"])
def test_a_handler_of_the_application_is_never_replaced(handler: str) -> None:
    program = f"""
        mine = {handler}
        signal.signal(signal.SIGINT, mine)
    """
    rest = """
        def fn(start, stop):
            assert signal.getsignal(signal.SIGINT) is mine
            fill_at_gate(start, stop)

        report = run_multithreaded_sync(Job(fn, 3, chunk=1, max_threads=3, undo=clear))
        assert signal.getsignal(signal.SIGINT) is mine
        assert report.chunks == 3
    """
    with Child(program, rest) as child:
        child.hear("begun", 3)
        child.signal(signal.SIGINT)
        if handler != "signal.SIG_IGN":
            child.hear("handled")
        child.open(3)
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 3) == [ONCE] * 3


def test_a_handler_installed_by_a_chunk_stays() -> None:
    program = """
        def fn(start, stop):
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        run_multithreaded_sync(Job(fn, 1, max_threads=1))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    """
    with Child(program) as child:
        assert child.end() == 0, child.stderr()


def test_a_thread_that_is_not_the_main_one_leaves_the_handler_alone() -> None:
    program = """
        def fn(start, stop):
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            note("done", start, stop)

        thread = threading.Thread(target=lambda: run_multithreaded_sync(Job(fn, 8, chunk=1)))
        thread.start()
        thread.join()
    """
    with Child(program) as child:
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 8) == [ONCE] * 8


@on_each_loop
@pytest.mark.parametrize("undo", ["clear", "clear_async"])
def test_interrupt_of_a_loop_undoes_before_the_keyboard_interrupt(loop: str, undo: str) -> None:
    program = f"""
        async def main():
            try:
                await run_multithreaded(
                    Job(fill_when_unwanted, 64, chunk=1, max_threads=3, undo={undo})
                )
            finally:
                note("left")

        {RUN_MAIN[loop]}
    """
    with Child(program) as child:
        child.hear("begun", 3)
        child.signal(signal.SIGINT)
        assert child.end() == -signal.SIGINT, child.stderr()
        assert child.undone_again(64) == 3
        assert child.notes()[-1] == ["left"]
        assert child.stderr().splitlines()[-1] == "KeyboardInterrupt"


@on_each_loop
def test_sigterm_that_shuts_a_server_down_undoes_its_jobs(loop: str) -> None:
    shut_down = """
        async def serve_on_trio(signals):
            with trio.CancelScope() as scope:
                async with Coordinator() as coordinator:
                    coordinator.submit(job)
                    async for _ in signals:
                        scope.cancel()
                        await trio.sleep_forever()

        async def serve():
            if kind_of_loop() == "trio":
                with trio.open_signal_receiver(signal.SIGTERM) as signals:
                    await serve_on_trio(signals)
                return
            serving = asyncio.current_task()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
            async with Coordinator() as coordinator:
                coordinator.submit(job)
                await asyncio.Event().wait()

        async def main():
            try:
                await serve()
            except asyncio.CancelledError:
                pass
            note("left")
    """
    with Child(LONG_JOB, shut_down, RUN_MAIN[loop]) as child:
        child.hear("begun", 3)
        child.signal(signal.SIGTERM)
        assert child.end() == 0, child.stderr()
        assert child.undone_again(64) == 3
        assert child.notes()[-1] == ["left"]


def blocked_signals(pid: int) -> dict[str, list[set[int]]]:
    """The signal masks of a process's threads, by the name of the thread."""
    masks: dict[str, list[set[int]]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            continue
        status = dict(line.split(":\t", 1) for line in lines if line)
        bits = int(status["SigBlk"], 16)
        blocked = {number + 1 for number in range(64) if bits >> number & 1}
        masks.setdefault("main" if task.name == str(pid) else status["Name"], []).append(blocked)
    return masks


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("blocked", [set(), {signal.SIGUSR1}], ids=["none", "SIGUSR1"])
def test_helpers_and_keeper_block_what_the_thread_does_that_submits_first(
    blocked: set[signal.Signals],
) -> None:
    program = f"""
        signal.pthread_sigmask(signal.SIG_BLOCK, {sorted(map(int, blocked))})
        say("started")
        gate()
        handle = Coordinator().submit(Job(fill_at_gate, 3, chunk=1, name="numbers"))
        handle.result()
    """
    with Child(program) as child:
        child.hear("started")
        before = blocked_signals(child.process.pid)["main"]
        assert before == [set(map(int, blocked))]
        child.open()
        child.hear("begun", 3)
        masks = blocked_signals(child.process.pid)
        assert masks.pop("main") == before
        assert masks.pop("numbers") == before * 3
        assert masks.pop("aioktask keeper") == before
        # Several threads may set out to be the keeper. One that is being made blocks all it can.
        others = [mask for each in masks.values() for mask in each]
        assert all(mask == before[0] or signal.SIGSEGV in mask for mask in others)
        child.open(3)
        assert child.end() == 0, child.stderr()


@pytest.mark.parametrize(
    "wait",
    [
        "Coordinator().submit(job).result()",
        "run_multithreaded_sync(job)",
        "asyncio.run(main())",
    ],
)
def test_signals_are_handled_by_the_main_thread_while_helpers_work(wait: str) -> None:
    program = f"""
        def handle(number, frame):
            say("handled", number, threading.current_thread().name)

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGUSR1, handle)

        def fn(start, stop):
            if threading.current_thread() is not threading.main_thread():
                fill_at_gate(start, stop)
                return
            until(lambda: len(begun) == 3)
            note("done", start, stop)

        async def main():
            await run_multithreaded(job)

        job = Job(fn, 4, chunk=1, max_threads=4, undo=clear)
        {wait}
    """
    with Child(program) as child:
        child.hear("begun", 3)
        for _ in range(25):
            for number in (signal.SIGINT, signal.SIGUSR1):
                before = time.monotonic()
                child.signal(number)
                child.hear(f"handled {int(number)} MainThread")
                assert time.monotonic() - before < 5
        child.open(4)
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 4) == [ONCE] * 4


ALARM = """
class Alarm(Exception):
    pass

def handle(number, frame):
    raise Alarm

signal.signal(signal.SIGALRM, handle)
in_main_thread = lambda: threading.current_thread() is threading.main_thread()
helper_has_begun, left = threading.Event(), threading.Event()
"""


def test_alarm_that_raises_in_a_chunk_is_the_error_of_that_chunk() -> None:
    program = """
        def fn(start, stop):
            if in_main_thread():
                helper_has_begun.wait()
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                gate()
            helper_has_begun.set()
            until(unwanted)
            note("done", start, stop)

        try:
            run_multithreaded_sync(Job(fn, 8, chunk=1, max_threads=2, undo=clear, name="numbers"))
        except Alarm as error:
            assert "numbers" in error.__notes__[0]
            assert len(failure(error).chunk) == 1
            note("left")
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.undone_again(8) == 1
        assert child.notes()[-1] == ["left"]


def test_alarm_that_raises_while_the_main_thread_waits_for_helpers_abandons_none() -> None:
    program = """
        def fn(start, stop):
            if in_main_thread():
                helper_has_begun.wait()
                signal.setitimer(signal.ITIMER_REAL, 0.05)
            else:
                helper_has_begun.set()
                until(unwanted)
                left.wait(0.2)  # if the call ended now, it would leave this chunk behind
            note("done", start, stop)

        try:
            run_multithreaded_sync(Job(fn, 2, chunk=1, max_threads=2, undo=clear, name="numbers"))
        except Alarm:
            left.set()
            note("left")
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.undone_again(2) == 2
        assert child.notes()[-1] == ["left"]
