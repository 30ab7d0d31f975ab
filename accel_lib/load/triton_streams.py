"""Asks a model that generates in a running Triton: raw gRPC streams over one channel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from accel_lib.errors import RequestError, require
from accel_lib.generate import Sampling
from accel_lib.load.generator import Send
from accel_lib.load.prompts import LoadPrompt, TokenSource
from accel_lib.load.streams import Tokens, of_events, text_source
from accel_lib.triton.client import ServedModel
from accel_lib.triton.generation_wire import STREAM_METHOD, read_event, request_bytes


class TritonTarget:
    """A model that generates in a running Triton: raw gRPC streams."""

    def __init__(self, served: ServedModel) -> None:
        artifact = served.artifact
        if artifact.manifest.task != "generation":
            raise RequestError(
                f"{served.name} does not generate.",
                seen=f"a model for {artifact.manifest.task}",
                fix="accel_lib.load_test(served, texts) measures it",
            )
        self.name, self.url = served.name, served.server.grpc_url
        self._version, self._artifact = served.version, artifact
        self._batched = served.config.max_batch_size > 0

    def source(self) -> TokenSource:
        """The passages in the model's tokens."""
        return text_source(self._artifact)

    def payload(self, prompt: LoadPrompt, sampling: Sampling) -> Any:
        """A serialized message."""
        return request_bytes(self.name, self._version, prompt.token_ids, sampling, batched=self._batched)

    @contextlib.asynccontextmanager
    async def connect(self, url: str, timeout_s: float | None) -> AsyncIterator[Send]:
        """One channel for all streams."""
        grpc = require("grpc.aio", extra="triton")
        async with grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = channel.stream_stream(STREAM_METHOD)

            async def send(payload: bytes) -> tuple[list[tuple[float, bytes]], str]:
                call = stub(timeout=timeout_s)
                found: list[tuple[float, bytes]] = []
                try:
                    await call.write(payload)
                    await call.done_writing()
                    while (content := await call.read()) is not grpc.EOF:
                        found.append((time.perf_counter(), content))
                except grpc.AioRpcError as error:
                    return found, error.details() or error.code().name
                finally:
                    call.cancel()
                return found, ""

            yield send

    def read(self, answer: Any, refusal: str) -> Tokens:
        """Each message is an event of the engine."""
        return of_events(self.name, ((time_s, read_event(content)) for time_s, content in answer or ()), refusal)
