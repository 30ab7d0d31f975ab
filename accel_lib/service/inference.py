"""Texts in, vectors or classes out: the endpoints of OpenAI, NIM and vLLM, and the way that all text requests go."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from accel_lib.artifact import Task
from accel_lib.ragged import Ragged
from accel_lib.scores import to_scores, unique_labels
from accel_lib.service.auth import Principal, needs
from accel_lib.service.describe import described
from accel_lib.service.edge import Record
from accel_lib.service.fields import parse
from accel_lib.service.problems import Problem
from accel_lib.service.routing import Route
from accel_lib.service.schemas import ClassifyRequest, ClassifyResponse, EmbeddingRequest, EmbeddingResponse
from accel_lib.service.served import Catalogue, Inputs, InputType, ServedVersion

router = APIRouter(tags=["inference"])
Caller = Annotated[Principal, Depends(needs("inference"))]

VERSION_HEADER, PRIORITY_HEADER = "x-model-version", "x-request-priority"
_OFF_LOOP_ROWS = 32  # answers of more rows are written by another thread
_SUFFIXES: dict[str, InputType] = {"-query": "query", "-passage": "passage"}
_Request = TypeVar("_Request", bound=BaseModel)
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said of some texts.

    Parameters
    ----------
    served
        The version that answered.
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
    catalogue: Catalogue = request.app.state.catalogue
    model, input_type = _addressed(catalogue, asked.model or catalogue.only("embedding"))
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    inputs = Inputs(texts=texts, truncate=asked.truncate, input_type=asked.input_type or input_type)
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
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    inputs = Inputs(texts=texts, truncate=asked.truncate)
    model = asked.model or request.app.state.catalogue.only("classification")
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


async def read(schema: type[_Request], request: Request) -> _Request:
    """A request's body, checked; raises the `Problem` 400 that names the first field at fault."""
    return parse(schema, await request.body(), max_inputs=request.app.state.settings.max_inputs)


async def infer(
    request: Request, caller: Principal, task: Task, inputs: Inputs, *, model: str, user: str | None = None
) -> Answer:
    """The one way that texts go: version, place, tokens, quota, admission, Triton.

    Parameters
    ----------
    task
        What the endpoint is for.
    model
        Name of a served model.
    user
        Whom the caller asks for; experiments stick to it.

    Raises
    ------
    Problem
        With every refusal that http knows of.
    """
    state, record = request.app.state, request.state.record
    served, route = _version(request, task, model, user)
    record.model, record.version, record.inputs = served.name, served.version, len(inputs.texts)
    with state.experiments.observed(route, len(inputs.texts)) as seen, state.limits.entering(served.name):
        began = time.perf_counter()
        most = state.settings.max_request_tokens

        def tokenize(version: ServedVersion) -> Awaitable[Ragged]:
            return off_loop(request, lambda: version.tokenize(inputs, max_tokens=most))

        rows = await tokenize(served)
        tokenized = time.perf_counter()
        record.deadline.check()
        record.tokens = len(rows.ids)
        state.limits.charge(caller.id, record.tokens)
        with (
            state.limits.admitted(served.name, record.tokens, record.deadline),
            state.telemetry.span("triton") as trace,
        ):
            output = await state.path.infer(
                served, rows, deadline=record.deadline, priority=_priority(request, served), metadata=trace
            )
        in_triton = time.perf_counter() - tokenized
        seen.compute_ms = in_triton * 1e3
    if route.experiment:
        state.metrics.exposures.labels(route.experiment, route.version).inc()
    state.shadows.send(route, output, tokenize)
    share = state.catalogue.queue_share(served.name)
    record.stages_s = {
        "tokenize": tokenized - began, "queue": in_triton * share, "inference": in_triton * (1 - share)
    }  # fmt: skip
    state.metrics.tokens.labels(served.name).inc(record.tokens)
    return Answer(served=served, output=output, tokens=record.tokens, headers=_headers(record))


def shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first numbers of each vector.

    Raises
    ------
    Problem
        400: the model's vectors have fewer.
    """
    if dimensions is not None and dimensions > vectors.shape[1]:
        message = f"dimensions is {dimensions}; the vectors have {vectors.shape[1]}."
        raise Problem(400, message, param="dimensions", code="unsupported_dimensions")
    return vectors[:, :dimensions]


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions at length 1.

    Raises
    ------
    Problem
        500: a vector is zero, which only one that was shortened can be.
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not norms.all():
        raise Problem(500, "A vector is zero in all dimensions that were asked for.", code="invalid_output")
    return np.asarray(vectors / norms, dtype=np.float32)


async def respond(request: Request, answer: Answer, body: Callable[[], bytes]) -> Response:
    """The answer as JSON; a long one is written beside the event loop."""
    content = await off_loop(request, body) if len(answer.output) > _OFF_LOOP_ROWS else body()
    return Response(content, media_type="application/json", headers=answer.headers)


async def off_loop(request: Request, work: Callable[[], _Result]) -> _Result:
    """Run what burns CPU in the gateway's pool of threads."""
    return await asyncio.get_running_loop().run_in_executor(request.app.state.pool, work)


def to_json(value: Any) -> bytes:
    """JSON with float32 arrays written as short as they can be read back."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _addressed(catalogue: Catalogue, name: str) -> tuple[str, InputType | None]:
    """The model that a name means, and what its suffix says of the texts, if it is a suffix and not the model's own."""
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix) and not catalogue.knows(name):
            return name.removesuffix(suffix), kind
    return name, None


def _version(request: Request, task: Task, model: str, user: str | None) -> tuple[ServedVersion, Route]:
    """The version that answers: the one that is asked for, else an experiment's choice, else the live one."""
    catalogue, asked = request.app.state.catalogue, request.headers.get(VERSION_HEADER, "")
    route: Route = request.app.state.experiments.route(model, user=user, pinned=asked)
    served: ServedVersion = catalogue.find(model, route.version)
    if served.manifest.task != task:
        other = "/v1/classify" if task == "embedding" else "/v1/embeddings"
        raise Problem(400, f"{served.name} is a model for {other}.", param="model", code="wrong_task")
    return served, route


def _priority(request: Request, served: ServedVersion) -> int:
    """The asked priority, for Triton's levels; 0 is the model's default."""
    asked = request.headers.get(PRIORITY_HEADER, "")
    if not asked:
        return 0
    if not asked.isdecimal() or int(asked) > max(served.config.priority_levels, 1):
        levels = max(served.config.priority_levels, 1)
        message = f"{PRIORITY_HEADER} is 1 (first) to {levels}, or 0."
        raise Problem(400, message, param=PRIORITY_HEADER, code="invalid_header")
    return int(asked)


def _headers(record: Record) -> dict[str, str]:
    names = {"tokenize": "x-tokenization-time", "queue": "x-queue-time", "inference": "x-inference-time"}
    times = {names[stage]: f"{spent * 1e3:.3f}" for stage, spent in record.stages_s.items()}
    return {VERSION_HEADER: record.version, **times}
