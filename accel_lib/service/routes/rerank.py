"""NIM's, text-embeddings-inference's and Cohere's endpoints for reranking: a query and passages in, the best first out.

A reranker is a cross-encoder with one logit: it reads the query and a passage together. Each pair is a row on the one
way that texts go (`routes.inference.infer`).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from accel_lib.scores import to_scores
from accel_lib.service import rerank_schemas as schemas
from accel_lib.service.auth import InferenceRoute
from accel_lib.service.catalog import Inputs, Truncate
from accel_lib.service.fields import read
from accel_lib.service.openapi import described
from accel_lib.service.routes.inference import Answer, Caller, infer, respond, to_json
from accel_lib.service.services import services

router = APIRouter(tags=["reranking"], route_class=InferenceRoute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ranked:
    """What the model gave, and the places of the passages by it, the best first."""

    answer: Answer
    model: str
    order: list[int]

    @property
    def logits(self) -> list[float]:
        """In that order."""
        return self._of(self.answer.output)

    @property
    def scores(self) -> list[float]:
        """The sigmoids of the logits, whatever function the model would apply: these contracts promise 0 to 1."""
        return self._of(to_scores(self.answer.output, "sigmoid"))

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.answer.tokens, "total_tokens": self.answer.tokens}

    def _of(self, column: NDArray[np.float32]) -> list[float]:
        found: list[float] = column[self.order, 0].tolist()
        return found


@router.post("/v1/ranking", **described(schemas.RankingRequest, schemas.RankingResponse))
async def ranking(request: Request, caller: Caller) -> Response:
    """Rank passages for a query, by logits."""
    asked = await read(schemas.RankingRequest, request)
    passages = [passage.text for passage in asked.passages]
    inputs = _pairs(asked.query.text, passages, field="passages", truncate=asked.truncate)
    ranked = await _ranked(request, caller, inputs, model=asked.model, user=asked.user)
    rows = [{"index": i, "logit": logit} for i, logit in zip(ranked.order, ranked.logits, strict=True)]
    return await respond(request, ranked.answer, lambda: to_json({"rankings": rows, "usage": ranked.usage}))


@router.post("/rerank", **described(schemas.TeiRerankRequest, list[schemas.Rank]))
async def tei_rerank(request: Request, caller: Caller) -> Response:
    """Rank texts for a query with the first model for it."""
    asked = await read(schemas.TeiRerankRequest, request)
    inputs = _pairs(asked.query, asked.texts, field="texts", truncate=asked.side, tei=True)
    ranked = await _ranked(request, caller, inputs, model=services(request).catalog.first("rerank"))
    scores = ranked.logits if asked.raw_scores else ranked.scores
    rows = [
        {"index": i, "score": score} | ({"text": asked.texts[i]} if asked.return_text else {})
        for i, score in zip(ranked.order, scores, strict=True)
    ]
    return await respond(request, ranked.answer, lambda: to_json(rows))


@router.post("/v1/rerank", **described(schemas.RerankRequest, schemas.RerankResponse))
async def rerank(request: Request, caller: Caller) -> Response:
    """Rank documents for a query, by scores of 0 to 1."""
    asked = await read(schemas.RerankRequest, request)
    documents = [each if isinstance(each, str) else each.text for each in asked.documents]
    inputs = _pairs(asked.query, documents, field="documents", truncate=asked.truncate)
    ranked = await _ranked(request, caller, inputs, model=asked.model, user=asked.user)
    shown = [{"document": {"text": text}} if asked.return_documents else {} for text in documents]
    scored = list(zip(ranked.order, ranked.scores, strict=True))[: asked.top_n]
    rows = [{"index": i, "relevance_score": score} | shown[i] for i, score in scored]
    head = {"id": f"rerank-{uuid.uuid4().hex}", "model": ranked.model}
    return await respond(request, ranked.answer, lambda: to_json(head | {"results": rows, "usage": ranked.usage}))


def _pairs(query: str, passages: Sequence[str], *, field: str, truncate: Truncate, tei: bool = False) -> Inputs:
    return Inputs(texts=[query] * len(passages), seconds=passages, truncate=truncate, tei=tei, called=field)


async def _ranked(
    request: Request, caller: Caller, inputs: Inputs, *, model: str | None, user: str | None = None
) -> _Ranked:
    name = model or services(request).catalog.only("rerank")
    answer = await infer(request, caller, "rerank", inputs, model=name, user=user)
    order: list[int] = np.argsort(-answer.output[:, 0], kind="stable").tolist()
    return _Ranked(answer=answer, model=name, order=order)
