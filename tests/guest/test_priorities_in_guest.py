# SPDX-License-Identifier: MIT
# The nice of threads where root may raise RLIMIT_NICE, which it may not in every container.

from __future__ import annotations

from tests.process.test_priorities import (
    test_a_renice_reaches_the_thread_at_once_or_at_the_next_chunk,
    test_a_waiter_lends_its_nice_to_one_helper_and_the_others_stay_low,
)

__all__ = [
    "test_a_renice_reaches_the_thread_at_once_or_at_the_next_chunk",
    "test_a_waiter_lends_its_nice_to_one_helper_and_the_others_stay_low",
]
