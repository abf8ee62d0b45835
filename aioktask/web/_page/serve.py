# SPDX-License-Identifier: MIT
# The page by itself: a server of its own for the processes of this user, on a port of this machine.
"""`python -m aioktask serve`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from aioktask.extras import missing_package
from aioktask.web._page.app import Page

try:
    import uvicorn
except ImportError as error:
    raise missing_package("serve", "uvicorn", error) from error

__all__ = ["serve"]

# How long the server waits for open answers when it is told to stop, in seconds.
STOP_SECONDS = 3


def serve(address: str, port: int, hosts: Iterable[str], say: Callable[[str], None]) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        address: To listen on, a name or an address of this machine.
        port: To listen on; 0 for a free one.
        hosts: Names under which it may be asked for, beside those of the loopback interface.
        say: Is told where it is, and the token.

    Raises:
        TypeError, ValueError: A host is none.
        OSError: The address cannot be listened on, or there is no token.
    """
    page = Page(hosts)
    assert page.token is not None
    family, kind, _, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        name = f"[{address}]" if ":" in address else address
        say(f"the page: http://{name}:{listener.getsockname()[1]}/")
        say(f"the token: {page.token.value}")
        if not page.answers(address):
            say(
                "it is answered under loopback names only, and those of --allow; the token goes "
                "over the network as it is: put a proxy with TLS before it"
            )
        config = uvicorn.Config(
            page,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listener])
