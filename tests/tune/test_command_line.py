# SPDX-License-Identifier: MIT
# The command line as a user meets it: real processes, judged by what they print and their status.

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioktask
from aioktask.__main__ import main, size
from aioktask.bench.pictures import pictures
from aioktask.bench.promises import Result
from aioktask.demo import demo

ROOT = Path(aioktask.__file__).parents[1]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m aioktask` in a process of its own."""
    return run_python("-m", "aioktask", *arguments, **environ)


def run_python(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def printed(*arguments: str) -> str:
    """What the same prints, without a process."""
    with redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0
    return out.getvalue()


# info


def test_info_says_what_the_cap_is_and_why() -> None:
    ended = run("info", AIOKTASK_MAX_THREADS="3")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "3: AIOKTASK_MAX_THREADS=3" in ended.stdout
    for word in ("CPUs", "quota", "node 0", "Python", "asyncio", "numpy"):
        assert word in ended.stdout


def test_info_as_json_is_what_the_library_goes_by() -> None:
    told = json.loads(printed("info", "--json"))
    assert told["cap"]["threads"] == aioktask.max_threads()
    assert set(told["cpus"]) <= set(told["online"])
    assert told["nodes"]
    assert all(node["memory"] >= 0 for node in told["nodes"])
    assert told["loops"][0] == "asyncio"


@pytest.mark.skipif(
    importlib.util.find_spec("threadpoolctl") is None, reason="threadpoolctl is not installed"
)
def test_info_says_of_native_libraries_which_are_limited_and_why_others_are_not() -> None:
    def told(mode: str) -> list[dict[str, object]]:
        ended = run("info", "--json", AIOKTASK_LIMIT_NATIVE_THREADS=mode)
        libraries = json.loads(ended.stdout)["native_threads"]["libraries"]
        assert isinstance(libraries, list)
        return libraries

    by_mode = {mode: told(mode) for mode in ("0", "1", "process")}
    if not any(each["of"] == "the process" for each in by_mode["1"]):
        pytest.skip("NumPy's BLAS has no threads of the process's")
    for mode, shown in (("0", "is off"), ("1", "limit_native_threads=process"), ("process", "")):
        [left] = {str(each["left_alone"]) for each in by_mode[mode] if each["of"] == "the process"}
        assert shown in left
        assert bool(left) == (mode != "process")
    assert by_mode["1"][0]["name"] in run("info").stdout


def test_info_says_that_nothing_is_limited_without_threadpoolctl(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert "not limited: threadpoolctl is not installed" in printed("info")


def test_info_names_the_initializer() -> None:
    aioktask.configure(initializer=prepare)
    try:
        assert json.loads(printed("info", "--json"))["tunables"]["initializer"] == "prepare"
    finally:
        aioktask.configure(initializer=None)


def prepare() -> None:
    """An initializer."""


# plan


@given(
    units=st.integers(0, 10**6),
    start=st.integers(0, 10**6),
    align=st.integers(1, 64),
    chunk=st.none() | st.integers(1, 10**4),
    threads=st.none() | st.integers(1, 8),
)
def test_plan_is_the_librarys_own(
    units: int, start: int, align: int, chunk: int | None, threads: int | None
) -> None:
    chunk = None if chunk is None else chunk * align
    options = ["--start", str(start), "--align", str(align)]
    options += [] if chunk is None else ["--chunk", str(chunk)]
    options += [] if threads is None else ["--max-threads", str(threads)]
    told = json.loads(printed("plan", str(units), *options, "--json"))
    job = aioktask.Job(print, units, start=start, align=align, chunk=chunk, max_threads=threads)
    made = aioktask.plan(job)
    assert (told["threads"], told["chunk"], told["chunks"]) == (
        made.threads,
        made.chunk,
        made.chunks,
    )
    assert told["limited_by"] == made.limited_by
    every = [[each.start, each.stop] for each in made.boundaries()]
    assert told["first"] == every[: len(told["first"])]
    assert told["last"] == every[len(every) - len(told["last"]) :]
    assert len(told["first"]) + len(told["last"]) == min(len(every), 6)


def test_plan_of_a_huge_range_is_told_at_once() -> None:
    told = printed("plan", "16TiB", "--chunk", "4KiB")
    assert "4,294,967,296" in told.splitlines()[2]
    assert f"{16 << 40:,}" in told.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1_000", 1000),
        ("0x1000", 4096),
        ("4KiB", 4 * KIB),
        ("64MiB", 64 * MIB),
        ("64 mib", 64 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("1TB", 10**12),
        ("2kB", 2000),
        ("7B", 7),
        ("123456789123456789TiB", 123456789123456789 << 40),
    ],
)
def test_sizes_are_read_as_they_are_written(text: str, units: int) -> None:
    assert size(text) == units


@pytest.mark.parametrize("text", ["", "GiB", "4Gix", "1.5", "0.3KiB", "1e6", "4 4", "_", "²KiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a size is like"):
        size(text)


# errors


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        ([], {}, "COMMAND? info, plan, demo"),
        (["nonsense"], {}, "nonsense"),
        (["plan"], {}, "SIZE"),
        (["plan", "4Gix"], {}, "4Gix"),
        (["plan", "-5"], {}, "size must be at least 0, got -5"),
        (["plan", "5", "--align", "0"], {}, "align must be at least 1, got 0"),
        (["plan", "5", "--chunk", "3", "--align", "2"], {}, "multiple of align"),
        (["plan", "5", "--min_chunk", "3"], {}, "--min_chunk 3: did you mean --min-chunk?"),
        (["plan", "5", "min_chunk=3"], {}, "min_chunk=3: did you mean --min-chunk?"),
        (["plan", "5", "--maxthreads=3"], {}, "did you mean --max-threads?"),
        (["plan", "5", "6"], {}, "plan: unrecognized arguments: 6\n"),
        (["plan", "5", "--rounds", "6"], {}, "unrecognized arguments: --rounds 6\n"),
        (["bench", "nonsense"], {}, "nonsense"),
        (["bench", "overhead", "--json", "/nowhere/at/all"], {}, "/nowhere/at"),
        (["bench", "tune", "--svg", "/nowhere/at/all"], {}, "/nowhere/at"),
        (["demo", "--json", "/nowhere/at/all"], {}, "/nowhere/at"),
        (["demo", "--svg", "/nowhere/at/all"], {}, "/nowhere/at"),
        (["bench", "overhead", "--segments", "--svg", "here.svg"], {}, "in tables only"),
        (["bench", "arrays", "--segments"], {}, "only overhead"),
        (["bench", "arrays", "--only", "fill"], {}, "only memory and tune"),
        (["bench", "tune", "--only", "nonsense"], {}, "in none of these names: expression; "),
        (["bench", "memory", "--only", "nonsense"], {}, "in none of these names"),
        (["info"], {"AIOKTASK_MAX_THREADS": "many"}, "many"),
        (["cluster", "0"], {}, "at least 1 worker, got 0"),
        (["cluster", "--port", "70000"], {}, "--port must be from 0 to 65535, got 70000"),
        (["cluster", "--tls-key", "key.pem"], {}, "give all three"),
        (["cluster", "--address", "0.0.0.0"], {}, "runs the code of whoever reaches it"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: list[str], environ: dict[str, str], said: str
) -> None:
    ended = run(*arguments, **environ)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert said in ended.stderr


@pytest.mark.parametrize("program", ["encrypting_server.py", "bench ordered"])
def test_without_cryptography_it_is_said_what_to_install(program: str) -> None:
    if program.startswith("bench"):
        source = (
            "from aioktask.bench import ordered; from aioktask.bench.promises import Result; "
            "ordered.importlib.util.find_spec = lambda name: None; result = Result('', True); "
            "ordered._packets(result, True, 1, None, None, print); print(result.text())"
        )
    else:
        source = (
            "import runpy, sys; sys.modules['cryptography'] = None; "
            f"runpy.run_path('examples/{program}', run_name='__main__')"
        )
    ended = run_python("-c", source)
    assert ended.returncode == 0, ended.stderr
    assert "pip install cryptography" in ended.stdout


@pytest.mark.parametrize("command", ["tune json:dumps 5", "bench latency", "demo"])
def test_without_matplotlib_it_is_said_what_to_install_before_any_work(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def works(*_: object, **__: object) -> NoReturn:
        raise AssertionError("it began to work")

    monkeypatch.delitem(sys.modules, "aioktask.figures.chart", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("aioktask.__main__.measure", "aioktask.__main__.run_benchmark"):
        monkeypatch.setattr(name, works)
    monkeypatch.setattr("aioktask.demo.demo", works)
    with pytest.raises(SystemExit) as ended:
        main([*command.split(" "), "--svg", "here.svg"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    [line] = told.err.splitlines()
    assert "--svg needs matplotlib" in line
    assert line.endswith("pip install 'aioktask[plot]'")


# tune

WORK = """
from aioktask import Job


def work(start, stop):
    sum(range(start, stop))


def slow_start(start, stop):
    if start < 100:
        raise OSError(28, "No space\\nleft")


def three(start, stop, step):
    pass


async def later(start, stop):
    pass


def make_job():
    return Job(work, 5000, min_chunk=100)


def fails():
    raise KeyError("nothing there")


class Group:
    @staticmethod
    def member(start, stop):
        pass


job = Job(work, 5000)
number = 3
"""


@pytest.fixture(scope="module")
def drawing() -> None:
    """What draws is imported, before a test has modules of its own; else the test is skipped."""
    pytest.importorskip("matplotlib")
    importlib.import_module("aioktask.figures.chart")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a user's modules in it."""
    (tmp_path / "users_work.py").write_text(WORK)
    (tmp_path / "users_broken.py").write_text("import users_work\nimport nothing_of_that_name\n")
    (tmp_path / "users_ending.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("users_work 5", "written MODULE:FUNCTION or FILE.py:FUNCTION, got 'users_work'"),
        ("users_work: 5", "written MODULE:FUNCTION"),
        (":work 5", "written MODULE:FUNCTION"),
        ("nothing_of_that_name:work 5", "there is no module 'nothing_of_that_name' in"),
        ("nothing_of_that_name.py:work 5", "there is no file 'nothing_of_that_name.py'"),
        ("users_work.sub:work 5", "there is no module 'users_work.sub' in"),
        ("users_broken:work 5", "raised ModuleNotFoundError: No module named 'nothing_of_that_na"),
        ("users_broken.py:work 5", "(users_broken.py, line 2)"),
        ("users_ending:work 5", "importing users_ending raised SystemExit: 7"),
        ("users_work:nothing 5", "users_work has no 'nothing'"),
        ("users_work:Group.nothing 5", "users_work.Group has no 'nothing'"),
        ("users_work:number 5", "users_work:number is neither a function nor a Job, it is an int"),
        ("users_work:three 5", "fn is called as fn(start, stop), which three(start, stop, step)"),
        ("users_work:make_job 5", "if it returns a Job, say --call"),
        ("users_work:later 5", "must be an ordinary function, got the async later"),
        ("users_work:work", "how large is the range? Say SIZE"),
        ("users_work:work 0", "SIZE must be at least 1, got 0"),
        ("users_work:work 5Gix", "a size is like"),
        ("users_work:work 5 --align 0", "align must be at least 1, got 0"),
        ("users_work:work 5 --rounds 0", "--rounds must be at least 1, got 0"),
        ("users_work:work 5 --seconds 0", "--seconds must be above 0, got 0"),
        ("users_work:work 5 --seconds nan", "--seconds must be above 0, got nan"),
        ("users_work:work 5 --svg /nowhere/at/all.svg", "there is no directory '/nowhere/at'"),
        ("users_work:job 5001", "is a Job of 5000 units, SIZE is 5001"),
        ("users_work:job --align 2 --start 1", "says that itself: leave out --start, --align"),
        (
            "users_work:work --call",
            "users_work:work is called as users_work:work(), which work(start, stop)",
        ),
        ("users_work:number --call", "users_work:number is not callable, it is an int"),
        ("users_work:fails --call", "raised KeyError: 'nothing there' (users_work.py, line 27)"),
        ("users_work:Group --call", "returned a Group, a Job is needed"),
    ],
)
def test_tune_says_in_one_line_what_cannot_be_measured(
    arguments: str, said: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", *arguments.split(" ")])
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert said in told.err


def test_tune_says_for_which_range_the_function_raised(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "users_work:slow_start", "1000"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "users_work:slow_start(0, 1) raised OSError: [Errno 28] No space left" in last
    assert last.endswith("(users_work.py, line 11)")


@pytest.mark.parametrize(
    ("arguments", "start", "size"),
    [
        ("users_work:work 3000 --start 7", 7, 3000),
        ("users_work.py:work 0x400", 0, 1024),
        ("users_work:Group.member 1kB --align 8 --min-chunk 16 --max-threads 1", 0, 1000),
        ("users_work:job", 0, 5000),
        ("users_work:job 2000", 0, 2000),
        ("users_work:make_job --call --max-threads 1", 0, 5000),
    ],
)
def test_tune_measures_a_function_or_a_job(
    arguments: str, start: int, size: int, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments.split(" "), "--seconds", "1", "--rounds", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == arguments.split(" ")[0]
    assert told["size"] == size
    assert told["measured"] == [start, start + size]
    if "--max-threads" in arguments:
        assert {each["threads"] for each in told["curve"]} == {1}
    assert told["warm"]["chunk"] >= 1
    assert told["machine"]["packages"]["numpy"]


def test_tune_shows_a_table_and_draws_a_picture(drawing: None, there: Path) -> None:
    options = ["--seconds", "1", "--rounds", "1", "--svg", "curve.svg"]
    ended = subprocess.run(
        [sys.executable, "-m", "aioktask", "tune", "users_work:work", "20000", *options],
        cwd=there,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for words in ("1 thread", "the engine, cold", "the engine, warm", "the picture: curve.svg"):
        assert words in ended.stdout
    picture = ElementTree.fromstring((there / "curve.svg").read_text())
    assert picture.find("{http://www.w3.org/2000/svg}title").text.startswith("users_work:work")


def test_tune_shows_its_figures_even_if_the_picture_cannot_be_written(
    drawing: None, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "users_work:job", "--seconds", "1", "--rounds", "1", "--svg", str(there)])
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert "the engine, warm" in told.out
    assert told.err.splitlines()[-1].endswith(f"--svg: [Errno 21] Is a directory: {str(there)!r}")


# demo


@pytest.mark.parametrize(
    "arguments", [["info"], ["plan", "1000"], ["demo", "--quick"], ["bench", "overhead", "--quick"]]
)
def test_a_command_ends_quietly_when_nobody_reads_what_it_prints(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "aioktask", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().splitlines()
        assert process.wait(100) == 0
    assert [line for line in said if not line.startswith("... ")] == []


def test_demo_shows_every_way_and_leaves_nothing_half_done() -> None:
    ended = run("demo", "--quick")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for way in ("in the coroutine", "asyncio.to_thread", "run_multithreaded"):
        assert sum(line.strip().startswith(way) for line in lines) == 3
    cancelled, failed = (
        next(line.split() for line in lines if word in line)
        for word in ("JobCancelled", "ValueError")
    )
    for chunks, undone, left, still_set in (cancelled[-4:], failed[-4:]):
        assert 0 < int(undone) <= int(chunks)
        assert (left, still_set) == ("0", "0")


def test_demo_keeps_to_its_width_whatever_the_machine_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing_more(quick: bool, say: object) -> None:
        pass

    monkeypatch.setattr("aioktask.demo._demo", nothing_more)
    monkeypatch.setattr("aioktask.demo.machine_text", lambda facts: "64 CPUs (a processor)" * 7)
    said: list[str] = []
    demo(say=said.append)
    assert " ".join(said[0].split()).count("64 CPUs") == 7
    assert max(map(len, said[0].splitlines())) <= 96


def test_demo_says_what_a_kernel_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument: madvise")

    monkeypatch.setattr("aioktask.demo.populate_plainly", refused)
    assert main(["demo", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "populate: cannot be done here: [Errno 22]" in shown
    assert "JobCancelled" in shown


def test_demo_writes_its_figures_and_a_picture_of_them(
    drawing: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "demo.json", tmp_path / "demo.svg"]
    assert main(["demo", "--quick", "--json", str(files[0]), "--svg", str(files[1])]) == 0
    assert f"the picture: {files[1]}" in capsys.readouterr().out
    told = json.loads(files[0].read_text())
    assert told["command"] == "python -m aioktask demo --quick"
    ways = {"in the coroutine", "asyncio.to_thread", "run_multithreaded"}
    for times in told["samples"].values():
        assert times.keys() == ways
        assert all(seconds > 0 for values in times.values() for seconds in values)
    written = {each.text for each in ElementTree.parse(files[1]).iter() if each.text}
    assert ways <= written
    assert "The same work, three ways" in written


# bench


def test_bench_draws_every_picture_that_it_has(
    drawing: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = json.loads((ROOT / "docs" / "benchmarks" / "latency.json").read_text())

    class Found(Result):
        def data(self) -> dict[str, object]:
            return {
                key: told[key] for key in ("benchmark", "quick", "tables", "promises", "samples")
            }

    monkeypatch.setattr("aioktask.__main__.run_benchmark", lambda *_, **__: Found("latency", False))
    assert main(["bench", "latency", "--svg", str(tmp_path / "here.svg")]) == 0
    out = capsys.readouterr().out
    for name in ("here.svg", "here-nice.svg"):
        assert f"the picture: {tmp_path / name}" in out
        ElementTree.parse(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["overhead", "arrays", "memory", "ordered"])
def test_bench_writes_its_figures_as_json(name: str) -> None:
    ended = run("bench", name, "--quick", "--json", "-")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["benchmark"] == name
    assert told["command"] == f"python -m aioktask bench {name} --quick"
    assert told["machine"]["packages"]["numpy"]
    assert told["tables"]
    assert told["samples"]
    for times in told["samples"].values():
        assert all(seconds > 0 for values in times.values() for seconds in values)
        assert len({len(values) for values in times.values()}) == 1
    for promise in told["promises"]:
        assert promise["low"] <= promise["median"] <= promise["high"]
        assert isinstance(promise["kept"], bool)
    assert told["tables"][0]["title"] in ended.stderr  # the tables are shown all the same
    assert next(iter(pictures(told))) == name


def test_bench_shows_where_the_time_of_a_short_job_goes() -> None:
    ended = run("bench", "overhead", "--segments", "--quick", "--json", "-")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    for table in told["tables"]:
        *segments, together, _ = [row[-1] for row in table["rows"]]
        medians = [each["median"] for each in segments]
        assert all(median > 0 for median in medians)
        assert sum(medians) == pytest.approx(together, rel=0.5)


def test_bench_overhead_gives_up_no_helper_to_other_processes() -> None:
    program = (
        "import aioktask, aioktask.bench as bench; shares = set();"
        "say = lambda line: shares.add(aioktask.tunables()['share']);"
        "bench.run('overhead', quick=True, progress=say, segments=True);"
        "print(*shares, aioktask.tunables()['share'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "AIOKTASK_SHARE": "test-overhead"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.stdout.split(), ended.stderr) == (["off", "test-overhead"], "")


def test_bench_writes_to_a_file_and_shows_its_tables(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    ended = run("bench", "memory", "--quick", "--json", str(target), PATH="", CC="")
    assert ended.returncode == 0, ended.stderr
    assert "no compiler" in ended.stdout
    told = json.loads(target.read_text())
    # There is no loop to compare with, and still there are the calls of Python.
    assert told["promises"]
    assert not any("C loop" in promise["text"] for promise in told["promises"])


def test_bench_names_the_peers_that_are_not_installed() -> None:
    program = (
        "import sys; sys.modules.update(joblib=None, dask=None, uvloop=None);"
        "from aioktask.__main__ import main; main(['bench', 'overhead', '--quick'])"
    )
    ended = run_python("-c", program)
    assert ended.returncode == 0, ended.stderr
    rows = [line for line in ended.stdout.splitlines() if "not installed" in line]
    assert [row.split()[0].rstrip(",") for row in sorted(rows)] == [
        "dask.delayed",
        "joblib",
        "uvloop",
    ]
