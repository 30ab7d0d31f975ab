"""Generates with a model that Triton serves, from a notebook cell: text whole, or piece by piece."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_lib.artifact import MANIFEST_FILE, Manifest
from accel_lib.errors import RequestError, require
from accel_lib.generate import Event, Sampling
from accel_lib.models.generation_text import GenerationText
from accel_lib.triton.calls import LEAVE_S, STREAM_METHOD
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.generation_wire import read_event, request_bytes

Prompt = str | Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A version of a served model: its artifact's folder here, where Triton listens, and whether that batches it."""

    name: str
    version: str
    folder: Path
    grpc_url: str
    batched: bool = False


def generate(target: Target, prompt: Prompt, *, stop: Sequence[str], options: Mapping[str, Any]) -> Iterator[str]:
    """Pieces of the text; what is wrong with the request is raised before the first one."""
    manifest = Manifest.from_json((target.folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    if manifest.task != "generation":
        raise RequestError(
            f"{target.name} does not generate.", seen=f"a model for {manifest.task}", fix=".encode(texts)"
        )
    text = GenerationText(target.folder, manifest)
    ids = text.text_ids(prompt) if isinstance(prompt, str) else text.chat_ids(prompt)
    sampling = _sampling(options, text.context_tokens - len(ids))
    messages = request_bytes(target.name, target.version, ids, sampling, batched=target.batched)
    return _pieces(target, messages, text, stop)


def _sampling(options: Mapping[str, Any], left: int) -> Sampling:
    known = Sampling.__dataclass_fields__
    unknown = sorted(options.keys() - known)
    if unknown:
        raise RequestError("There is no such option.", seen=", ".join(unknown), fix=f"choose from {', '.join(known)}")
    chosen = dict(options)
    if chosen.get("max_tokens") is None:
        chosen["max_tokens"] = max(1, left)
    return Sampling(**chosen)


def _pieces(
    target: Target, messages: tuple[bytes, bytes | None], text: GenerationText, stop: Sequence[str]
) -> Iterator[str]:
    answer = text.answer(stop)
    for event in _events(target, *messages):
        ids = event.token_ids[:-1] if event.finish == "stop" else event.token_ids
        piece = answer.push(ids, last=event.ended)
        if piece:
            yield piece
        if event.ended or answer.stopped:
            return


def _events(target: Target, request: bytes, cancel: bytes | None) -> Iterator[Event]:
    """What Triton sends; when nobody reads on, the request is cancelled, as in `accel_lib.triton.calls`."""
    grpc = require("grpc", extra="triton")
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    messages.put(request)
    ended = False
    with grpc.insecure_channel(target.grpc_url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.stream_stream(STREAM_METHOD)(iter(messages.get, None))
        try:
            for content in call:
                event = read_event(content)
                ended = event.ended
                if event.error:
                    raise request_error(target.name, event.error)
                yield event
                if ended:
                    return
        except grpc.RpcError as error:
            raise request_error(target.name, f"{error.code()}: {error.details()}") from error
        finally:
            messages.put(None if ended else cancel)
            messages.put(None)
            late = threading.Timer(LEAVE_S if ended or cancel else 0, call.cancel)
            late.start()
            with contextlib.suppress(grpc.RpcError):
                collections.deque(call, maxlen=0)
            late.cancel()
