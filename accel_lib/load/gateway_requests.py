"""What of the time of a request to a gateway is the model, and how many bytes a vector takes on the wire."""

from __future__ import annotations

import base64
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import RequestError
from accel_lib.formatting import UNCHANGED, number, percent
from accel_lib.measurement import Result, to_frame
from accel_lib.stats import mean_interval, overlap

_HEADERS = {"tokenize_ms": "x-tokenization-time", "queue_ms": "x-queue-time", "compute_infer_ms": "x-inference-time"}
_BASE64 = {"encoding_format": "base64"}
_SETTLE_S = 2.5  # until the gateway's share of the queue is that of one kind of request


class Gateway(Protocol):
    """A running gateway, as `accel_lib.serve_gateway` gives one."""

    def client(self) -> httpx.Client:
        """An HTTP client with its address and a key."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LatencyBreakdown(Result):
    """Where the time of requests goes; `frame` has one row a kind of request.

    Its columns: ``request``; in mean milliseconds ``client_ms`` (the client and the connection), ``http_ms`` (the
    gateway's HTTP, key and JSON), ``tokenize_ms``, ``queue_ms``, ``compute_infer_ms``, ``total_ms`` with ``_low`` and
    ``_high``; ``received_kb``.
    """

    @property
    def model_share(self) -> float:
        """Share of the first kind's time that the model takes, 0 to 1."""
        return float(self.frame["compute_infer_ms"].iloc[0] / self.frame["total_ms"].iloc[0])

    @property
    def headline(self) -> str:
        """The model's share of the first kind of request, and what base64 saves of the last one."""
        first, plain, packed = (self.frame.iloc[row] for row in (0, -2, -1))
        saved = 1 - packed["total_ms"] / plain["total_ms"]
        effect = f"{percent(abs(saved))} {'less' if saved > 0 else 'more'} time than"
        if packed["total_ms_low"] <= plain["total_ms_high"] and plain["total_ms_low"] <= packed["total_ms_high"]:
            effect = f"{UNCHANGED} from"
        other = plain["request"].rpartition(", ")[2]
        return (
            f"Of {number(first['total_ms'])} ms for {first['request']} the model takes {percent(self.model_share)}; "
            f"{packed['request']}: {effect} {other}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class PayloadSizes(Result):
    """What a vector takes on the wire, by the way to ask for it; the first row of `frame` is the reference.

    Its columns: ``request``, ``bytes_each``, ``top10_overlap``.
    """

    @property
    def headline(self) -> str:
        """What the second and the last way save, and what they keep of the neighbours."""
        whole = self.frame["bytes_each"].iloc[0]
        second, last = self.frame.iloc[1], self.frame.iloc[-1]
        said = f"{second['request']} takes {percent(second['bytes_each'] / whole)} of the bytes and keeps "
        said += f"{percent(second['top10_overlap'])} of the ten nearest neighbours"
        size, kept = percent(last["bytes_each"] / whole), percent(last["top10_overlap"])
        return f"{said}; {last['request']} {size} and {kept}"


def latency_breakdown(
    gateway: Gateway, texts: Sequence[str], *, model: str = "embedding", repeats: int = 20
) -> LatencyBreakdown:
    """Where the time of a request goes: with the first text alone, with all, and with the vectors in base64.

    `repeats` requests of each kind, two or more, are sent after some that do not count: how much of the time in Triton
    is the queue, the gateway knows only as a share over its last second or two.
    """
    many = f"{len(texts)} texts"
    kinds: dict[str, dict[str, Any]] = {
        "1 text": {"input": list(texts[:1])},
        f"{many}, JSON numbers": {"input": list(texts)},
        f"{many}, base64": {"input": list(texts)} | _BASE64,
    }
    spent: dict[str, list[dict[str, float]]] = {}
    with gateway.client() as client:
        for kind, fields in kinds.items():
            body, until = {"model": model, "truncate": "END"} | fields, time.perf_counter() + _SETTLE_S
            while time.perf_counter() < until:
                _timed(client, body)
            spent[kind] = [_timed(client, body) for _ in range(repeats)]
    rows: list[dict[str, Any]] = [
        {"request": kind} | {part: float(np.mean([one[part] for one in ones])) for part in ones[0]} | _interval(ones)
        for kind, ones in spent.items()
    ]
    return LatencyBreakdown(frame=to_frame(rows))


def payload_sizes(
    gateway: Gateway, texts: Sequence[str], *, model: str = "embedding", dimensions: Sequence[int] = (192, 96, 48)
) -> PayloadSizes:
    """Bytes of a vector on the wire by encoding and dimensions, and the share of nearest neighbours that it keeps.

    Needs at least 12 texts, since each has ten neighbours.
    """
    asked: dict[str, dict[str, Any]] = {"JSON numbers": {}, "base64": _BASE64}
    asked |= {f"base64, {width} dimensions": _BASE64 | {"dimensions": width} for width in dimensions}
    rows: list[dict[str, Any]] = []
    whole: NDArray[np.float32] | None = None
    with gateway.client() as client:
        for name, fields in asked.items():
            body = {"model": model, "input": list(texts), "truncate": "END"} | fields
            answer = _checked(client.post("/v1/embeddings", json=body))
            vectors = read_vectors(answer.json())
            whole = vectors if whole is None else whole
            each = len(answer.content) / len(texts)
            rows.append({"request": name, "bytes_each": each, "top10_overlap": overlap(vectors, whole)})
    return PayloadSizes(frame=to_frame(rows))


def read_vectors(body: Mapping[str, Any]) -> NDArray[np.float32]:
    """The vectors of a response of ``/v1/embeddings``, numbers or base64, float32 ``[n, dimension]``."""
    found = [item["embedding"] for item in body["data"]]
    if isinstance(found[0], str):
        found = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in found]
    return np.array(found, dtype=np.float32)


def _interval(ones: Sequence[Mapping[str, float]]) -> dict[str, float]:
    low, high = mean_interval([one["total_ms"] for one in ones])
    return {"total_ms_low": low, "total_ms_high": high}


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
        fix = "send other texts, or fewer; gateway.client().get('/v1/status').json() says what happened to Triton"
        raise RequestError("The gateway refused a request.", seen=answer.text[:200], fix=fix)
    return answer
