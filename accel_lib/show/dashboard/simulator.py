"""The simulator beside the measurement: which batch sizes the present load would make under another setting."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from accel_lib.measurement import to_frame
from accel_lib.simulation.service_time import Cost, ServiceTime
from accel_lib.simulation.simulator import simulate
from accel_lib.triton.config import ModelConfig, TensorSpec

_REQUESTS = 1_500


def predicted_sizes(
    rate: float,
    rows: float,
    executions: Mapping[int, int],
    batch_ms: Mapping[int, float],
    *,
    max_queue_delay_us: int,
    instance_count: int,
) -> dict[int, float]:
    """Share of executions by batch size.

    Parameters
    ----------
    rate
        Requests a second.
    rows
        Texts in a request.
    executions, batch_ms
        Executions by batch size, and how long they took on average.
    max_queue_delay_us, instance_count
        The setting to predict.
    """
    each = max(1, round(rows))
    alone_ms, row_ms = fitted(batch_ms, executions)
    costs = (_two_digits(alone_ms), _two_digits(each * row_ms))
    return _predicted(_two_digits(rate), each, *costs, max_queue_delay_us, instance_count)


def fitted(batch_ms: Mapping[int, float], executions: Mapping[int, int]) -> tuple[float, float]:
    """What an execution costs by itself and for each row, milliseconds, neither below zero.

    A line through the mean times by batch size, each weighed by its executions. One size alone cannot tell the two
    apart: then all of it is the rows'.
    """
    sizes = np.array(sorted(batch_ms), dtype=float)
    times = np.array([batch_ms[int(size)] for size in sizes])
    weights = np.sqrt([max(1, executions.get(int(size), 0)) for size in sizes])
    alone, row = 0.0, float(np.sum(weights**2 * sizes * times) / np.sum((weights * sizes) ** 2))
    if len(sizes) > 1:
        design = np.column_stack([np.ones_like(sizes), sizes]) * weights[:, None]
        line = np.linalg.lstsq(design, times * weights, rcond=None)[0]
        if line[1] < 0:  # larger batches were faster: chance, or texts of other lengths
            return float(np.average(times, weights=weights**2)), 0.0
        if line[0] >= 0:
            alone, row = float(line[0]), float(line[1])
    return alone, row


@functools.lru_cache(maxsize=64)
def _predicted(
    rate: float, rows: int, alone_ms: float, row_ms: float, max_queue_delay_us: int, instance_count: int
) -> dict[int, float]:
    """To the simulator a request is one row, so its batch sizes are in requests."""
    output = (TensorSpec(name="vector", data_type="FP32", dims=(1,)),)
    config = ModelConfig(
        name="model",
        inputs=(TensorSpec(name="input_ids", data_type="INT64", dims=(-1,), ragged=True),),
        outputs=output,
        max_queue_delay_us=max_queue_delay_us,
        instance_count=instance_count,
    )
    config = config.replace(max_batch_size=max(1, config.max_batch_size // rows))
    service = ServiceTime(
        frame=to_frame([{"rows": rows, "ms": alone_ms + row_ms}]),
        costs={instance_count: Cost(execution=alone_ms, call=0.0, row=row_ms, token=0.0, square=0.0)},
        noise=(1.0,),
        lengths=(8,),
        transport_ms=0.0,
        client_ms=0.0,
        config=config,
        budget=10**9,
    )
    counted = simulate(service, rate=rate, requests=_REQUESTS).batch_sizes
    shares = (counted / counted.sum()).tolist()
    return dict(zip((rows * int(size) for size in counted.index), shares, strict=True))


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
