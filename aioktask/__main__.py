# SPDX-License-Identifier: MIT
# The command line: arguments in, text or JSON out. What is told is found out elsewhere.
#
# Exit status 0, or 2 with one line on stderr for arguments that make no sense; of `top` 1 where
# what it should show cannot be read.
"""`python -m aioktask`: look at the machine and at jobs, plan, tune, see the demo, measure."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from aioktask import Job, plan
from aioktask.bench import BENCHMARKS, UnknownOperation
from aioktask.bench import run as run_benchmark
from aioktask.bench.promises import Result
from aioktask.engine.api.process import current_pool
from aioktask.extras import missing_package
from aioktask.figures.panel import Picture
from aioktask.tune.curve import measure
from aioktask.tune.curve_report import curve_data, curve_picture, curve_text
from aioktask.tune.learned import clear, directory_of, learned, learned_data, learned_text
from aioktask.tune.machine import info, info_text, machine_text, packages_text
from aioktask.tune.plan_report import plan_data, plan_text
from aioktask.tune.target import TargetError, job_from

TUNE = """Run FUNCTION(start, stop) over the units 0 to SIZE with many chunk sizes and numbers of
threads, and show how fast each is, what the engine chooses by itself, and whether that is the best.
The function is called again and again for the same ranges: it must not mind that."""

UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = super().parse_known_args(args, namespace)
        if left:
            options = [each for action in self._actions for each in action.option_strings]
            self.error(f"unrecognized arguments: {' '.join(left)}{_meant(left, options)}")
        return found, left


def _meant(given: Sequence[str], options: Sequence[str]) -> str:
    """Which option may have been meant, as --min-chunk by min_chunk=5; empty if none is near.

    >>> _meant(["min_chunk=5"], ["--min-chunk", "--align"])
    ': did you mean --min-chunk?'
    """
    for each in given:
        name = each.partition("=")[0].lstrip("-").replace("_", "-")
        near = difflib.get_close_matches(f"--{name}", options, 1, 0.75)
        if near:
            return f": did you mean {near[0]}?"
    return ""


def size(text: str) -> int:
    """A number of units: 1000, 1_000, 0x1000, 64MiB, 1.5GiB, 4GB.

    >>> size("64MiB"), size("1.5kB"), size("0x10")
    (67108864, 1500, 16)
    """
    match = re.fullmatch(r"([0-9_]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    try:
        if match is None or match[2].lower() not in UNITS:
            return int(text, 0)
        number, unit = match[1], UNITS[match[2].lower()]
        units = int(number) * unit if "." not in number else float(number) * unit
        if units == int(units):
            return int(units)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"a size is like 1000, 64MiB or 1.5GiB, got {text!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.command is None:
        parser.error(f"which COMMAND? {', '.join(asked.commands)}: --help tells what each does")
    try:
        status = _run(parser, asked)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more, as after `| head`; nothing is left for the exit to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _run(parser: _Parser, asked: argparse.Namespace) -> int:
    try:
        current_pool()  # AIOKTASK_MAX_THREADS may be nonsense
        if asked.command == "plan":
            made = plan(_planned_job(asked))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if asked.command == "info":
        facts = info()
        print(json.dumps(facts, indent=2) if asked.json else info_text(facts))
    elif asked.command == "plan":
        print(json.dumps(plan_data(made), indent=2) if asked.json else plan_text(made))
    elif asked.command == "demo":
        _demo(parser, asked)
    elif asked.command == "learned":
        _learned(parser, asked)
    elif asked.command == "serve":
        _serve(parser, asked)
    elif asked.command == "top":
        return _top(parser, asked)
    elif asked.command == "cluster":
        _cluster(parser, asked)
    elif asked.command == "tune":
        _tune(parser, asked)
    else:
        _bench(parser, asked)
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="python -m aioktask", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    command = commands.add_parser("info", help="what the library sees of this machine")
    command.add_argument("--json", action="store_true", help="as JSON")
    command = commands.add_parser("plan", help="how a job would be split, without running it")
    command.add_argument("size", type=size, metavar="SIZE", help="units, like 1000 or 4GiB")
    for name, default, text in (
        ("min-chunk", 1, "the smallest number of units that are worth a call"),
        ("align", 1, "chunks end on multiples of this"),
        ("chunk", None, "fix the chunk size"),
        ("max-threads", None, "the most threads"),
        ("start", 0, "the first unit"),
    ):
        command.add_argument(f"--{name}", type=size, default=default, metavar="N", help=text)
    command.add_argument("--json", action="store_true", help="as JSON")
    command = commands.add_parser("demo", help="what the library is for, in under a minute")
    command.add_argument("--quick", action="store_true", help="in some seconds, on little data")
    _add_files(command)
    _add_learned(commands.add_parser("learned", help="what is kept on disk of earlier runs"))
    _add_serve(commands.add_parser("serve", help="a live page of this user's jobs"))
    _add_top(commands.add_parser("top", help="the jobs of this user's processes, as they are now"))
    _add_cluster(commands.add_parser("cluster", help="a small Dask cluster on this machine"))
    text = "how fast a function of yours is over chunk sizes and threads"
    _add_tune(commands.add_parser("tune", help=text, description=TUNE))
    command = commands.add_parser(
        "bench",
        help="measure: " + ", ".join(BENCHMARKS),
        description="\n".join(f"{name}: {text}" for name, text in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("benchmark", choices=list(BENCHMARKS), help="what to measure")
    _add_files(command)
    command.add_argument("--quick", action="store_true", help="in some seconds, figures of no use")
    text = "of overhead: only where the time of a short job goes, on both threads"
    command.add_argument("--segments", action="store_true", help=text)
    text = (
        "of memory and tune: only the operations with this in their names, or parts with ; between"
    )
    command.add_argument("--only", metavar="WORDS", help=text)
    parser.set_defaults(commands=tuple(commands.choices))
    return parser


def _add_learned(command: argparse.ArgumentParser) -> None:
    text = "only of jobs or functions of this name"
    command.add_argument("name", nargs="*", metavar="NAME", help=text)
    command.add_argument("--clear", action="store_true", help="remove it")
    text = "look here; by default where AIOKTASK_REMEMBER says, else the user's caches are"
    command.add_argument("--directory", type=os.path.abspath, metavar="DIR", help=text)
    command.add_argument("--json", action="store_true", help="as JSON")


def _add_serve(command: argparse.ArgumentParser) -> None:
    text = "listen there (127.0.0.1)"
    command.add_argument("--address", default="127.0.0.1", metavar="ADDRESS", help=text)
    command.add_argument("--port", type=int, default=8765, metavar="N", help="listen there (8765)")
    text = "a name under which it may be asked for, beside localhost; may be given again"
    command.add_argument("--allow", action="append", default=[], metavar="HOST", help=text)
    text = "only print the token, which all pages of this user have in common"
    command.add_argument("--token", action="store_true", help=text)


def _add_top(command: argparse.ArgumentParser) -> None:
    text = "of a live page; by default this user's processes that publish their jobs are shown"
    command.add_argument("url", nargs="?", metavar="URL", help=text)
    text = (
        "of the page; by default AIOKTASK_TOKEN, which others cannot see in the list of processes"
    )
    command.add_argument("--token", metavar="TOKEN", help=text)
    text = "from one look to the next (1)"
    command.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help=text)
    command.add_argument("--once", action="store_true", help="look once, and print that in lines")
    text = "print lines, also in a terminal"
    command.add_argument("--lines", action="store_true", help=text)
    text = "print an object of JSON a line for each look"
    command.add_argument("--json", action="store_true", help=text)


def _add_cluster(command: argparse.ArgumentParser) -> None:
    text = "how many worker processes (2)"
    command.add_argument("workers", type=int, nargs="?", default=2, metavar="N", help=text)
    text = "listen there (127.0.0.1); elsewhere only with certificates"
    command.add_argument("--address", default="127.0.0.1", metavar="ADDRESS", help=text)
    for name, default, what in (("port", 8786, "scheduler"), ("dashboard-port", 8787, "dashboard")):
        text = f"of the {what} ({default}); 0 for any that is free"
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    for name, what in (
        ("ca", "certificate of whoever signs certificates"),
        ("cert", "certificate of this side"),
        ("key", "key of this side's certificate"),
    ):
        command.add_argument(f"--tls-{name}", metavar="FILE", help=f"PEM: the {what}")


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", metavar="FILE", help="write the figures there too, - for stdout")
    text = "draw them there too; a second picture has a name that goes on after this one"
    command.add_argument("--svg", type=Path, metavar="FILE", help=text)


def _add_tune(command: argparse.ArgumentParser) -> None:
    text = "or FILE.py:FUNCTION; or a Job in FUNCTION's place"
    command.add_argument("target", metavar="MODULE:FUNCTION", help=text)
    text = "units, like 1000 or 4GiB; a Job has its own"
    command.add_argument("size", type=size, nargs="?", metavar="SIZE", help=text)
    command.add_argument("--call", action="store_true", help="FUNCTION() returns the Job")
    for name, text in (
        ("min-chunk", "the smallest number of units that are worth a call"),
        ("align", "chunks end on multiples of this"),
        ("max-threads", "the most threads"),
        ("start", "the first unit"),
    ):
        command.add_argument(f"--{name}", type=size, metavar="N", help=text)
    text = "how often each is run; by default as often as there is time for, 3 to 15"
    command.add_argument("--rounds", type=int, metavar="N", help=text)
    text = "how long it may take, about (30)"
    command.add_argument("--seconds", type=float, default=30.0, metavar="S", help=text)
    command.add_argument("--svg", type=Path, metavar="FILE", help="write a picture there too")
    command.add_argument("--json", action="store_true", help="as JSON, with every single value")


def _planned_job(asked: argparse.Namespace) -> Job[None]:
    return Job(
        lambda start, stop: None,
        asked.size,
        start=asked.start,
        align=asked.align,
        min_chunk=asked.min_chunk,
        chunk=asked.chunk,
        max_threads=asked.max_threads,
        name="plan",
    )


def _learned(parser: _Parser, asked: argparse.Namespace) -> None:
    try:
        directory = directory_of(current_pool().adapter.tunables.remember, asked.directory)
        if asked.clear:
            removed = clear(directory, asked.name)
            print(f"removed {removed} from {directory}")
            return
        found = learned(directory, asked.name)
    except OSError as error:
        parser.error(str(error))
    told = learned_data(directory, found)
    print(json.dumps(told, indent=2) if asked.json else learned_text(directory, found))


def _serve(parser: _Parser, asked: argparse.Namespace) -> None:
    if not 0 <= asked.port < 1 << 16:
        parser.error(f"--port must be from 0 to 65535, got {asked.port}")
    try:
        if asked.token:
            from aioktask.web._page.access import Token

            print(Token().value)
            return
        from aioktask.web._page.serve import serve

        serve(asked.address, asked.port, asked.allow, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        parser.error(f"{asked.address}, port {asked.port}: {error}")
    except (ImportError, TypeError, ValueError) as error:
        parser.error(str(error))


def _cluster(parser: _Parser, asked: argparse.Namespace) -> None:
    if asked.workers < 1:
        parser.error(f"there must be at least 1 worker, got {asked.workers}")
    for name in ("port", "dashboard_port"):
        if not 0 <= getattr(asked, name) < 1 << 16:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be from 0 to 65535, got {getattr(asked, name)}")
    files = (asked.tls_ca, asked.tls_cert, asked.tls_key)
    if any(files) and not all(files):
        parser.error("--tls-ca, --tls-cert and --tls-key belong together: give all three")
    for file in filter(None, files):
        if not Path(file).is_file():
            parser.error(f"there is no file {file!r}")
    try:
        from aioktask.cluster.local import run_local_cluster
    except ImportError as error:
        parser.error(str(error))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        run_local_cluster(
            asked.workers,
            lambda line: print(line, flush=True),
            host=asked.address,
            port=asked.port,
            dashboard_port=asked.dashboard_port,
            tls=files if all(files) else None,
            stop=stop,
        )
    except KeyboardInterrupt:  # the way to end it
        pass
    except OSError as error:
        parser.error(f"{asked.address}, port {asked.port}: {error}")
    except ValueError as error:
        parser.error(str(error))


def _top(parser: _Parser, asked: argparse.Namespace) -> int:
    from aioktask.top._show import show, source_of
    from aioktask.top._source import SourceError

    if not 0.1 <= asked.interval < math.inf:
        parser.error(f"--interval must be at least 0.1, in seconds, got {asked.interval:g}")
    try:
        source = source_of(asked.url, asked.token)
    except ValueError as error:
        parser.error(str(error))
    try:
        show(
            source,
            interval=asked.interval,
            once=asked.once,
            lines=asked.lines,
            as_json=asked.json,
        )
    except ImportError as error:
        missing = missing_package("the screen", "textual", error)
        parser.error(f"{missing}, or --lines to do without")
    except SourceError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:  # the way to end it
        pass
    return 0


def _tune(parser: _Parser, asked: argparse.Namespace) -> None:
    _check_picture(parser, asked.svg)
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {asked.rounds}")
    if not 0 < asked.seconds < math.inf:
        parser.error(f"--seconds must be above 0, got {asked.seconds:g}")
    try:
        job = job_from(
            asked.target,
            asked.size,
            call=asked.call,
            start=asked.start,
            align=asked.align,
            min_chunk=asked.min_chunk,
            max_threads=asked.max_threads,
        )
        curve = measure(
            asked.target, job, seconds=asked.seconds, rounds=asked.rounds, progress=_say
        )
    except TargetError as error:
        parser.error(str(error))
    facts = info()
    if asked.json:
        print(json.dumps({**curve_data(curve), "machine": facts}, indent=2))
    else:
        print(f"{machine_text(facts)}\n{packages_text(facts)}\n\n{curve_text(curve)}")
    if asked.svg is not None:
        drawn = curve_picture(curve, machine_text(facts))
        _write_picture(parser, asked.svg, drawn, aside=asked.json)


def _check_picture(parser: _Parser, file: Path | None) -> None:
    """Before any work: whether there is a place for a picture, and what draws it."""
    if file is None:
        return
    if not file.parent.is_dir():
        parser.error(f"--svg: there is no directory {str(file.parent)!r}")
    try:
        import aioktask.figures.chart  # noqa: F401
    except ImportError as error:
        parser.error(str(missing_package("--svg", "matplotlib", error)))


def _write_picture(parser: _Parser, file: Path, picture: Picture, *, aside: bool) -> None:
    """Draw it there, and say so: `aside` where the figures have stdout for themselves."""
    from aioktask.figures.chart import draw

    try:
        file.write_text(draw(picture), encoding="utf-8")
    except OSError as error:
        parser.error(f"--svg: {error}")
    print(f"\nthe picture: {file}", file=sys.stderr if aside else sys.stdout)


def _say(line: str) -> None:
    print(f"... {line}", file=sys.stderr, flush=True)


def _demo(parser: _Parser, asked: argparse.Namespace) -> None:
    _check_files(parser, asked)
    from aioktask.demo import demo

    out = _aside(asked)
    began = time.perf_counter()
    result = demo(quick=asked.quick, say=lambda text: print(text, file=out, flush=True))
    command = f"python -m aioktask demo{' --quick' if asked.quick else ''}"
    _write_files(parser, asked, result, _about(command, began, info()))


def _bench(parser: _Parser, asked: argparse.Namespace) -> None:
    name = asked.benchmark
    if asked.segments and name != "overhead":
        parser.error("--segments: only overhead has them")
    if asked.only is not None and name not in ("memory", "tune"):
        parser.error("--only: only memory and tune have operations to choose from")
    if asked.segments and asked.svg is not None:
        parser.error("--svg: --segments are told in tables only")
    _check_files(parser, asked)
    began = time.perf_counter()
    options: dict[str, object] = {"segments": True} if asked.segments else {}
    if asked.only is not None:
        options["only"] = asked.only
    try:
        result = run_benchmark(name, quick=asked.quick, progress=_say, **options)
    except UnknownOperation as error:
        parser.error(f"--only: {error}")
    flags = f"{' --segments' if asked.segments else ''}{' --quick' if asked.quick else ''}"
    if asked.only is not None:
        flags += f" --only {shlex.quote(asked.only)}"
    facts = info()
    about = _about(f"python -m aioktask bench {name}{flags}", began, facts)
    head = f"{about['command']}\n{machine_text(facts)}\n{packages_text(facts)}"
    measured = f"measured in {about['seconds']:.0f} s"
    print(f"{head}\n{measured}\n\n{result.text()}", file=_aside(asked))
    _write_files(parser, asked, result, about)


def _check_files(parser: _Parser, asked: argparse.Namespace) -> None:
    _check_picture(parser, asked.svg)
    if asked.json not in (None, "-") and not Path(asked.json).parent.is_dir():
        parser.error(f"--json: there is no directory {str(Path(asked.json).parent)!r}")


def _aside(asked: argparse.Namespace) -> TextIO:
    """Where text goes: not where the figures go."""
    return sys.stderr if asked.json == "-" else sys.stdout


def _about(command: str, began: float, facts: Mapping[str, object]) -> dict[str, Any]:
    """What stands in JSON before what was found."""
    seconds = round(time.perf_counter() - began, 1)
    return {"command": command, "seconds": seconds, "machine": facts}


def _write_files(
    parser: _Parser, asked: argparse.Namespace, result: Result, about: Mapping[str, Any]
) -> None:
    """The figures as JSON and as pictures, as far as they are asked for."""
    data = {**about, **result.data()}
    figures = json.dumps(data, indent=2)
    if asked.json == "-":
        print(figures)
    elif asked.json is not None:
        Path(asked.json).write_text(figures + "\n")
    if asked.svg is not None:
        from aioktask.bench.pictures import pictures

        for name, picture in pictures(data).items():
            rest = name.removeprefix(result.name)
            file = asked.svg.with_stem(asked.svg.stem + rest)
            _write_picture(parser, file, picture, aside=asked.json == "-")


if __name__ == "__main__":
    sys.exit(main())
