# SPDX-License-Identifier: MIT
# Where `top` reads what there is to see, and sends changes to: the processes of this user, or the
# live page of a server.
#
# Both tell the same, and each call comes back in a bounded time, whatever the other end does. For a
# page no timeout of a socket says so, which each byte begins anew: the request is made in a thread
# of its own, which is waited for so long, and then its connection is shut. Calls block, and may be
# made on any thread. What the other end says cannot do anything to a terminal, in
# errors too.
"""The processes of this user, or a live page."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from aioktask.observe.processes import ANSWER_SECONDS, UNREADABLE, Told, ask, ask_all
from aioktask.top._text import plain
from aioktask.top._view import View, view_of, view_of_page

__all__ = ["Page", "Processes", "Reading", "Source", "SourceError"]

# How long a page may take for an answer, in seconds; it waits for its own processes meanwhile.
PAGE_SECONDS = 10.0

# So much is told of what a page says that refuses, in bytes.
SAID = 300

# The longest answer of a page that is read.
MOST_ANSWER = 64 << 20


class SourceError(Exception):
    """Nothing can be read there: why, and what to do.

    Args:
        text: It may have in it what the other end said; what is kept of it is plain.

    >>> str(SourceError("it says \\x1b[2J"))
    'it says \ufffd[2J'
    """

    def __init__(self, text: str) -> None:
        super().__init__(plain(text))


@dataclass(frozen=True)
class Reading:
    """What a source told at one time.

    Attributes:
        view: As rows.
        data: As it was told, for JSON.
    """

    view: View
    data: Mapping[str, Any]


class Source(Protocol):
    """What there is to see, and what changes it.

    Attributes:
        name: What it is, for people.
    """

    name: str

    def read(self) -> Reading:
        """What all processes tell now. One thread at a time.

        Raises:
            SourceError: Nothing can be read.
        """

    def cancel(self, pid: int, number: int) -> Told:
        """Cancel a job of a process; whether that came in time."""

    def renice(self, pid: int, number: int, nice: int) -> Told:
        """Change the nice of a job of a process; whether there is such a job."""


class Processes:
    """The processes of this user that publish their jobs, but for this one."""

    name = "this user's processes"

    def __init__(self) -> None:
        self._last = View()

    def read(self) -> Reading:
        try:
            told = ask_all()
        except OSError as error:
            raise SourceError(f"the processes cannot be asked: {error}") from None
        told = [each for each in told if each.pid != os.getpid()]
        self._last = view_of(told, self._last)
        processes = [
            {"pid": each.pid, "answer": each.answer, "problem": each.problem} for each in told
        ]
        return Reading(self._last, {"processes": processes})

    def cancel(self, pid: int, number: int) -> Told:
        return self._ask(pid, {"do": "cancel", "number": number})

    def renice(self, pid: int, number: int, nice: int) -> Told:
        return self._ask(pid, {"do": "renice", "number": number, "nice": nice})

    def _ask(self, pid: int, request: Mapping[str, object]) -> Told:
        try:
            return ask(pid, request, seconds=ANSWER_SECONDS)
        except OSError as error:
            return Told(pid, None, str(error))


def _is_here(host: str) -> bool:
    """Whether it names this machine, whatever says so: no proxy leads there.

    >>> [_is_here(each) for each in ("localhost", "127.0.0.2", "::1", "10.0.0.1", "page.test")]
    [True, True, True, False, False]
    """
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


class _Line:
    """The connection of one request, which another thread may shut at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._connection: socket.socket | None = None
        self._is_cut = False

    def hold(self, connection: socket.socket) -> None:
        """Take in what is to be shut.

        Raises:
            TimeoutError: It was cut before.
        """
        with self._lock:
            if self._is_cut:
                raise TimeoutError
            if self._connection is None:
                # Another descriptor of the same connection: who uses that may close it meanwhile.
                self._connection = connection.dup()

    def cut(self) -> None:
        """Shut the connection; whoever reads from it or writes to it fails."""
        with self._lock:
            self._is_cut = True
            connection, self._connection = self._connection, None
        if connection is not None:
            with connection, contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Asked(urllib.request.Request):
    """A request, and its connection."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.line = _Line()


class _Connection(http.client.HTTPConnection):
    """A connection that is held as soon as there is one, before a proxy or TLS has had its say."""

    line: _Line
    _sock: Any = None

    @property
    def sock(self) -> Any:
        return self._sock

    @sock.setter
    def sock(self, sock: Any) -> None:
        self._sock = sock
        if sock is not None:
            self.line.hold(sock)


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """Such a connection over TLS: what is held is the socket below that."""

    def connect(self) -> None:
        try:
            super().connect()
        except BaseException as error:
            # CPython leaves the socket of TLS open where it finds, before it begins, that the other
            # side has reset the connection; nobody but the frame that made it knows of it.
            for frame, _ in traceback.walk_tb(error.__traceback__):
                left = frame.f_locals.get("self")
                if isinstance(left, ssl.SSLSocket):
                    left.close()
            raise


def _maker(kind: type[_Connection], request: urllib.request.Request) -> Callable[..., Any]:
    """What makes the connection of a request."""
    assert isinstance(request, _Asked)
    line = request.line

    def make(*args: Any, **keywords: Any) -> _Connection:
        connection = kind(*args, **keywords)
        connection.line = line
        return connection

    return make


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_maker(_Connection, req), req)


class _Secure(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_maker(_SecureConnection, req), req)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: the token is for this page alone."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Page:
    """A live page.

    It is asked through the proxy that the environment names (``http_proxy``, ``https_proxy``,
    ``no_proxy``), but for one on this machine.

    Args:
        url: Its address, http or https, in ASCII.
        token: What it wants to be shown, if anything.
        seconds: How long to wait for an answer, in all.

    Raises:
        ValueError: The address or the token is none.

    >>> Page("http://localhost:8000/jobs").name
    'http://localhost:8000/jobs/'
    """

    def __init__(self, url: str, token: str = "", *, seconds: float = PAGE_SECONDS) -> None:
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(
                "URL must be printable ASCII without blanks: write other characters of a path as "
                f"%XX, and a host as xn--..., got {url!r}"
            )
        found = urllib.parse.urlsplit(url)
        if found.scheme not in ("http", "https") or not found.hostname:
            raise ValueError(
                f"URL must be the address of a page, like http://localhost:8000/jobs, got {url!r}"
            )
        found.port  # noqa: B018  # raises where it is none
        if "@" in found.netloc:
            raise ValueError("URL must have no user and password in it: a page wants a token")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("the token must be printable ASCII without blanks")
        path = found.path.rstrip("/") + "/"
        self.name = urllib.parse.urlunsplit((found.scheme, found.netloc, path, "", ""))
        self._token = token
        self._seconds = seconds
        handlers: list[urllib.request.BaseHandler] = [_Stay(), _Plain(), _Secure()]
        if _is_here(found.hostname):  # a proxy would be shown the token, and cannot get here
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def read(self) -> Reading:
        data = self._call("state")
        try:
            state = data["state"]
            problem = state.get("error")
            if not problem:
                return Reading(view_of_page(state), state)
        except UNREADABLE:
            raise SourceError(_foreign(self.name)) from None
        raise SourceError(f"{self.name} cannot ask the processes: {plain(str(problem))}")

    def cancel(self, pid: int, number: int) -> Told:
        return self._change("cancel", {"pid": pid, "job": number})

    def renice(self, pid: int, number: int, nice: int) -> Told:
        return self._change("renice", {"pid": pid, "job": number, "nice": nice})

    def _change(self, what: str, request: Mapping[str, int]) -> Told:
        pid = request["pid"]
        try:
            data = self._call(what, request)
        except SourceError as error:
            return Told(pid, None, str(error))
        if not isinstance(data, dict) or not isinstance(data.get("done"), bool):
            return Told(pid, None, _foreign(self.name))
        return Told(pid, data["done"])

    def _call(self, what: str, request: Mapping[str, int] | None = None) -> Any:
        asked = _Asked(self.name + what)
        asked.add_header("Accept", "application/json")
        if self._token:
            asked.add_unredirected_header("Authorization", f"Bearer {self._token}")
        if request is not None:
            asked.add_header("Content-Type", "application/json")
            asked.data = json.dumps(dict(request)).encode()
        answers: SimpleQueue[tuple[Any, str]] = SimpleQueue()

        def ask() -> None:
            answers.put(self._ask(asked))

        threading.Thread(target=ask, name="aioktask page", daemon=True).start()
        try:
            answer, problem = answers.get(timeout=self._seconds)
        except Empty:
            answer, problem = None, self._silent()
        finally:
            asked.line.cut()
        if problem:
            raise SourceError(problem)
        return answer

    def _ask(self, asked: _Asked) -> tuple[Any, str]:
        """The answer, or else why there is none."""
        try:
            with self._opener.open(asked, timeout=self._seconds) as reply:
                return json.loads(_read(reply.read1)), ""
        except urllib.error.HTTPError as error:
            with error:
                return None, _refusal(error)
        except urllib.error.URLError as error:
            return None, f"{self.name} cannot be reached: {error.reason}"
        except TimeoutError:
            return None, self._silent()
        except (OSError, http.client.HTTPException) as error:
            return None, f"{self.name} cannot be read: {str(error) or type(error).__name__}"
        except (ValueError, RecursionError):
            return None, _foreign(self.name)
        except Exception as error:  # whoever waits for this thread is to hear of it
            return None, f"{self.name} cannot be read: {type(error).__name__}: {error}"

    def _silent(self) -> str:
        return f"{self.name} did not answer in {self._seconds:.3g} s"


def _foreign(name: str) -> str:
    return f"{name} answers, but not as a page of jobs does: is that its address?"


def _read(read: Callable[[int], bytes]) -> bytes:
    """All that comes.

    Raises:
        OSError: More came than anybody wants.
    """
    parts, size = [], 0
    while part := read(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MOST_ANSWER:
            raise OSError(f"it tells more than {MOST_ANSWER >> 20} MiB")
    return b"".join(parts)


def _refusal(error: urllib.error.HTTPError) -> str:
    """What a page that refused says, and what to do."""
    if 300 <= error.code < 400:
        where = error.headers.get("Location", "its address")
        return f"the page is elsewhere: give {where}"
    if error.code == 401:
        return (
            "the page wants its token (401), which `python -m aioktask serve --token` prints where "
            "it runs: give it by AIOKTASK_TOKEN or --token"
        )
    if error.code == 404:
        return "there is no live page (404): give the address that it is mounted at"
    said = ""
    if error.headers.get_content_type() == "text/plain":
        with contextlib.suppress(OSError, http.client.HTTPException):
            said = error.read(SAID).decode("utf-8", "replace").strip()
    return f"the page refuses it ({error.code}): {said or error.reason}"
