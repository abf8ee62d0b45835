# SPDX-License-Identifier: MIT
# The nice of real threads: as root, as an ordinary user (by really dropping the privileges of a
# child process), and as one who may go back to a lower nice (RLIMIT_NICE).

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from aioktask.engine.priority import gil_is_on, thread_nice
from tests.process.child import Child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a nice of threads is Linux's")

CAP_SYS_RESOURCE = 24
ROOT = getattr(os, "geteuid", lambda: -1)() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can become somebody else")


def may_raise_the_limit() -> bool:
    """Whether a process of this user can have RLIMIT_NICE raised."""
    import resource

    if resource.getrlimit(resource.RLIMIT_NICE)[1] >= 40:
        return True
    found = re.search(r"CapEff:\s+(\w+)", Path("/proc/self/status").read_text())
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_RESOURCE & 1)


AS = [
    pytest.param("root", marks=needs_root),
    pytest.param("user"),
    pytest.param(
        "user with RLIMIT_NICE",
        marks=[
            needs_root,
            pytest.mark.skipif(
                sys.platform == "linux" and not may_raise_the_limit(),
                reason="RLIMIT_NICE cannot be raised without CAP_SYS_RESOURCE",
            ),
        ],
    ),
]

PROGRAM = """
    import resource

    def become(who):
        if who == "root":
            return
        if os.geteuid() == 0:
            most = 40 if "RLIMIT" in who else 0
            resource.setrlimit(resource.RLIMIT_NICE, (most, most))
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        else:
            assert resource.getrlimit(resource.RLIMIT_NICE)[1] == 0, "this user may lower it"

    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def fn(start, stop):
        note("in", start, threading.get_native_id(), nice())
        say("begun")
        until(lambda: start in released)
        note("out", start, threading.get_native_id(), nice())

    released = set()  # chunks that may end
    import linecache, traceback  # while they can be read
"""


def notes(child: Child) -> dict[tuple[str, str], tuple[str, int]]:
    """By kind and chunk: the thread and its nice."""
    return {(kind, start): (thread, int(nice)) for kind, start, thread, nice in child.notes()}


def levels() -> tuple[int, int]:
    """What threads are of that serve jobs of nice 0 and of nice 19, here."""
    base = os.getpriority(os.PRIO_PROCESS, 0)
    gil = gil_is_on()
    return thread_nice(0, base, gil=gil), thread_nice(19, base, gil=gil)


@pytest.mark.parametrize("who", AS)
def test_a_renice_reaches_the_thread_at_once_or_at_the_next_chunk(who: str) -> None:
    normal, high = levels()
    main = f"""
        become({who!r})
        from aioktask.engine.api.process import current_pool
        helpers = current_pool().state.helpers
        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(fn, 3, chunk=1, max_threads=1))
            for chunk, nice_then in enumerate((19, 0, 0)):
                gate()
                handle.renice(nice_then)
                if nice_then or {who!r} != "user":  # who may lower a nice does it at once too
                    wanted = {high} if nice_then else {normal}
                    until(lambda: any(each.nice == wanted for each in list(helpers)))
                released.add(chunk)
        assert handle.nice == 0
        handle.renice(7)  # it is over
        assert handle.nice == 7
    """
    with Child(PROGRAM, main, environ={"AIOKTASK_GIVE_WAY": "0"}) as child:
        for _ in range(3):
            child.hear("begun")
            child.open()
        assert child.end() == 0, child.stderr()
        found = notes(child)
    assert found["in", "0"][1] == normal
    assert found["out", "0"][1] == high, "a higher one is always allowed"
    assert found["in", "1"] == found["out", "0"]
    if who == "user":
        assert found["out", "1"][1] == high
        assert found["in", "2"][1] == normal
        assert found["in", "2"][0] != found["out", "1"][0], "another thread"
    else:
        assert found["out", "1"] == (found["in", "1"][0], normal)
        assert found["in", "2"] == found["out", "1"]


