# SPDX-License-Identifier: MIT
# Chunk functions of one line that several tests use: one does nothing, others fail.

from __future__ import annotations


def nothing(start: int, stop: int) -> None:
    pass


def planted(start: int, stop: int) -> None:
    raise OSError(5, "planted")


def fail_at_seven(start: int, stop: int) -> None:
    if start == 7:
        raise ValueError("planted")
