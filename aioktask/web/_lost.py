# SPDX-License-Identifier: MIT
# How servers say, as an application sends, that there is nobody any more to send to.
"""Errors that tell of a lost client."""

from __future__ import annotations

__all__ = ["tells_of_a_lost_client"]


def tells_of_a_lost_client(error: OSError | RuntimeError) -> bool:
    """Whether a server could not send since the client is gone: by ASGI that is an OSError.

    Uvicorn has uvloop's error of a closed transport pass, where it does not know that yet; and it
    never does of a request after which the client had sent another one.

    >>> tells_of_a_lost_client(ConnectionResetError()), tells_of_a_lost_client(RuntimeError("no"))
    (True, False)
    """
    return isinstance(error, OSError) or "the handler is closed" in str(error)
