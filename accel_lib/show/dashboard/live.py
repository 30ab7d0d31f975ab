"""What the web UI draws: rates, percentiles and batch sizes between looks at what a gateway counts."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from accel_lib.show.dashboard.api import Samples

HISTORY = 120  # seconds that are drawn
_WINDOW = 10  # looks that a percentile goes back, so that it rests on enough requests
_BATCHES = 30  # looks that a distribution of batch sizes goes back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One look: rates per second, milliseconds, bytes; NaN where there was no request."""

    requests_per_s: float
    errors_per_s: float
    tokens_per_s: float
    p50_ms: float
    p95_ms: float
    queue_ms: float
    in_flight: float
    memory_bytes: float
    cores: float


class Live:
    """A gateway's last minutes, from looks at its metrics."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=HISTORY)
        self.gpus: dict[str, Mapping[str, Any]] = {}  # by id, as they were last seen
        self._looks: deque[tuple[float, Samples]] = deque(maxlen=_WINDOW + 1)
        self._gpus: deque[dict[str, Mapping[str, Any]]] = deque(maxlen=HISTORY)

    def look(self, at_s: float, samples: Samples) -> None:
        """Take one look, `at_s` seconds on any clock. Counters that went back start again."""
        if self._looks and _sum(samples, "accel_requests_total") < _sum(self._looks[-1][1], "accel_requests_total"):
            self._looks.clear()
        if self._looks:
            before_s, before = self._looks[-1]
            seconds = max(at_s - before_s, 1e-6)
            oldest = self._looks[0][1]

            def rate(name: str, **only: str) -> float:
                return (_sum(samples, name, **only) - _sum(before, name, **only)) / seconds

            done = rate("accel_requests_total")
            self.points.append(
                Point(
                    requests_per_s=done,
                    errors_per_s=max(0.0, done - rate("accel_requests_total", code="200")),
                    tokens_per_s=rate("accel_tokens_total"),
                    p50_ms=1e3 * quantile(0.5, oldest, samples, "accel_request_duration_seconds"),
                    p95_ms=1e3 * quantile(0.95, oldest, samples, "accel_request_duration_seconds"),
                    queue_ms=1e3 * _mean(oldest, samples, "accel_stage_duration_seconds", stage="queue"),
                    in_flight=_sum(samples, "accel_requests_in_flight"),
                    memory_bytes=_sum(samples, "process_resident_memory_bytes"),
                    cores=rate("process_cpu_seconds_total"),
                )
            )
        self._looks.append((at_s, samples))

    def series(self, name: str) -> list[float]:
        """One column of the points, oldest first."""
        return [float(getattr(point, name)) for point in self.points]

    def generates(self, model: str) -> bool:
        """Whether the gateway counts generated tokens of a model."""
        counted = self._looks[-1][1].get("vllm:generation_tokens_total", []) if self._looks else []
        return any(labels.get("model_name") == model for labels, _ in counted)

    def look_at_gpus(self, gpus: Sequence[Mapping[str, Any]]) -> None:
        """Take one look at the GPUs as ``/v1/status`` lists them."""
        self.gpus = {gpu["uuid"]: gpu for gpu in gpus}
        self._gpus.append(self.gpus)

    def gpu_series(self, uuid: str, name: str) -> list[float]:
        """One value of one GPU, oldest first; NaN where it was not told."""
        values = (look.get(uuid, {}).get(name) for look in self._gpus if look)
        return [math.nan if value is None else float(value) for value in values]


class Batches:
    """One model's batch sizes of the last looks at its statistics, or since it was loaded where no request came.

    Parameters
    ----------
    model
        Its name.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._looks: deque[tuple[float, Mapping[str, Any]]] = deque(maxlen=_BATCHES + 1)

    def look(self, at_s: float, counted: Mapping[str, Any]) -> None:
        """Take one look, `at_s` seconds on any clock. Counters that a reload set back start again."""
        if self._looks and counted["requests"] < self.counted["requests"]:
            self._looks.clear()
        self._looks.append((at_s, counted))

    @property
    def counted(self) -> Mapping[str, Any]:
        """The statistics as they were last seen."""
        return self._looks[-1][1]

    @property
    def seconds(self) -> float:
        """From the first look to the last."""
        return self._looks[-1][0] - self._looks[0][0]

    @property
    def requests_per_s(self) -> float:
        """Between the first look and the last."""
        return float(self._change("requests")) / self.seconds if self._change("executions") else 0.0

    @property
    def rows_per_request(self) -> float:
        """Texts in a request to Triton, 1 at least."""
        return max(1.0, self._change("inferences") / max(1, self._change("requests")))

    @property
    def sizes(self) -> dict[int, int]:
        """Executions by batch size."""
        last = Counter(self.counted["batch_sizes"])
        if self._change("executions"):
            last -= Counter(self._looks[0][1]["batch_sizes"])
        return {int(size): last[size] for size in sorted(last, key=int)}

    @property
    def batch_ms(self) -> dict[int, float]:
        """Mean milliseconds of an execution by batch size, since the model was loaded."""
        return {int(size): ms for size, ms in self.counted["batch_ms"].items()}

    def _change(self, name: str) -> int:
        return int(self.counted[name] - self._looks[0][1][name])


def quantile(share: float, before: Samples, after: Samples, histogram: str) -> float:
    """A percentile of what a histogram counted in between, as Prometheus estimates it; NaN without a request."""
    counts: dict[float, float] = {}
    for sign, samples in ((1, after), (-1, before)):
        for labels, value in samples.get(f"{histogram}_bucket", []):
            edge = float(labels["le"].replace("+Inf", "inf"))
            counts[edge] = counts.get(edge, 0.0) + sign * value
    edges = sorted(counts)
    if not edges or counts[edges[-1]] <= 0:
        return math.nan
    wanted = share * counts[edges[-1]]
    low = below = 0.0
    for edge in edges:
        if counts[edge] >= wanted:
            inside = counts[edge] - below
            return low if math.isinf(edge) else low + (edge - low) * ((wanted - below) / inside if inside else 1.0)
        low, below = edge, counts[edge]
    return low


def _sum(samples: Samples, name: str, **only: str) -> float:
    return sum(v for labels, v in samples.get(name, []) if all(labels.get(k) == want for k, want in only.items()))


def _mean(before: Samples, after: Samples, name: str, **only: str) -> float:
    count = _sum(after, f"{name}_count", **only) - _sum(before, f"{name}_count", **only)
    total = _sum(after, f"{name}_sum", **only) - _sum(before, f"{name}_sum", **only)
    return total / count if count > 0 else math.nan
