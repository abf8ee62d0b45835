# SPDX-License-Identifier: MIT
# Where it is read: of processes, and of a page that may refuse, hang, or be another thing.

from __future__ import annotations

import datetime
import gc
import importlib.util
import itertools
import json
import math
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aioktask.top._lines import lines_of
from aioktask.top._rows import detail
from aioktask.top._show import source_of
from aioktask.top._source import Page, Processes, Source, SourceError
from aioktask.top._text import cells
from aioktask.top._view import View
from tests.support.gates import until
from tests.support.patience import PATIENCE
from tests.top.told import HOSTILE, Child

TOKEN = "abc123"

STATE: dict[str, Any] = {
    "clock": 1.0,
    "at": "10:00:00",
    "under_way": 1,
    "left_out_helpers": 0,
    "processes": [
        {
            "pid": 7,
            "command": "/usr/bin/python work.py",
            "state": "alive",
            "problem": "",
            "age": "0.0 s",
            "counts": {"running": 1},
            "limits": {
                "threads": 4,
                "most": 6,
                "working": 1,
                "reason": "affinity",
                "notes": ["2 blocked"],
            },
            "slots": None,
            "loops": [{"kind": "asyncio", "late": 0.3, "text": "0.3 ms late"}],
            "advice": [{"event": "e", "job": "fill", "text": "use fewer"}],
        },
        {"pid": 8, "command": "x", "state": "gone", "problem": "it ended", "age": "3.0 s"},
    ],
    "jobs": [
        {
            "pid": 7,
            "number": 3,
            "kind": "job",
            "name": HOSTILE,
            "labels": ["who=mary"],
            "phase": "running",
            "fraction": 0.4,
            "percent": "40%",
            "text": "3.0 s left",
            "units": "40 of 100",
            "rate": "1.2 M/s",
            "threads": 1,
            "nice": 5,
            "loan": -3,
            "lender": 9,
            "elapsed": "1:15",
            "queued": "0.0 s",
            "age": "1:16",
            "waits_for": "",
            "error": "OSError: planted",
            "error_chunk": "3 to 4",
            "failed": "",
            "stuck": "45 s",
            "figures": {"rate": 1.2e6, "elapsed": 75.0, "queued": 0.0},
        }
    ],
    "ended": [],
    "helpers": [
        {
            "pid": 7,
            "kind": "helper",
            "thread": 4711,
            "state": "working",
            "job": 3,
            "lasts": "45 s",
            "nice": 5,
            "node": None,
            "chunk": "0 to 9",
            "stuck": "45 s",
            "figures": {"stuck": 45.0},
            "stack": ["in f"],
        }
    ],
}


