"""Bodies of requests and answers, as OpenAPI shows them; a field that is not listed here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag, model_validator

from accel_lib.service.catalog import InputType, Truncate
from accel_lib.service.errors import Problem
from accel_lib.service.fields import Body, ModelName, Texts, one_or_many, told_apart


class _TextBody(Body):
    @model_validator(mode="before")
    @classmethod
    def _no_token_ids(cls, data: Any) -> Any:
        """LangChain's OpenAIEmbeddings sends token ids of OpenAI's own tokenizer, which mean nothing here."""
        given = data.get("input") if isinstance(data, dict) else None
        first = given[0] if isinstance(given, list) and given else None
        first = first[0] if isinstance(first, list) and first else first
        if isinstance(first, int) and not isinstance(first, bool):
            raise Problem(
                400,
                "input holds token ids of another tokenizer; send text. In LangChain: "
                "OpenAIEmbeddings(check_embedding_ctx_length=False).",
                param="input",
                code="token_ids",
            )
        return data


class EmbeddingRequest(_TextBody):
    """OpenAI's and NIM's fields together."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "embedding", "input": "a cat on a mat"},
                {"model": "embedding", "input": ["one", "two"], "encoding_format": "base64", "truncate": "END"},
            ]
        }
    )

    model: ModelName | None = Field(
        default=None,
        description="A served model; may be left out where only one embeds. "
        "A -query or -passage suffix that is no part of a model's name says the input_type.",
    )
    input: Texts
    input_type: InputType | None = None
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64 is little-endian float32: a quarter of the bytes."
    )
    dimensions: int | None = Field(default=None, ge=1, description="Keep that many, and normalize.")
    truncate: Truncate = Field(default="NONE", description="Where to cut a text that is too long; NONE refuses it.")
    embedding_type: Literal["float"] = "float"
    modality: Annotated[
        Annotated[Literal["text"], Tag("one")] | Annotated[list[Literal["text"]], Field(fail_fast=True), Tag("many")],
        told_apart(one_or_many, "'text'"),
    ] = "text"
    user: str | None = Field(default=None, description="Whom the request is for; experiments stick to it.")


class Usage(BaseModel):
    """Tokens, special tokens included."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    """Vectors in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    vector_space_id: str = Field(description="Compare vectors only with others of the same id.")


class ClassifyRequest(_TextBody):
    """vLLM's fields."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "sentiment", "input": ["what a lovely day", "never again"]}]}
    )

    model: ModelName | None = Field(default=None, description="May be left out where only one model classifies.")
    input: Texts
    truncate: Truncate = "NONE"
    raw_scores: bool = Field(default=False, description="Give logits, without the model's own function.")
    user: str | None = None


class Classification(BaseModel):
    """The classes of one text."""

    index: int
    label: str
    probs: list[float] = Field(description="Scores in the order of the labels, as the model's head makes them.")
    num_classes: int
    scores: dict[str, float] = Field(description="By label; a name that occurred before carries its index: a, a (1).")


class ClassifyResponse(BaseModel):
    """Classes in the order of the input."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class ErrorDetail(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The one body of every error."""

    error: ErrorDetail
    object: Literal["error"] = "error"
    message: str
    detail: dict[str, Any]
    type: str
