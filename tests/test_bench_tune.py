# SPDX-License-Identifier: MIT
# The suite of `bench tune`: its workloads can be cut anywhere, and a hurried run tells all there is
# to tell.

from __future__ import annotations

import itertools

import pytest

from aioktask.bench import BENCHMARKS, tune
from aioktask.bench.workloads import SUITE
from aioktask.memory._libc import PAGE


@pytest.mark.parametrize("name", SUITE)
def test_every_unit_of_a_workload_can_be_done_by_itself_or_with_others(name: str) -> None:
    with SUITE[name](0.002) as workload:
        assert workload.size > 0
        if workload.before is not None:
            workload.before()
        stop = workload.start + workload.size
        first = workload.start + workload.align
        edges = sorted({workload.start, first, first + 2 * workload.align, stop})
        values = [workload.work(a, b) for a, b in itertools.pairwise(edges) if b <= stop]
        whole = workload.work(workload.start, stop)
        if workload.reduce is not None:
            total = values[0]
            for value in values[1:]:
                total = workload.reduce(total, value)  # type: ignore[arg-type]
            assert (total == whole).all()  # type: ignore[attr-defined]


def test_a_hurried_run_has_a_line_a_workload_and_every_sample() -> None:
    result = tune.run(True, lambda line: None, frozenset({"expression", "histogram, reduce"}))
    [summary] = result.tables
    assert [row[0] for row in summary.rows] == ["expression", "histogram, reduce"]
    for name in ("expression", "histogram, reduce"):
        assert len(result.samples[name]) == 5
        assert all(" x " in choice for choice in result.samples[f"{name}, sweep"])
    limits = {promise.text: promise.limit for promise in result.promises}
    assert limits["expression: later runs, of the best of the sweep"] == 0.95
    assert limits["expression: a first run, of plain"] == 0.97
    assert "expression" in result.text()
    assert "tune" in BENCHMARKS


def test_a_sweep_goes_from_the_least_size_to_an_even_share() -> None:
    with SUITE["populate, 4 KiB pages"](0.05) as workload:
        choices = tune._coarse(workload)
        assert all(choice.chunk % PAGE == 0 for choice in choices)
        for threads in {choice.threads for choice in choices}:
            largest = max(choice.chunk for choice in choices if choice.threads == threads)
            assert largest * threads >= workload.size