class Server:
    """A page that answers what a test says.

    Attributes:
        status, body, kind, headers: Of its next answers.
        asked: The requests that came: path, token, body.
    """

    def __init__(self) -> None:
        self.status, self.kind = 200, "application/json"
        self.body = json.dumps({"access": "write", "state": STATE, "marks": []}).encode()
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str | None, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                server.asked.append((self.path, self.headers.get("Authorization"), body))
                self.send_response(server.status)
                self.send_header("Content-Type", server.kind)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(server.body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/jobs"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(PATIENCE)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def test_a_page_is_read_with_its_token(server: Server) -> None:
    view = Page(server.url, TOKEN).read().view
    assert server.asked == [("/jobs/state", f"Bearer {TOKEN}", None)]
    (job,) = view.jobs
    assert (job.key, job.phase, job.fraction, job.rate, job.seconds) == (
        (7, 3),
        "running",
        0.4,
        1.2e6,
        75.0,
    )
    assert (job.nices, job.lender, job.state) == ("5>-3", 9, "stuck")
    assert job.error == "OSError: planted (units 3 to 4)"
    assert "[red]a[/red]" in job.name
    assert job.name.isprintable()
    first, second = view.processes
    assert (first.working, first.limit, first.reason) == (1, 6, "affinity; 2 blocked")
    assert first.helpers[0].stack == ("in f",)
    assert second.problem == "it ended, 3.0 s ago"


def test_changes_are_sent_to_the_page_and_its_answer_is_told(server: Server) -> None:
    page = Page(server.url, TOKEN)
    server.body = b'{"done": true, "text": ""}'
    assert page.cancel(7, 3).answer is True
    assert page.renice(7, 3, -5).answer is True
    assert server.asked == [
        ("/jobs/cancel", f"Bearer {TOKEN}", {"pid": 7, "job": 3}),
        ("/jobs/renice", f"Bearer {TOKEN}", {"pid": 7, "job": 3, "nice": -5}),
    ]
    server.body = b'{"done": false, "text": "It is over already."}'
    assert page.cancel(7, 3).answer is False


@pytest.mark.parametrize(
    ("status", "kind", "body", "headers", "problem"),
    [
        (401, "text/plain", b"A token is needed.", {}, "give it by AIOKTASK_TOKEN"),
        (403, "text/plain", b"This host\x1b is not", {}, r"refuses it \(403\): This host\ufffd is"),
        (404, "text/plain", b"Not Found", {}, r"no live page \(404\): give the address"),
        (502, "text/html", b"<h1>bad</h1>", {}, r"refuses it \(502\): Bad Gateway"),
        (307, "text/plain", b"", {"Location": "http://x.test/"}, "elsewhere: give http://x.test/"),
        (200, "text/html", b"<h1>hello</h1>", {}, "not as a page of jobs does"),
        (200, "application/json", b"[1]", {}, "not as a page of jobs does"),
        (200, "application/json", b'{"state": {"jobs": 1}}', {}, "not as a page of jobs does"),
        (200, "application/json", b"[" * 100_000, {}, "not as a page of jobs does"),
    ],
)
def test_what_a_page_refuses_is_told_with_what_to_do(
    server: Server, status: int, kind: str, body: bytes, headers: dict[str, str], problem: str
) -> None:
    server.status, server.kind, server.body, server.headers = status, kind, body, headers
    page = Page(server.url, TOKEN)
    with pytest.raises(SourceError, match=problem):
        page.read()
    assert page.cancel(7, 3).problem


# What JSON of Python's makes of them, and what is too large for a float.
NOT_FINITE = (math.inf, math.nan, -math.inf, 10**400)


@pytest.mark.parametrize(
    ("what", "figure"),
    [
        *itertools.product(("rate", "elapsed", "stuck"), (*NOT_FINITE, "1.2 M/s", None)),
        *itertools.product(("threads", "nice", "number", "loan"), (10**400, -(10**4000))),
        *itertools.product(("fraction", "ended"), (math.nan, math.inf, 10**400)),
    ],
    ids=lambda each: str(each)[:12],
)
def test_figures_that_cannot_be_are_refused_before_anybody_draws_them(
    server: Server, what: str, figure: object
) -> None:
    (job,), (helper,) = STATE["jobs"], STATE["helpers"]
    changed: dict[str, Any] = {"jobs": [{**job, what: figure}]}
    if what == "stuck":
        changed = {"helpers": [{**helper, "figures": {what: figure}}]}
    elif what in job["figures"]:
        changed = {"jobs": [{**job, "figures": {**job["figures"], what: figure}}]}
    server.body = json.dumps({"state": {**STATE, **changed}}).encode()
    with pytest.raises(SourceError, match="not as a page of jobs does"):
        Page(server.url).read()


def test_what_the_page_says_of_its_own_trouble_is_passed_on(server: Server) -> None:
    told = {"error": "OSError: [Errno 1] no\x1b[2J", "number": 1}
    server.body = json.dumps({"state": told, "access": "write"}).encode()
    with pytest.raises(SourceError, match=r"cannot ask the processes: OSError.*no\ufffd\[2J"):
        Page(server.url).read()


@pytest.mark.parametrize(
    "figures",
    [
        {
            "figures": {"rate": 1e300, "elapsed": 1e300, "queued": 0.0},
            "threads": 10**100,
            "nice": -(10**100),
        },
        {
            "figures": {"rate": -4, "elapsed": -5, "queued": -1},
            "fraction": -5,
            "threads": -2,
        },
        {"phase": "finished", "ended": 1e300},
    ],
    ids=["large", "negative", "long ago"],
)
@pytest.mark.parametrize("width", [1, 80])
def test_figures_that_are_only_odd_are_drawn(
    server: Server, figures: dict[str, Any], width: int
) -> None:
    (job,), (process, gone) = STATE["jobs"], STATE["processes"]
    counted = {**process, "counts": {"running": 10**100, "waiting": 10**100}}
    state = {**STATE, "processes": [counted, gone], "jobs": [{**job, **figures}]}
    server.body = json.dumps({"state": state}).encode()
    view = Page(server.url).read().view
    assert all(cells(each) <= width for each in lines_of(view, 0.0, width))
    assert detail(view.jobs[0], view)


SEQUENCES = b"\x1b]0;title\x07\x1b[2J\x1b[31mroot\x1b[0m"


@pytest.mark.parametrize(
    "answer",
    [
        SEQUENCES + b"\r\n\r\n",
        b"HTTP/2" + SEQUENCES + b" 200 OK\r\n\r\n",
        b"HTTP/1.1 500 " + SEQUENCES + b"\r\n\r\n",
        b"HTTP/1.1 500 no\r\nContent-Type: text/plain\r\n\r\n" + SEQUENCES,
        b"HTTP/1.1 302 no\r\nLocation: " + SEQUENCES + b"\r\n\r\n",
    ],
    ids=["no status", "no version", "reason", "body", "address"],
)
def test_nothing_that_a_page_says_in_error_does_anything_to_a_terminal(answer: bytes) -> None:
    def reply() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        replying = threading.Thread(target=reply)
        replying.start()
        ended = subprocess.run(
            [sys.executable, "-m", "aioktask", "top", "--once", url],
            capture_output=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )
        replying.join(PATIENCE)
    assert ended.returncode == 1
    assert ended.stderr.endswith("\n")
    assert ended.stderr[:-1].isprintable()
    assert "title" in ended.stderr


def test_the_token_does_not_follow_to_where_a_page_leads(server: Server) -> None:
    other = Server()
    try:
        server.status, server.headers = 302, {"Location": other.url}
        with pytest.raises(SourceError, match="elsewhere"):
            Page(server.url, TOKEN).read()
        assert other.asked == []
    finally:
        other.close()


def test_no_proxy_is_shown_the_token_of_a_page_on_this_machine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Server()
    for each in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/jobs"))
    try:
        for host in ("127.0.0.1", "localhost", "LOCALHOST", "0.0.0.0"):
            Page(server.url.replace("127.0.0.1", host), TOKEN).read()
        assert proxy.asked == []
        assert len(server.asked) == 4
        Page("http://page.test/jobs", TOKEN).read()  # others are where a proxy leads
        assert proxy.asked == [("http://page.test/jobs/state", f"Bearer {TOKEN}", None)]
    finally:
        proxy.close()


def test_a_page_that_says_nothing_or_too_slowly_is_given_up() -> None:
    went = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not went.wait(0.01):
                    connection.sendall(b" ")
            except OSError:
                pass  # it hung up

    with socket.create_server(("127.0.0.1", 0)) as listening:
        page = Page(f"http://127.0.0.1:{listening.getsockname()[1]}", seconds=0.3)
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"did not answer in 0\.3 s"):
            page.read()
        connection, _ = listening.accept()  # the one that was never answered
        connection.close()
        answering = threading.Thread(target=lambda: drip(listening.accept()[0]))
        answering.start()
        with pytest.raises(SourceError, match=r"did not answer in 0\.3 s"):
            page.read()
        assert time.monotonic() - began < PATIENCE / 2
        went.set()
        answering.join(PATIENCE)
    with pytest.raises(SourceError, match="cannot be reached"):
        page.read()


