"""The simulator beside the measurement: which batch sizes the present load makes under another setting."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from accel_lib.measurement import to_frame
from accel_lib.simulation.service_time import Cost, ServiceTime
from accel_lib.simulation.simulator import simulate
from accel_lib.triton.config import ModelConfig, TensorSpec
from accel_lib.tuning.queueing import fit_batch_time

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
        Requests per second.
    rows
        Texts in a request.
    executions, batch_ms
        Executions by batch size, and how long they took on average.
    max_queue_delay_us, instance_count
        The setting to predict.
    """
    each = max(1, round(rows))
    counts = {size: max(1.0, float(executions.get(size, 0))) for size in batch_ms}
    time = fit_batch_time(counts, {size: ms * counts[size] / 1e3 for size, ms in batch_ms.items()})
    if time is None:
        return {}
    costs = (_two_digits(1e3 * time.fixed_s), _two_digits(1e3 * each * time.each_s))
    return _predicted(_two_digits(rate), each, *costs, max_queue_delay_us, instance_count)


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
