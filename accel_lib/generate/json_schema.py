"""What a JSON schema may hold here: a part of the standard that every engine with grammars is known to keep to.

A schema that OpenVINO's grammars do not know ends its whole pipeline, with everybody's requests, so each one is read
first. References are put in place; titles and the like say nothing of the text and are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from accel_lib.errors import RequestError

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NOTES = ("$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples", "strict")
_REFERENCE = "$ref"
_MOST_DEPTH = 16
_MOST_PARTS = 512
_PLAIN = re.compile(r"[^\x00-\x1f\"\\\ud800-\udfff]{0,200}")  # what grammars need no escapes for; some get those wrong
_FIX = "leave it out, or describe the text in words"


def normalized(text: str) -> str:
    """The same schema with only what is honoured, as JSON.

    Raises
    ------
    RequestError
        It is no schema, holds what is not honoured, refers to itself, or is too large.
    """
    try:
        schema = json.loads(text)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise RequestError("The JSON schema is not JSON.", seen=str(error)[:80], fix=_FIX) from error
    return json.dumps(_Reader(schema).read(schema, 0))


class _Reader:
    """Reads one schema, part by part."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._parts = 0
        self._keywords: dict[str, Callable[[Any, int], Any]] = {
            "type": self._type,
            "properties": self._properties,
            "required": self._names,
            "additionalProperties": self._boolean,
            "items": lambda value, depth: self.read(value, depth + 1),
            "enum": self._values,
            "const": self._value,
            "anyOf": self._alternatives,
        }

    def read(self, schema: Any, depth: int) -> dict[str, Any]:
        """One schema inside the whole."""
        self._parts += 1
        if depth > _MOST_DEPTH or self._parts > _MOST_PARTS:
            raise RequestError("The JSON schema is too large, or refers to itself.", fix="a flatter, smaller one")
        if not isinstance(schema, dict):
            raise _refused("a schema is an object", schema)
        if _REFERENCE in schema:
            return self.read(self._referred(schema[_REFERENCE]), depth + 1)
        unknown = sorted(schema.keys() - self._keywords.keys() - set(_NOTES))
        if unknown:
            raise RequestError("The JSON schema holds what is not honoured here.", seen=unknown[0][:80], fix=_FIX)
        found = {name: self._keywords[name](schema[name], depth) for name in self._keywords if name in schema}
        missing = set(found.get("required", ())) - set(found.get("properties", {}))
        if missing:
            raise _refused("required names properties", min(missing))
        return found

    def _referred(self, reference: Any) -> Any:
        found = self._root
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise _refused("a reference is to a part of the same schema, as #/$defs/name", reference)
        for step in reference.removeprefix("#/").split("/"):
            if not isinstance(found, Mapping) or step not in found:
                raise _refused("a reference is to a part of the same schema", reference)
            found = found[step]
        return found

    def _type(self, value: Any, _: int) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or any(name not in _TYPES for name in names) or len(set(names)) < len(names):
            raise _refused(f"type is one or several of {', '.join(_TYPES)}", value)
        return value

    def _properties(self, value: Any, depth: int) -> Any:
        if not isinstance(value, dict):
            raise _refused("properties is an object", value)
        return {_plain(name): self.read(each, depth + 1) for name, each in value.items()}

    def _names(self, value: Any, _: int) -> Any:
        if not isinstance(value, list) or any(not isinstance(each, str) for each in value):
            raise _refused("required is a list of names", value)
        return value

    def _boolean(self, value: Any, _: int) -> Any:
        if not isinstance(value, bool):
            raise _refused("additionalProperties is true or false", value)
        return value

    def _value(self, value: Any, _: int) -> Any:
        if not isinstance(value, str | int | float | None):
            raise _refused("a value is a text, a number, true, false or null", value)
        return _plain(value) if isinstance(value, str) else value

    def _values(self, value: Any, depth: int) -> Any:
        if not isinstance(value, list) or not 0 < len(value) <= _MOST_PARTS:
            raise _refused(f"enum has 1 to {_MOST_PARTS} values", value)
        return [self._value(each, depth) for each in value]

    def _alternatives(self, value: Any, depth: int) -> Any:
        if not isinstance(value, list) or not value:
            raise _refused("anyOf is a list of schemas", value)
        return [self.read(each, depth + 1) for each in value]


def _plain(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise _refused(
            "names and values have no quotes, backslashes and control characters, and at most 200 others", text
        )
    return text


def _refused(rule: str, seen: Any) -> RequestError:
    return RequestError(f"The JSON schema is not one: {rule}.", seen=repr(seen)[:80], fix=_FIX)