HEADERS = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("scheme", "first", "drop"),
    [
        ("http", HEADERS + b"X: ", b"a"),
        ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("http", HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        ("http", b"HTTP/1.1 500 no\r\nContent-Type: text/plain\r\n\r\n", b"a"),
        ("https", b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x00"),
        ("http by a proxy", HEADERS + b"X: ", b"a"),
        ("https by a proxy", HEADERS + b"X: ", b"a"),
    ],
    ids=["header", "continue", "body", "error", "tls", "proxy", "tunnel"],
)
def test_a_page_that_drips_is_given_up_in_time_and_its_connection_shut(
    monkeypatch: pytest.MonkeyPatch, scheme: str, first: bytes, drop: bytes
) -> None:
    """Each byte comes in time, and there is no end of them."""
    shut = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(first)
                while True:
                    connection.sendall(drop)
                    time.sleep(0.001)
            except OSError:
                shut.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        at = f"127.0.0.1:{listening.getsockname()[1]}"
        scheme, _, proxy = scheme.partition(" ")
        if proxy:
            for each in ("no_proxy", "NO_PROXY"):
                monkeypatch.delenv(each, raising=False)
            monkeypatch.setenv(f"{scheme}_proxy", f"http://{at}")
            at = "page.test"
        page = Page(f"{scheme}://{at}", seconds=0.3)
        told: list[str] = []
        dripping = threading.Thread(target=drip, daemon=True)
        reading = threading.Thread(target=lambda: told.append(problem_of(page)), daemon=True)
        dripping.start()
        reading.start()
        reading.join(PATIENCE)
        assert told == [f"{page.name} did not answer in 0.3 s"]
        assert shut.wait(PATIENCE)
        dripping.join(PATIENCE)
    until(lambda: not any(each.name == "aioktask page" for each in threading.enumerate()))


def test_no_socket_is_left_of_a_tunnel_that_is_reset_before_tls_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrap_socket = ssl.SSLContext.wrap_socket

    def wrap_once_reset(context: ssl.SSLContext, sock: socket.socket, **keywords: Any) -> Any:
        def is_reset() -> bool:
            try:
                sock.getpeername()
            except OSError:
                return True
            return False

        until(is_reset)
        return wrap_socket(context, sock, **keywords)

    def reset() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(HEADERS + b"\r\n")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_once_reset)
    for each in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(each, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("https_proxy", proxy)
        resetting = threading.Thread(target=reset, daemon=True)
        resetting.start()
        with pytest.raises(SourceError, match=r"page\.test/ cannot be reached"):
            Page("https://page.test").read()
        resetting.join(PATIENCE)
    gc.collect()  # which would warn of a socket that is left


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of localhost, with its key, in a file that this process trusts."""
    x509 = pytest.importorskip("cryptography.x509", reason="a certificate needs cryptography")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "localhost.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


def test_a_page_over_tls_is_read_where_its_certificate_is_trusted_and_for_its_name(
    server: Server, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    named = server.url.replace("http://127.0.0.1", "https://localhost")
    assert Page(named, TOKEN).read().view.jobs[0].key == (7, 3)
    assert server.asked == [("/jobs/state", f"Bearer {TOKEN}", None)]
    assert "certificate" in problem_of(Page(named.replace("localhost", "127.0.0.1"), TOKEN))
    assert len(server.asked) == 1


def test_what_a_page_is_asked_leaves_no_connection_open(server: Server) -> None:
    page = Page(server.url)
    page.read()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        page.read()
    until(lambda: set(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize(
    ("url", "token", "problem"),
    [
        ("localhost:8000", None, "must be the address of a page"),
        ("ftp://host/x", None, "must be the address of a page"),
        ("http:///x", None, "must be the address of a page"),
        ("http://host:port/", None, "[Pp]ort"),
        ("http://host/jöbs", None, "printable ASCII"),
        ("http://höst/", None, "host as xn--"),
        ("http://host/a b", None, "without blanks"),
        ("http://host/a\nb", None, "printable ASCII"),
        ("http://ho\x00st/", None, "printable ASCII"),
        ("http://me:secret@host/", None, "no user and password"),
        ("http://host/", "a\r\nb", "printable ASCII"),
        (None, "abc", "--token is for a page"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_asked(
    url: str | None, token: str | None, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        source_of(url, token, {})


def test_the_token_comes_from_the_environment_unless_it_is_given(server: Server) -> None:
    source_of(server.url, None, {"AIOKTASK_TOKEN": "from-there"}).read()
    source_of(server.url, "given", {"AIOKTASK_TOKEN": "from-there"}).read()
    assert [each[1] for each in server.asked] == ["Bearer from-there", "Bearer given"]


def test_processes_are_read_and_changed_and_a_stopped_one_is_told(
    child: Callable[[str], Child],
) -> None:
    one, two = child("one"), child(HOSTILE)
    source = Processes()
    view = source.read().view
    assert {each.pid for each in view.processes} == {one.pid, two.pid}
    first = next(each for each in view.jobs if each.name == "one")
    waiting = next(each for each in view.jobs if each.name == "after one")
    assert waiting.phase == "waiting"
    assert "its coordinator's 1 is at job " in waiting.note
    os.kill(two.pid, signal.SIGSTOP)
    try:
        stopped = source.read().view.process(two.pid)
        assert stopped is not None
        assert "is stopped" in stopped.problem
        assert "python" in stopped.command
        assert source.cancel(two.pid, 1).problem
    finally:
        os.kill(two.pid, signal.SIGCONT)
    assert source.renice(*first.key, 7).answer is True
    assert source.cancel(*first.key).answer is True
    assert one.hear() == "cancelled 7"


def test_this_process_is_not_shown_to_itself() -> None:
    from aioktask.observe.processes import publish

    publisher = publish()
    try:
        assert Processes().read().view.processes == ()
    finally:
        publisher.close()


def test_a_directory_that_is_not_this_user_s_alone_is_told(runtime_directory: Any) -> None:
    from aioktask.observe.processes import directory

    directory().chmod(0o755)
    with pytest.raises(SourceError, match="mode 700"):
        Processes().read()
    assert "mode 700" in Processes().cancel(1, 1).problem


def problem_of(source: Source) -> str:
    """Why it cannot be read; empty where it can."""
    try:
        source.read()
    except SourceError as error:
        return str(error)
    return ""


def test_the_live_page_shows_and_changes_what_the_processes_do(
    child: Callable[[str], Child],
) -> None:
    if importlib.util.find_spec("aioktask.web._page") is None:
        pytest.skip("this version has no live page")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    one, two = child("one"), child(HOSTILE)
    with subprocess.Popen(
        [sys.executable, "-m", "aioktask", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = dict(process.stdout.readline().strip().split(": ", 1) for _ in range(2))
        try:
            until(lambda: "AIOKTASK_TOKEN" in problem_of(Page(said["the page"])))
            page = Page(said["the page"], said["the token"])
            view = page.read().view
            by_processes = Processes().read().view

            def keys(of: View) -> list[tuple[tuple[int, int], str, str, str]]:
                return sorted((each.key, each.name, each.phase, each.percent) for each in of.jobs)

            assert keys(view) == keys(by_processes)
            assert {each.pid for each in view.processes} >= {one.pid, two.pid}
            assert not any(each.problem for each in view.processes)
            first = next(each for each in view.jobs if each.name == "one")
            assert page.renice(*first.key, 7).answer is True
            assert page.cancel(*first.key).answer is True
            assert one.hear() == "cancelled 7"
            assert page.cancel(*first.key).answer is False
            assert page.cancel(999_999_999, 1).problem
            os.kill(two.pid, signal.SIGSTOP)
            try:

                def silent() -> bool:
                    found = page.read().view.process(two.pid)
                    return found is not None and bool(found.problem)

                until(silent)
            finally:
                os.kill(two.pid, signal.SIGCONT)
        finally:
            process.terminate()
