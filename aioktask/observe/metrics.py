# SPDX-License-Identifier: MIT
# What happens to jobs, counted for Prometheus by prometheus-client (the extra `metrics`).
#
# It listens to the engine's events, which are told by one thread at a time, and has what there are
# no events of (helpers, limits, loops) sampled, by the engine's keeper. A scrape asks the engine
# nothing.
#
# Right with several workers: in the client's multiprocess mode each process writes into files of
# its own, for which it needs plain counters, histograms and gauges. So there is no collector here,
# and every gauge says how those of live processes are put together. The number of time series is
# bounded: a run's number is no label, a job's labels are none, and names are kept up to a limit.
"""Metrics of jobs, for Prometheus."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aioktask.extras import missing_package

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    raise missing_package("aioktask.observe.metrics", "prometheus-client", error) from error

from aioktask.checks import integer, listed, optional
from aioktask.engine import events
from aioktask.engine.events import Event, EventKind
from aioktask.observe.ends import end_of
from aioktask.observe.sampling import Sample, Sampler

__all__ = ["BUCKETS", "OTHER", "start"]

# Upper bounds of the histograms, in seconds: a job may be the size of a request, or last minutes.
BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

# The name of all jobs that came when there were enough names.
OTHER = "other"

_UNDOS = {EventKind.UNDONE: "undone", EventKind.UNDO_FAILED: "undo_failed"}

_PER_JOB = ("name", "kind")


class _Series:
    """The time series of the jobs of one name and kind, made as they are needed."""

    __slots__ = ("ends", "lent", "queued", "run", "undo")

    def __init__(self, metrics: _Metrics, labels: tuple[str, str]) -> None:
        self.ends: dict[tuple[str, str], Any] = {}
        self.queued = metrics.queued.labels(*labels)
        self.run: Any = None
        self.undo: Any = None
        self.lent: Any = None


class _Gauge:
    """A gauge with one label, each of whose values is what was set last, or 0."""

    __slots__ = ("_gauge", "_values")

    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge
        self._values: dict[str, Any] = {}  # by the label

    def set(self, values: Mapping[str, float]) -> None:
        """Set these values, and 0 for labels that had one before."""
        for label in values.keys() - self._values.keys():
            self._values[label] = self._gauge.labels(label)
        for label, child in self._values.items():
            child.set(values.get(label, 0))


class _Metrics:
    """All metrics, in one registry.

    Args:
        registry: Where they are registered.
        max_names: How many names of jobs there are beside `OTHER`.
        buckets: Of the histograms.
    """

    def __init__(self, registry: Any, max_names: int, buckets: Sequence[float]) -> None:
        self._registry = registry
        self._max_names = max_names
        self._names: dict[str, str] = {}  # as the time series have them
        self._series: dict[tuple[str, str], _Series] = {}
        self._undos: dict[int, str] = {}  # by run, of those whose end is told next
        self._made: list[Any] = []
        self._sampler = Sampler(self._take)
        try:
            self.jobs = self._make(
                Counter,
                "aioktask_jobs",
                "Jobs that ended, by how, and by what became of what they had done.",
                (*_PER_JOB, "end", "undo"),
            )
            self.queued = self._histogram(
                "aioktask_job_queued_seconds",
                "From submit until the first chunk begins, or until the end where none began.",
                buckets,
            )
            self.run = self._histogram(
                "aioktask_job_run_seconds",
                "From the first chunk's begin to the last one's end, without undo.",
                buckets,
            )
            self.undo = self._histogram(
                "aioktask_job_undo_seconds",
                "How long the undo took of jobs that failed or were cancelled.",
                buckets,
            )
            self.lent = self._histogram(
                "aioktask_job_lent_seconds",
                "How long a thread of the job had the nice of a more urgent waiter.",
                buckets,
            )
            self.open = self._gauge(
                "aioktask_jobs_open", "Jobs that are not over, by where they stand.", "phase"
            )
            self.helpers = self._gauge(
                "aioktask_helpers", "Helper threads, by what they do.", "state"
            )
            self.limit = self._gauge(
                "aioktask_helpers_limit",
                "The most helper threads, under what decides that; 0 under all else that did.",
                "decided_by",
            )
            self.late = self._gauge(
                "aioktask_loop_late_seconds",
                "How late event loops of a kind came to a callback, at the worst of the last 10 s.",
                "loop",
                mode="livemax",
            )
        except BaseException:
            self.unregister()  # what was made before a name that the registry has already
            raise

    def _make(self, kind: Any, name: str, text: str, labels: Sequence[str], **options: Any) -> Any:
        made = kind(name, text, labels, registry=self._registry, **options)
        self._made.append(made)
        return made

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Any:
        return self._make(Histogram, name, text, _PER_JOB, buckets=buckets)

    def _gauge(self, name: str, text: str, label: str, mode: str = "livesum") -> _Gauge:
        return _Gauge(self._make(Gauge, name, text, (label,), multiprocess_mode=mode))

    def end(self) -> None:
        """Take no more samples, and all metrics out of the registry."""
        self._sampler.ended = True
        self.unregister()

    def unregister(self) -> None:
        """Take all of them out of the registry."""
        while self._made:
            made = self._made.pop()
            if self._registry is not None:
                self._registry.unregister(made)

    def hear(self, event: Event) -> None:
        """Count what happened to a job."""
        self._sampler.see_to_it()
        undo = _UNDOS.get(event.kind)
        if undo is not None:  # the job's end is told next
            self._undos[event.run] = undo
            return
        end = end_of(event)
        if end is None:
            return
        figures = event.details
        undo = self._undos.pop(event.run, "none") if self._undos else "none"
        labels = self._label(event.job), event.subject
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(self, labels)
        ended = series.ends.get((end, undo))
        if ended is None:
            ended = series.ends[end, undo] = self.jobs.labels(*labels, end, undo)
        ended.inc()
        if event.kind is not EventKind.REFUSED:  # which was never there
            self._observe(series, labels, figures)

    def _observe(self, series: _Series, labels: tuple[str, str], figures: Any) -> None:
        if (queued := figures.get("queued")) is not None:
            series.queued.observe(queued)
        if elapsed := figures.get("elapsed"):  # else no chunk began
            if series.run is None:
                series.run = self.run.labels(*labels)
            series.run.observe(elapsed)
        if (undoing := figures.get("undoing")) is not None:
            if series.undo is None:
                series.undo = self.undo.labels(*labels)
            series.undo.observe(undoing)
        if (lent := figures.get("lent")) is not None:
            if series.lent is None:
                series.lent = self.lent.labels(*labels)
            series.lent.observe(lent)

    def _take(self, found: Sample) -> None:
        """Set the gauges by a sample."""
        helpers = {
            "working": found.working,
            "blocked": found.blocked,
            "idle": found.idle,
            "starting": found.starting,
        }
        with _counting:
            self.open.set({"waiting": found.waiting, "running": found.running})
            self.helpers.set(helpers)
            self.limit.set({found.decider: found.limit})
            self.late.set(found.late)

    def _label(self, name: str) -> str:
        """The name under which jobs of this name are counted."""
        label = self._names.get(name)
        if label is None:
            if len(self._names) >= self._max_names:
                return OTHER
            # A lone surrogate, as of a file's name, would make all metrics unreadable.
            label = self._names[name] = name.encode(errors="replace").decode()
        return label


_metrics: _Metrics | None = None
_listens = False

# Held while anything is counted, and over a fork, so that no child finds a lock of the client taken
# by a thread that it does not have. Whoever forks may be counting itself: so it is one to re-enter.
_counting = threading.RLock()


def start(
    registry: CollectorRegistry | None = REGISTRY,
    *,
    max_names: int = 200,
    buckets: Sequence[float] = BUCKETS,
) -> Callable[[], None]:
    """Count what happens to jobs from now on, for Prometheus.

    Nothing else is done: the application serves the registry, in whichever way it serves its own
    metrics. In the client's multiprocess mode (``PROMETHEUS_MULTIPROC_DIR``) call this in each
    worker, or before the workers are forked, and have the server call `mark_process_dead` of the
    client for each worker that is gone. Jobs that were submitted before are counted only where they
    fail or are cancelled.

    Args:
        registry: The client's registry; None registers the metrics nowhere, which is enough in
            multiprocess mode.
        max_names: So many names of jobs are told apart in this process, at least 1; all jobs of
            further names are those of one that is called ``other``.
        buckets: The upper bounds of the histograms, in seconds, rising.

    Returns:
        A function that ends it, and takes the metrics out of the registry; without effect when it
        is called again.

    Raises:
        TypeError, ValueError: An argument is not what it may be; or the registry has metrics of
            these names already.
        RuntimeError: It was started already, and not ended.

    >>> from prometheus_client import CollectorRegistry
    >>> from aioktask import Job, run_multithreaded_sync
    >>> registry = CollectorRegistry()
    >>> stop = start(registry)
    >>> stop()
    """
    global _metrics, _listens
    if _metrics is not None:
        raise RuntimeError("metrics are counted already: call what start() returned, then start()")
    optional("registry", registry, CollectorRegistry)
    most = integer("max_names", max_names, least=1)
    metrics = _Metrics(registry, most, tuple(listed("buckets", buckets)))
    _metrics = metrics
    if not _listens:
        _listens = True
        events.listen(_hear, _wants_routine)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_counting.acquire,
                after_in_parent=_counting.release,
                after_in_child=_counting.release,
            )

    def stop() -> None:
        global _metrics
        if _metrics is metrics:
            _metrics = None
        metrics.end()

    return stop


def _wants_routine() -> bool:
    return _metrics is not None


def _hear(event: Event) -> None:
    with _counting:
        if _metrics is not None:
            _metrics.hear(event)
