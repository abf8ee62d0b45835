# SPDX-License-Identifier: MIT
# The fixtures that the memory tests share.

from tests.memory.hugepages import huge_pages

__all__ = ["huge_pages"]
