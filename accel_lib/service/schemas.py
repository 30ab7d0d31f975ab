"""Bodies of requests and answers, as OpenAPI shows them; a field that is not listed here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError

from accel_lib.service.problems import Problem
from accel_lib.service.served import InputType, Truncate
from accel_lib.service.validation import explained, read_json

_REFUSED: Literal["forbid"] = "forbid"
_NULL = {"type": "null"}


def _not_blank(text: str) -> str:
    if text.isspace():
        raise PydanticCustomError("invalid_text", "is blank: a text has more than spaces")
    return text


def _few(value: Any, info: ValidationInfo) -> Any:
    most = (info.context or {}).get("max_inputs")
    if most is not None and isinstance(value, list) and len(value) > most:
        found = {"field_type": "List", "max_length": most, "actual_length": len(value)}
        raise PydanticKnownError("too_long", found)
    return value


NotTooMany = BeforeValidator(_few)  # as the settings say, which a class cannot know


def one_or_many(value: Any) -> str | None:
    """Which alternative of a single value or a list of them a value is meant to be."""
    return "one" if isinstance(value, str) else "many" if isinstance(value, list) else None


Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]
Texts = Annotated[
    Annotated[Text, Tag("one")] | Annotated[list[Text], Field(min_length=1, fail_fast=True), NotTooMany, Tag("many")],
    Discriminator(one_or_many, custom_error_type="wrong_type", custom_error_message="a text or a list of texts"),
]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]


class Body(BaseModel):
    """A request's body: no type is converted into another, and null is as good as absent."""

    model_config = ConfigDict(extra=_REFUSED, frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {name: value for name, value in data.items() if name in cls.model_fields and value is not None}
        unknown = next((name for name in data if name not in cls.model_fields), None)
        return known if unknown is None else known | {unknown: None}  # one is enough to refuse, of however many

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Says of every optional field of a request that it may be null."""
        schema = handler(core)
        own = handler.resolve_ref_schema(schema)
        for name, field in own.get("properties", {}).items():
            if (
                handler.mode == "validation"
                and name not in own.get("required", [])
                and _NULL not in field.get("anyOf", [])
            ):
                facts = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                own["properties"][name] = {"anyOf": [field, _NULL], **facts}
        return schema


class _TextBody(Body):
    @model_validator(mode="before")
    @classmethod
    def _no_token_ids(cls, data: Any) -> Any:
        refuse_token_ids(data)
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
        Discriminator(one_or_many, custom_error_type="wrong_type", custom_error_message="'text'"),
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

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.12, -0.03, 0.08]}],
                    "model": "embedding",
                    "usage": {"prompt_tokens": 7, "total_tokens": 7},
                    "vector_space_id": "d0f3a1b2c4e5",
                }
            ]
        }
    )

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
    probs: list[float]
    num_classes: int
    scores: dict[str, float]


class ClassifyResponse(BaseModel):
    """Classes in the order of the input."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "classify-1",
                    "object": "list",
                    "created": 1767225600,
                    "model": "sentiment",
                    "data": [
                        {
                            "index": 0,
                            "label": "positive",
                            "probs": [0.1, 0.9],
                            "num_classes": 2,
                            "scores": {"negative": 0.1, "positive": 0.9},
                        }
                    ],
                    "usage": {"prompt_tokens": 6, "total_tokens": 6},
                }
            ]
        }
    )

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

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "There is no model 'x'; loaded: embedding.",
                        "type": "not_found_error",
                        "param": "model",
                        "code": "model_not_found",
                    },
                    "object": "error",
                    "message": "There is no model 'x'; loaded: embedding.",
                    "detail": {},
                    "type": "not_found_error",
                }
            ]
        }
    )

    error: ErrorDetail
    object: Literal["error"] = "error"
    message: str
    detail: dict[str, Any]
    type: str


_Request = TypeVar("_Request", bound=BaseModel)


def parse(schema: type[_Request], body: bytes, *, max_inputs: int | None = None) -> _Request:
    """A request's body, checked, with at most so many texts in a list.

    Raises
    ------
    Problem
        400 that names the first field at fault.
    """
    data = read_json(body)
    try:
        return schema.model_validate(data, context={"max_inputs": max_inputs})
    except ValidationError as error:
        raise explained(error.errors(include_url=False)[0], data) from error


def refuse_token_ids(data: Any) -> None:
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
