"""Sends one request's token ids to Triton over gRPC, in sub-batches, and checks the vectors that come back.

Rows of similar length travel together, at most a budget of padded tokens at a time, so that no request holds up the
others for long. Each sub-batch carries the time that is left: Triton drops what is too late.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from accel_lib.engines.batching import plan_batches
from accel_lib.errors import require
from accel_lib.ragged import Ragged
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.errors import Problem
from accel_lib.service.limits import Deadline
from accel_lib.service.metrics import Metrics
from accel_lib.triton.calls import LEAVE_S, GenerationStream, response
from accel_lib.triton.wire import serialize

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_PARALLEL = 8  # sub-batches of one request that are with Triton at once
_RETRY_S = 1.0
_CHANNEL = (
    ("grpc.lb_policy_name", "round_robin"),  # over every address of a name, such as the pods of a headless service
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# What Triton's message holds -> status, code, message.
_REFUSALS = (
    (r"maximum queue size", 429, "queue_full", "The model's queue is full."),
    (r"[Rr]equest timeout expired", 504, "deadline_exceeded", "The request waited in the queue until its deadline."),
    (r"not at ready state", 503, "not_ready", "The version is being loaded or unloaded; try again soon."),
    (r"unknown model|not found", 404, "model_not_found", "The model was unloaded."),
)
# What gRPC says, with any status, when the process at the other end is gone, and Triton when that of a model is.
_LOST = r"Internal error from Core|Stream removed|RST_STREAM|[Ss]ocket closed|[Cc]onnection reset|is not healthy"

log = logging.getLogger("accel.gateway")


class TritonClient:
    """The gateway's channel to Triton; `address` gives its gRPC address, a sub-batch has `max_batch_tokens` padded."""

    def __init__(self, address: Callable[[], str], *, max_batch_tokens: int, metrics: Metrics) -> None:
        self._address = address
        self._max_batch_tokens = max_batch_tokens
        self._metrics = metrics
        self._channels: dict[str, Any] = {}

    async def infer(
        self,
        served: ServedVersion,
        rows: Ragged,
        *,
        deadline: Deadline,
        priority: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> NDArray[np.float32]:
        """Vectors or logits of the rows in their order, float32 ``[n, dimension]``; a failure is a `Problem`.

        Parameters
        ----------
        priority
            1 is served first where the model has priority levels; 0 is its default.
        metadata
            gRPC metadata, such as the trace that this request belongs to.
        """
        lengths = rows.lengths
        most = max(1, served.config.max_batch_size)
        batches = plan_batches(lengths, max_batch_tokens=self._max_batch_tokens, max_batch_size=most)

        async def ask(part: Ragged) -> NDArray[np.float32]:
            deadline.check()
            padded = len(part) * int(part.lengths.max())
            self._metrics.batch_tokens.labels(served.name).observe(padded)
            self._metrics.batch_padding.labels(served.name).observe(1 - len(part.ids) / padded)
            return await self._ask(served, part, deadline, priority, metadata)

        if len(batches) == 1:
            return await ask(rows)
        output = np.empty((len(rows), served.manifest.dimension), dtype=np.float32)
        places = asyncio.Semaphore(_PARALLEL)

        async def fill(batch: NDArray[np.int64]) -> None:
            async with places:
                output[batch] = await ask(rows.take(batch))

        await _all([fill(batch) for batch in batches])
        return output

    def stream(
        self, request: bytes, cancel: bytes | None, *, metadata: Sequence[tuple[str, str]] = ()
    ) -> GenerationStream:
        """A stream for one serialized request to generate, and the one that ends it."""
        return GenerationStream(self._channel(), request, cancel, metadata=metadata)

    async def close(self) -> None:
        """Close the channel, once what was left there has ended."""
        for channel in self._channels.values():
            await channel.close(LEAVE_S)
        self._channels.clear()

    async def _ask(
        self,
        served: ServedVersion,
        rows: Ragged,
        deadline: Deadline,
        priority: int,
        metadata: Sequence[tuple[str, str]],
    ) -> NDArray[np.float32]:
        left_s, manifest = deadline.left_s, served.manifest
        timeout_us = int(left_s * 1e6)
        message = serialize(served, rows, inputs=manifest.inputs, priority=priority, queue_timeout_us=timeout_us)
        try:
            call = self._call()(message, timeout=left_s + LEAVE_S, metadata=tuple(metadata))
            answer = await response(call, left_s)
        except TimeoutError as error:
            raise refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "") from error
        except grpc.aio.AioRpcError as error:
            raise refusal(error.code(), error.details() or "") from error
        output = require("tritonclient.grpc.service_pb2", extra="triton").ModelInferResponse.FromString(answer)
        values = np.frombuffer(b"".join(output.raw_output_contents), dtype=np.float32)
        if values.size != len(rows) * manifest.dimension:
            raise self._invalid(served, "shape")
        vectors = values.reshape(len(rows), -1)
        if not np.isfinite(vectors).all():
            raise self._invalid(served, "not_finite")
        if manifest.task == "embedding" and not vectors.any(axis=1).all():
            raise self._invalid(served, "zero")
        return vectors

    def _call(self) -> Any:
        return self._channel().unary_unary(_METHOD)

    def _channel(self) -> Any:
        address = self._address()
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=_CHANNEL)
        return self._channels[address]

    def _invalid(self, served: ServedVersion, reason: str) -> Problem:
        self._metrics.guard_rejections.labels(served.name, reason).inc()
        message = f"{served.name} version {served.version} gave an invalid output ({reason}); it was held back."
        return Problem(500, message, code="invalid_output")


def refusal(code: grpc.StatusCode, details: str) -> Problem:
    """The problem that a client gets for what Triton, or the lack of it, said."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Problem(504, "The deadline passed before the response was there.", code="deadline_exceeded")
    for pattern, status, word, message in _REFUSALS:
        if re.search(pattern, details):
            return Problem(status, message, code=word, retry_after_s=_RETRY_S if status in (429, 503) else None)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or re.search(_LOST, details):
        return Problem(503, "Triton does not answer now; try again soon.", code="not_ready", retry_after_s=_RETRY_S)
    log.error("Triton failed on a request: %s: %s", code.name, details)
    return Problem(500, "The model failed on this request.", code="model_error")


async def _all(work: Sequence[Any]) -> None:
    """Run all of them; the first error ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
