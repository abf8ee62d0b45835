# SPDX-License-Identifier: MIT
# How long a client says that it will wait, read from a header. Pure: text in, seconds out.
#
# A client may only shorten what the server allows, so what it says is bounded by the server's own
# limit and by a deadline that holds already. gRPC's form is that of "PROTOCOL-HTTP2" in its
# documentation: at most eight digits and one letter. Any other header says a decimal number, in the
# digits 0 to 9: what Python's own conversions take beyond that (other digits, underscores, signs,
# exponents, names) is no number to whatever else reads the header on the way.
"""Deadlines that clients name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from aioktask.checks import seconds as seconds_of

GRPC_HEADER = "grpc-timeout"
KEY = "aioktask.deadline"

_GRPC = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def grpc_seconds(text: str) -> float:
    """The seconds that a value of the header ``grpc-timeout`` says.

    Raises:
        ValueError: It is none.

    >>> grpc_seconds("250m")
    0.25
    """
    found = _GRPC.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{GRPC_HEADER} must be at most 8 digits and one of H, M, S, m, u, n, got {text!r}"
        )
    return int(found[1]) * _UNITS[found[2]]


def plain_seconds(text: str) -> float:
    """The seconds that a decimal number says: digits, and a point with digits after it if need be.

    Raises:
        ValueError: It is none, or too large for a float.

    >>> plain_seconds("1.5")
    1.5
    """
    seconds = float(text) if _DECIMAL.fullmatch(text) else math.inf
    if not seconds < math.inf:
        raise ValueError(f"a timeout must be a number of seconds such as 2 or 1.5, got {text!r}")
    return seconds


class Limit:
    """What one server allows a request, and in which header a client may shorten it.

    Args:
        header: The header's name, in any case; None for no header.
        most: The most seconds that a request may take, whatever its client says; None for no limit.
        seconds: What makes seconds of the header's value, and raises ValueError where it cannot.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.
    """

    def __init__(
        self, header: str | None, most: float | None, seconds: Callable[[str], float] | None
    ) -> None:
        if header is not None and not isinstance(header, str):
            raise TypeError(f"header must be the name of a header or None, got {header!r}")
        self.header = None if header is None else header.lower()
        self.most = checked_seconds("most", most)
        if self.header is None and self.most is None:
            raise ValueError("neither header nor most is given, so no request has a deadline")
        if seconds is not None and not callable(seconds):
            raise TypeError(f"seconds must be callable as seconds(text), got {seconds!r}")
        default = grpc_seconds if self.header == GRPC_HEADER else plain_seconds
        self._seconds = default if seconds is None else seconds

    def until(self, now: float, said: str | None, holds: float | None) -> float | None:
        """When a request must be done, by a clock that says `now`; None for no limit.

        Args:
            said: What the client's header says, if it has one.
            holds: A deadline that holds already.

        Raises:
            ValueError: The header cannot be read.
            TypeError: What was given as `seconds` returned no number.
        """
        ends = [] if holds is None else [holds]
        if self.most is not None:
            ends.append(now + self.most)
        if said is not None:
            found = self._seconds(said.strip(" \t"))  # what HTTP has around a value
            ends.append(now + seconds_of("what a deadline's header says", found))
        return min(ends, default=None)


def checked_seconds(name: str, value: float | None) -> float | None:
    """`value` as a number of seconds, 0 or more, or None.

    Raises:
        TypeError, ValueError: It is something else.
    """
    return None if value is None else seconds_of(name, value)
