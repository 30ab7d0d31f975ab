"""What a load test sends: texts grouped into requests with priority and timeout, serialized beforehand."""

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
class Request:
    """A payload as the `Generator` of its protocol sends it, and what is in it."""

    payload: Any
    rows: int
    tokens: int
    priority: int


def make_requests(
    served: ServedModel,
    texts: Sequence[str],
    *,
    rows: int | Sequence[int] = 1,
    priority: int | Sequence[int] = 0,
    queue_timeout_us: int | Sequence[int] = 0,
    protocol: Protocol = "grpc",
) -> list[Request]:
    """Serialize requests that hold every text once; a sequence of rows, priorities or timeouts is taken in turn."""
    sizes, levels, waits = ([v] if isinstance(v, int) else list(v) for v in (rows, priority, queue_timeout_us))
    if not len(texts) or not (sizes and levels and waits) or min(sizes) < 1:
        fix = "accel_lib.load_test(served, texts, concurrency=8, seconds=5)"
        raise AccelError("A load needs texts, and a text in each request.", seen=f"{len(texts)} texts, {rows}", fix=fix)
    ids, inputs = served.tokenize(texts), [spec.name for spec in served.config.inputs]
    made: list[Request] = []
    start = 0
    turns = zip(itertools.cycle(sizes), itertools.cycle(levels), itertools.cycle(waits), strict=False)
    while start < len(ids) or len(made) < max(len(sizes), len(levels), len(waits)):
        size, level, wait = next(turns)
        group = ids.take(np.arange(start, start + size) % len(ids))
        wishes: dict[str, Any] = {"priority": level, "queue_timeout_us": wait, "protocol": protocol, "inputs": inputs}
        payload = serialize(served, group, **wishes)
        made.append(Request(payload=payload, rows=size, tokens=len(group.ids), priority=level))
        start += size
    return made
