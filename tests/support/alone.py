# SPDX-License-Identifier: MIT
# As many threads as the machine gives, whatever other processes want and the environment says.

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import aioktask


@contextlib.contextmanager
def sharing_with_nobody() -> Iterator[None]:
    """No other process changes how many threads there may be."""
    before = aioktask.tunables()["share"]
    aioktask.configure(share="off")
    try:
        yield
    finally:
        aioktask.configure(share=before)
