# SPDX-License-Identifier: MIT
# Deadlines that clients name: read from a header, only ever shorter than the server's, and ending
# the request with its job undone.

from __future__ import annotations

import math
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="aioktask.web needs Starlette")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from aioktask import Job, run_multithreaded
from aioktask.web import CancelOnDisconnect, Deadline, deadline
from aioktask.web._deadline import Limit, grpc_seconds, plain_seconds
from tests.support.gates import CancelledGate, eventually, units
from tests.web.exchange import Exchange

anywhere = pytest.mark.anyio

UNITS = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}
seconds = st.floats(0, 1e6)


@given(number=st.integers(0, 99_999_999), unit=st.sampled_from(list(UNITS)))
def test_every_timeout_of_grpc_is_read(number: int, unit: str) -> None:
    assert grpc_seconds(f"{number}{unit}") == pytest.approx(number * UNITS[unit])


@given(text=st.text())
def test_rubbish_is_refused_and_nothing_else_raised(text: str) -> None:
    for read in (grpc_seconds, plain_seconds):
        try:
            assert 0 <= read(text) < math.inf
        except ValueError as error:
            said = str(error)
        else:
            continue
        assert repr(text) in said


@pytest.mark.parametrize("text", ["", "5", "S", "123456789S", "-1S", "1.5S", "1 S", "1s", "٣S"])
def test_what_only_looks_like_a_timeout_of_grpc_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="grpc-timeout"):
        grpc_seconds(text)


digits = st.text("0123456789", min_size=1, max_size=12)


@given(whole=digits, part=digits, point=st.booleans())
def test_every_decimal_number_is_read(whole: str, part: str, point: bool) -> None:
    text = f"{whole}.{part}" if point else whole
    assert plain_seconds(text) == float(text)


# What Python takes for a number beyond the digits 0 to 9 and one point.
ALMOST = [
    *("1_0", "1_0.5", "\uff11\uff12", "\u0663", "1.\u0663", "\u00b2"),
    *(" 1", "1 ", "1\n", "\xa01"),
    *("", ".", ".5", "5.", "1.2.3", "1,5", "1s", "0x10"),
    *("+1", "-1", "-0", "inf", "Infinity", "nan", "1e3", "1E3", "1e-3", "9" * 400),
]


@pytest.mark.parametrize("text", ALMOST)
def test_what_only_looks_like_a_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a number of seconds such as 2 or 1\.5, got "):
        plain_seconds(text)


@given(text=st.text(st.sampled_from("0123456789.+-_ eEinfa\n\t\uff11\u0663\u00b2"), max_size=8))
def test_a_number_is_read_where_it_consists_of_digits_and_a_point_between_them(text: str) -> None:
    whole, point, part = text.partition(".")
    parts = [each for each in (whole, part) if each and not set(each) - set("0123456789")]
    if len(parts) == (2 if point else 1):
        assert plain_seconds(text) == float(text)
    else:
        with pytest.raises(ValueError, match="got "):
            plain_seconds(text)


@pytest.mark.parametrize(("said", "ends"), [(" 5\t", 12.0), ("\xa05", None), ("5\n", None)])
def test_only_what_http_has_around_a_value_is_left_out(said: str, ends: float | None) -> None:
    limit = Limit("x-timeout", None, None)
    if ends is None:
        with pytest.raises(ValueError, match="got "):
            limit.until(7.0, said, None)
    else:
        assert limit.until(7.0, said, None) == ends


@pytest.mark.parametrize("made", [-1.0, math.nan, math.inf])
def test_a_time_that_no_request_can_have_is_refused_whoever_read_it(made: float) -> None:
    limit = Limit("x-timeout", 5.0, lambda text: made)
    with pytest.raises(ValueError, match="what a deadline's header says must be at least 0 "):
        limit.until(7.0, "anything", None)


@given(now=seconds, most=st.none() | seconds, said=st.none() | seconds, holds=st.none() | seconds)
def test_a_client_only_shortens(
    now: float, most: float | None, said: float | None, holds: float | None
) -> None:
    limit = Limit("x-timeout", most, None)
    ends = limit.until(now, None if said is None else f"{said:f}", holds)
    times = [most, None if said is None else float(f"{said:f}")]
    bounds = [now + each for each in times if each is not None]
    assert ends == min(bounds + ([] if holds is None else [holds]), default=None)


def application(endpoint: Any, *middleware: Middleware) -> Any:
    return Starlette(routes=[Route("/", endpoint)], middleware=list(middleware))


async def tell_time_left(request: Request) -> Response:
    return JSONResponse(deadline(request))


