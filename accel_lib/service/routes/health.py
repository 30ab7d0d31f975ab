"""Liveness, readiness and metrics: what a platform asks without a key."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from accel_lib.service.metrics import CONTENT_TYPE
from accel_lib.service.services import services

router = APIRouter(tags=["health"])
_TEXT = {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
_METRICS: dict[str, Any] = {
    "responses": {200: _TEXT}, "response_class": Response, "summary": "Prometheus metrics"
}  # fmt: skip


class Health(BaseModel):
    """As NVIDIA's NIM answers."""

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
    own = services(request)
    if own.limits.draining:
        health = Health(message="draining", ready=False)
    else:
        healthy = await asyncio.get_running_loop().run_in_executor(None, lambda: own.supervisor.ready)
        health = Health(message="ready" if healthy else "not ready", ready=healthy)
        own.metrics.ready.set(healthy)
    response.status_code = 200 if health.ready else 503
    return health


@router.get("/v1/metrics", **_METRICS)
@router.get("/metrics", **_METRICS)
async def metrics(request: Request) -> Response:
    """Everything that the gateway counts."""
    return Response(services(request).metrics.exposition(), media_type=CONTENT_TYPE)
