"""Liveness, readiness and metrics: what a platform asks without a key."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from accel_lib.service.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])
_TEXT = {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}


class Health(BaseModel):
    """NIM's answer."""

    object: str = "health.response"
    message: str
    ready: bool


_READY: dict[str, Any] = {"responses": {503: {"model": Health, "description": "Not ready."}}}


@router.get("/v1/health/live")
async def live() -> Health:
    """Whether this process answers."""
    return Health(message="live", ready=True)


@router.get("/", **_READY)
@router.get("/health", **_READY)
@router.get("/v1/health/ready", **_READY)
async def ready(request: Request, response: Response) -> Health:
    """Whether Triton and every served model answer; asks them."""
    state = request.app.state
    if state.limits.draining:
        health = Health(message="draining", ready=False)
    else:
        well = await asyncio.get_running_loop().run_in_executor(None, lambda: state.supervisor.ready)
        health = Health(message="ready" if well else "not ready", ready=well)
        state.metrics.ready.set(well)
    response.status_code = 200 if health.ready else 503
    return health


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.exposition(), media_type=CONTENT_TYPE)


for _path in ("/v1/metrics", "/metrics"):
    _described: dict[str, Any] = {
        "responses": {200: _TEXT},
        "response_class": Response,
        "summary": "Prometheus metrics",
    }
    router.get(_path, **_described)(_metrics)
