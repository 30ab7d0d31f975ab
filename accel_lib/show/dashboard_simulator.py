"""The simulator beside the measurement: which batch sizes the present load would make under another setting."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from accel_lib.lab.measure import tidy
from accel_lib.lab.service_time import Cost, ServiceTime
from accel_lib.lab.simulate import simulate
from accel_lib.triton.config import ModelConfig, TensorSpec

_REQUESTS = 1_500


def predicted_sizes(
    rate: float, execution_ms: float, sizes: Mapping[int, int], *, max_queue_delay_us: int, instance_count: int
) -> dict[int, float]:
    """Share of executions by batch size.

    Parameters
    ----------
    rate
        Requests a second.
    execution_ms
        Mean time in the model of a request.
    sizes
        Executions by batch size that this time was measured with.
    max_queue_delay_us, instance_count
        The setting to predict.
    """
    rows = sum(size**2 * count for size, count in sizes.items()) / sum(size * count for size, count in sizes.items())
    return _predicted(_two_digits(rate), _two_digits(execution_ms / rows), max_queue_delay_us, instance_count)


@functools.lru_cache(maxsize=64)
def _predicted(rate: float, row_ms: float, max_queue_delay_us: int, instance_count: int) -> dict[int, float]:
    """An execution costs its rows alone: all that a gateway's averages can tell."""
    output = (TensorSpec(name="vector", data_type="FP32", dims=(1,)),)
    config = ModelConfig(
        name="model",
        inputs=(TensorSpec(name="input_ids", data_type="INT64", dims=(-1,), ragged=True),),
        outputs=output,
        max_queue_delay_us=max_queue_delay_us,
        instance_count=instance_count,
    )
    service = ServiceTime(
        frame=tidy([{"rows": 1, "ms": row_ms}]),
        costs={instance_count: Cost(execution=0.0, call=0.0, row=row_ms, token=0.0, square=0.0)},
        noise=(1.0,),
        lengths=(8,),
        transport_ms=0.0,
        client_ms=0.0,
        config=config,
        budget=10**9,
    )
    counted = simulate(service, rate=rate, requests=_REQUESTS).batch_sizes
    shares = (counted / counted.sum()).tolist()
    return dict(zip(map(int, counted.index), shares, strict=True))


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
