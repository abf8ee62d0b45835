# SPDX-License-Identifier: MIT
# Pinned memory on an older kernel, which tells of mappings by text alone, and in pages of 1 GiB.

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest

from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.mappings import mappings_between
from aioktask.memory._pin import pin
from tests.guest.facts import HUGE_1G
from tests.memory.lock_state import (
    address_of,
    flags_of,
    in_a_child,
    locked_pages,
    resident_pages,
    vm_locked,
)
from tests.memory.test_pin_limits import AS_WE_ARE, UNPRIVILEGED

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_HUGETLB_1G = 0x40000 | 30 << 26


@pytest.mark.anyio
@pytest.mark.parametrize("flags", [PRIVATE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS])
async def test_pages_are_resident_and_locked_while_it_is_held(flags: int) -> None:
    memory = mmap.mmap(-1, 64 * PAGE, flags=flags)
    memory.madvise(mmap.MADV_DONTFORK)  # joined with no other mapping
    before = flags_of(memory), vm_locked()
    with memoryview(memory) as view, view[5 * PAGE + 1 : 20 * PAGE - 1] as middle:
        async with pin(middle):
            assert locked_pages(memory) == set(range(5, 20))
            assert resident_pages(memory) >= set(range(5, 20))
    assert (flags_of(memory), vm_locked()) == before


def test_a_page_of_1_gib_is_made_resident_and_needs_no_lock() -> None:
    memory = mmap.mmap(-1, HUGE_1G, flags=PRIVATE | MAP_HUGETLB_1G)
    before = vm_locked()
    start = address_of(memory)
    (mapping,) = mappings_between(start, start + HUGE_1G)
    assert (mapping.page, mapping.writable, mapping.shared) == (HUGE_1G, True, False)
    with memoryview(memory) as view, view[5 : 3 * PAGE] as part, pin(part):
        assert vm_locked() == before
        assert resident_pages(part) == {0, 1, 2}
    memory.close()


@pytest.mark.parametrize("scenario", UNPRIVILEGED, ids=lambda each: each.__name__[9:])
def test_without_privileges(scenario: Callable[[], None]) -> None:
    in_a_child(scenario)


@pytest.mark.parametrize("scenario", AS_WE_ARE, ids=lambda each: each.__name__[9:])
def test_in_a_process_of_its_own(scenario: Callable[[], None]) -> None:
    in_a_child(scenario, privileged=True)
