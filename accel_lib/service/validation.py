"""Turns pydantic's errors into plain words: the field, the index over the whole request, and the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from accel_lib.service.errors import Problem
from accel_lib.texts.files import short

_LONGEST_PLACE = 100
_KINDS = {bool: "a boolean", str: "a text", list: "a list", dict: "an object", type(None): "null"}
# pydantic's name for a value of the wrong type -> what it should have been.
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
# pydantic's name for every other fault -> our code, and a sentence that its context fills.
_FAULTS = {
    "missing": ("missing", "is missing"),
    "extra_forbidden": ("extra_forbidden", "is not a field of this request"),
    "string_too_short": ("empty", "is empty"),
    "too_short": ("empty", "is empty"),
    "string_too_long": ("too_long", "has more than {max_length} characters"),
    "too_long": ("too_many", "has {actual_length:,} entries; at most {max_length:,} are allowed"),
    "string_unicode": ("invalid_text", "is not valid Unicode: it holds a lone surrogate"),
    "string_pattern_mismatch": ("invalid_value", "does not match {pattern}"),
    "literal_error": ("invalid_value", "may be {expected}"),
    "greater_than": ("invalid_value", "must be greater than {gt}"),
    "greater_than_equal": ("invalid_value", "must be at least {ge}"),
    "less_than_equal": ("invalid_value", "must be at most {le}"),
    "finite_number": ("invalid_value", "must be a finite number"),
    "value_error": ("invalid_value", "is refused: {error}"),
}


def read_json(body: bytes) -> Any:
    """The value that a body holds, or a 400; lone surrogates are left for the check of each text, which names it."""
    try:
        return orjson.loads(body)
    except ValueError:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            reason = f"{error}." if body.strip() else "it is empty."
            raise Problem(400, f"The body is not JSON: {short(reason)}", code="invalid_json") from error


def explained(fault: Mapping[str, Any], body: Any, *, place: Sequence[str | int] | None = None) -> Problem:
    """A 400 for one of the errors that pydantic lists.

    Parameters
    ----------
    body
        What was checked: tells the parts of a place from the names of the alternatives that pydantic puts between.
    place
        Where, if not in a body.
    """
    kind, context = fault["type"], fault.get("ctx", {})
    where = _path(fault["loc"], body, missing=kind == "missing") if place is None else ".".join(map(str, place))
    where = short(where.encode("utf-8", "replace").decode(), _LONGEST_PLACE)
    expected = fault["msg"] if kind == "wrong_type" else _EXPECTED.get(kind)
    code, sentence = _FAULTS.get(kind, (kind, fault["msg"]))
    if expected:
        code, sentence = "wrong_type", f"is {_seen(fault['input'])}; {expected} is expected"
    elif kind in _FAULTS:
        sentence = sentence.format(**context)
    return Problem(400, f"{where or 'The body'} {sentence}.", param=where or None, code=code)


def _path(steps: Sequence[str | int], body: Any, *, missing: bool) -> str:
    """The steps that lead through the body, such as ``input[3]``; a missing field is the only one that does not."""
    path, at = "", body
    for number, step in enumerate(steps, 1):
        if isinstance(at, list) and isinstance(step, int) and step < len(at):
            path, at = f"{path}[{step}]", at[step]
        elif isinstance(at, dict) and (step in at or (missing and number == len(steps))):
            path, at = f"{path}.{step}" if path else str(step), at.get(step)
    return path


def _seen(value: Any) -> str:
    return repr(value) if type(value) in (int, float) else _KINDS.get(type(value), "something else")


def install(app: FastAPI) -> None:
    """Explain what FastAPI itself finds wrong with a path, a query or a body; its 422 becomes 400."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        part, *steps = fault["loc"]
        if fault["type"] == "json_invalid":
            problem = Problem(400, f"The body is not JSON: {fault['ctx']['error']}.", code="invalid_json")
        elif part == "body":
            problem = explained({**fault, "loc": steps}, error.body)
        else:
            problem = explained(fault, None, place=steps)
        return problem.response()
