# SPDX-License-Identifier: MIT
# A job whose parts are used while the rest is still being done: the public name and nothing else.
"""Work that serves first what is asked for."""

from aioktask.ondemand._ondemand import OnDemand

__all__ = ["OnDemand"]
