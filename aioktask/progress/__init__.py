# SPDX-License-Identifier: MIT
"""Bars of jobs and streams, in a terminal, a log file and a notebook."""

from typing import TYPE_CHECKING

__all__ = ["Bar", "rich_bar", "tqdm_bar"]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "Bar": "aioktask.progress._bar",
    "rich_bar": "aioktask.progress._bars",
    "tqdm_bar": "aioktask.progress._bars",
}

if TYPE_CHECKING:
    from aioktask.progress._bar import Bar
    from aioktask.progress._bars import rich_bar, tqdm_bar
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
