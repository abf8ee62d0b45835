# SPDX-License-Identifier: MIT
# Who may see the live page and change jobs on it: every way in that must be shut, on every loop.
#
# Requests are made by httpx straight to the application, as a browser, another site or a program
# would send them.

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="requests are made with httpx")
pytest.importorskip("starlette", reason="the page needs Starlette")

import anyio
import httpx
from starlette.applications import Starlette
from starlette.responses import Response

from aioktask import Coordinator, Job
from aioktask.observe.processes import ask_all, directory, publish
from aioktask.web import page
from aioktask.web._page.access import MOST_TOKEN, Token
from aioktask.web._page.app import BODY_BYTES, HEADERS, Page
from tests.support.gates import CancelledGate
from tests.web.exchange import Exchange

pytestmark = pytest.mark.anyio

LOCAL = "http://localhost:8000"
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def published() -> Iterator[None]:
    """This process publishes its jobs, as a page that is mounted has it do."""
    publish()
    yield
    publish().close()


def client(app: Any, base: str = LOCAL, **headers: str) -> Any:
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url=base, headers=headers)


def bearer(app: Page) -> dict[str, str]:
    assert app.token is not None
    return {"Authorization": f"Bearer {app.token.value}"}


ADDRESSES = ("/", "/app.js", "/style.css", "/state", "/events", "/nothing")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil:8000",
        "",
        "[::1].evil.example",
        "[::1]:evil",
        "[::1",
        "[localhost]",
        "localhost:80@evil.example",
        "localhost:80:80",
        "localhost:evil",
        "user@localhost",
    ],
)
async def test_a_host_that_is_not_allowed_is_told_nothing_even_with_the_token(host: str) -> None:
    app = Page()
    async with client(app, **bearer(app)) as asks:
        for address in ADDRESSES:
            answer = await asks.get(address, headers={"Host": host})
            assert answer.status_code == 403
            assert "aioktask" not in answer.text
        answer = await asks.post("/cancel", json={"pid": 1, "job": 1}, headers={"Host": host})
        assert answer.status_code == 403


async def test_two_hosts_in_one_request_are_refused() -> None:
    async with client(Page()) as asks:
        headers = [("Host", "localhost"), ("Host", "evil.example")]
        assert (await asks.get("/", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "[::1]:80", "a.localhost", "127.9.9.9"]
)
async def test_loopback_names_are_answered(host: str) -> None:
    async with client(Page()) as asks:
        assert (await asks.get("/", headers={"Host": host})).status_code == 200


