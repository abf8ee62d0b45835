# SPDX-License-Identifier: MIT
# The soak's ledger: what adds up is no fault, and each way not to add up is one.

from __future__ import annotations

import pytest

from tests.soak.ledger import told


def faults(*lines: str) -> list[str]:
    """Those of the only job."""
    (job,) = told(lines).values()
    return job.faults()


@pytest.mark.parametrize(
    "lines",
    [
        ("begin a awaited 3", "done a 0 2", "done a 2 3", "end a done"),
        ("begin a awaited 3", "done a 1 3", "undone a 1 2", "undone a 2 3", "end a Broken"),
        ("begin a awaited 3", "end a Overloaded"),
        ("begin a awaited 0", "end a done"),
        ("begin a submitted 2", "done a 0 2"),
        ("begin a submitted 2", "done a 0 1", "undone a 0 1"),
        ("begin a submitted 2",),
        ("begin a call 1", "done a 0 1", "end a CancelledError"),
        ("begin a stream 9", "done a 0 1", "end a CancelledError"),
    ],
)
def test_a_job_that_is_done_or_undone_is_accounted_for(lines: tuple[str, ...]) -> None:
    assert faults(*lines) == []


@pytest.mark.parametrize(
    "lines",
    [
        ("begin a awaited 3", "done a 0 3"),  # nobody saw its end
        ("begin a awaited 3", "done a 0 3", "end a done", "end a done"),
        ("begin a awaited 3", "done a 0 2", "end a done"),  # something is missing
        ("begin a awaited 3", "done a 0 3", "undone a 0 1", "end a done"),
        ("begin a awaited 3", "done a 0 2", "done a 1 3", "end a done"),  # twice
        ("begin a awaited 3", "done a 0 2", "undone a 0 1", "end a Broken"),  # something is left
        ("begin a awaited 3", "done a 0 1", "undone a 0 1", "undone a 0 1", "end a Broken"),
        ("begin a awaited 3", "undone a 2 3", "end a Broken"),  # what was never done
        ("begin a submitted 2", "done a 0 1"),
        ("begin a submitted 2", "done a 0 2", "undone a 0 1"),
        ("begin a call 1",),
        ("begin a call 1", "end a done"),
        ("begin a stream 2", "done a 0 1", "end a done"),
    ],
)
def test_what_does_not_add_up_is_a_fault(lines: tuple[str, ...]) -> None:
    assert faults(*lines)
