"""OpenTelemetry traces, sent where an endpoint says and nowhere else; without one this costs nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from accel_lib.errors import require

Metadata = tuple[tuple[str, str], ...]

_EXTRA = "telemetry"
_NO_SPAN: AbstractContextManager[Metadata] = contextlib.nullcontext(())
_DELAY_MS = 1000  # after which Triton sends what it has traced


def triton_flags(endpoint: str) -> list[str]:
    """Options with which Triton sends its spans to the same collector, as children of the gateway's; none for none."""
    if not endpoint:
        return []
    own = {
        "url": f"{endpoint.rstrip('/')}/v1/traces",
        "resource": "service.name=triton",
        "bsp_schedule_delay": _DELAY_MS,
    }
    common = ["mode=opentelemetry", "rate=1", "level=TIMESTAMPS", "count=-1"]
    return [f"--trace-config={setting}" for setting in common] + [
        f"--trace-config=opentelemetry,{name}={value}" for name, value in own.items()
    ]


class Telemetry:
    """Spans of one gateway, sent to a collector that takes OTLP over HTTP, such as ``http://localhost:4318``."""

    def __init__(self, endpoint: str = "") -> None:
        self._tracer: Any = None
        if not endpoint:
            return
        sdk = require("opentelemetry.sdk.trace", extra=_EXTRA)
        export = require("opentelemetry.sdk.trace.export", extra=_EXTRA)
        otlp = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra=_EXTRA)
        resources = require("opentelemetry.sdk.resources", extra=_EXTRA)
        self._propagate = require("opentelemetry.propagate", extra=_EXTRA)
        self._kind = require("opentelemetry.trace", extra=_EXTRA).SpanKind
        self._provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "accel-gateway"}))
        exporter = otlp.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("accel_lib.service")

    def request(self, name: str, headers: Mapping[str, str], request_id: str) -> AbstractContextManager[object]:
        """A span for a whole request, a child of the client's if its headers name one."""
        if self._tracer is None:
            return _NO_SPAN
        facts = {"context": self._propagate.extract(headers), "attributes": {"request_id": request_id}}
        span: AbstractContextManager[object] = self._tracer.start_as_current_span(name, kind=self._kind.SERVER, **facts)
        return span

    def span(self, name: str) -> AbstractContextManager[Metadata]:
        """A span inside it; gives the gRPC metadata that carries it on."""
        return _NO_SPAN if self._tracer is None else self._child(name)

    @contextlib.contextmanager
    def _child(self, name: str) -> Iterator[Metadata]:
        with self._tracer.start_as_current_span(name, kind=self._kind.CLIENT):
            carrier: dict[str, str] = {}
            self._propagate.inject(carrier)
            yield tuple(carrier.items())

    def close(self) -> None:
        """Send what is waiting."""
        if self._tracer is not None:
            self._provider.shutdown()
