# SPDX-License-Identifier: MIT
# The guest machine's bed tells the truth: what fails, ends early or never answers is no pass.
#
# No machine is booted. In its place stands a process that gets the same request, runs the same
# guest side over the same kind of channel, and ends in all the ways in which a machine can.

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest.bed import Bed
from tests.guest.machine import Limits
from tests.guest.reports import FINISHED, PROBLEM, READY, REPORT, STARTED, Stream, line

CHECKOUT = Path(__file__).resolve().parents[2]
NODEID = "tests/guest/test_it.py::test_it"

linux = pytest.mark.skipif(sys.platform != "linux", reason="the guest machine needs Linux")


def phase(when: str, outcome: str = "passed") -> bytes:
    """The guest's message about one phase of the test."""
    report: dict[str, object] = {
        "$report_type": "TestReport",
        "nodeid": NODEID,
        "location": ["tests/guest/test_it.py", 1, "test_it"],
        "keywords": {},
        "outcome": outcome,
        "longrepr": None,
        "when": when,
        "sections": [["Captured stdout call", "said"]],
        "user_properties": [["key", "value"]],
        "duration": 1.5,
        "start": 0.0,
        "stop": 1.5,
    }
    return line(REPORT, report=report)


PASSED = [
    line(READY),
    line(STARTED, nodeid=NODEID),
    phase("setup"),
    phase("call"),
    phase("teardown"),
]


def outcomes(stream: Stream) -> list[tuple[str | None, str]] | None:
    found = stream.reports(NODEID)
    return None if found is None else [(report.when, report.outcome) for report in found]


@given(data=st.data())
def test_messages_may_be_cut_anywhere(data: st.DataObject, pytestconfig: pytest.Config) -> None:
    sent = b"".join(PASSED)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)))))
    stream = Stream(pytestconfig)
    for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        stream.feed(sent[start:stop])
    assert outcomes(stream) == [("setup", "passed"), ("call", "passed"), ("teardown", "passed")]
    assert stream.end is None


@pytest.mark.parametrize("told", range(len(PASSED)))
def test_a_test_has_no_outcome_before_its_teardown_is_told(
    told: int, pytestconfig: pytest.Config
) -> None:
    stream = Stream(pytestconfig)
    stream.feed(b"".join(PASSED[:told]))
    stream.close("the machine stopped")
    stream.feed(b"".join(PASSED[told:]))
    assert stream.reports(NODEID) is None
    assert "the machine stopped" in stream.explain(NODEID)


def test_a_test_that_never_was_called_has_not_passed(pytestconfig: pytest.Config) -> None:
    stream = Stream(pytestconfig)
    stream.feed(phase("setup") + phase("teardown"))
    assert stream.reports(NODEID) is None
    stream = Stream(pytestconfig)
    stream.feed(phase("setup", "skipped") + phase("teardown"))
    assert outcomes(stream) == [("setup", "skipped"), ("teardown", "passed")]


@pytest.mark.parametrize(
    "noise", [b"no JSON\n", b"[]\n", b"{}\n", b'{"kind": "applause"}\n', b'{"kind": "report"}\n']
)
def test_what_is_no_message_ends_the_stream(noise: bytes, pytestconfig: pytest.Config) -> None:
    stream = Stream(pytestconfig)
    stream.feed(noise + b"".join(PASSED))
    assert stream.end is not None
    assert "no message" in stream.end
    assert stream.reports(NODEID) is None


def test_the_end_says_what_was_running_and_what_troubled_the_guest(
    pytestconfig: pytest.Config,
) -> None:
    stream = Stream(pytestconfig)
    stream.feed(line(PROBLEM, text="cannot import it") + line(STARTED, nodeid=NODEID))
    stream.feed(line(FINISHED, exitstatus=2))
    assert "while this test was running" in stream.explain(NODEID)
    assert f"while {NODEID} was running, before this test" in stream.explain("another")
    assert "exit code 2" in stream.explain("another")
    assert "cannot import it" in stream.explain("another")


