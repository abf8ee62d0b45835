# SPDX-License-Identifier: MIT
# Jobs on hosts of a network: some are cut off for a while and come back, or are slow. The
# scheduler, the program and each worker have a host of their own, and a cut is a cable that is
# pulled: nothing arrives, and nobody is told. What workers do is in a file that is on no network.
#
# A cut that is shorter than what Dask waits for a host goes unnoticed. One that is longer ends the
# connections of that host, on both sides of the cut, and neither can tell the other. Dask's own
# wait is 30 s; most tests set the shortest one that it takes. AIOKTASK_TEST_CLUSTER=whole runs all
# of the longest ones too.

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from aioktask.cluster import ClusterFailure
from tests.cluster import program
from tests.cluster.dasks import SHORT, Dask, dask_cluster, whole_only
from tests.cluster.hosts import Hosts, hosts_of, is_there
from tests.cluster.ledger import Ledger
from tests.cluster.program import Outcome, read_outcome
from tests.support.gates import until
from tests.support.servers import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

NAMES = ("scheduler", "client", "w0", "w1", "w2")
WORKERS = ("w0", "w1", "w2")
# Dask gives up a host after 30 s, as it does of itself; or after 11.
DEFAULT: dict[str, str] = {}
HASTY = {**SHORT, "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s"}
# How long workers may take to end, or a job, in seconds: some times what it should be.
PATIENCE = 150.0


@contextmanager
def network(folder: Path, settings: dict[str, str] = DEFAULT) -> Iterator[Dask]:
    with hosts_of(NAMES) as hosts:
        with dask_cluster(folder, len(WORKERS), hosts, settings=settings) as dask:
            yield dask


def start(dask: Dask, ledger: Ledger, **options: Any) -> None:
    """Have the program run the ledger's job, until all workers have a part of it."""
    program.write_order(dask.folder, ledger.job(**options))
    dask.start("client", "tests.cluster.program", dask.address, str(dask.folder))
    until(lambda: ledger.said("opened") == len(WORKERS), "all workers have their data")
    until(lambda: len(ledger.counts("done")) > 100, "units are done")


def outcome_of(dask: Dask) -> Outcome:
    """What came of it."""
    until(lambda: read_outcome(dask.folder), dask.log("client"), PATIENCE)
    outcome = read_outcome(dask.folder)
    assert outcome is not None
    return outcome


def cut(dask: Dask, name: str, seconds: float) -> None:
    """Cut a host off for so long. The time is what the test is about: it waits for nothing."""
    hosts = dask.hosts
    assert hosts is not None
    hosts.pull(name)
    time.sleep(seconds)
    hosts.put_back(name)


def all_closed(ledger: Ledger) -> bool:
    return ledger.said("closed") == ledger.said("opened")


@pytest.mark.parametrize("name", ["w1", "client", "scheduler"])
def test_a_cut_of_five_seconds_goes_unnoticed(tmp_path: Path, name: str) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.01)
    with network(tmp_path) as dask:
        start(dask, ledger)
        cut(dask, name, 5)
        assert read_outcome(tmp_path) is None
        outcome = outcome_of(dask)
    assert outcome.report is not None, outcome.error
    assert not [part for part in outcome.report.workers if part.lost]
    ledger.check_done()
    assert not ledger.counts("undone")


CUTS = [
    pytest.param(HASTY, 20, 0.03, id="20s"),
    pytest.param(DEFAULT, 60, 0.06, id="60s", marks=whole_only),
]


@pytest.mark.parametrize(("settings", "seconds", "unit_seconds"), CUTS)
@pytest.mark.parametrize("name", ["client", "scheduler"])
def test_all_is_undone_where_the_program_cannot_reach_its_workers(
    tmp_path: Path, name: str, settings: dict[str, str], seconds: float, unit_seconds: float
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=unit_seconds)
    with network(tmp_path, settings) as dask:
        start(dask, ledger)
        cut(dask, name, seconds)
        outcome = outcome_of(dask)
        until(lambda: all_closed(ledger), "all workers are through", PATIENCE)
    assert outcome.error.startswith("WorkerLost"), outcome
    assert outcome.told is not None
    ledger.check(outcome.told)
    ledger.check_all_undone()


@pytest.mark.parametrize(("settings", "seconds", "unit_seconds"), CUTS)
def test_what_a_worker_did_that_was_cut_off_is_unknown(
    tmp_path: Path, settings: dict[str, str], seconds: float, unit_seconds: float
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=unit_seconds)
    with network(tmp_path, settings) as dask:
        start(dask, ledger)
        cut(dask, "w1", seconds)
        outcome = outcome_of(dask)
        until(lambda: all_closed(ledger), "all workers are through", PATIENCE)
        address = host_of(dask, "w1")
    assert outcome.error.startswith("WorkerLost"), outcome
    told = outcome.told
    assert isinstance(told, ClusterFailure)
    ledger.check(told)
    assert [part.host for part in told.workers if part.unknown] == [address]
    # It was told of nothing and could tell nothing, and undid what it had done all the same.
    ledger.check_all_undone()