@pytest.mark.parametrize("who", AS)
def test_a_waiter_lends_its_nice_to_one_helper_and_the_others_stay_low(who: str) -> None:
    normal, high = levels()
    main = f"""
        become({who!r})
        aioktask.set_max_threads(2)
        lock = threading.Lock()
        inside = set()

        def fn(start, stop):
            with lock:
                inside.add(threading.get_native_id())
            if start < 2:
                say("begun")
                until(lambda: start in released)
            else:
                any(len(inside) == 2 or time.sleep(0.001) for _ in range(20))  # or the last
                with lock:
                    threads = list(inside)
                nices = (os.getpriority(os.PRIO_PROCESS, each) for each in threads)
                note("nices", *sorted(nices))
            with lock:
                inside.remove(threading.get_native_id())

        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(fn, 64, chunk=1, nice=19))
            gate()
            def wait():
                with aioktask.priority(0):
                    say("lent", handle.result().lent)
            thread = threading.Thread(target=wait)
            thread.start()
            def is_lent():
                if handle._run.lent == "at a chunk boundary":
                    return True
                return {normal} in [os.getpriority(os.PRIO_PROCESS, each) for each in list(inside)]
            until(is_lent)
            say("waits", *(os.getpriority(os.PRIO_PROCESS, thread) for thread in sorted(inside)))
            released.update((0, 1))
            thread.join()
    """
    with Child(PROGRAM, main, environ={"AIOKTASK_GIVE_WAY": "0"}) as child:
        child.hear("begun", 2)
        child.open()
        at_once = sorted(map(int, child.hear_line("waits ").split()))
        lent = child.hear_line("lent ")
        assert child.end() == 0, child.stderr()
        seen = [tuple(map(int, words[1:])) for words in child.notes()]
    if who == "user":
        assert at_once == [high, high]
        assert lent == "at a chunk boundary"
    else:
        assert at_once == [normal, high]
        assert lent == "at once"
    assert seen
    assert {nices.count(normal) for nices in seen} <= {0, 1}, "never two at a time"
    assert any(nices.count(normal) for nices in seen)


def test_where_going_back_is_refused_although_it_seemed_allowed_another_thread_does_it() -> None:
    """As in a container whose root has the capability in its own namespace only."""
    main = """
        from aioktask.engine.machine import monitor
        from aioktask.engine.threads import adapt

        def refuse(thread, wanted):
            if wanted < os.getpriority(os.PRIO_PROCESS, thread):
                return adapt.NiceChange.TOO_LOW
            return real(thread, wanted)

        real = adapt.set_thread_nice
        adapt.set_thread_nice = refuse
        monitor.may_lower = lambda nice: True
        aioktask.set_max_threads(1)
        released.update((0, 1, 2))
        with Coordinator() as coordinator:
            for nice_now in (19, 0):
                coordinator.submit(Job(fn, 1, nice=nice_now, name=f"of {nice_now}")).result()
            handle = coordinator.submit(Job(fn, 3, chunk=1, start=1, nice=19))
            until(lambda: handle.progress().done == 2)
            handle.renice(0)
            released.add(3)
    """
    normal, high = levels()
    with Child(PROGRAM, main, environ={"AIOKTASK_GIVE_WAY": "0"}) as child:
        assert child.end() == 0, child.stderr()
        nices = [int(words[-1]) for words in child.notes() if words[0] == "in"]
        assert nices == [high, normal, high, high, high]


def test_a_waiter_of_the_same_nice_lends_nothing() -> None:
    main = """
        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(fn, 1, nice=19))
            thread = threading.Thread(target=lambda: say("lent", handle.result().lent))
            thread.start()
            until(lambda: handle._run.waiters)
            gate()
            released.add(0)
            thread.join()
    """
    with Child(PROGRAM, main, environ={"AIOKTASK_GIVE_WAY": "0"}) as child:
        child.hear("begun")
        child.open()
        assert child.hear_line("lent ") == "no"
        assert child.end() == 0, child.stderr()
        assert notes(child)["out", "0"][1] == levels()[1]


def test_a_renice_before_the_start_and_during_the_undo() -> None:
    normal, high = levels()
    main = f"""
        aioktask.set_max_threads(1)
        order = []
        def undo(start, stop):
            order.append(nice())
            say("undoing")
            until(lambda: "undo" in released)
            until(lambda: nice() == {high})  # a turn sets it
            order.append(nice())
        def fail(start, stop):
            if start:
                raise OSError(5, "no")

        with Coordinator() as coordinator:
            first = coordinator.submit(Job(fn, 1))
            until(lambda: first.progress().threads)
            second = coordinator.submit(Job(lambda a, b: order.append("second"), 1, chunk=1))
            third = coordinator.submit(Job(lambda a, b: order.append("third"), 1, chunk=1))
            third.renice(-7)  # it goes before what was submitted earlier
            released.add(0)
        assert order == ["third", "second"], order
        order.clear()
        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(fail, 2, chunk=1, undo=undo))
            gate()
            handle.renice(19)
            released.add("undo")
        try:
            handle.result()
        except OSError:
            note("undone", 0, *order)
    """
    with Child(PROGRAM, main, environ={"AIOKTASK_GIVE_WAY": "0"}) as child:
        child.hear("undoing")
        child.open()
        assert child.end() == 0, child.stderr()
        [words] = [words for words in child.notes() if words[0] == "undone"]
        assert words[2:] == [str(normal), str(high)]
