"""text-embeddings-inference's ``/embed`` and ``/predict``: its shapes, our models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from accel_lib.scores import to_scores
from accel_lib.service.describe import described
from accel_lib.service.inference import Caller, infer, respond, shortened, to_json
from accel_lib.service.problems import Problem
from accel_lib.service.schemas import EmbedRequest, Prediction, PredictRequest, parse
from accel_lib.service.served import Inputs, InputType, Truncate

router = APIRouter(tags=["text-embeddings-inference"])
_PROMPTS: dict[str, InputType] = {"query": "query", "passage": "passage", "document": "passage"}
_VECTORS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_CLASSES = {"type": "array", "items": Prediction.model_json_schema()}
_ONE_OR_MANY = {"anyOf": [_CLASSES, {"type": "array", "items": _CLASSES}]}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


@router.post("/embed", **described(EmbedRequest, None, content=_content(_VECTORS)))
async def embed(request: Request, caller: Caller) -> Response:
    """Embed one text or many with the first model for it."""
    asked = parse(EmbedRequest, await request.body())
    if not asked.normalize:
        raise Problem(400, "The models' vectors have length 1 by construction.", param="normalize", code="unsupported")
    if asked.prompt_name is not None and asked.prompt_name not in _PROMPTS:
        raise Problem(400, f"There are the prompts {', '.join(_PROMPTS)}.", param="prompt_name", code="unknown_prompt")
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    kind = _PROMPTS.get(asked.prompt_name or "")
    inputs = Inputs(texts=texts, truncate=_truncate(asked), input_type=kind)
    answer = await infer(request, caller, "embedding", inputs)
    vectors = shortened(answer.output, asked.dimensions)
    return await respond(request, answer, lambda: to_json(vectors))


@router.post("/predict", **described(PredictRequest, None, content=_content(_ONE_OR_MANY)))
async def predict(request: Request, caller: Caller) -> Response:
    """Classify a text, a pair of texts, or a batch of them, with the first model for it."""
    asked = parse(PredictRequest, await request.body())
    batch = isinstance(asked.inputs, list) and isinstance(asked.inputs[0], list)
    parts: Sequence[Any] = asked.inputs if batch else [asked.inputs]
    items = [[part] if isinstance(part, str) else part for part in parts]
    if len({len(item) for item in items}) > 1:
        raise Problem(400, "A batch holds single texts or pairs, not both.", param="inputs", code="mixed_batch")
    seconds = [item[1] for item in items] if len(items[0]) == 2 else None
    inputs = Inputs(texts=[item[0] for item in items], seconds=seconds, truncate=_truncate(asked))
    answer = await infer(request, caller, "classification", inputs)
    manifest = answer.served.manifest
    scores = to_scores(answer.output, "identity" if asked.raw_scores else manifest.activation)
    labels = manifest.labels
    classes = [[{"label": labels[i], "score": row[i].item()} for i in np.argsort(-row)] for row in scores]
    return await respond(request, answer, lambda: to_json(classes if batch else classes[0]))


def _truncate(asked: EmbedRequest | PredictRequest) -> Truncate:
    if not asked.truncate:
        return "NONE"
    return "START" if asked.truncation_direction.lower() == "left" else "END"
