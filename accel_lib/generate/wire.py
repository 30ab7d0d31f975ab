"""How a request to generate crosses Triton: names of tensors, the sampling as a request parameter, codes of an ending.

Both sides use it, the model in Triton and its clients; it knows neither of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from accel_lib.errors import RequestError
from accel_lib.generate import Finish, Sampling

PROMPT_IDS = "input_ids"  # int64 [tokens]
SAMPLING = "sampling"  # request parameter, JSON of the fields of `Sampling`
CANCEL = "cancel"  # request parameter in its place: the id of a request that is to end; this one is not answered
TOKEN_IDS = "token_ids"  # int64 [new tokens]  # noqa: S105 (no password)
FINISH = "finish"  # int32 [1], an index of `FINISHES`
LOGPROBS = "logprobs"  # float32 [new tokens]; this and the next two only where they were asked for
TOP_IDS = "top_ids"  # int64 [new tokens, alternatives], -1 where there are fewer
TOP_LOGPROBS = "top_logprobs"  # float32 [new tokens, alternatives]
OUTPUTS = (
    (TOKEN_IDS, "INT64", (-1,)),
    (FINISH, "INT32", (1,)),
    (LOGPROBS, "FP32", (-1,)),
    (TOP_IDS, "INT64", (-1, -1)),
    (TOP_LOGPROBS, "FP32", (-1, -1)),
)  # name, Triton's data type, shape
FINISHES: tuple[Finish | None, ...] = (None, "stop", "length", "cancelled")

_FIELDS = {field.name: field for field in dataclasses.fields(Sampling)}
_NUMBERS = ("temperature", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_FIX = f'send the request parameter {SAMPLING!r} as JSON: {{"max_tokens": 16}}'


def sampling_to_json(sampling: Sampling) -> str:
    """The fields that differ from their defaults."""
    values = dataclasses.asdict(sampling)
    return json.dumps({name: value for name, value in values.items() if value != _FIELDS[name].default})


def sampling_from_json(text: str) -> Sampling:
    """Read what `sampling_to_json` wrote; raises `RequestError` for anything that is no sampling."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RequestError("The sampling is not JSON.", seen=text[:80], fix=_FIX) from error
    if not isinstance(values, dict) or "max_tokens" not in values or not values.keys() <= _FIELDS.keys():
        fields = ", ".join(_FIELDS)
        raise RequestError(f"A sampling has max_tokens and any of {fields}.", seen=text[:80], fix=_FIX)
    for name, value in values.items():
        if not _fits(name, value):
            raise RequestError(f"{name} has a value that it cannot have.", seen=f"{name}={value!r}"[:80], fix=_FIX)
    return Sampling(**{**values, "stop_ids": tuple(values.get("stop_ids", ()))})


def _fits(name: str, value: Any) -> bool:
    if name in _NUMBERS:
        return type(value) in (int, float) and math.isfinite(value)
    if name == "stop_ids":
        return isinstance(value, list) and all(type(each) is int for each in value)
    if name == "json_schema":
        return isinstance(value, str)
    if name == "ignore_eos":
        return isinstance(value, bool)
    return type(value) is int or (value is None and _FIELDS[name].default is None)
