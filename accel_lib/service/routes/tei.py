"""The endpoints of Hugging Face's text-embeddings-inference, so that its clients work unmodified.

There is one model behind each: the first that embeds, or the first that classifies. What needs other outputs than a
model's own (``/embed_all``, ``/embed_sparse``) is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from accel_lib.artifact import Task
from accel_lib.scores import to_scores
from accel_lib.service import tei_schemas as schemas
from accel_lib.service.auth import InferenceRoute, require_role
from accel_lib.service.catalog import Inputs, ServedVersion
from accel_lib.service.errors import Problem
from accel_lib.service.fields import read
from accel_lib.service.keys import Principal
from accel_lib.service.openapi import described, problems
from accel_lib.service.routes.inference import (
    VERSION_HEADER,
    Answer,
    Caller,
    as_list,
    infer,
    normalized,
    respond,
    shortened,
    to_json,
)
from accel_lib.service.services import services
from accel_lib.service.validation import read_json
from accel_lib.version import __version__

router = APIRouter(tags=["text-embeddings-inference"], route_class=InferenceRoute)
_DTYPES = {"fp32": "float32", "fp16": "float16"}
_Vectors = list[list[float]]
_Cosines = list[float]
_Classes = list[schemas.Prediction] | list[list[schemas.Prediction]]


@router.post("/embed", **described(schemas.EmbedRequest, _Vectors))
async def embed(request: Request, caller: Caller) -> Response:
    """Embed one text or many with the first model for it."""
    asked = await read(schemas.EmbedRequest, request)
    inputs = Inputs(texts=as_list(asked.inputs), truncate=asked.side, tei=True, prompt_name=asked.prompt_name)
    answer = await _infer(request, caller, "embedding", inputs)
    vectors = shortened(answer.output, asked.dimensions)
    vectors = normalized(vectors) if asked.normalize else np.ascontiguousarray(vectors)
    return await respond(request, answer, lambda: to_json(vectors))


@router.post("/similarity", **described(schemas.SimilarityRequest, _Cosines))
async def similarity(request: Request, caller: Caller) -> Response:
    """Cosine of a text with each of some others, by the first model that embeds."""
    asked = await read(schemas.SimilarityRequest, request)
    how, texts = asked.parameters, [asked.inputs.source_sentence, *asked.inputs.sentences]
    inputs = Inputs(texts=texts, truncate=how.side, tei=True, prompt_name=how.prompt_name)
    answer = await _infer(request, caller, "embedding", inputs)
    source, *others = normalized(answer.output)
    return await respond(request, answer, lambda: to_json(np.array(others) @ source))


@router.post("/predict", **described(schemas.PredictRequest, _Classes))
async def predict(request: Request, caller: Caller) -> Response:
    """Classify a text, a pair of texts, or a batch of either, with the first model for it."""
    asked = await read(schemas.PredictRequest, request)
    batch = isinstance(asked.inputs, list) and isinstance(asked.inputs[0], list)
    parts: Sequence[Any] = asked.inputs if batch else [asked.inputs]
    items = [[part] if isinstance(part, str) else part for part in parts]
    seconds = [item[1] if len(item) == 2 else None for item in items]
    firsts, pairs = [item[0] for item in items], any(seconds)
    inputs = Inputs(texts=firsts, seconds=seconds if pairs else None, truncate=asked.side, tei=True)
    answer = await _infer(request, caller, "classification", inputs)
    manifest = answer.served.manifest
    scores = to_scores(answer.output, "identity" if asked.raw_scores else manifest.activation)
    labels = manifest.labels
    classes = [[{"label": labels[i], "score": row[i].item()} for i in np.argsort(-row)] for row in scores]
    return await respond(request, answer, lambda: to_json(classes if batch else classes[0]))


_Any = schemas.EmbedRequest | schemas.SimilarityRequest | schemas.PredictRequest


@router.post("/", **described(_Any, _Vectors | _Cosines | _Classes))
async def root(request: Request, caller: Caller) -> Response:
    """What the served model is for: embed (or compare, if there is a `source_sentence`); if none embeds, classify."""
    asked = read_json(await request.body())
    if _task(request) == "classification":
        return await predict(request, caller)
    compare = isinstance(asked, dict) and isinstance(asked.get("inputs"), dict)
    return await (similarity if compare else embed)(request, caller)


@router.post("/tokenize", **described(schemas.TokenizeRequest, list[list[schemas.Token]]))
async def tokenize(request: Request, _: Caller) -> Response:
    """The tokens of each text, uncut, by the tokenizer of the model behind these endpoints."""
    asked = await read(schemas.TokenizeRequest, request)
    texts = as_list(asked.inputs)
    _check_size(sum(map(len, texts)), "inputs", "characters")
    served = _served(request)
    prompt = served.prompt(Inputs(texts=texts, tei=True, prompt_name=asked.prompt_name))
    tokenizer, special = served.tokenizers["right"], asked.add_special_tokens
    tokens = await services(request).run_in_pool(
        lambda: to_json([tokenizer.spell(prompt + text, special=special) for text in texts])
    )
    return Response(tokens, media_type="application/json")


@router.post("/decode", **described(schemas.DecodeRequest, list[str]))
async def decode(request: Request, _: Caller) -> Response:
    """The texts that token ids of the model behind these endpoints stand for."""
    asked = await read(schemas.DecodeRequest, request)
    rows: Sequence[Any] = asked.ids if isinstance(asked.ids[0], list) else [asked.ids]
    _check_size(sum(map(len, rows)), "ids", "tokens")
    tokenizer, special = _served(request).tokenizers["right"], not asked.skip_special_tokens
    texts = await services(request).run_in_pool(lambda: to_json(tokenizer.read(rows, special=special)))
    return Response(texts, media_type="application/json")


@router.get("/info", responses=problems(401, 403, 404, 503))
async def info(request: Request, _: Annotated[Principal, Depends(require_role("viewer"))]) -> schemas.Info:
    """The model behind these endpoints, and the limits of a request."""
    own, served = services(request), _served(request)
    manifest, settings = served.manifest, own.settings
    names = {str(index): label for index, label in enumerate(manifest.labels)}
    classes = schemas.Classes(id2label=names, label2id={label: int(index) for index, label in names.items()})
    return schemas.Info(
        model_id=manifest.model,
        model_dtype=_DTYPES.get(manifest.precision, manifest.precision),
        served_model_name=served.name,
        model_type=schemas.ClassifierType(classifier=classes)
        if names
        else schemas.EmbeddingType(embedding=schemas.Pooling()),
        max_concurrent_requests=settings.max_in_flight,
        max_input_length=manifest.max_length,
        max_batch_tokens=settings.max_batch_tokens,
        max_client_batch_size=settings.max_inputs,
        tokenization_workers=own.workers,
        version=__version__,
    )


def _task(request: Request) -> Task:
    """What the model behind the root is for."""
    return "embedding" if "embedding" in services(request).catalog.tasks() else "classification"


def _served(request: Request) -> ServedVersion:
    catalog = services(request).catalog
    return catalog.find(catalog.first(_task(request)), request.headers.get(VERSION_HEADER, ""))


def _check_size(size: int, field: str, unit: str) -> None:
    """Tokens take a hundred bytes each here, so that a request of many would fill the memory."""
    if size > schemas.MOST_TOKENS:
        message = (
            f"{field} has {size:,} {unit}; at most {schemas.MOST_TOKENS:,} are taken at once. Send several requests."
        )
        raise Problem(400, message, param=field, code="too_many_tokens")


async def _infer(request: Request, caller: Caller, task: Task, inputs: Inputs) -> Answer:
    return await infer(request, caller, task, inputs, model=services(request).catalog.first(task))
