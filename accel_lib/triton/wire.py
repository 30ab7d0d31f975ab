"""Requests serialized to bytes before a load run, and responses checked after it, so that neither costs time in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal
from typing import Protocol as Shape

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import require
from accel_lib.ragged import IDS_AND_MASK, Ragged, by_name

_LENGTH_HEADER = "Inference-Header-Content-Length"
Protocol = Literal["grpc", "http"]


class _Model(Shape):
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...  # "" for the newest


def serialize(
    served: _Model,
    rows: Sequence[NDArray[np.int64]] | Ragged,
    *,
    inputs: Sequence[str] = IDS_AND_MASK,
    protocol: Protocol = "grpc",
    priority: int = 0,
    queue_timeout_us: int = 0,
) -> Any:
    """One request with a row per text, for a model with these inputs, as the load generator sends it."""
    held = rows if isinstance(rows, Ragged) else Ragged.from_rows(rows)
    tensors = by_name(inputs, held.padded(0))
    wishes = {name: value for name, value in (("priority", priority), ("timeout", queue_timeout_us)) if value}
    return (_message if protocol == "grpc" else _post)(served, tensors, wishes)


def fault(answer: bytes, protocol: Protocol = "grpc") -> str:
    """What is wrong with a response, empty if nothing is."""
    if protocol == "grpc":
        message = require("tritonclient.grpc.service_pb2", extra="triton").ModelInferResponse.FromString(answer)
        content = b"".join(message.raw_output_contents)
    else:
        content = _binary_part(answer)
    values = np.frombuffer(content, dtype=np.float32)
    return "" if len(values) and np.isfinite(values).all() else "The answer is empty or not finite."


def _message(served: _Model, tensors: dict[str, NDArray[np.int64]], wishes: dict[str, int]) -> bytes:
    message = require("tritonclient.grpc.service_pb2", extra="triton").ModelInferRequest(
        model_name=served.name, model_version=served.version
    )
    for name, array in tensors.items():
        message.inputs.add(name=name, datatype="INT64", shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    if "priority" in wishes:
        message.parameters["priority"].uint64_param = wishes["priority"]
    if "timeout" in wishes:
        message.parameters["timeout"].int64_param = wishes["timeout"]
    return bytes(message.SerializeToString())


def _post(
    served: _Model, tensors: dict[str, NDArray[np.int64]], wishes: dict[str, int]
) -> tuple[str, dict[str, str], bytes]:
    blobs = [array.tobytes() for array in tensors.values()]
    inputs = [
        {"name": name, "datatype": "INT64", "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        for name, array in tensors.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": wishes | {"binary_data_output": True}}).encode()
    version = f"/versions/{served.version}" if served.version else ""
    return f"/v2/models/{served.name}{version}/infer", {_LENGTH_HEADER: str(len(head))}, b"".join([head, *blobs])


def _binary_part(answer: bytes) -> bytes:
    """What follows the JSON at the beginning of a response."""
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    return answer[end:]
