"""What the gateway counts, for Prometheus; the names are a contract with the rules and dashboards in ``deploy/``."""

from __future__ import annotations

from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)


class Metrics:
    """One gateway's metrics, in a registry of their own; every histogram of seconds has the same buckets."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry}
        self.request_duration = Histogram(
            "accel_request_duration_seconds",
            "From the request's head to the answer.",
            ("endpoint", "model", "version"),
            buckets=_SECONDS,
            **common,
        )
        self.requests = Counter("accel_requests", "Answers.", ("endpoint", "model", "version", "code"), **common)
        self.tokens = Counter("accel_tokens", "Tokens of answered requests, padding left out.", ("model",), **common)
        self.batch_tokens = Histogram(
            "accel_batch_tokens",
            "Tokens in one request to Triton, padding counted.",
            ("model",),
            buckets=_TOKENS,
            **common,
        )
        self.batch_padding = Histogram(
            "accel_batch_padding_ratio",
            "Share of these tokens that is padding.",
            ("model",),
            buckets=_SHARES,
            **common,
        )
        self.queue_wait_estimate = Gauge(
            "accel_queue_wait_estimate_seconds",
            "How long a new request would wait.",
            ("model",),
            **common,
        )
        self.in_flight = Gauge("accel_requests_in_flight", "Requests under way.", **common)
        self.sheds = Counter(
            "accel_sheds", "Requests refused before they were computed.", ("model", "reason"), **common
        )
        self.quota_rejections = Counter("accel_quota_rejections", "Requests over a quota.", ("reason",), **common)
        self.guard_rejections = Counter(
            "accel_guard_rejections",
            "Answers that were no use and never left.",
            ("model", "reason"),
            **common,
        )
        self.exposures = Counter(
            "accel_experiment_exposures",
            "Requests that an experiment sent to a version.",
            ("experiment", "version"),
            **common,
        )
        self.triton_restarts = Counter("accel_triton_restarts", "Starts of Triton after it died.", **common)
        self.ready = Gauge("accel_ready", "1 while Triton and every served model answer.", **common)
        self.model_ready = Gauge("accel_model_ready", "1 while this version answers.", ("model", "version"), **common)
        self.stage_duration = Histogram(
            "accel_stage_duration_seconds",
            "Where a request's time goes.",
            ("stage", "model"),
            buckets=_SECONDS,
            **common,
        )
        self.seen: set[tuple[str, str]] = (
            set()
        )  # versions that were ready once, so that they are shown when they are not
        self.restarts_seen = 0
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return prometheus_client.generate_latest(self.registry)