async def test_a_host_that_is_given_is_answered_in_any_case_and_with_any_port() -> None:
    async with client(Page(hosts=["Jobs.Example.com"])) as asks:
        for host in ("jobs.example.com", "JOBS.example.com:8443", "jobs.example.com."):
            assert (await asks.get("/", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("2001:DB8:0:0:0:0:0:1", "[2001:db8::1]:8000"),
        ("2001:db8::1", "[2001:0db8::0001]"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("b\xfccher.example", "xn--bcher-kva.example:8000"),
        ("B\xdcCHER.example", "xn--bcher-kva.EXAMPLE"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("192.0.2.1", "192.0.2.1:80"),
    ],
)
def test_a_host_is_known_however_it_is_written(given: str, asked: str) -> None:
    assert Page(hosts=[given]).answers(asked)
    assert not Page().answers(asked)


def test_an_address_to_listen_on_is_known_without_brackets() -> None:
    assert Page().answers("::1")


@pytest.mark.parametrize(
    ("hosts", "error"),
    [
        ("a.example", TypeError),
        (["*"], ValueError),
        (["a:80"], ValueError),
        ([7], TypeError),
        ([""], ValueError),
        (["http://a"], ValueError),
        (["[::1].evil"], ValueError),
        (["a b\xfc.example"], ValueError),
        (["*.b\xfc.example"], ValueError),
    ],
)
def test_what_is_no_host_is_refused_when_the_page_is_made(
    hosts: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="hosts"):
        Page(hosts)


@pytest.mark.parametrize(
    "said", [None, "Bearer", "Bearer wrong", "Basic {}", "Bearer {}x", "Bearer \xe9"]
)
async def test_data_needs_the_token(said: str | None) -> None:
    app = Page()
    assert app.token is not None
    headers = {}
    if said is not None:
        headers["Authorization"] = said.format(app.token.value).encode("latin-1")
    async with client(app) as asks:
        for address in ("/state", "/events"):
            answer = await asks.get(address, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for address in ("/cancel", "/renice"):
            answer = await asks.post(address, json={}, headers=OWN)
            assert answer.status_code == 401


async def test_the_token_logs_a_browser_in_and_stays_out_of_the_cookie() -> None:
    app = Page()
    assert app.token is not None
    async with client(app, **OWN) as asks:
        assert (await asks.post("/login", data={"token": "wrong"})).status_code == 403
        assert not asks.cookies
        answer = await asks.post("/login", data={"token": app.token.value})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Secure" not in cookie
        assert "Path" not in cookie  # so a browser takes that of the page, behind a proxy too
        assert app.token.value not in cookie
        assert (await asks.get("/state")).json()["access"] == "write"
        assert (await asks.post("/logout")).status_code == 204
        assert (await asks.get("/state")).status_code == 401


async def test_the_cookie_goes_over_tls_only_where_the_page_does() -> None:
    app = Page()
    assert app.token is not None
    async with client(app, "https://localhost", **OWN) as asks:
        answer = await asks.post("/login", data={"token": app.token.value})
        assert "Secure" in answer.headers["set-cookie"]


async def test_the_cookie_of_another_token_is_none() -> None:
    app = Page()
    assert app.token is not None
    async with client(app, **OWN) as asks:
        cookie = f"{app.token.cookie_name}={'0' * 64}"
        assert (await asks.get("/state", headers={"Cookie": cookie})).status_code == 401


CROSS_SITE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": LOCAL},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost:9000"},
    {"Origin": "null"},
    {},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
async def test_a_change_from_another_site_is_refused_although_the_browser_is_logged_in(
    headers: dict[str, str],
) -> None:
    app = Page()
    assert app.token is not None
    async with client(app) as asks:
        await asks.post("/login", data={"token": app.token.value}, headers=OWN)
        for address in ("/login", "/logout", "/cancel", "/renice"):
            answer = await asks.post(address, json={"pid": 1, "job": 1, "nice": 1}, headers=headers)
            assert answer.status_code == 403, address
        assert (await asks.get("/state")).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_data_is_not_given_to_pages_of_another_site(site: str) -> None:
    app = Page()
    async with client(app, **bearer(app)) as asks:
        answer = await asks.get("/state", headers={"Sec-Fetch-Site": site})
        assert answer.status_code == 403


async def test_an_old_browser_is_known_by_its_origin_and_a_program_by_its_bearer() -> None:
    app = Page()
    async with client(app) as asks:
        for headers in ({"Origin": LOCAL}, {}):
            answer = await asks.post(
                "/cancel", json={"pid": 1 << 22, "job": 1}, headers={**bearer(app), **headers}
            )
            assert answer.status_code == 502  # there is no such process, but it was let in


@pytest.mark.parametrize("form", ["plain", "async"])
async def test_the_applications_own_login_decides(form: str) -> None:
    seen: list[str] = []

    def decide(scope: Any) -> Any:
        seen.append(scope["path"])
        return dict(scope["headers"]).get(b"x-user", b"none").decode()

    async def decide_later(scope: Any) -> Any:
        return decide(scope)

    app = Page(authorize=decide if form == "plain" else decide_later)
    assert app.token is None
    change = {"pid": 1 << 22, "job": 1}
    async with client(app, **OWN) as asks:
        assert (await asks.get("/state")).status_code == 403
        assert (await asks.post("/login", data={"token": "x"})).status_code == 404
        read = await asks.get("/state", headers={"X-User": "read"})
        assert read.json()["access"] == "read"
        assert (
            await asks.post("/cancel", json=change, headers={"X-User": "read"})
        ).status_code == 403
        assert (
            await asks.post("/renice", json=change, headers={"X-User": "read"})
        ).status_code == 403
        assert (
            await asks.post("/cancel", json=change, headers={"X-User": "write"})
        ).status_code == 502
    assert "/state" in seen


async def test_what_authorize_may_not_say_is_an_error_and_lets_nobody_in() -> None:
    async with client(Page(authorize=lambda scope: True)) as asks:  # type: ignore[arg-type,return-value]
        with pytest.raises(ValueError, match="none, read or write"):
            await asks.get("/state")


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/cancel"),
        ("PUT", "/renice"),
        ("DELETE", "/state"),
        ("POST", "/events"),
        ("GET", "/login"),
    ],
)
async def test_other_methods_are_refused(method: str, address: str) -> None:
    app = Page()
    async with client(app, **OWN, **bearer(app)) as asks:
        assert (await asks.request(method, address)).status_code == 405


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 4000, "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"pid": "../x", "job": 1, "nice": 0}', "application/json", 400),
        (b'{"pid": 1, "job": -1, "nice": 0}', "application/json", 400),
        (b'{"pid": 1, "job": 1, "nice": 20}', "application/json", 400),
    ],
)
async def test_bodies_that_make_no_sense_are_refused(
    content: bytes, kind: str, status: int
) -> None:
    app = Page()
    async with client(app, **OWN, **bearer(app)) as asks:
        answer = await asks.post("/renice", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status


# On trio httpx leaves a generator of its own half-way, which the interpreter complains about.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_body_that_is_too_long_is_refused() -> None:
    app = Page()
    async with client(app, **OWN, **bearer(app)) as asks:
        for address in ("/renice", "/cancel"):
            answer = await asks.post(
                address,
                content=b"x" * (BODY_BYTES + 1),
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 413
        assert (await asks.post("/login", content=b"x" * (BODY_BYTES + 1))).status_code == 413


async def test_a_change_where_no_process_can_be_asked_is_told_as_such(tmp_path: Path) -> None:
    app = Page()
    directory().chmod(0o755)
    async with client(app, **OWN, **bearer(app)) as asks:
        for address in ("/cancel", "/renice"):
            answer = await asks.post(address, json={"pid": 1, "job": 1, "nice": 1})
            assert answer.status_code == 502
            assert "mode 700" in answer.text


async def test_the_head_of_a_stream_is_answered_at_once() -> None:
    app = Page()
    async with client(app, **bearer(app)) as asks:
        with anyio.fail_after(60):
            answer = await asks.head("/events")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert not app._gatherer._readers


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("", "/app.js"),
        ("/a", "/a/app.js"),
        ("/a", "/app.js"),  # a server that does not put the one before the other
        ("/a/", "/a//app.js"),
        ("/a/", "/a/app.js"),
        ("/", "//app.js"),
        ("/", "/app.js"),
    ],
)
async def test_files_are_found_below_any_root_path(root: str, path: str) -> None:
    exchange = Exchange(headers=[("host", "localhost")])
    exchange.scope |= {"root_path": root, "path": path}
    await exchange.run(Page())
    assert exchange.status == 200