# What stands for the machine: `tests.guest.inside` on this one.
CONFTEST = """
import json
import os
import sys

import tests.guest.conftest as real
from tests.guest.bed import Bed
from tests.guest.conftest import *
from tests.guest.machine import Limits
from tests.support.packages import Unavailable

STANDING = '''
import json, os, sys
from tests.guest.inside import run
print("the console says this", flush=True)
run(json.loads(sys.argv[1]), os.fdopen(int(sys.argv[2]), "wb"))
'''

class Standing(Bed):
    def command(self, folder, port):
        if reason := os.environ.get("UNAVAILABLE"):
            raise Unavailable(reason)
        self._limits = Limits(boot=60, test=float(os.environ.get("TEST_LIMIT", 60)), pulse=2)
        (folder / "initramfs").touch()
        if "PULSE" in os.environ:
            (folder / "pulse").write_text("it has beaten once")
        request = json.dumps(self.request)
        return [sys.executable, "-c", STANDING, request, str(port)], {"AIOKTASK_IN_GUEST": "1"}

real.Bed = Standing
real.required = lambda: "REQUIRED" in os.environ
"""


class Session:
    """A pytest session on this machine whose tests run in what stands for the guest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "pytest.ini").write_text("[pytest]\nmarkers = guest\nxfail_strict = true\n")

    def start(self, tests: str, **variables: str) -> subprocess.Popen[str]:
        (self.folder / "test_it.py").write_text(textwrap.dedent(tests))
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-m", "guest"],
            cwd=self.folder,
            env={
                **os.environ,
                "AIOKTASK_GUEST_CACHE": str(self.folder / "cache"),
                "PYTHONPATH": str(CHECKOUT),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, tests: str, **variables: str) -> tuple[dict[str, str], str, int]:
        """What became of each test, by its name; all that was printed; the exit code."""
        process = self.start(tests, **variables)
        output = process.communicate(timeout=100)[0]
        told = re.findall(
            r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL) (?:\[1\] )?test_it.py(?:::|:\d+: )(\S+)",
            output,
            re.MULTILINE,
        )
        return {name: outcome for outcome, name in told}, output, process.returncode


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


@linux
def test_every_outcome_is_told_as_it_was(session: Session) -> None:
    outcome, output, code = session.run(
        """
        import os
        import pytest

        @pytest.fixture
        def broken():
            yield
            raise OSError("the teardown broke")

        def test_passes():
            assert os.environ["AIOKTASK_IN_GUEST"] == "1"

        def test_fails():
            print("printed before")
            expected = {"a": 1}
            assert expected == {"a": 2}

        @pytest.mark.skipif("AIOKTASK_IN_GUEST" in os.environ, reason="test_skips: a reason")
        def test_skips():
            pass

        @pytest.mark.xfail(reason="known")
        def test_fails_as_expected():
            assert False

        @pytest.mark.xfail(reason="known")
        def test_passes_unexpectedly():
            pass

        def test_ends_badly(broken):
            pass

        @pytest.mark.parametrize("number", [1, 2])
        def test_numbers(number):
            assert number == 1
        """
    )
    assert outcome == {
        "test_passes": "PASSED",
        "test_fails": "FAILED",
        "test_skips:": "SKIPPED",
        "test_fails_as_expected": "XFAIL",
        "test_passes_unexpectedly": "FAILED",
        "test_ends_badly": "ERROR",
        "test_numbers[1]": "PASSED",
        "test_numbers[2]": "FAILED",
    }
    assert "test_skips: a reason" in output
    assert 'assert expected == {"a": 2}' in output
    assert "printed before" in output
    assert "the teardown broke" in output
    assert code == pytest.ExitCode.TESTS_FAILED
    # The logs of the run are kept, and no more.
    logs = [path.name for path in session.folder.glob("cache/runs/*/*")]
    assert logs == ["qemu.log"]


@linux
@pytest.mark.parametrize("code", [0, 1])
def test_a_crash_fails_the_running_test_and_those_after_it(session: Session, code: int) -> None:
    outcome, output, _ = session.run(
        f"""
        import os

        def test_before():
            pass

        def test_crashes():
            os.write(1, b"last words\\n")
            os._exit({code})

        def test_after():
            pass
        """
    )
    assert outcome == {"test_before": "PASSED", "test_crashes": "FAILED", "test_after": "FAILED"}
    assert "while this test was running: the machine stopped" in output
    assert "while test_it.py::test_crashes was running, before this test" in output


@linux
def test_a_machine_that_falls_silent_fails_what_is_left(session: Session) -> None:
    outcome, output, _ = session.run(
        """
        import threading

        def test_before():
            pass

        def test_hangs():
            threading.Event().wait()

        def test_after():
            pass
        """,
        TEST_LIMIT="3",
    )
    assert outcome == {"test_before": "PASSED", "test_hangs": "FAILED", "test_after": "FAILED"}
    assert "there was no message" in output
    # The end of the log of the machine's process.
    assert "the console says this" in output


@linux
def test_a_machine_that_froze_is_booted_anew_and_no_test_has_to_pay(session: Session) -> None:
    before = session.folder / "before"
    outcome, output, code = session.run(
        f"""
        import pathlib
        import threading

        def test_before():
            path = pathlib.Path({str(before)!r})
            path.write_text(path.read_text() + "1" if path.exists() else "1")

        def test_is_running():
            first = pathlib.Path({str(session.folder / "first")!r})
            if not first.exists():
                first.touch()
                threading.Event().wait()

        def test_after():
            pass
        """,
        PULSE="",
    )
    assert set(outcome.values()) == {"PASSED"}
    assert len(outcome) == 3
    assert code == pytest.ExitCode.OK
    assert output.count("a machine froze while test_it.py::test_is_running was running") == 1
    assert before.read_text() == "1"  # what has passed is not repeated


@linux
def test_a_test_in_which_machines_freeze_each_time_fails(session: Session) -> None:
    outcome, output, _ = session.run(
        """
        import threading

        def test_freezes():
            threading.Event().wait()

        def test_after():
            pass
        """,
        PULSE="",
    )
    assert outcome == {"test_freezes": "FAILED", "test_after": "FAILED"}
    assert "it froze: for" in output
    assert len(list(session.folder.glob("cache/runs/*"))) == 2


@linux
def test_a_test_that_the_guest_does_not_have_fails(session: Session) -> None:
    outcome, output, _ = session.run(
        """
        import os
        import pytest

        where = "guest" if "AIOKTASK_IN_GUEST" in os.environ else "host"

        @pytest.mark.parametrize("where", [where])
        def test_parametrized_by_the_machine(where):
            pass

        def test_another():
            pass
        """
    )
    assert outcome == {
        "test_parametrized_by_the_machine[host]": "FAILED",
        "test_another": "PASSED",
    }
    assert "The guest does not find these tests" in output


@linux
def test_a_module_that_the_guest_cannot_import_fails_its_tests(session: Session) -> None:
    outcome, output, _ = session.run(
        """
        import os

        if "AIOKTASK_IN_GUEST" in os.environ:
            import a_module_that_nobody_has

        def test_it():
            pass
        """
    )
    assert outcome == {"test_it": "FAILED"}
    assert "The guest cannot import test_it.py" in output
    assert "No module named 'a_module_that_nobody_has'" in output


@linux
def test_a_machine_that_is_given_up_is_ended(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stuck = f"import threading; file = open({str(pipe)!r}, 'w'); threading.Event().wait()"

    class Stuck(Bed):
        def command(self, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
            return [sys.executable, "-c", stuck], {}

    monkeypatch.setenv("AIOKTASK_GUEST_CACHE", str(tmp_path / "cache"))
    request: dict[str, list[str]] = {"nodeids": [NODEID], "options": []}
    bed = Stuck(pytestconfig, request, Limits(boot=0.1), lambda text: None)
    bed.boot()
    with pipe.open("rb") as reader:
        assert "in 0.1 s there was no test to begin" in str(bed.reports(NODEID))
        # Its end of the pipe is closed, though this process lives on.
        assert reader.read() == b""


ONE_TEST = """
    def test_it():
        pass
    """


@linux
def test_where_there_can_be_no_guest_its_tests_are_skipped_with_the_reason(
    session: Session,
) -> None:
    _, output, code = session.run(ONE_TEST, UNAVAILABLE="the moon is not full")
    assert "1 skipped" in output
    assert "no guest machine here: the moon is not full" in output
    assert code == pytest.ExitCode.OK


@linux
def test_where_there_must_be_a_guest_no_reason_excuses_it(session: Session) -> None:
    outcome, output, _ = session.run(ONE_TEST, UNAVAILABLE="the moon is not full", REQUIRED="")
    assert outcome == {"test_it": "FAILED"}
    assert "the moon is not full" in output


@linux
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_the_machine_ends_with_the_session(session: Session, name: str) -> None:
    # Both ends of the pipe that only the machine's process keeps open say when it has ended.
    pipe = session.folder / "pipe"
    os.mkfifo(pipe)
    process = session.start(
        f"""
        import threading

        def test_hangs():
            with open({str(pipe)!r}, "w") as pipe:
                pipe.write("in the test")
                pipe.flush()
                threading.Event().wait()
        """
    )
    with pipe.open("rb", buffering=0) as reader:
        assert reader.read(100) == b"in the test"
        process.send_signal(getattr(signal, name))
        assert reader.read(100) == b""
    assert "passed" not in process.communicate(timeout=60)[0]
    assert process.returncode != 0
