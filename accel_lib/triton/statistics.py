"""Triton's counters of one model, and what two readings of them say: queue time, batch size, how busy it was."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from accel_lib.errors import ServerError

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
_COUNTS = ("requests", "failures", "inferences", "executions", "cache_hits", *(f"{s}_ns" for s in STAGES), "total_ns")
_BY_SIZE = ("batch_sizes", "batch_ns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Totals since a model was loaded; subtract an earlier reading for the totals in between.

    Parameters
    ----------
    requests, failures
        Requests answered, from the cache and with the model's own error too, and requests lost, such as to a process
        that ended. What the queue refuses is in neither.
    inferences, executions
        Rows that were computed, and the batches that they were computed in.
    cache_hits
        Requests answered by the response cache.
    queue_ns, compute_input_ns, compute_infer_ns, compute_output_ns, total_ns
        Nanoseconds summed over the requests answered: waiting, gathering inputs, the model, answers, and all of it.
    batch_sizes, batch_ns
        Executions by batch size, and the nanoseconds that they kept an instance: inputs, model and outputs.
    resets
        Reloads that set these numbers back to zero.
    """

    requests: int
    failures: int
    inferences: int
    executions: int
    cache_hits: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    total_ns: int
    batch_sizes: dict[int, int]
    batch_ns: dict[int, int]
    resets: int = 0

    @classmethod
    def from_protobuf(cls, models: Any, resets: int) -> Statistics:
        """Sum over the versions of Triton's ``ModelStatistics`` messages."""
        parts = [model.inference_stats for model in models]
        sizes: Counter[int] = Counter()
        spent: Counter[int] = Counter()
        for batch in (batch for model in models for batch in model.batch_stats):
            sizes[batch.batch_size] += batch.compute_infer.count
            spent[batch.batch_size] += batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns
        return cls(
            requests=sum(part.success.count for part in parts),
            failures=sum(part.fail.count for part in parts),
            inferences=sum(model.inference_count for model in models),
            executions=sum(model.execution_count for model in models),
            cache_hits=sum(part.cache_hit.count for part in parts),
            **{f"{stage}_ns": sum(getattr(part, stage).ns for part in parts) for stage in STAGES},
            total_ns=sum(part.success.ns for part in parts),
            batch_sizes=dict(sorted(sizes.items())),
            batch_ns=dict(spent),
            resets=resets,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """The counts in ``dataclasses.asdict(statistics)``, also after a way through JSON, whose keys are words."""
        by_size = {name: {int(size): n for size, n in values[name].items()} for name in _BY_SIZE}
        return cls(**{**values, **by_size})

    def follows(self, earlier: Statistics) -> bool:
        """Whether no reload set the numbers back since an earlier reading, so that it can be subtracted."""
        return self.resets == earlier.resets and all(getattr(self, name) >= getattr(earlier, name) for name in _COUNTS)

    def __sub__(self, earlier: Statistics) -> Statistics:
        """What happened between two readings of one model.

        Raises
        ------
        ServerError
            The model was loaded again in between, which set its numbers back.
        """
        if not self.follows(earlier):
            raise ServerError(
                "The statistics were set back by a reload between the two readings.",
                seen=f"{earlier.requests} requests before, {self.requests} after",
                fix="take both readings after configure() or load()",
            )
        change = {name: getattr(self, name) - getattr(earlier, name) for name in _COUNTS}
        sizes, spent = (Counter(getattr(self, name)) - Counter(getattr(earlier, name)) for name in _BY_SIZE)
        return Statistics(**change, batch_sizes=dict(sizes), batch_ns=dict(spent), resets=self.resets)

    def __add__(self, other: Statistics) -> Statistics:
        """Both together, such as those of several measurements of one model."""
        totals = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        sizes, spent = (Counter(getattr(self, name)) + Counter(getattr(other, name)) for name in _BY_SIZE)
        return Statistics(
            **totals, batch_sizes=dict(sizes), batch_ns=dict(spent), resets=max(self.resets, other.resets)
        )

    @property
    def mean_batch_size(self) -> float:
        """Rows per execution, 0 when there was none."""
        return self.inferences / self.executions if self.executions else 0.0

    @property
    def busy_s(self) -> float:
        """Seconds that executions kept an instance, summed over the instances."""
        return sum(self.batch_ns.values()) / 1e9

    @property
    def text_ms(self) -> float:
        """Milliseconds that a text keeps an instance, 0 when there was none."""
        return self.busy_s * 1e3 / self.inferences if self.inferences else 0.0

    @property
    def batch_ms(self) -> dict[int, float]:
        """Milliseconds that an execution of each batch size keeps an instance."""
        return {size: self.batch_ns[size] / count / 1e6 for size, count in self.batch_sizes.items() if count}

    @property
    def queue_ms(self) -> float:
        """Milliseconds that a request waits in the queue, 0 when there was none."""
        return self.per_request_ms("queue")

    @property
    def queue_share(self) -> float:
        """Part of a request's time in Triton that it waits in the queue, 0 when there was no request."""
        spent = sum(getattr(self, f"{stage}_ns") for stage in STAGES)
        return self.queue_ns / spent if spent else 0.0

    def per_request_ms(self, stage: str) -> float:
        """Milliseconds per request of one of `STAGES` or ``"total"``, 0 when there was none."""
        return float(getattr(self, f"{stage}_ns")) / max(self.requests, 1) / 1e6

    def busy(self, seconds: float, instance_count: int = 1) -> float:
        """Part of their time that the instances executed, 0 to 1; `seconds` is the time between the two readings."""
        return min(self.busy_s / seconds / instance_count, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """Where the time of one request goes, milliseconds, in the order in which it goes there.

    Parameters
    ----------
    tokenize_ms
        Text to token ids, in the client.
    transport_ms
        Client, network and Triton's front end: the round trip without what Triton counts.
    queue_ms
        Waiting for an instance, or for company.
    compute_input_ms, compute_infer_ms, compute_output_ms
        Inputs gathered, the model's Python process, the answer taken over.
    """

    tokenize_ms: float
    transport_ms: float
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float

    @property
    def total_ms(self) -> float:
        """Text in, vector out."""
        return float(sum(dataclasses.astuple(self)))
