# SPDX-License-Identifier: MIT
# How long a test waits for what must come: a loaded machine may take that long for anything. One
# figure for all, since a helper with a shorter one of its own fails on the slowest machine only.

from __future__ import annotations

import os

# An emulated CPU is slow: a program's imports alone may take it half a minute.
IN_GUEST = os.environ.get("AIOKTASK_IN_GUEST") == "1"
PATIENCE = 200.0 if IN_GUEST else 60.0
