# SPDX-License-Identifier: MIT
# A job whose parts are used while the rest is still being done: the public name and nothing else.
"""Work that serves first what is asked for."""

from typing import TYPE_CHECKING

__all__ = ["OnDemand"]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "OnDemand": "aioktask.ondemand._ondemand",
}

if TYPE_CHECKING:
    from aioktask.ondemand._ondemand import OnDemand
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
