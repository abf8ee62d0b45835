# SPDX-License-Identifier: MIT
# How long the soak lasts: what `make soak` gives, else two minutes.

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-seconds",
        type=float,
        default=120.0,
        help="how long servers are under load in the soak (120)",
    )
    parser.addoption("--soak-seed", type=int, default=None, help="what its clients are drawn from")
