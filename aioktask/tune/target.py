# SPDX-License-Identifier: MIT
# What `tune` measures: MODULE:FUNCTION and a few numbers in, a Job out.
#
# Whatever is wrong with them is a TargetError of one line that says what was asked for, what was
# found and what to do. The user's module is imported and, with --call, one function of it called;
# nothing else of it runs here.
"""The user's own function, from the command line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from aioktask.checks import check_arguments
from aioktask.job import Job, Part, job_that_makes

__all__ = ["TargetError", "copy_of", "job_from", "told"]


# What a Job is made of, apart from what needs a closer look: its function, reduce and parts.
_SETTINGS = (
    *("size", "start", "align", "min_chunk", "chunk", "max_threads"),
    *("undo", "initial", "nice", "learn", "remember", "name", "memory", "labels", "trace"),
)

# Whose lines are not the user's.
_PATHS = sysconfig.get_paths()
_OTHERS = (
    "<frozen",
    str(Path(__file__).parents[1]),
    *(_PATHS[each] for each in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class TargetError(ValueError):
    """What was asked for cannot be measured: one line."""


def job_from(
    text: str, size: int | None = None, *, call: bool = False, **options: int | None
) -> Job[Any]:
    """The job that MODULE:FUNCTION and the options describe.

    Args:
        text: A module, or a path that ends in ``.py``; a colon; a function or a Job in it, dotted
            where it is an attribute of something.
        size: Units. Of a Job that is larger, only the first so many are measured.
        call: Call what is found without arguments: it returns the Job.
        options: `start`, `align`, `min_chunk` and `max_threads` as for `Job`; None where not given.

    Raises:
        TargetError: There is no such thing, or it cannot be run as asked.
    """
    found = _attribute(text)
    if call:
        found = _called(text, found)
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        if isinstance(found, Job):
            return _part_of(text, found, size, given)
        function = _function(text, found)
        if size is None:
            raise TargetError(f"how large is the range? Say SIZE: {text} is a function, not a Job")
        if size < 1:
            raise TargetError(f"SIZE must be at least 1, got {size}")
        job: Job[None] = Job(function, size, **given)
        return job
    except TargetError:
        raise
    except (TypeError, ValueError) as error:
        raise TargetError(f"{text}: {error}") from error


def copy_of(job: Job[Any], **changes: Any) -> Job[Any]:
    """The job with other settings, and without its parts where the range is another one."""
    settings = {name: getattr(job, name) for name in _SETTINGS} | changes
    if job.reduce is not None:
        settings["reduce"] = job.reduce
    if job.parts:
        stop = settings["start"] + settings["size"]
        settings["parts"] = [
            Part(part.start, min(part.stop, stop), part.node)
            for part in job.parts
            if part.start < stop
        ]
    made: Job[Any] = Job(lambda start, stop: None, **settings)
    return job_that_makes(made, job.bind, job.fn)


def told(error: BaseException) -> str:
    """An exception in a line: its type, its message, and the line of the user's that raised it."""
    message = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_OTHERS)]
    line = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return type(error).__name__ + (f": {message}" if message else "") + line


def _attribute(text: str) -> object:
    module_name, colon, attribute = text.rpartition(":")
    if (
        not colon
        or not module_name
        or not all(part.isidentifier() for part in attribute.split("."))
    ):
        raise TargetError(
            f"what to measure is written MODULE:FUNCTION or FILE.py:FUNCTION, got {text!r}"
        )
    module = _module(module_name)
    found: object = module
    for at, name in enumerate(attribute.split(".")):
        try:
            found = getattr(found, name)
        except AttributeError:
            before = ".".join([module_name, *attribute.split(".")[:at]])
            raise TargetError(f"{before} has no {name!r}") from None
    return found


def _module(name: str) -> ModuleType:
    file = Path(name)
    is_file = file.suffix == ".py"
    if is_file and not file.is_file():
        raise TargetError(f"there is no file {name!r}")
    # As `python -m` does for the current directory, and `python FILE` for the file's.
    directory = str(file.parent.resolve()) if is_file else os.getcwd()
    if directory not in sys.path[:1]:
        sys.path.insert(0, directory)
    try:
        return _loaded(file) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"there is no module {error.name!r} in {directory} or where Python looks otherwise"
            ) from None
        raise TargetError(f"importing {name} raised {told(error)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"importing {name} raised {told(error)}") from error


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise TargetError(f"{str(file)!r} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # for pickle, dataclasses and whatever imports it by name
    spec.loader.exec_module(module)
    return module


def _called(text: str, found: object) -> Job[Any]:
    if not callable(found):
        raise TargetError(f"--call: {text} is not callable, it is {_a(found)}")
    try:
        check_arguments(text, found, "")
    except TypeError as error:
        raise TargetError(f"--call: {error}") from None
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise TargetError(f"--call: {text}() raised {told(error)}") from error
    if not isinstance(made, Job):
        raise TargetError(f"--call: {text}() returned {_a(made)}, a Job is needed")
    return made


def _function(text: str, found: object) -> Callable[[int, int], object]:
    if not callable(found):
        raise TargetError(f"{text} is neither a function nor a Job, it is {_a(found)}")
    try:
        check_arguments("fn", found, "start, stop")
    except TypeError as error:
        raise TargetError(f"{text}: {error}{_hint(found)}") from None
    return found


def _hint(found: object) -> str:
    """What else may be meant by a function that takes no units."""
    try:
        check_arguments("fn", found, "")
    except TypeError:
        return ""
    return "; if it returns a Job, say --call"


def _part_of(
    text: str, job: Job[Any], size: int | None, given: Mapping[str, int | None]
) -> Job[Any]:
    said = [f"--{name.replace('_', '-')}" for name in given if name != "max_threads"]
    if said:
        raise TargetError(f"{text} is a Job and says that itself: leave out {', '.join(said)}")
    size = job.size if size is None else size
    if size > job.size:
        raise TargetError(f"{text} is a Job of {job.size} units, SIZE is {size}")
    if size < 1:
        raise TargetError(f"SIZE must be at least 1, got {size}")
    return copy_of(job, size=size, **given)


def _a(value: object) -> str:
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"an {kind}" if kind[:1].lower() in "aeiou" else f"a {kind}"
