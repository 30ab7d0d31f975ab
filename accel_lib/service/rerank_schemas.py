"""Bodies of the endpoints that rank passages for a query: NIM's, text-embeddings-inference's and Cohere's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag

from accel_lib.service.catalog import Truncate
from accel_lib.service.fields import Body, ModelName, NotTooMany, Text, not_blank
from accel_lib.service.schemas import Usage
from accel_lib.service.tei_schemas import MOST_TOKENS, Cut

MOST_PASSAGES = 512  # of a request to NIM's endpoint, as there

# Characters: the query is a row with each of the passages.
Query = Annotated[str, Field(min_length=1, max_length=MOST_TOKENS), AfterValidator(not_blank)]
_Name = Annotated[
    ModelName | None, Field(description="A served reranker; may be left out where there is only one.")
]  # fmt: skip
_TWO: list[JsonValue] = [{"text": "Beavers raise the water table."}, {"text": "Rivers freeze from the top."}]


class TextItem(Body):
    """A text as an object; an image beside it is refused by name, as no model here takes one."""

    text: Text


class QueryItem(Body):
    """The query as an object."""

    text: Query


class RankingRequest(Body):
    """NIM's ``/v1/ranking``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "rerank", "query": {"text": "on which side does ice form first"}, "passages": _TWO},
                {"query": {"text": "who keeps meadows wet"}, "passages": _TWO, "truncate": "END"},
            ]
        }
    )

    model: _Name = None
    query: QueryItem
    passages: Annotated[list[TextItem], Field(min_length=1, max_length=MOST_PASSAGES, fail_fast=True), NotTooMany]
    truncate: Literal["NONE", "END"] = Field(
        default="NONE", description="END cuts a query and passage that are too long together; NONE refuses them."
    )
    user: str | None = Field(default=None, description="Whom the request is for; experiments stick to it.")


class Ranking(BaseModel):
    """One passage by its place in the request, with the model's own score."""

    index: int
    logit: float


class RankingResponse(BaseModel):
    """Passages, best first."""

    rankings: list[Ranking]
    usage: Usage


class TeiRerankRequest(Cut):
    """text-embeddings-inference's ``/rerank``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "who keeps meadows wet", "texts": ["Beavers do.", "Rivers freeze."]}]}
    )

    query: Query
    texts: Annotated[list[Text], Field(min_length=1, fail_fast=True), NotTooMany]
    raw_scores: bool = Field(default=False, description="Give logits; else their sigmoid, 0 to 1.")
    return_text: bool = False


class Rank(BaseModel):
    """One text by its place in the request."""

    index: int
    score: float
    text: str | None = None


def _form(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "object" if isinstance(value, dict) else None


_Document = Annotated[
    Annotated[Text, Tag("text")] | Annotated[TextItem, Tag("object")],
    Discriminator(_form, custom_error_type="wrong_type", custom_error_message='a text or {"text": …}'),
]


class RerankRequest(Body):
    """Cohere's and vLLM's ``/v1/rerank``; `truncate` is NIM's, as theirs differ."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "rerank", "query": "who keeps meadows wet", "documents": ["Beavers do.", "Rivers freeze."]},
                {"query": "who keeps meadows wet", "documents": _TWO, "top_n": 1, "return_documents": True},
            ]
        }
    )

    model: _Name = None
    query: Query
    documents: Annotated[list[_Document], Field(min_length=1, fail_fast=True), NotTooMany]
    top_n: int | None = Field(default=None, ge=1, description="Give that many, the best; else all.")
    return_documents: bool = Field(default=False, description="Give each document's text beside its score.")
    truncate: Truncate = Field(default="NONE", description="Where to cut what is too long; NONE refuses it.")
    user: str | None = None


class Document(BaseModel):
    """A document's text."""

    text: str


class RerankResult(BaseModel):
    """One document by its place in the request; `relevance_score` is the sigmoid of the logit, 0 to 1."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankResponse(BaseModel):
    """Documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
