# SPDX-License-Identifier: MIT
# The page as an application has it whose login lets all look, and change once a file is there.

from __future__ import annotations

import os
from pathlib import Path

from aioktask.web import page

WRITERS = Path(os.environ["AIOKTASK_TEST_WRITERS"])

app = page(hosts=["test"], authorize=lambda scope: "write" if WRITERS.exists() else "read")
