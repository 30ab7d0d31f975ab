"""The gateway's Prometheus metrics; their names are a contract with the rules and dashboards in ``deploy/``."""

from __future__ import annotations

import contextlib
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from accel_lib.errors import RequestError
from accel_lib.service.generation_metrics import GenerationMetrics
from accel_lib.service.supervisor import Supervisor

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)


class Metrics:
    """One gateway's metrics, in a registry of their own; every histogram of seconds has the same buckets."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"accel_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"accel_{name}", help_text, labels, registry=registry)

        def histogram(name: str, help_text: str, *labels: str, buckets: Any = _SECONDS) -> Histogram:
            return Histogram(f"accel_{name}", help_text, labels, buckets=buckets, registry=registry)

        where = ("endpoint", "model", "version")
        self.request_duration = histogram(
            "request_duration_seconds", "From the request's head to the response.", *where
        )
        self.requests = counter("requests", "Responses.", *where, "code")
        self.stage_duration = histogram("stage_duration_seconds", "Where a request's time goes.", "stage", "model")
        self.tokens = counter("tokens", "Tokens of answered requests, without padding.", "model")
        self.batch_tokens = histogram(
            "batch_tokens", "Tokens in one request to Triton, with padding.", "model", buckets=_TOKENS
        )
        self.batch_padding = histogram(
            "batch_padding_ratio", "Share of these tokens that is padding.", "model", buckets=_SHARES
        )
        self.queue_wait_estimate = gauge("queue_wait_estimate_seconds", "How long a new request would wait.", "model")
        self.in_flight = gauge("requests_in_flight", "Requests in flight.")
        self.sheds = counter("sheds", "Requests rejected before they were computed.", "model", "reason")
        self.quota_rejections = counter("quota_rejections", "Requests over a quota.", "reason")
        self.guard_rejections = counter("guard_rejections", "Invalid outputs that were held back.", "model", "reason")
        self.exposures = counter(
            "experiment_exposures", "Requests that an experiment sent to a version.", "experiment", "version"
        )
        self.triton_restarts = counter("triton_restarts", "Starts of Triton after it died.")
        self.ready = gauge("ready", "1 while Triton and every served model answer.")
        self.model_ready = gauge("model_ready", "1 while this version answers.", "model", "version")
        self.generation = GenerationMetrics(registry)
        self._known: set[tuple[str, str]] = set()  # versions that were ready once: shown as 0 when they are not
        self._restarts = 0
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.PlatformCollector(registry=registry)

    def watch(self, supervisor: Supervisor) -> None:
        """Read from Triton which versions are ready, and from its supervisor how often it was restarted."""
        restarts = supervisor.restarts
        self.triton_restarts.inc(restarts - self._restarts)
        self._restarts = restarts
        ready: set[tuple[str, str]] = set()
        with contextlib.suppress(RequestError):
            ready = {(each.model, each.version) for each in supervisor.versions() if each.state == "READY"}
        self._known |= ready
        for model, version in self._known:
            self.model_ready.labels(model, version).set((model, version) in ready)
        self.ready.set(supervisor.served <= {model for model, _ in ready} and bool(ready))

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return prometheus_client.generate_latest(self._registry)