@pytest.mark.parametrize("path", ["/", "//"])
async def test_a_root_path_that_is_a_slash_leads_nowhere_else(path: str) -> None:
    exchange = Exchange(headers=[("host", "localhost")])
    exchange.scope |= {"root_path": "/", "path": path}
    await exchange.run(Page())
    assert exchange.status == 200


@pytest.mark.parametrize(
    ("root", "led"),
    [
        ("/jobs", "./jobs/"),
        ("/of/https:evil.example", "./https%3Aevil.example/"),
        ("/of/\\\\evil.example", "./%5C%5Cevil.example/"),
        ("/of/a%b", "./a%25b/"),
        ("/of/\xfc", "./%C3%BC/"),
    ],
)
async def test_the_name_of_a_mount_leads_to_no_other_site(root: str, led: str) -> None:
    exchange = Exchange(headers=[("host", "localhost")])
    exchange.scope |= {"root_path": root, "path": root}
    await exchange.run(Page())
    assert exchange.status == 307
    headers = dict(exchange.sent[0]["headers"])
    assert headers[b"location"].decode() == led


async def test_every_answer_has_the_headers_that_keep_others_out() -> None:
    app = Page()
    async with client(app) as asks:
        answers = [await asks.get(address) for address in (*ADDRESSES[:4], "/nothing")]
        answers += [
            await asks.get("/", headers={"Host": "evil"}),
            await asks.put("/"),
            await asks.post("/login"),
        ]
        for answer in answers:
            for name, value in HEADERS.items():
                assert answer.headers[name] == value


