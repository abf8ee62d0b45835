# SPDX-License-Identifier: MIT
"""How many of the lines that a test could stop or strike at it takes."""

from __future__ import annotations

import pytest

# A sample in the everyday run, each line in `make test-long`.
AT_LINES = pytest.mark.parametrize(
    "step",
    [
        pytest.param(13, id="every thirteenth line"),
        pytest.param(1, id="every line", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
