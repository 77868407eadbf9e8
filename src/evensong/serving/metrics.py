"""What the service counts and times, for Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from evensong.serving.schemas import Reason

# a second series beside each one, of which nobody here makes use
disable_created_metrics()

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Set by the server when it runs several processes: they then count into files there, and each answers for all.
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FOLDER_PREFIX = "evensong-metrics-"

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        if not counts_into_files():
            # importing Feast switches the library to files of its own, which every app of the process would then share
            values.ValueClass = values.MutexValue
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "evensong_requests", "Requests answered.", ["route", "method", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "evensong_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.stage_seconds = Histogram(
            "evensong_stage_seconds",
            "Time of one stage of a recommendation: waiting, features, funnel, answer.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.model_info = Gauge(
            "evensong_model_info",
            "1 for the model version that answers.",
            ["model", "version", "as_of"],
            registry=self._registry,
            multiprocess_mode="livemostrecent",
        )
        self.swaps = Counter("evensong_model_swaps", "Times that a model began to answer.", registry=self._registry)
        self.swap_failures = Counter(
            "evensong_model_swap_failures",
            "Times that a new champion could not be taken into use; the old one went on.",
            ["reason"],
            registry=self._registry,
        )
        self.registry_errors = Counter(
            "evensong_registry_errors", "Times that the registry could not be asked.", registry=self._registry
        )
        self.fallbacks = Counter(
            "evensong_fallbacks", "Answers with popular items, by reason.", ["reason"], registry=self._registry
        )
        self.feature_errors = Counter(
            "evensong_online_store_errors", "Failed reads of the online store.", ["what"], registry=self._registry
        )
        self.item_refreshes = Counter(
            "evensong_item_feature_refreshes", "Times that item features were read anew.", registry=self._registry
        )
        self.features_timestamp = Gauge(
            "evensong_features_timestamp_seconds",
            "Unix time of the newest features in the online store.",
            registry=self._registry,
            multiprocess_mode="livemostrecent",
        )
        self.staleness = Gauge(
            "evensong_feature_staleness_seconds",
            "Age of the newest features in the online store, when last looked.",
            registry=self._registry,
            multiprocess_mode="livemostrecent",
        )
        self.requests_logged = Counter(
            "evensong_requests_logged", "Requests written to the request log.", registry=self._registry
        )
        self.requests_not_logged = Counter(
            "evensong_requests_log_dropped",
            "Sampled requests that were not logged: too many at once, or the log could not be written.",
            registry=self._registry,
        )
        self.request_log_sample = Gauge(
            "evensong_request_log_sample_ratio",
            "Share of the requests that the log is to hold.",
            registry=self._registry,
            multiprocess_mode="max",
        )
        self.request_log_per_second = Gauge(
            "evensong_request_log_limit_per_second",
            "Requests a second that a process logs at most.",
            registry=self._registry,
            multiprocess_mode="max",
        )
        # series that exist from the start can be alerted on
        for reason in get_args(Reason):
            self.fallbacks.labels(reason)
        for reason in ("corrupt", "unloadable"):
            self.swap_failures.labels(reason)
        for what in ("open", "items", "users"):
            self.feature_errors.labels(what)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage of a request."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - start)

    def model_began(
        self, model: str, version: str, as_of: str | None, *, before: tuple[str, str, str | None] | None
    ) -> None:
        """Say which version answers from now on."""
        if before:
            self.model_info.labels(before[0], before[1], before[2] or "").set(0)
        self.model_info.labels(model, version, as_of or "").set(1)
        self.swaps.inc()

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        if counts_into_files():
            together = CollectorRegistry(auto_describe=False)
            together.register(_OfAllProcesses())
            return generate_latest(together)
        return generate_latest(self._registry)


def counts_into_files() -> bool:
    """Whether this is one of several processes of the service (Feast sets the same variable to a folder of its own)."""
    return Path(os.environ.get(MULTIPROCESS_VARIABLE, "")).name.startswith(FOLDER_PREFIX)


class _OfAllProcesses(Collector):
    """Our metrics of every process; libraries count into the same files."""

    def collect(self) -> Iterable[Metric]:
        return [metric for metric in MultiProcessCollector(None).collect() if metric.name.startswith("evensong_")]
