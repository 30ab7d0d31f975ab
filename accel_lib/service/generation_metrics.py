"""Metrics of models that generate, by vLLM's names, so that its dashboards and load tools read this gateway too.

Source: https://docs.vllm.ai/en/latest/design/metrics.html
"""

from __future__ import annotations

import dataclasses

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_DURATION_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelMetrics:
    """The metrics of one model; `success` by how a text ended."""

    first_token: Histogram
    between_tokens: Histogram
    duration: Histogram
    running: Gauge
    waiting: Gauge
    prompt_tokens: Counter
    generated_tokens: Counter
    success: dict[str, Counter]


class GenerationMetrics:
    """Those of every model of one gateway."""

    def __init__(self, registry: CollectorRegistry) -> None:
        label = ("model_name",)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, label, buckets=buckets, registry=registry)

        self._first_token = histogram("time_to_first_token_seconds", "Until the first token.", _FIRST_TOKEN_S)
        self._between = histogram("inter_token_latency_seconds", "Between tokens of one text.", _BETWEEN_TOKENS_S)
        self._duration = histogram("e2e_request_latency_seconds", "Until the last token.", _DURATION_S)
        self._running = Gauge("vllm:num_requests_running", "Requests that receive tokens.", label, registry=registry)
        self._waiting = Gauge("vllm:num_requests_waiting", "Requests without a first token.", label, registry=registry)
        self._prompt = Counter("vllm:prompt_tokens", "Tokens of prompts.", label, registry=registry)
        self._generated = Counter("vllm:generation_tokens", "Tokens generated.", label, registry=registry)
        self._success = Counter(
            "vllm:request_success", "Texts that came to their end.", (*label, "finished_reason"), registry=registry
        )
        self._models: dict[str, ModelMetrics] = {}

    def of(self, model: str) -> ModelMetrics:
        """Those of one model."""
        if model not in self._models:
            self._models[model] = ModelMetrics(
                first_token=self._first_token.labels(model),
                between_tokens=self._between.labels(model),
                duration=self._duration.labels(model),
                running=self._running.labels(model),
                waiting=self._waiting.labels(model),
                prompt_tokens=self._prompt.labels(model),
                generated_tokens=self._generated.labels(model),
                success={reason: self._success.labels(model, reason) for reason in ("stop", "length")},
            )
        return self._models[model]
