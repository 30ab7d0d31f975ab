"""Requests taken apart: what of their time is the model, and what a vector weighs on the wire."""

from __future__ import annotations

import base64
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import RequestError
from accel_lib.measurement import Result, to_frame
from accel_lib.service import findings_service
from accel_lib.stats import overlap

_FLOAT, _BASE64 = "float", "base64"
_HEADERS = {"tokenize_ms": "x-tokenization-time", "queue_ms": "x-queue-time", "compute_infer_ms": "x-inference-time"}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Waterfall(Result):
    """Where the time of requests goes; `frame` has one row a kind of request.

    Its columns: ``request``; in mean milliseconds ``client_ms`` (the client and the connection), ``http_ms`` (the
    gateway's HTTP, key and JSON), ``tokenize_ms``, ``queue_ms``, ``compute_infer_ms``, ``total_ms``; ``received_kb``.
    """

    @property
    def model_share(self) -> float:
        """Share of the first kind's time that the model takes, 0 to 1."""
        return float(self.frame["compute_infer_ms"].iloc[0] / self.frame["total_ms"].iloc[0])

    @property
    def headline(self) -> str:
        """How the model's share changes with what is sent along."""
        return findings_service.waterfall(self.frame)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Payload(Result):
    """What a vector weighs; `frame` has one row a way to ask: ``request``, ``bytes_each``, ``top10_overlap``."""

    @property
    def headline(self) -> str:
        """What each way saves, and what it costs."""
        return findings_service.payload(self.frame)


def take_apart(client: httpx.Client, texts: Sequence[str], *, model: str, repeats: int) -> Waterfall:
    """Send one text, all texts, and all texts with vectors in base64, in turns."""
    many = f"{len(texts)} texts"
    kinds = {
        "1 text": (list(texts[:1]), _FLOAT),
        f"{many}, JSON numbers": (list(texts), _FLOAT),
        f"{many}, base64": (list(texts), _BASE64),
    }
    spent: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for turn in range(repeats + 1):
        for kind, (some, encoding) in kinds.items():
            one = _timed(client, {"model": model, "input": some, "encoding_format": encoding, "truncate": "END"})
            if turn:  # the first turn warms up
                spent[kind].append(one)
    rows = [
        {"request": kind} | {part: float(np.mean([one[part] for one in ones])) for part in ones[0]}
        for kind, ones in spent.items()
    ]
    return Waterfall(frame=to_frame(rows))


def weigh(client: httpx.Client, texts: Sequence[str], *, model: str, dimensions: Sequence[int]) -> Payload:
    """Ask for the same vectors in both encodings and with fewer dimensions."""
    common: dict[str, Any] = {"model": model, "input": list(texts), "truncate": "END"}
    asked = {f"{_FLOAT}, all": {}, f"{_BASE64}, all": {"encoding_format": _BASE64}} | {
        f"{_BASE64}, {width}": {"encoding_format": _BASE64, "dimensions": width} for width in dimensions
    }
    rows: list[dict[str, Any]] = []
    whole: NDArray[np.float32] | None = None
    for name, fields in asked.items():
        answer = _checked(client.post("/v1/embeddings", json=common | fields))
        vectors = read_vectors(answer.json())
        whole = vectors if whole is None else whole
        each = len(answer.content) / len(texts)
        rows.append({"request": name, "bytes_each": each, "top10_overlap": overlap(vectors, whole)})
    return Payload(frame=to_frame(rows))


def read_vectors(body: Mapping[str, Any]) -> NDArray[np.float32]:
    """The vectors of an answer, numbers or base64, float32 ``[n, dimension]``."""
    found = [item["embedding"] for item in body["data"]]
    if isinstance(found[0], str):
        found = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in found]
    return np.array(found, dtype=np.float32)


def _timed(client: httpx.Client, body: Mapping[str, Any]) -> dict[str, float]:
    began = time.perf_counter()
    answer = _checked(client.post("/v1/embeddings", json=body))
    read_vectors(answer.json())
    total_ms = (time.perf_counter() - began) * 1e3
    inside_ms = float(answer.headers["x-total-time"])
    parts = {part: float(answer.headers[header]) for part, header in _HEADERS.items()}
    own_ms = max(inside_ms - sum(parts.values()), 0.0)
    outside = {"client_ms": max(total_ms - inside_ms, 0.0), "http_ms": own_ms}
    return outside | parts | {"total_ms": total_ms, "received_kb": len(answer.content) / 1e3}


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != httpx.codes.OK:
        fix = "send other texts, or fewer; gateway.app.state.supervisor.incidents says what happened to Triton"
        raise RequestError("The gateway refused a request.", seen=answer.text[:200], fix=fix)
    return answer
