# SPDX-License-Identifier: MIT
# Jobs over NumPy arrays: the public names and nothing else.
#
# They guarantee that the result does not depend on how the range is split or on timing: what would
# let it depend on that (blocks of different types, memory that overlaps, a reduce that is not
# associative) is refused, most of it when the job is made. Nothing is computed before the job runs.
# They rely on NumPy letting go of the GIL in its loops; for objects it does not.
"""Functions that return a ready `Job` over arrays; its value is the resulting array."""

from typing import TYPE_CHECKING

__all__ = ["apply", "copy", "fill", "reduce"]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "apply": "aioktask.arrays._apply",
    "copy": "aioktask.arrays._assign",
    "fill": "aioktask.arrays._assign",
    "reduce": "aioktask.arrays._reduce",
}

if TYPE_CHECKING:
    from aioktask.arrays._apply import apply
    from aioktask.arrays._assign import copy, fill
    from aioktask.arrays._reduce import reduce
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
