"""The one message that Helm's engine sends as protobuf and not as JSON: the Secret that holds a release.

Field numbers are those of Kubernetes' k8s.io/api/core/v1/generated.proto and apimachinery's meta/v1.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

MAGIC = b"k8s\x00"


def secret(sent: bytes) -> dict[str, Any]:
    """A Secret as JSON would have it."""
    raw = dict(_fields(sent[len(MAGIC) :]))[2]
    meta: dict[str, Any] = {"labels": {}}
    made: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {}}
    for number, value in _fields(raw):
        if number == 1:
            for part, held in _fields(value):
                if part == 1:
                    meta["name"] = held.decode()
                elif part == 11:
                    label, word = _pair(held)
                    meta["labels"][label] = word.decode()
        elif number == 2:
            name, held = _pair(value)
            made["data"][name] = base64.b64encode(held).decode()
        elif number == 3:
            made["type"] = value.decode()
    return made


def _pair(entry: bytes) -> tuple[str, bytes]:
    fields = dict(_fields(entry))
    return fields.get(1, b"").decode(), fields.get(2, b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every field that has a length; plain numbers are passed over."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            _, at = _varint(message, at)
        else:
            length, at = _varint(message, at)
            yield key >> 3, message[at : at + length]
            at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
