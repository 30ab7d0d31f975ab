"""Asks a model that generates in a running Triton: raw gRPC streams over one channel."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from accel_lib.errors import RequestError, require
from accel_lib.generate import Sampling
from accel_lib.load.generator import CLOSE_S, Send
from accel_lib.load.prompts import LoadPrompt, TokenSource
from accel_lib.load.streams import Tokens, of_events, text_source
from accel_lib.triton.calls import GenerationStream
from accel_lib.triton.client import ServedModel
from accel_lib.triton.generation_wire import is_last, read_event, request_bytes


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
        """A serialized message, and the one that ends it."""
        return request_bytes(self.name, self._version, prompt.token_ids, sampling, batched=self._batched)

    @contextlib.asynccontextmanager
    async def connect(self, url: str, timeout_s: float | None) -> AsyncIterator[Send]:
        """One channel for all streams."""
        grpc = require("grpc.aio", extra="triton")
        async with grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:

            async def send(payload: tuple[bytes, bytes | None]) -> tuple[list[tuple[float, bytes]], str]:
                stream = GenerationStream(channel, *payload)
                found: list[tuple[float, bytes]] = []

                async def read() -> str:
                    try:
                        async for content in stream.contents():
                            found.append((time.perf_counter(), content))
                            if is_last(content):
                                stream.ended()
                    except grpc.AioRpcError as error:
                        return str(error.details() or error.code().name)
                    return ""

                reading = asyncio.create_task(read())
                try:
                    await asyncio.wait({reading}, timeout=timeout_s)
                finally:
                    stream.leave(reading)
                return found, reading.result() if reading.done() else "Deadline Exceeded"

            yield send
            await channel.close(CLOSE_S)

    def read(self, answer: Any, refusal: str) -> Tokens:
        """Each message is an event of the engine."""
        return of_events(self.name, ((time_s, read_event(content)) for time_s, content in answer or ()), refusal)