@anywhere
async def test_a_handler_is_told_the_seconds_left() -> None:
    outer = Middleware(Deadline, header=None, most=1000)
    inner = Middleware(Deadline, header="X-Timeout", most=2000)
    left = {}
    for said in ("50", "5000"):
        exchange = Exchange(headers=[("x-timeout", said)])
        await exchange.run(application(tell_time_left, outer, inner))
        left[said] = float(exchange.body)
    assert 0 < left["50"] <= 50.001
    assert 50 < left["5000"] <= 1000.001  # a clock that counts from long ago rounds


@anywhere
async def test_without_a_deadline_there_is_none() -> None:
    for middleware in ([], [Middleware(Deadline)]):
        exchange = Exchange()
        await exchange.run(application(tell_time_left, *middleware))
        assert exchange.body == b"null"


@anywhere
async def test_time_that_is_up_has_the_job_undone_and_is_answered_with_504() -> None:
    gate = CancelledGate()

    async def endpoint(request: Request) -> Response:
        await run_multithreaded(Job(gate.chunk, 1000, chunk=10, undo=gate.undo))
        raise AssertionError("the job went on")

    app = application(
        endpoint, Middleware(Deadline, header=None, most=0.2), Middleware(CancelOnDisconnect)
    )
    exchange = Exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, app)
        await gate.entered()
        await eventually(gate.cancelled.is_set)
        assert exchange.sent == []
        gate.open()
    assert exchange.status == 504
    assert units(gate.undone) == units(gate.done) != []


@anywhere
async def test_a_job_that_ends_itself_in_time_is_answered_with_504_too() -> None:
    gate = CancelledGate()

    async def endpoint(request: Request) -> Response:
        await run_multithreaded(
            Job(gate.chunk, 1000, chunk=10, undo=gate.undo), timeout=deadline(request)
        )
        raise AssertionError("the job went on")

    exchange = Exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            exchange.run, application(endpoint, Middleware(Deadline, header=None, most=0.2))
        )
        await eventually(gate.cancelled.is_set)
        gate.open()
    assert exchange.status == 504
    assert units(gate.undone) == units(gate.done)


@anywhere
async def test_a_timeout_of_the_handlers_own_is_no_deadline() -> None:
    async def endpoint(request: Request) -> Response:
        raise TimeoutError("the database's")

    with pytest.raises(TimeoutError, match="the database's"):
        await Exchange().run(application(endpoint, Middleware(Deadline, header=None, most=1000)))


@anywhere
async def test_what_goes_on_after_the_response_is_left_alone() -> None:
    through = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("done")(scope, receive, send)
        ends = scope["aioktask.deadline"]
        while anyio.current_time() < ends + 0.01:
            await anyio.sleep(0.01)
        through.set()

    await Exchange().run(Deadline(app, header=None, most=0.05))
    assert through.is_set()


@anywhere
async def test_a_response_that_has_begun_is_cut_and_no_other_one_sent() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await anyio.sleep_forever()

    exchange = Exchange()
    await exchange.run(Deadline(app, header=None, most=0.0))
    assert [message["type"] for message in exchange.sent] == ["http.response.start"]


@anywhere
@pytest.mark.parametrize(
    ("header", "said"), [("grpc-timeout", "soon"), ("x-timeout", "1S"), ("x-timeout", "-1")]
)
async def test_a_header_that_cannot_be_read_is_a_bad_request(header: str, said: str) -> None:
    exchange = Exchange(headers=[(header, said)])
    await exchange.run(application(tell_time_left, Middleware(Deadline, header=header)))
    assert exchange.status == 400
    assert header in exchange.body.decode()


@anywhere
async def test_a_header_of_another_form_is_read_by_the_applications_function() -> None:
    milliseconds = Middleware(Deadline, header="x-ms", seconds=lambda text: int(text) / 1000)
    exchange = Exchange(headers=[("x-ms", "7000")])
    await exchange.run(application(tell_time_left, milliseconds))
    assert 0 < float(exchange.body) <= 7


@anywhere
async def test_other_kinds_of_connections_pass() -> None:
    passed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        await Deadline(app)({"type": kind}, None, None)
    assert passed == ["lifespan", "websocket"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"header": None}, "no request has a deadline"),
        ({"header": 3}, "header"),
        ({"most": -1}, "most"),
        ({"most": math.inf}, "most"),
        ({"most": True}, "most"),
        ({"seconds": 3}, "seconds"),
    ],
)
def test_nonsense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Deadline(PlainTextResponse("done"), **arguments)
