# SPDX-License-Identifier: MIT
# A scheduler and workers of Dask on this machine, to begin with: `python -m aioktask cluster`.
#
# Dask runs whatever code it is sent, for whoever reaches it: it has no login. So this listens on
# loopback alone, unless certificates say who may.
"""A small Dask cluster."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable

from aioktask.engine.api.process import max_threads
from aioktask.extras import missing_package

try:
    from distributed import LocalCluster, Security
except ImportError as error:
    raise missing_package("a Dask cluster", "distributed", error) from error

__all__ = ["checked_host", "dashboard_address", "run_local_cluster"]

VARIABLE = "AIOKTASK_MAX_THREADS"


def checked_host(host: str, *, tls: bool) -> str:
    """`host`, if it may be listened on.

    Raises:
        ValueError: It is not of this machine alone, and there is no TLS.
    """
    if not tls and not _is_loopback(host):
        raise ValueError(
            f"{host} can be reached from elsewhere, and Dask runs the code of whoever reaches it: "
            "give --tls-ca, --tls-cert and --tls-key too, or listen on 127.0.0.1"
        )
    return host


def dashboard_address(host: str, port: int) -> str:
    """Where the dashboard listens: it has no TLS, so on this machine alone.

    >>> dashboard_address("10.0.0.1", 8787), dashboard_address("::1", 8787)
    ('127.0.0.1:8787', '[::1]:8787')
    """
    if not _is_loopback(host):
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _share_of_each(workers: int) -> dict[str, str]:
    """The environment of workers that have no more helpers together than this process may have.

    Who has set the number of helpers by the environment has set that of each worker.
    """
    if os.environ.get(VARIABLE):
        return {}
    return {VARIABLE: str(max(max_threads() // workers, 1))}


def _refused_by_the_system(error: BaseException | None) -> OSError | None:
    """The error of the system, if any, that an exception came from."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error


def run_local_cluster(
    workers: int,
    say: Callable[[str], object],
    *,
    host: str = "127.0.0.1",
    port: int = 8786,
    dashboard_port: int = 8787,
    tls: tuple[str, str, str] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Start a scheduler and workers, say how to reach them, and wait until `stop`, or Ctrl-C.

    Args:
        workers: How many, a process each, with a thread of Dask's; helpers of the engine do the
            work, in all of them together as many as this process may have.
        say: Called with each line for the user.
        host: What the scheduler listens on, and the dashboard where nobody else can reach it.
        port: Of the scheduler; 0 for any that is free.
        dashboard_port: Of the dashboard; 0 for any that is free.
        tls: Files: the certificate of whoever signs, then this side's certificate and its key.
        stop: Ends it when it is set.

    Raises:
        ValueError: `host` can be reached from elsewhere, and there is no TLS.
        OSError: The address is in use, or a file cannot be read.
    """
    checked_host(host, tls=tls is not None)
    security = None
    if tls is not None:
        ca, cert, key = tls
        security = Security(
            require_encryption=True,
            tls_ca_file=ca,
            tls_client_cert=cert,
            tls_client_key=key,
            tls_scheduler_cert=cert,
            tls_scheduler_key=key,
            tls_worker_cert=cert,
            tls_worker_key=key,
        )
    stop = threading.Event() if stop is None else stop
    try:
        started = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host=host,
            scheduler_port=port,
            dashboard_address=dashboard_address(host, dashboard_port),
            worker_dashboard_address=None,
            protocol="tls://" if tls is not None else "tcp://",
            security=security,
            env=_share_of_each(workers),
        )
    except RuntimeError as error:  # Dask's own, with what the system refused among its causes
        refused = _refused_by_the_system(error)
        if refused is None:
            raise
        if refused.errno is None:  # Dask's own, of a time that was up
            raise OSError(str(error)) from error
        raise OSError(refused.errno, refused.strerror) from error
    with started as cluster:
        say(f"scheduler:  {cluster.scheduler_address}")
        say(f"dashboard:  {cluster.dashboard_link}")
        say(f"{workers} workers; Ctrl-C or SIGTERM ends them")
        stop.wait()
