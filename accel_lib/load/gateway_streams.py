"""Asks a gateway that speaks OpenAI's protocol: chats, answered as server-sent events."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx

from accel_lib.artifact import Artifact
from accel_lib.errors import RequestError, require
from accel_lib.generate import Sampling
from accel_lib.load.generator import Send
from accel_lib.load.prompts import CharacterSource, LoadPrompt, TokenSource, passages
from accel_lib.load.streams import TIMED_OUT, Tokens, text_source

_PATH = "/v1/chat/completions"
_PROBES = (100, 1_100)  # characters


class GatewayTarget:
    """A gateway that speaks OpenAI's protocol: chats as server-sent events.

    Parameters
    ----------
    url, key
        Its address without a path, and the key it takes, if it takes one.
    model
        The name that it knows the model by.
    artifact
        Whose tokenizer cuts the prompts; without one the server is asked how many tokens two texts have.
    """

    def __init__(self, url: str, *, key: str = "", model: str = "generation", artifact: Artifact | None = None) -> None:
        self.url, self.name = url.rstrip("/").removesuffix("/v1"), model
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._artifact = artifact

    def source(self) -> TokenSource:
        """The passages, by the artifact's tokens or by characters."""
        if self._artifact is not None:
            return text_source(self._artifact)
        text = passages()
        short, long = (self._counted(text[:characters]) for characters in _PROBES)
        per_token = (_PROBES[1] - _PROBES[0]) / max(1, long - short)
        return CharacterSource(per_token, max(0, short - round(_PROBES[0] / per_token)))

    def _counted(self, text: str) -> int:
        """Tokens of a chat with this message, as the server counts them."""
        body = {"model": self.name, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        try:
            with httpx.Client(trust_env=False, timeout=60) as client:
                answer = client.post(self.url + _PATH, headers=self._headers, json=body)
        except httpx.TransportError as error:
            raise RequestError("The gateway cannot be reached.", seen=error, fix=f"start one at {self.url}") from error
        if answer.status_code != httpx.codes.OK:
            raise self.refused(answer.text)
        return int(answer.json()["usage"]["prompt_tokens"])

    def refused(self, body: str) -> RequestError:
        """The error for a response that is none."""
        fix = "name its model and key, and send what it takes: /v1/models lists the models"
        return RequestError("The gateway refused a request.", seen=_message(body), fix=fix)

    def payload(self, prompt: LoadPrompt, sampling: Sampling) -> Any:
        """Path, headers and body."""
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "ignore_eos": sampling.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        return _PATH, self._headers, json.dumps(body).encode()

    @contextlib.asynccontextmanager
    async def connect(self, url: str, timeout_s: float | None) -> AsyncIterator[Send]:
        """As many connections as there are streams."""
        aiohttp = require("aiohttp", extra="triton")
        limit = aiohttp.ClientTimeout(total=timeout_s)
        async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def send(payload: tuple[str, dict[str, str], bytes]) -> tuple[list[tuple[float, bytes]] | None, str]:
                path, headers, body = payload
                found: list[tuple[float, bytes]] = []
                try:
                    async with session.post(url + path, data=body, headers=headers) as response:
                        if response.status != httpx.codes.OK:
                            return None, _message(await response.text(errors="replace"))
                        async for content in response.content.iter_any():
                            found.append((time.perf_counter(), content))  # noqa: PERF401 (kept when it breaks off)
                except TimeoutError:
                    return found, TIMED_OUT
                except (aiohttp.ClientError, OSError) as error:
                    return found, f"Connection: {error}"
                return found, ""

            yield send

    def read(self, answer: Any, refusal: str) -> Tokens:
        """Read chunks: one with text holds the tokens that its usage counts more than the one before, else one."""
        times_s: list[float] = []
        counts: list[int] = []
        end_s, prompt_tokens = float("nan"), None
        usage: dict[str, Any] = {}
        error = "No answer came in time." if refusal == TIMED_OUT else refusal
        for time_s, chunk in _chunks(answer or ()):
            if "error" in chunk:
                error = _message(json.dumps(chunk))
                break
            usage = chunk.get("usage") or {}
            prompt_tokens = usage.get("prompt_tokens", prompt_tokens)
            for choice in chunk.get("choices", ()):
                finished = bool(choice.get("finish_reason"))
                if (choice.get("delta") or {}).get("content") or finished:
                    end_s = time_s
                    new = usage.get("completion_tokens", sum(counts) + (not finished)) - sum(counts)
                    if new > 0:
                        times_s.append(time_s)
                        counts.append(new)
        if counts and (missed := usage.get("completion_tokens", 0) - sum(counts)) > 0:  # counted at the end only
            counts[-1] += missed
        return Tokens(times_s=times_s, counts=counts, end_s=end_s, prompt_tokens=prompt_tokens, error=error)


def _chunks(answer: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, dict[str, Any]]]:
    """The JSON of each server-sent event, with the time at which it was whole."""
    rest = b""
    for time_s, content in answer:
        *lines, rest = (rest + content).split(b"\n")
        for line in lines:
            value = line.strip().removeprefix(b"data:").strip()
            if value.startswith(b"{"):
                yield time_s, json.loads(value)


def _message(body: str) -> str:
    """What an error's JSON says, in OpenAI's shape or in another one."""
    with contextlib.suppress(ValueError, AttributeError):
        error = json.loads(body).get("error", {})
        return str(error.get("message") or body)[:300]
    return body[:300]
