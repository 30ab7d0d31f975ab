"""The OpenAPI description of endpoints that read their body themselves: schema, examples, codes and headers."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from accel_lib.service.schemas import ErrorBody

_ERRORS = {
    400: "A field, a text or a header is wrong; `param` names it.",
    401: "No key, or one that is not known.",
    403: "The key has not the role.",
    404: "No such model or version.",
    409: "The model, the version or the experiment is not in a state for this.",
    413: "The body is too large.",
    415: "The body is in another encoding than gzip.",
    429: "A quota is used up (`rate_limit_exceeded`), or the answer would be late (`queue_full`).",
    500: "The model failed, or its output was invalid and was held back.",
    503: "Starting, restarting or shutting down.",
    504: "The deadline passed.",
}
_TEXT_CODES = (400, 401, 403, 404, 413, 415, 429, 500, 503, 504)
_RETRY = {
    "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds after which to try again."},
    "retry-after-ms": {"schema": {"type": "integer", "minimum": 1}, "description": "The same in milliseconds."},
}
_ID = {"schema": {"type": "string"}, "description": "The request's id, the client's own if it sent one."}
_TIMES = {
    "x-total-time": "Milliseconds from the request's head to the answer's.",
    "x-tokenization-time": "Milliseconds for text to token ids.",
    "x-queue-time": "Milliseconds in Triton's queue: the share of the time in Triton that its counters last gave.",
    "x-inference-time": "Milliseconds in the model.",
}
_ANSWER_HEADERS = {
    "x-request-id": _ID,
    "x-model-version": {"schema": {"type": "string"}, "description": "The version that answered."},
    **{name: {"schema": {"type": "number"}, "description": text} for name, text in _TIMES.items()},
}
_ASKED_HEADERS = {
    "x-request-id": ("string", "An id for logs and traces."),
    "x-request-timeout-ms": ("number", "The deadline, counted from the request's head; it travels to Triton."),
    "x-request-priority": (
        "integer",
        "Priority level, 1 first; a model that generates has three, and 2 is the usual one.",
    ),
    "x-model-version": ("string", "A version of the model; else the one that is live."),
}


def described(request: Any, response: Any, *, streams: bool = False) -> dict[str, Any]:
    """Arguments for the route of an endpoint that takes texts, by the types of its bodies; some `streams` answers."""
    answer: dict[str, Any] = {"description": "The answer.", "headers": _ANSWER_HEADERS, "model": response}
    if streams:
        answer["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    headers = [
        {"name": name, "in": "header", "required": False, "schema": {"type": kind}, "description": text}
        for name, (kind, text) in _ASKED_HEADERS.items()
    ]
    schema = _inlined(TypeAdapter(request).json_schema())
    examples = [example for part in (schema, *schema.get("anyOf", [])) for example in part.pop("examples", [])]
    named = {f"example {number}": {"value": value} for number, value in enumerate(examples, 1)}
    content = {"application/json": {"schema": schema, "examples": named}}
    return {
        "response_model": None,
        "responses": {200: answer, **problems(*_TEXT_CODES)},
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": headers},
    }


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for errors with these codes."""
    return {code: {"model": ErrorBody, "description": _ERRORS[code], "headers": _headers(code)} for code in codes}


def _headers(code: int) -> dict[str, Any]:
    headers: dict[str, Any] = {"x-request-id": _ID}
    if code in (429, 503):
        headers |= _RETRY
    if code == 504:
        headers["x-should-retry"] = {"schema": {"type": "string", "enum": ["false"]}, "description": "Do not retry."}
    return headers


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with each definition where it is referred to: a document knows no definitions inside an endpoint."""
    definitions = schema.pop("$defs", {})

    def filled(part: Any) -> Any:
        if isinstance(part, list):
            return [filled(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return filled(definitions[part["$ref"].rpartition("/")[2]])
        return {name: filled(value) for name, value in part.items()}

    found: dict[str, Any] = filled(schema)
    return found