async def test_a_job_is_seen_reniced_and_cancelled_and_its_name_stays_data(published: None) -> None:
    gate = CancelledGate()
    app = Page()
    name = '"></script><img src=x onerror="alert(1)">\u202e\x1b[2J'
    async with Coordinator() as coordinator, client(app, **OWN, **bearer(app)) as asks:
        handle = coordinator.submit(Job(gate.chunk, 1, name=name, labels={"<b>": "\u2028&"}))
        await gate.entered()
        state = (await asks.get("/state")).json()["state"]
        row = next(each for each in state["jobs"] if each["pid"] == os.getpid())
        assert row["name"] == '"></script><img src=x onerror="alert(1)">\ufffd\ufffd[2J'
        assert row["labels"] == ["<b>=\ufffd&"]
        change = {"pid": os.getpid(), "job": row["number"]}
        answer = await asks.post("/renice", json={**change, "nice": 7})
        assert answer.json() == {"done": True, "text": ""}
        assert handle.nice == 7
        assert (await asks.post("/cancel", json=change)).json()["done"]
        gate.open()
        with pytest.raises(Exception, match="cancelled"):
            await handle
        assert not (await asks.post("/cancel", json=change)).json()["done"]


async def test_a_page_that_is_mounted_publishes_its_process_and_has_relative_addresses(
    published: None,
) -> None:
    async def elsewhere(request: Any, error: Exception) -> Response:
        return Response("the application's own words")

    outer = Starlette(exception_handlers={404: elsewhere, 401: elsewhere})
    outer.mount("/jobs", page())
    assert os.getpid() in [each.pid for each in ask_all()]
    async with client(outer) as asks:
        answer = await asks.get("/jobs/")
        assert answer.status_code == 200
        for mark in ('href="/', 'src="/', 'action="/', "//"):
            assert mark not in answer.text
        assert (await asks.get("/jobs/style.css")).status_code == 200
        redirected = await asks.get("/jobs")
        assert redirected.status_code == 307
        # What an application around says of errors has no part in it.
        assert (await asks.get("/jobs/nothing")).text == "Not Found"
        assert (await asks.get("/jobs/state")).text == "A token is needed."


def test_the_token_is_made_once_for_all_and_readable_by_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    made = Token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Token(path).value == made.value
    assert len(made.value) >= 40
    assert list(tmp_path.iterdir()) == [path]


def let_others_read(path: Path) -> None:
    path.write_text("x" * 43)
    path.chmod(0o640)


def shorten(path: Path) -> None:
    path.write_text("")
    path.chmod(0o600)


def lead_elsewhere(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_text("x" * 43)
    target.chmod(0o600)
    path.symlink_to(target)


def make_a_pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def make_a_folder(path: Path) -> None:
    path.mkdir(0o700)


def write(content: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(content)
        path.chmod(0o600)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        let_others_read,
        shorten,
        lead_elsewhere,
        make_a_pipe,
        make_a_folder,
        write(b"\xff" * 64),
        write(b"x" * (MOST_TOKEN + 1) + b"\n"),
        write(b"x" * 40 + b"\n" + b"x" * 40 + b"\n"),
    ],
)
def test_a_token_that_others_may_know_is_not_used(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "token"
    spoil(path)
    with pytest.raises(OSError, match="token"):
        Token(path)
