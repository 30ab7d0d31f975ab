"""Endpoints that say what the service is made of, what is served, and what went wrong lately."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Literal

import httpx
from fastapi import APIRouter, Depends, Request
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field

from accel_lib.checkup import Finding, doctor
from accel_lib.errors import StateError
from accel_lib.service.auth import require_role
from accel_lib.service.database import Database
from accel_lib.service.keys import ROLES, Principal, Role
from accel_lib.service.openapi import problems
from accel_lib.service.services import services
from accel_lib.service.supervisor import Incident
from accel_lib.version import __version__

router = APIRouter(tags=["status"])
_Viewer = Annotated[Principal, Depends(require_role("viewer"))]
_GPU_METRICS = {
    "nv_gpu_utilization": "utilization",
    "nv_gpu_memory_used_bytes": "memory_used_bytes",
    "nv_gpu_memory_total_bytes": "memory_total_bytes",
    "nv_gpu_power_usage": "power_w",
}  # as Triton's user guide describes them under "GPU Metrics"
_GPU_TIMEOUT_S = 1.0


@dataclasses.dataclass(frozen=True)
class Component:
    """One part of the service."""

    name: str
    ok: bool
    detail: str


class Gpu(BaseModel):
    """A GPU that Triton sees, as it is now; what its driver does not tell is null."""

    uuid: str
    utilization: float | None = Field(default=None, description="Share of the time in which it computed.")
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None


class Status(BaseModel):
    """The service as an operator looks at it."""

    object: Literal["status"] = "status"
    ready: bool
    roles: list[Role] = Field(description="What the key may do that asks.")
    gpus: list[Gpu] = Field(description="Of the machine that Triton runs on; none where it sees none.")
    components: list[Component]
    last_errors: list[Incident]
    doctor: list[Finding]


class ModelInfo(BaseModel):
    """A version that is served."""

    shortName: str  # noqa: N815
    source: str


class Metadata(BaseModel):
    """As NVIDIA's NIM describes itself."""

    version: str
    modelInfo: list[ModelInfo]  # noqa: N815


@dataclasses.dataclass(frozen=True)
class Release:
    """As NVIDIA's NIM gives its version."""

    release: str
    api: str


@router.get("/v1/status", responses=problems(401, 403))
def status(request: Request, who: _Viewer) -> Status:
    """Components, GPUs, the last errors, what the doctor says of this machine, and what the key may do."""
    own = services(request)
    supervisor = own.supervisor
    missing = supervisor.missing()
    components = [
        Component("triton", supervisor.running, f"started again {supervisor.restarts} times"),
        Component("models", not missing, f"missing: {', '.join(missing)}" if missing else "all answer"),
        _state(own.database),
    ]
    return Status(
        ready=all(part.ok for part in components[:2]) and not own.limits.draining,
        roles=[role for role in ROLES if role in who.roles],
        gpus=read_gpus(supervisor.server.metrics_url) if supervisor.running else [],
        components=components,
        last_errors=supervisor.incidents[::-1],
        doctor=_findings(),
    )


@router.get("/v1/metadata", responses=problems(401, 403))
def metadata(request: Request, _: _Viewer) -> Metadata:
    """What is served, in NIM's form."""
    versions = services(request).catalog.versions
    served = [ModelInfo(shortName=f"{each.name}:{each.version}", source=each.manifest.source) for each in versions]
    return Metadata(version=__version__, modelInfo=served)


@router.get("/v1/version", responses=problems(401, 403))
async def version(_: _Viewer) -> Release:
    """Of this gateway and of its interface."""
    return Release(release=__version__, api="1")


def read_gpus(metrics_url: str) -> list[Gpu]:
    """The GPUs that the Triton behind an address sees; none where it sees none or does not answer."""
    try:
        answer = httpx.get(metrics_url, timeout=_GPU_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return []
    return gpus_in(answer.text) if answer.status_code == 200 else []


def gpus_in(text: str) -> list[Gpu]:
    """The GPUs in Triton's metrics, in the order of their ids."""
    lines = [line for line in text.splitlines() if line.startswith("nv_gpu_")]
    seen: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.name in _GPU_METRICS:
                seen.setdefault(sample.labels["gpu_uuid"], {})[_GPU_METRICS[sample.name]] = sample.value
    return [Gpu.model_validate({"uuid": uuid} | seen[uuid]) for uuid in sorted(seen)]


def _state(database: Database) -> Component:
    try:
        database.read("SELECT 1")
    except StateError as error:
        return Component("state", ok=False, detail=error.cause)
    return Component("state", ok=True, detail="can be read")


@functools.cache
def _findings() -> list[Finding]:
    """Of the doctor; the machine stays what it is while the gateway runs."""
    return list(doctor().findings)
