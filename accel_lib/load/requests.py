"""What a run sends: texts grouped into requests, each with its rows, priority and timeout, serialized beforehand."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel_lib.errors import AccelError
from accel_lib.triton.client import ServedModel
from accel_lib.triton.wire import Protocol, serialize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """Requests to send in turn: payloads as the `Generator` of their protocol sends them, and what is in each."""

    payloads: list[Any]
    rows: list[int]
    tokens: list[int]
    priorities: list[int]


def make_mix(
    served: ServedModel,
    texts: Sequence[str],
    *,
    rows: int | Sequence[int] = 1,
    priority: int | Sequence[int] = 0,
    queue_timeout_us: int | Sequence[int] = 0,
    protocol: Protocol = "grpc",
) -> Mix:
    """Serialize requests that hold every text once; a sequence of rows, priorities or timeouts is taken in turn.

    Raises
    ------
    AccelError
        No texts, or a request of no rows.
    """
    sizes, levels, waits = _turn(rows), _turn(priority), _turn(queue_timeout_us)
    if not len(texts) or not (sizes and levels and waits) or min(sizes) < 1:
        fix = "accel_lib.load_test(served, texts, concurrency=8, seconds=5)"
        raise AccelError("A load needs texts, and a text in each request.", seen=f"{len(texts)} texts, {rows}", fix=fix)
    ids, inputs = served._tokenize(texts, None)[1], [spec.name for spec in served.config.inputs]
    mix, start = Mix(payloads=[], rows=[], tokens=[], priorities=[]), 0
    turns = zip(itertools.cycle(sizes), itertools.cycle(levels), itertools.cycle(waits), strict=False)
    while start < len(ids) or len(mix.payloads) < max(len(sizes), len(levels), len(waits)):
        size, level, wait = next(turns)
        group = ids.take(np.arange(start, start + size) % len(ids))
        wishes: dict[str, Any] = {"priority": level, "queue_timeout_us": wait, "protocol": protocol, "inputs": inputs}
        mix.payloads.append(serialize(served, group, **wishes))
        mix.rows.append(size)
        mix.tokens.append(len(group.ids))
        mix.priorities.append(level)
        start += size
    return mix


def _turn(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)
