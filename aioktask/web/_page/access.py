# SPDX-License-Identifier: MIT
# Who may see the page, and who may change jobs on it.
#
# Three questions, in this order, before anything else is done with a request:
#
# 1. Is the host one of those that the page answers? A name that an attacker points at this machine
#    would make a foreign page "same-origin" (DNS rebinding), so names are listed.
# 2. Is a change, or a look at data, asked for by a page of this site itself? As Go's
#    `http.CrossOriginProtection`: by `Sec-Fetch-Site`, else by `Origin`, else only who sends a
#    token in a header, which no browser does by itself.
# 3. What may this one do? The application's own `authorize` says, or the token does.
#
# The token stands in a file that only its user may read, in the directory of the processes'
# sockets, so all workers have the same one. A browser keeps a digest of it, in a cookie that
# scripts cannot read and other sites do not send; so what a browser leaks is no token. Servers on
# other ports of the same host do get it: cookies know no ports.
"""Access to the page: hosts, cross-site requests, tokens."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import inspect
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal

from aioktask.checks import listed
from aioktask.extras import missing_package
from aioktask.observe.processes import directory

__all__ = ["Access", "Authorize", "Hosts", "Token", "is_cross_site"]

Access = Literal["none", "read", "write"]
Scope = MutableMapping[str, Any]
Authorize = Callable[[Scope], Access | Awaitable[Access]]

TOKEN_FILE = "page.token"
_TOKEN = re.compile(rb"[!-~]+")
TOKEN_BYTES = 32
MOST_TOKEN = 200

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Hosts:
    """The hosts that are answered: loopback names and addresses, and those that are given.

    Addresses are compared as such, however they are written, and names as they go over the
    network: in lower case, and in ASCII.

    Args:
        names: Host names and addresses without a port.

    Raises:
        TypeError, ValueError: One is no host.

    >>> hosts = Hosts(["jobs.example.com"])
    >>> [hosts.allow(each) for each in ("localhost:8000", "[::1]", "JOBS.example.com.:443", "evil")]
    [True, True, True, False]
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_checked_host(each) for each in listed("hosts", names)}

    def allow(self, host: str) -> bool:
        """Whether to answer a request with this `Host`."""
        name = _name_of(host)
        if name is None:
            return False
        if name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def _checked_host(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"hosts must be strings, got {name!r}")
    found = None if _has_port(name) else _name_of(_in_ascii(name))
    if not found or set(found) & set("*/@"):
        raise ValueError(
            f"hosts must be names or addresses as they stand in a browser's address line, without "
            f"scheme, port or *, got {name!r}"
        )
    return found


def _has_port(name: str) -> bool:
    return name.count(":") == 1 or "]:" in name


def _in_ascii(name: str) -> str:
    """A name as browsers send it.

    Raises:
        ValueError: There is no such name.
    """
    if name.isascii():
        return name
    try:
        import idna
    except ImportError as error:
        raise missing_package("a host that is not in ASCII", "idna", error) from error
    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(f"hosts must be names or addresses, got {name!r}: {error}") from error


# An address in brackets, or a name; and a port.
_HOST = re.compile(r"(?:\[(?P<address>[^][]*)\]|(?P<name>[^][:@/]*))(?::[0-9]*)?")


def _name_of(host: str) -> str | None:
    """The name in a `Host` header, in the form in which names are compared; None for nonsense."""
    host = host.strip()
    found = _HOST.fullmatch(host)
    address = host if found is None else found["address"]
    if address is not None:
        try:
            return str(ipaddress.IPv6Address(address))
        except ValueError:
            return None
    assert found is not None
    return str(found["name"]).lower().removesuffix(".")


def host_of(scope: Scope) -> str | None:
    """The one `Host` of a request; None where there is none, or several."""
    found = _headers(scope, b"host")
    return found[0] if len(found) == 1 else None


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _header(scope: Scope, name: bytes) -> str | None:
    found = _headers(scope, name)
    return found[0] if found else None


def is_cross_site(scope: Scope, *, data: bool) -> bool:
    """Whether a request was made by a page of another site, or may have been.

    Args:
        scope: Of the request.
        data: Whether it asks for data, with a safe method: then a request that says nothing about
            where it comes from is taken for one of this site, since there is nothing to change and
            no other site could read the answer.
    """
    site = _header(scope, b"sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    if scope["method"] in SAFE_METHODS and data:
        return False
    origin = _header(scope, b"origin")
    if origin is not None:
        return origin.partition("://")[2].lower() != (host_of(scope) or "").lower()
    return bearer_of(scope) is None


def bearer_of(scope: Scope) -> str | None:
    """The token in the header ``Authorization``; None where there is none."""
    kind, _, value = (_header(scope, b"authorization") or "").partition(" ")
    return value.strip() if kind.lower() == "bearer" and value.strip() else None


class Token:
    """The token of a user's pages: who has it may see and change everything.

    Args:
        path: Of its file; by default in the directory of the sockets. It is made where there is
            none.

    Raises:
        OSError: It cannot be made or read, or others may read it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = directory() / TOKEN_FILE if path is None else path
        self.value = _read_or_make(self.path)
        self._cookie = self._digest("cookie")
        # Cookies know no ports: pages of two users on one machine must not overwrite each other's.
        self.cookie_name = f"aioktask-{self._digest('name')[:12]}"

    def _digest(self, of: str) -> str:
        return hmac.new(self.value.encode(), f"aioktask {of}".encode(), hashlib.sha256).hexdigest()

    def is_right(self, said: str) -> bool:
        """Whether this is the token. It takes as long for each that is not."""
        return hmac.compare_digest(said.strip().encode(), self.value.encode())

    @property
    def cookie(self) -> str:
        """What a browser keeps in its place."""
        return self._cookie

    def access(self, scope: Scope, cookies: Mapping[str, str]) -> Access:
        """What the one who sent this request may do."""
        said = bearer_of(scope)
        if said is not None:
            return "write" if self.is_right(said) else "none"
        kept = cookies.get(self.cookie_name, "")
        return "write" if hmac.compare_digest(kept.encode(), self._cookie.encode()) else "none"


def _read_or_make(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    # Under another name until it is whole. Of workers that begin at once, one has its own linked.
    made = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()
    return _read(path)


def _read(path: Path) -> str:
    # Not blocked by a pipe, which is none of this user's files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        private = stat.S_IMODE(found.st_mode) & 0o077 == 0
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or not private:
            raise OSError(
                errno.EPERM,
                "not fit for the page's token: it must be a file of this user, mode 600; "
                "remove it, and another one is made",
                str(path),
            )
        value = os.read(descriptor, MOST_TOKEN + 2).strip()  # with the line's end, and one too many
    finally:
        os.close(descriptor)
    if not TOKEN_BYTES <= len(value) <= MOST_TOKEN or not _TOKEN.fullmatch(value):
        raise OSError(errno.EINVAL, "no token of the page: remove it, and one is made", str(path))
    return value.decode("ascii")


async def authorized(authorize: Authorize, scope: Scope) -> Access:
    """What the application says that this request may do.

    Raises:
        ValueError: It says something else.
    """
    said = authorize(scope)
    if inspect.isawaitable(said):
        said = await said
    if said not in ("none", "read", "write"):
        raise ValueError(f"authorize must return none, read or write, got {said!r}")
    return said
