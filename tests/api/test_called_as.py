# SPDX-License-Identifier: MIT
# A function that cannot be called as it will be is refused when it is given, and every other one is
# taken: what is refused is exactly what Python would refuse at the call.

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioktask
from aioktask import Job, arrays, files, map_ordered, map_ordered_sync
from aioktask.checks import check_arguments

NAMES = "abcde"


class CalledError(Exception):
    """The body of the function was reached."""


@st.composite
def functions(draw: st.DrawFn) -> Callable[..., object]:
    """Python functions of any signature, as they are, as methods, of objects, and as partials."""
    positional_only = draw(st.integers(0, 2))
    positional = positional_only + draw(st.integers(0, 2))
    defaults = draw(st.integers(0, positional))
    keyword_only = draw(st.integers(0, 2))
    star, double_star = draw(st.booleans()), draw(st.booleans())
    parts = []
    for i in range(positional):
        parts.append(NAMES[i] + ("=0" if i >= positional - defaults else ""))
        if i + 1 == positional_only:
            parts.append("/")
    if star or keyword_only:
        parts.append("*args" if star else "*")
    parts += [f"k{i}" + draw(st.sampled_from(["", "=0"])) for i in range(keyword_only)]
    if double_star:
        parts.append("**others")
    scope: dict[str, Any] = {"CalledError": CalledError}
    exec(f"def function({', '.join(parts)}): raise CalledError", scope)
    function = scope["function"]
    if draw(st.booleans()):
        function = type("Object", (), {"__call__": function})()
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            function = types.MethodType(function, object())
        else:
            count = draw(st.integers(0, 2))
            names = st.sampled_from([*NAMES[:4], "k0", "k1", "other"])
            named = dict.fromkeys(draw(st.lists(names, max_size=2)), 1)
            function = functools.partial(function, *[1] * count, **named)
    called: Callable[..., object] = function
    return called


@given(functions(), st.integers(0, 3))
def test_what_is_refused_is_what_python_would_refuse(
    function: Callable[..., object], count: int
) -> None:
    takes = False
    with contextlib.suppress(TypeError):
        try:
            function(*range(count))
        except CalledError:
            takes = True
    arguments = ", ".join(["start", "stop", "data"][:count])
    if takes:
        check_arguments("fn", function, arguments)
        return
    with pytest.raises(TypeError, match=rf"fn\({arguments}\)"):
        check_arguments("fn", function, arguments)


def of_one(item: object) -> None:
    raise CalledError


class Static:
    @staticmethod
    def __call__(start: int, stop: int) -> None:
        raise CalledError


def of_four(a: Any, b: Any, c: Any, d: Any) -> Any:
    raise CalledError


class Method:
    def of_one(self, item: object) -> None:
        raise CalledError


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Job(of_one, 3), r"fn\(start, stop\), which of_one\(item: 'object'\) does not fit"),  # type: ignore[arg-type]
        (lambda: Job(Method().of_one, 3), r"fn\(start, stop\), which Method.of_one\(self, item"),  # type: ignore[arg-type]
        (lambda: Job(abs, 3), r"fn\(start, stop\), which abs\(x, /\) does not fit"),  # type: ignore[arg-type]
        (
            lambda: Job(functools.partial(of_four, 1), 3),
            r"which of_four\(.*\) with what its partial gives does not fit",
        ),
        (lambda: Job(print, 3, undo=of_one), r"undo\(start, stop\)"),  # type: ignore[arg-type]
        (lambda: Job(print, 3, reduce=of_one), r"reduce\(left, right\)"),  # type: ignore[arg-type]
        (lambda: map_ordered(of_four, [1]), r"fn\(item\), which of_four"),  # type: ignore[arg-type]
        (lambda: map_ordered_sync(of_four, [1]), r"fn\(item\), which of_four"),  # type: ignore[arg-type]
        (lambda: arrays.apply(of_four, np.ones(3)), r"fn\(view\), which of_four"),
        (
            lambda: arrays.apply(of_four, np.ones(3), np.ones(3), out=np.ones(3), out_arg=True),
            r"fn\(view, view, out_view\), which of_four",
        ),
        (lambda: files.remove_tree("x", onexc=of_one), r"onexc\(function, path, error\)"),  # type: ignore[arg-type]
    ],
)
def test_a_function_of_other_arguments_is_refused_before_anything_begins(
    make: Callable[[], object], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        make()


@pytest.mark.anyio
async def test_a_job_in_place_of_a_function_is_refused_with_what_runs_it() -> None:
    job = Job(lambda start, stop: None, 3, name="whole")
    with pytest.raises(TypeError, match="got the job 'whole': a job is run by `await run_multi"):
        await aioktask.run(job)  # type: ignore[arg-type]


def test_what_wraps_is_asked_and_not_what_is_wrapped() -> None:
    @functools.wraps(of_four)
    def gives_two_more(start: int, stop: int) -> None:
        of_four(start, stop, 0, 0)

    check_arguments("fn", gives_two_more, "start, stop")


@pytest.mark.parametrize(
    "function", [max, int, Method, Static(), np.add, functools.partial(max, 1)]
)
def test_what_does_not_tell_is_taken(function: Callable[..., object]) -> None:
    check_arguments("fn", function, "start, stop")


@pytest.mark.skipif(not hasattr(functools, "Placeholder"), reason="comes with Python 3.14")
def test_a_partial_with_gaps_is_taken() -> None:
    gap = functools.Placeholder  # type: ignore[attr-defined,unused-ignore]
    check_arguments("fn", functools.partial(of_four, gap, 1, gap, 2), "start, stop")
