"""ASGI middleware: what happens to every HTTP request before and after its handler.

It gives the request an id and a deadline, reads its body within bounds (and keeps nothing of it for a caller without a
key), refuses while the gateway drains, ends the work when the client is gone, answers HEAD where GET is, and leaves one
line of log and the metrics. No text is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from accel_lib.errors import StateError
from accel_lib.service.bodies import Bodies, ClientGoneError
from accel_lib.service.connection import ON_LOST
from accel_lib.service.errors import Problem
from accel_lib.service.limits import Deadline
from accel_lib.service.services import Services

DEADLINE_HEADER = "x-request-timeout-ms"
_OPENAI_DEADLINE_HEADER = "x-stainless-read-timeout"  # seconds; sent by the openai client with every request
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_ALWAYS_OPEN = ("/health", "/v1/health/live", "/v1/health/ready", "/v1/metrics", "/metrics")
_DRAIN_RETRY_S = 1.0
_CLIENT_GONE = 499  # nginx's number for it; only in the log and the metrics

log = logging.getLogger("accel.gateway")


@dataclasses.dataclass(kw_only=True)
class RequestContext:
    """What is known of one request, in ``request.state.context``; handlers fill in what only they know.

    Parameters
    ----------
    model, version
        That answered.
    inputs, tokens
        Texts, and tokens of all of them.
    stages_s
        Seconds by stage: tokenize, queue, inference.
    """

    request_id: str
    deadline: Deadline
    model: str = ""
    version: str = ""
    inputs: int = 0
    tokens: int = 0
    stages_s: dict[str, float] = dataclasses.field(default_factory=dict)


class GatewayMiddleware:
    """Wraps the app; the server and `Services` are all that it knows."""

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self._app, self._services = app, services
        self._settings, self._clock = services.settings, services.clock
        self._bodies = Bodies(services.settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, headers, method = self._clock(), MutableHeaders(scope=scope), scope["method"]
        headers["content-type"] = "application/json"  # as every body is, whatever curl -d says of it
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the server keeps the body to itself
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        deadline = Deadline(began + self._settings.deadline_s, self._clock)
        context = RequestContext(request_id=request_id, deadline=deadline)
        scope.setdefault("state", {})["context"] = context
        status = 0

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                out["x-total-time"] = f"{(self._clock() - began) * 1e3:.3f}"
                if self._services.limits.draining:
                    out["connection"] = "close"
            await send(message)

        try:
            known = self._identify(scope, headers)
            context.deadline = self._deadline(headers, began, known=known)
            with self._services.telemetry.request(f"{method} {scope['path']}", headers, request_id):
                async with self._bodies.reading(receive, headers, context.deadline, keep=known) as body:
                    self._check_open(scope)  # once all is read, as for every refusal
                    await self._answer(scope, body, receive, respond)
        except Problem as problem:
            await problem.response()(scope, receive, respond)
        except ClientGoneError:
            status = status or _CLIENT_GONE
        except Exception:
            log.exception("unforeseen", extra={"request_id": request_id})
            if not status:
                message = "The gateway failed on this request; its log has the cause."
                await Problem(500, message, code="internal").response()(scope, receive, respond)
        finally:
            self._record(scope, method, context, status or _CLIENT_GONE, self._clock() - began)

    def _identify(self, scope: Scope, headers: Headers) -> bool:
        """Whether the caller has a key; one that sends no body is asked for it by the handlers that need it."""
        if not int(headers.get("content-length") or 0) and "transfer-encoding" not in headers:
            return True
        with contextlib.suppress(Problem, StateError):  # which the handler raises again, once it finds no caller
            scope["state"]["caller"] = self._services.auth.identify(headers)
            return True
        return False

    def _deadline(self, headers: Headers, began: float, *, known: bool) -> Deadline:
        """What the client's headers ask for, at most what the settings allow; without a key, no more than usual."""
        seconds = _positive(headers.get(_OPENAI_DEADLINE_HEADER)) or self._settings.deadline_s
        if DEADLINE_HEADER in headers:
            asked_ms = _positive(headers[DEADLINE_HEADER])
            if asked_ms is None:
                message = f"{DEADLINE_HEADER} is a number of milliseconds above 0."
                raise Problem(400, message, param=DEADLINE_HEADER, code="invalid_header")
            seconds = asked_ms / 1e3
        most = self._settings.max_deadline_s if known else self._settings.deadline_s
        return Deadline(began + min(seconds, most), self._clock)

    def _check_open(self, scope: Scope) -> None:
        if self._services.limits.draining and scope["path"] not in _ALWAYS_OPEN:
            raise Problem(503, "The gateway is shutting down.", code="draining", retry_after_s=_DRAIN_RETRY_S)
        if scope["server"][1] == self._services.metrics_port and scope["path"] != "/metrics":
            raise Problem(404, "This port shows /metrics only.")

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the handler; its work ends when the client is gone, as `ClientGoneError`."""
        lost = scope["state"].get(ON_LOST)
        work, gone = asyncio.current_task(), False
        finished = scope["method"] != "POST" or "/models/" in scope["path"]  # what changes a model is, in any case
        if lost is None or work is None or finished:
            await self._app(scope, _replay(body, receive), send)
            return

        def end() -> None:
            nonlocal gone
            gone = True
            work.cancel()

        lost.add(end)
        try:
            await self._app(scope, _replay(body, receive), send)
        except asyncio.CancelledError as error:
            if not gone:
                raise
            work.uncancel()
            raise ClientGoneError from error
        finally:
            lost.discard(end)

    def _record(self, scope: Scope, method: str, context: RequestContext, status: int, seconds: float) -> None:
        """Count the request, and log it in one line."""
        endpoint, metrics = getattr(scope.get("route"), "path", "none"), self._services.metrics
        labels = (endpoint, context.model, context.version)
        metrics.request_duration.labels(*labels).observe(seconds)
        metrics.requests.labels(*labels, str(status)).inc()
        if context.stages_s:
            for stage, spent in (context.stages_s | {"total": seconds}).items():
                metrics.stage_duration.labels(stage, context.model).observe(spent)
        fields = {
            "request_id": context.request_id,
            "method": method,
            "endpoint": endpoint,
            "status": status,
            "ms": round(seconds * 1e3, 3),
            "principal": getattr(scope["state"].get("principal"), "id", ""),
            "model": context.model,
            "version": context.version,
            "inputs": context.inputs,
            "tokens": context.tokens,
        } | {f"{stage}_ms": round(spent * 1e3, 3) for stage, spent in context.stages_s.items()}
        log.info("request", extra={key: value for key, value in fields.items() if value != ""})


def _positive(text: str | None) -> float | None:
    """The number above zero that a header holds, or None."""
    with contextlib.suppress(ValueError):
        value = float(text or "")
        return value if math.isfinite(value) and value > 0 else None
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body at once, and afterwards what comes."""
    left = [body]

    async def replay() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replay
