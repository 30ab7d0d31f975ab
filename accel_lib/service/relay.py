"""A request to generate that an upstream answers: its body as it came, its events as they come, the gateway's rules.

Keys, quotas, deadlines, experiments, metrics and logs are the gateway's, as for a model in Triton. What a request may
hold is the upstream's affair. Of an answer that is no stream nothing is seen before its end, so that is its deadline.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
from fastapi import Request, Response

from accel_lib.service.abtest.routing import Route
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.errors import Problem
from accel_lib.service.keys import Principal
from accel_lib.service.middleware import RequestContext
from accel_lib.service.services import Services
from accel_lib.service.streaming import EventStream
from accel_lib.service.upstreams import END, UpstreamCall, error_in
from accel_lib.service.validation import read_json
from accel_lib.service.watch import Watch, merged

_USAGE = "stream_options"
_READ = {"user": (str, "a text"), "stream": (bool, "true or false"), _USAGE: (dict, "an object")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relayed:
    """A request for an upstream."""

    services: Services
    context: RequestContext
    caller: Principal
    body: dict[str, Any]
    path: str

    @property
    def model(self) -> str:
        """The name of the model, of the only one that generates if the request names none."""
        return str(self.body.get("model") or self.services.catalog.only("generation"))

    @property
    def user(self) -> str | None:
        """Whom the request is for."""
        user: str | None = self.body.get("user")
        return user

    async def respond(self, served: ServedVersion, route: Route, headers: dict[str, str]) -> Response:
        """The upstream's answer, or its events as they come."""
        context, own = self.context, self.services
        context.model, context.version, context.inputs = served.name, served.version, 1
        own.limits.charge(self.caller.id, 0)  # who owes tokens waits; how many these are is known at the end
        if self.body.get("stream"):
            return await EventStream.opened(self._events(served, route), headers)
        with self._watched(served, route) as (watch, call):
            async with merged([call], watch):
                _, content = await watch.next()
            answer = _json(content)
            if (problem := error_in(answer)) is not None:
                raise problem
            _count(watch, answer)
            for choice in _choices(answer):
                watch.finished(str(choice.get("finish_reason")))
        return Response(content, media_type="application/json", headers=headers)

    async def _events(self, served: ServedVersion, route: Route) -> AsyncIterator[bytes]:
        wanted = bool((self.body.get(_USAGE) or {}).get("include_usage"))
        with self._watched(served, route) as (watch, call):
            async with merged([call], watch):
                while (content := (await watch.next())[1]) != END:
                    value = _json(content)
                    if (problem := error_in(value)) is not None:
                        raise problem
                    choices = _choices(value)
                    for choice in choices:
                        watch.tokens(int(choice.get("index") or 0), int(_has_text(choice)))
                        if choice.get("finish_reason"):
                            watch.finished(str(choice["finish_reason"]))
                    _count(watch, value)
                    if choices or wanted:
                        yield b"data: " + content + b"\n\n"

    @contextlib.contextmanager
    def _watched(self, served: ServedVersion, route: Route) -> Iterator[tuple[Watch[bytes], UpstreamCall]]:
        own = self.services
        watch: Watch[bytes] = Watch(own, self.context, self.caller, served.name)
        with (
            own.experiments.observed(route, 1) as compute,
            own.limits.in_flight_slot(served.name),
            own.telemetry.span("upstream") as trace,
            watch,
        ):
            ids = {"x-request-id": self.context.request_id, **dict(trace)}
            try:
                yield watch, own.upstreams.call(served, self.path, self._asked(), ids)
            finally:
                own.limits.spend(self.caller.id, watch.prompt_tokens)
            compute.ms = watch.seconds * 1e3
        if route.experiment:
            own.metrics.exposures.labels(route.experiment, route.version).inc()

    def _asked(self) -> dict[str, Any]:
        """The body; a stream says its usage at the end in any case, as the quota is by tokens."""
        if not self.body.get("stream"):
            return self.body
        return self.body | {_USAGE: (self.body.get(_USAGE) or {}) | {"include_usage": True}}


def asked(request: Request, caller: Principal, own: Services) -> Relayed | None:
    """The request if its model is elsewhere; raises the `Problem` 400 for a field of it that is read here."""
    if not own.upstreams.names:
        return None
    context: RequestContext = request.state.context
    body = read_json(context.body)
    if not isinstance(body, dict) or not isinstance(body.get("model"), str | None):
        return None
    if (body.get("model") or own.catalog.only("generation")) not in own.upstreams.names:
        return None
    try:
        orjson.loads(context.body)  # stricter than what has just read it
    except ValueError as error:
        message = "The body holds a lone surrogate, or a number that is none, such as NaN."
        raise Problem(400, message, code="invalid_json") from error
    for name, (kind, expected) in _READ.items():
        if body.get(name) is not None and not isinstance(body[name], kind):
            raise Problem(400, f"{name} must be {expected}.", param=name, code="wrong_type")
    if body.get(_USAGE) is not None and not body.get("stream"):
        raise Problem(400, "stream_options goes with stream=true only.", param=_USAGE, code="invalid_value")
    return Relayed(services=own, context=context, caller=caller, body=body, path=request.url.path)


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError as error:
        raise Problem(500, "The upstream answers with something else than JSON.", code="upstream_failed") from error


def _choices(value: Any) -> list[dict[str, Any]]:
    choices = value.get("choices") if isinstance(value, dict) else None
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(delta[name] for name in delta if name != "role")


def _count(watch: Watch[bytes], value: Any) -> None:
    """Take the tokens that the upstream counted, where it says them."""
    usage = value.get("usage") if isinstance(value, dict) else None
    if isinstance(usage, dict):
        watch.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        watch.generated = int(usage.get("completion_tokens") or 0)
