"""Request bodies: the field types that endpoints share, and how a body is read and checked.

FastAPI would parse a body with the standard library's JSON before it knows the caller; orjson does it afterwards, here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
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

from accel_lib.service.validation import explained, read_json

_REFUSED: Literal["forbid"] = "forbid"
_NULL = {"type": "null"}


def not_blank(text: str) -> str:
    """A text; pydantic gets a fault of one that is all spaces."""
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


def told_apart(which: Callable[[Any], str | None], expected: str) -> Discriminator:
    """Which type of a union a value is meant to be, by the tag that `which` gives; `expected` says what may be."""
    return Discriminator(which, custom_error_type="wrong_type", custom_error_message=expected)


Text = Annotated[str, Field(min_length=1), AfterValidator(not_blank)]
Texts = Annotated[
    Annotated[Text, Tag("one")] | Annotated[list[Text], Field(min_length=1, fail_fast=True), NotTooMany, Tag("many")],
    told_apart(one_or_many, "a text or a list of texts"),
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


_Request = TypeVar("_Request", bound=BaseModel)


def parse(schema: type[_Request], body: bytes, *, max_inputs: int | None = None) -> _Request:
    """A request's body, checked, with at most that many texts in a list; raises a 400 that names the first fault."""
    data = read_json(body)
    try:
        return schema.model_validate(data, context={"max_inputs": max_inputs})
    except ValidationError as error:
        raise explained(error.errors(include_url=False)[0], data) from error


async def read(schema: type[_Request], request: Request) -> _Request:
    """`parse` for the body of a request, once its caller is known to have the role that the endpoint needs."""
    return parse(schema, request.state.context.body, max_inputs=request.app.state.services.settings.max_inputs)