@pytest.mark.parametrize(
    ("settings", "seconds", "unit_seconds"),
    [
        pytest.param(HASTY, 20, 0.03, id="20s", marks=whole_only),
        # As Dask is of itself, and the one of a minute that is run each time.
        pytest.param(DEFAULT, 60, 0.06, id="60s"),
    ],
)
def test_others_do_what_a_worker_that_was_cut_off_had_done(
    tmp_path: Path, settings: dict[str, str], seconds: float, unit_seconds: float
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=unit_seconds)
    with network(tmp_path, settings) as dask:
        start(dask, ledger, idempotent=True)
        cut(dask, "w1", seconds)
        outcome = outcome_of(dask)
        until(lambda: all_closed(ledger), "all workers are through", PATIENCE)
        address = host_of(dask, "w1")
    assert outcome.report is not None, outcome.error
    ledger.check_done(twice=True)
    assert [part.host for part in outcome.report.workers if part.lost] == [address]
    assert sum(part.units for part in outcome.report.workers) == 2000


@pytest.mark.parametrize(
    "seconds", [12.5, *(pytest.param(each, marks=whole_only) for each in (11, 14))]
)
@pytest.mark.parametrize("name", ["w1", "client", pytest.param("scheduler", marks=whole_only)])
def test_what_is_told_is_true_where_one_side_of_a_cut_gives_up_and_the_other_does_not(
    tmp_path: Path, name: str, seconds: float
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.02)
    with network(tmp_path, HASTY) as dask:
        start(dask, ledger)
        cut(dask, name, seconds)
        outcome = outcome_of(dask)
        until(lambda: all_closed(ledger), "all workers are through", PATIENCE)
    if outcome.told is None:
        ledger.check_done()
    else:
        ledger.check(outcome.told)
        ledger.check_all_undone()


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("w1", 5),
        pytest.param("w1", 20, marks=whole_only),
        pytest.param("client", 20, marks=whole_only),
        pytest.param("scheduler", 20, marks=whole_only),
    ],
)
def test_what_is_told_is_true_where_a_host_is_cut_off_in_the_undo(
    tmp_path: Path, name: str, seconds: float
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.02)
    (tmp_path / "fail").touch()
    (tmp_path / "hold-undo").touch()
    with network(tmp_path, HASTY) as dask:
        start(dask, ledger)
        until(lambda: ledger.said("undoing") == len(WORKERS), "all workers undo")
        cut(dask, name, seconds)
        (tmp_path / "hold-undo").unlink()
        outcome = outcome_of(dask)
        until(lambda: all_closed(ledger), "all workers are through", PATIENCE)
    assert outcome.told is not None
    ledger.check(outcome.told)
    ledger.check_all_undone()
    kind = outcome.error.partition(":")[0]
    assert kind == ("OSError" if seconds == 5 else "UndoFailed")


def host_of(dask: Dask, name: str) -> str:
    assert dask.hosts is not None
    return dask.hosts.addresses[name]


def test_a_host_that_is_ten_times_as_slow_does_a_tenth(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.005)
    (tmp_path / "slow-w2").touch()
    with network(tmp_path) as dask:
        start(dask, ledger)
        outcome = outcome_of(dask)
        address = host_of(dask, "w2")
    assert outcome.report is not None, outcome.error
    ledger.check_done()
    units = {part.host: part.units for part in outcome.report.workers}
    slow = units.pop(address)
    # The share by which all three end together is 1 unit in 21. Where each got the same, the slow
    # one would have 667, and the others would wait for it.
    assert slow <= 2 * 2000 / 21
    assert min(units.values()) > 0.7 * max(units.values())


def test_what_a_host_has_that_becomes_slow_is_done_by_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.005)
    with network(tmp_path) as dask:
        start(dask, ledger)
        (tmp_path / "slow-w2").touch()
        outcome = outcome_of(dask)
        address = host_of(dask, "w2")
    assert outcome.report is not None, outcome.error
    ledger.check_done()
    # It has a tenth of what the others do from then on, which is some 90 units, and what it had
    # done before. With what it was sent while it was fast it would have more than 300.
    units = {part.host: part.units for part in outcome.report.workers}
    assert units[address] < 220


KILLED = """
import sys, time
from pathlib import Path
from tests.cluster.dasks import dask_cluster
from tests.cluster.hosts import hosts_of

with hosts_of(["scheduler", "w0"]) as hosts:
    with dask_cluster(Path(sys.argv[1]), 1, hosts, nanny=True) as dask:
        print(*dask.pids.values(), flush=True)
        time.sleep(600)
"""


def test_no_process_and_no_network_outlives_a_test_that_is_killed(tmp_path: Path) -> None:
    with hosts_of(["one"]):
        pass  # or this is skipped
    before = networks()
    test = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert test.stdout is not None
    with test, test.stdout:
        pids = [int(each) for each in test.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_there, pids))
        assert networks() - before
        test.kill()
    until(lambda: not any(map(is_there, pids)), "all processes are gone")
    until(lambda: networks() <= before, "the networks are gone")


def networks() -> set[str]:
    """The namespaces of networks that processes of this machine are in."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                found.add(os.readlink(process / "ns" / "net"))
            except OSError:  # it is gone
                continue
    return found


def test_hosts_are_apart_where_the_cable_is_pulled() -> None:
    with hosts_of(["a", "b"]) as hosts:
        assert reaches(hosts, "a", "b")
        hosts.pull("b")
        assert not reaches(hosts, "a", "b")
        hosts.put_back("b")
        until(lambda: reaches(hosts, "a", "b"))


REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=1)
except ConnectionRefusedError:
    sys.exit(0)  # there is a host, and nobody listens
except OSError:
    sys.exit(1)
"""


def reaches(hosts: Hosts, name: str, other: str) -> bool:
    command = [*hosts.inside(name), sys.executable, "-c", REACH, hosts.addresses[other]]
    return subprocess.run(command, check=False).returncode == 0
