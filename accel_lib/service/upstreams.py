"""OpenAI-compatible servers elsewhere, such as vLLM, as versions of models of this gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
import orjson

from accel_lib.artifact import Manifest
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.errors import Problem
from accel_lib.service.settings import Upstream
from accel_lib.triton.config import ModelConfig

_CONNECT_S = 5.0
_RETRY_S = 1.0
_LONGEST_EVENT_BYTES = 2**20
_LONGEST_MESSAGE = 500
_DATA = b"data:"
_DONE = b"[DONE]"
END = b""
_OURS = (400, 404, 413, 415, 429)  # what a client can do something about; the others say something of the upstream


class Upstreams:
    """The upstreams of one gateway, by the name of the model; the place in its list, from 1, is the version."""

    def __init__(self, upstreams: Mapping[str, Sequence[Upstream]]) -> None:
        self._upstreams = {
            (name, str(number)): each for name, many in upstreams.items() for number, each in enumerate(many, 1)
        }
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_CONNECT_S),  # the deadline is the request's
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    @property
    def versions(self) -> dict[tuple[str, str], ServedVersion]:
        """All of them, for the catalog."""
        return {place: _version(*place, each) for place, each in self._upstreams.items()}

    @property
    def names(self) -> set[str]:
        """The models that are elsewhere."""
        return {name for name, _ in self._upstreams}

    def call(self, served: ServedVersion, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> UpstreamCall:
        """A request to one of them; `path` is that of this gateway."""
        upstream = self._upstreams[served.name, served.version]
        key = upstream.key.get_secret_value()
        request = self._client.build_request(
            "POST",
            upstream.url.rstrip("/") + path.removeprefix("/v1"),
            content=orjson.dumps(body | {"model": served.manifest.model}),
            headers={
                **headers,
                "content-type": "application/json",
                "accept-encoding": "identity",  # a compressor holds events back
                **({"authorization": f"Bearer {key}"} if key else {}),
            },
        )
        return UpstreamCall(self._client, request)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _version(name: str, number: str, upstream: Upstream) -> ServedVersion:
    """As the catalog lists it: nothing of its files is here, so its text is made tokens of over there."""
    manifest = Manifest(
        model=upstream.model or name,
        source="an OpenAI-compatible upstream",
        task="generation",
        format="transformers",
        precision="",
        output_name="text",
        dimension=0,
        max_length=0,
    )
    return ServedVersion(
        name=name, version=number, manifest=manifest, config=ModelConfig(name=name), tokenizers={}, created_s=0
    )


class UpstreamCall:
    """What one request gets: its events without ``[DONE]``, or its body as the only one; `END` behind them."""

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request) -> None:
        self._client, self._request = client, request

    async def events(self) -> AsyncIterator[bytes | Problem]:
        """The JSON of each event as it comes, or of the whole answer; a failure is the last item."""
        try:
            answer = await self._client.send(self._request, stream=True)
            async with contextlib.aclosing(answer):
                if answer.status_code != 200:
                    yield _refusal(answer.status_code, await answer.aread(), answer.headers)
                elif answer.headers.get("content-type", "").startswith("text/event-stream"):
                    async for event in events_of(answer.aiter_raw()):
                        yield event
                else:
                    yield await answer.aread()
            yield END
        except httpx.HTTPError:
            yield _broken("The upstream does not answer now; try again soon.")

    def leave(self, reading: asyncio.Task[None]) -> None:
        """End what runs `events`: it closes the connection."""
        reading.cancel()


async def events_of(content: AsyncIterator[bytes]) -> AsyncIterator[bytes | Problem]:
    """The values of ``data:`` lines up to ``[DONE]``, however the bytes are cut; a stream without it is broken off.

    Lines end at a line feed and nowhere else: a text may hold U+2028, which other readers of lines cut at.
    """
    rest = b""
    async for part in content:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            value = line.removeprefix(_DATA).strip() if line.startswith(_DATA) else b""
            if value == _DONE:
                return
            if value:
                yield value
        if len(rest) > _LONGEST_EVENT_BYTES:
            break
    yield _broken("The upstream broke its stream off; send the request again.")


def _broken(message: str) -> Problem:
    return Problem(503, message, code="upstream_failed", retry_after_s=_RETRY_S)


def error_in(value: object) -> Problem | None:
    """The problem that an event, or the body of an answer, tells of instead of text."""
    error = value.get("error") if isinstance(value, dict) else None
    if error is None:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return _problem(code if isinstance(code, int) else 500, value)


def _refusal(status: int, body: bytes, headers: Mapping[str, str]) -> Problem:
    try:
        value = orjson.loads(body)
    except ValueError:
        value = None
    problem = _problem(status, value)
    problem.headers |= {name: headers[name] for name in ("Retry-After", "retry-after-ms") if name in headers}
    return problem


def _problem(status: int, value: Any) -> Problem:
    """What our client is told of an error there; a key of ours that is refused, or a failure, is not its mistake."""
    status = 400 if status == 422 else status
    if status in _OURS:
        error = value.get("error", value) if isinstance(value, dict) else {}
        known = error if isinstance(error, dict) else {}
        message = str(known.get("message") or "The upstream refuses this request.")[:_LONGEST_MESSAGE]
        param, code = (known.get(name) if isinstance(known.get(name), str) else None for name in ("param", "code"))
        retry_s = _RETRY_S if status == 429 else None
        return Problem(status, message, param=param, code=code or "upstream_refused", retry_after_s=retry_s)
    if status in (401, 403):
        return Problem(500, "The upstream refuses the gateway's key.", code="upstream_refused")
    return _broken("The upstream failed on this request; try again soon.")
