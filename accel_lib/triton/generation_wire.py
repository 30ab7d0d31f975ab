"""A request to generate as Triton's gRPC message, and its responses as `Event`; see `accel_lib.generate.wire`."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import require
from accel_lib.generate import Event, Sampling, TokenLogprob, wire

_TYPES: dict[str, Any] = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32}
_DIMENSIONS = {name: len(dims) for name, _, dims in wire.OUTPUTS}


@functools.cache
def _messages() -> Any:
    """The generated classes: looking for them at every token would take a tenth of the gateway's time for it."""
    return require("tritonclient.grpc.service_pb2", extra="triton")


def request_bytes(
    name: str, version: str, prompt_ids: Sequence[int], sampling: Sampling, *, batched: bool = False
) -> tuple[bytes, bytes | None]:
    """A serialized ``ModelInferRequest``, and the one that ends it.

    A model that Triton batches (`batched`, ``max_batch_size`` ≥ 1) knows no such request: there it is None.
    """
    key = uuid.uuid4().hex
    request = _message(name, version, np.array(prompt_ids, dtype=np.int64), batched=batched)
    request.id = key
    request.parameters[wire.SAMPLING].string_param = wire.sampling_to_json(sampling)
    if batched:
        return request.SerializeToString(), None
    cancel = _message(name, version, np.zeros(1, dtype=np.int64))
    cancel.parameters[wire.CANCEL].string_param = key
    return request.SerializeToString(), cancel.SerializeToString()


def _message(name: str, version: str, ids: NDArray[np.int64], *, batched: bool = False) -> Any:
    message = _messages().ModelInferRequest(model_name=name, model_version=version)
    message.inputs.add(name=wire.PROMPT_IDS, datatype="INT64", shape=(1, *ids.shape) if batched else ids.shape)
    message.raw_input_contents.append(ids.tobytes())
    return message


def read_event(content: bytes) -> Event:
    """A serialized ``ModelStreamInferResponse``; its key is empty, as a stream has one request."""
    message = _messages().ModelStreamInferResponse.FromString(content)
    if message.error_message:
        return Event(key="", error=message.error_message)
    response = message.infer_response
    tensors = {
        tensor.name: _without_batch(tensor.name, np.frombuffer(raw, dtype=_TYPES[tensor.datatype]), tensor.shape)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    ids = tensors[wire.TOKEN_IDS].tolist()
    return Event(
        key="",
        token_ids=tuple(ids),
        finish=wire.FINISHES[int(tensors[wire.FINISH][0])],
        logprobs=_logprobs(ids, tensors) if wire.LOGPROBS in tensors else (),
    )


def is_last(content: bytes) -> bool:
    """Whether a serialized ``ModelStreamInferResponse`` is the last one of its request, without reading the rest."""
    message = _messages().ModelStreamInferResponse.FromString(content)
    names = [tensor.name for tensor in message.infer_response.outputs]
    finish = message.infer_response.raw_output_contents[names.index(wire.FINISH)] if wire.FINISH in names else b""
    return bool(message.error_message) or any(finish)


def _without_batch(name: str, flat: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """A tensor as it is declared, without the batch of one that a model has which Triton batches."""
    return flat.reshape(tuple(shape)[-_DIMENSIONS[name] :])


def _logprobs(ids: Sequence[int], tensors: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    nothing: list[list[Any]] = [[]] * len(ids)
    tops = tensors[wire.TOP_IDS].tolist() if wire.TOP_IDS in tensors else nothing
    values = tensors[wire.TOP_LOGPROBS].tolist() if wire.TOP_IDS in tensors else nothing
    return tuple(
        TokenLogprob(
            token_id=token,
            logprob=float(logprob),
            top=tuple((other, value) for other, value in zip(top, row, strict=True) if other >= 0),
        )
        for token, logprob, top, row in zip(ids, tensors[wire.LOGPROBS].tolist(), tops, values, strict=True)
    )
