"""OpenAI's, NIM's and vLLM's endpoints: texts in, vectors or classes out; and the way that every text request goes."""

from __future__ import annotations

import base64
import dataclasses
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray

from accel_lib.ragged import Ragged
from accel_lib.scores import to_scores, unique_labels
from accel_lib.service.abtest.routing import Route
from accel_lib.service.auth import InferenceRoute, require_role
from accel_lib.service.catalog import Catalog, Inputs, InputType, ServedVersion, Use
from accel_lib.service.errors import Problem
from accel_lib.service.fields import read
from accel_lib.service.keys import Principal
from accel_lib.service.middleware import RequestContext
from accel_lib.service.openapi import described
from accel_lib.service.schemas import ClassifyRequest, ClassifyResponse, EmbeddingRequest, EmbeddingResponse
from accel_lib.service.services import IN_LOOP_CHARS, Services, services

router = APIRouter(tags=["inference"], route_class=InferenceRoute)
Caller = Annotated[Principal, Depends(require_role("inference"))]

VERSION_HEADER = "x-model-version"
_PRIORITY_HEADER = "x-request-priority"
_STAGE_HEADERS = {"tokenize": "x-tokenization-time", "queue": "x-queue-time", "inference": "x-inference-time"}
_IN_POOL_ROWS = 32  # responses of more rows are written in another thread
_ENDPOINTS: dict[Use, str] = {
    "embedding": "/v1/embeddings",
    "classification": "/v1/classify",
    "rerank": "/v1/ranking",
    "generation": "/v1/chat/completions",
}
_SUFFIXES: dict[str, InputType] = {"-query": "query", "-passage": "passage"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model gave for some texts.

    Parameters
    ----------
    output
        Vectors or logits, float32 ``[n, dimension]``.
    tokens
        Of all texts, special tokens included.
    headers
        The version, and where the time went, in milliseconds.
    """

    served: ServedVersion
    output: NDArray[np.float32]
    tokens: int
    headers: dict[str, str]


@router.post("/embeddings", **described(EmbeddingRequest, EmbeddingResponse))
@router.post("/v1/embeddings", **described(EmbeddingRequest, EmbeddingResponse))
async def embeddings(request: Request, caller: Caller) -> Response:
    """Embed one text or many."""
    asked = await read(EmbeddingRequest, request)
    catalog = services(request).catalog
    model, input_type = _addressed(catalog, asked.model or catalog.only("embedding"))
    inputs = Inputs(texts=as_list(asked.input), truncate=asked.truncate, input_type=asked.input_type or input_type)
    answer = await infer(request, caller, "embedding", inputs, model=model, user=asked.user)
    vectors = answer.output if asked.dimensions is None else normalized(shortened(answer.output, asked.dimensions))

    def body() -> bytes:
        written: Any = vectors
        if asked.encoding_format == "base64":
            written = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(written)]
        usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
        space = answer.served.vector_space_id + (f"/{asked.dimensions}" if asked.dimensions else "")
        name = asked.model or model
        return to_json({"object": "list", "data": data, "model": name, "usage": usage, "vector_space_id": space})

    return await respond(request, answer, body)


@router.post("/v1/classify", **described(ClassifyRequest, ClassifyResponse))
async def classify(request: Request, caller: Caller) -> Response:
    """Say which class each text is of."""
    asked = await read(ClassifyRequest, request)
    inputs = Inputs(texts=as_list(asked.input), truncate=asked.truncate)
    model = asked.model or services(request).catalog.only("classification")
    answer = await infer(request, caller, "classification", inputs, model=model, user=asked.user)
    manifest = answer.served.manifest
    labels, names = manifest.labels, unique_labels(manifest.labels)
    data = [
        {
            "index": index,
            "label": labels[int(row.argmax())],
            "probs": row,
            "num_classes": len(labels),
            "scores": dict(zip(names, row.tolist(), strict=True)),
        }
        for index, row in enumerate(to_scores(answer.output, "identity" if asked.raw_scores else manifest.activation))
    ]
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": model}
    return await respond(request, answer, lambda: to_json(head | {"data": data, "usage": usage}))


async def infer(
    request: Request, caller: Principal, use: Use, inputs: Inputs, *, model: str, user: str | None = None
) -> Answer:
    """The one way that texts go: version, slot, tokens, quota, admission, Triton; refusals are a `Problem`.

    Parameters
    ----------
    use
        What the endpoint is for.
    user
        Whom the caller asks for; experiments stick to it.
    """
    own: Services = services(request)
    context: RequestContext = request.state.context
    served, route = choose_version(request, own, use, model, user)
    context.model, context.version, context.inputs = served.name, served.version, len(inputs.texts)
    with own.experiments.observed(route, len(inputs.texts)) as compute, own.limits.in_flight_slot(served.name):
        began = time.perf_counter()
        most, few = own.settings.max_request_tokens, inputs.characters <= IN_LOOP_CHARS

        async def tokenize(version: ServedVersion) -> Ragged:
            return await own.run_in_pool(lambda: version.tokenize(inputs, max_tokens=most), unless=few)

        rows = await tokenize(served)
        tokenized = time.perf_counter()
        context.deadline.check()
        context.tokens = len(rows.ids)
        own.limits.charge(caller.id, context.tokens)
        with own.limits.admitted(served.name, context.tokens, context.deadline), own.telemetry.span("triton") as trace:
            output = await own.triton.infer(
                served,
                rows,
                deadline=context.deadline,
                priority=asked_priority(request, max(served.config.priority_levels, 1)),
                metadata=trace,
            )
        in_triton = time.perf_counter() - tokenized
        compute.ms = in_triton * 1e3
    if route.experiment:
        own.metrics.exposures.labels(route.experiment, route.version).inc()
    own.shadows.send(route, output, tokenize)
    share = own.catalog.queue_share(served.name)
    context.stages_s = {
        "tokenize": tokenized - began, "queue": in_triton * share, "inference": in_triton * (1 - share)
    }  # fmt: skip
    own.metrics.tokens.labels(served.name).inc(context.tokens)
    headers = {_STAGE_HEADERS[stage]: f"{spent * 1e3:.3f}" for stage, spent in context.stages_s.items()}
    headers[VERSION_HEADER] = served.version
    return Answer(served=served, output=output, tokens=context.tokens, headers=headers)


def shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first dimensions of each vector; raises the `Problem` 400 if it has fewer."""
    if dimensions is not None and dimensions > vectors.shape[1]:
        message = f"dimensions is {dimensions}; the vectors have {vectors.shape[1]}."
        raise Problem(400, message, param="dimensions", code="unsupported_dimensions")
    return vectors[:, :dimensions]


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions at length 1; raises the `Problem` 500 for a zero vector (a shortened one can be)."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not norms.all():
        raise Problem(500, "A vector is zero in all dimensions that were asked for.", code="invalid_output")
    return np.asarray(vectors / norms, dtype=np.float32)


async def respond(request: Request, answer: Answer, body: Callable[[], bytes]) -> Response:
    """The answer as JSON; a long one is written outside the event loop."""
    long = len(answer.output) > _IN_POOL_ROWS
    content = await services(request).run_in_pool(body, unless=not long)
    return Response(content, media_type="application/json", headers=answer.headers)


def to_json(value: Any) -> bytes:
    """JSON with float32 arrays written as short as they can be read back."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def as_list(texts: str | list[str]) -> list[str]:
    """One text or many as a list."""
    return [texts] if isinstance(texts, str) else texts


def _addressed(catalog: Catalog, name: str) -> tuple[str, InputType | None]:
    """The model that a name means, and the input type of its suffix, unless that is part of a model's own name."""
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix) and not catalog.knows(name):
            return name.removesuffix(suffix), kind
    return name, None


def choose_version(
    request: Request, own: Services, use: Use, model: str, user: str | None
) -> tuple[ServedVersion, Route]:
    """The version that answers: the one that is asked for, else an experiment's choice, else the live one."""
    route = own.experiments.route(model, user=user, pinned=request.headers.get(VERSION_HEADER, ""))
    served = own.catalog.find(model, route.version)
    if not served.serves(use):
        endpoint = _ENDPOINTS[served.use]
        raise Problem(400, f"{served.name} is a model for {endpoint}.", param="model", code="wrong_task")
    return served, route


def asked_priority(request: Request, levels: int) -> int:
    """The priority that the header asks for, of that many levels; 0 is the model's default."""
    asked = request.headers.get(_PRIORITY_HEADER, "0")
    if asked and (not asked.isdecimal() or int(asked) > levels):
        message = f"{_PRIORITY_HEADER} is 1 (first) to {levels}, or 0."
        raise Problem(400, message, param=_PRIORITY_HEADER, code="invalid_header")
    return int(asked or 0)
