"""The endpoints that say what the service is made of, what is served, and what went wrong lately."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from accel_lib.checkup import doctor
from accel_lib.errors import StateError
from accel_lib.service.auth import Principal, needs
from accel_lib.service.describe import problems
from accel_lib.service.gpus import read_gpus
from accel_lib.service.keys import ROLES
from accel_lib.service.operate_schemas import (
    Check,
    Component,
    Metadata,
    ModelInfo,
    Release,
    StatusView,
    Trouble,
)
from accel_lib.service.served import Catalogue
from accel_lib.service.state import State
from accel_lib.service.supervisor import Supervisor
from accel_lib.version import __version__

router = APIRouter(tags=["status"])
_Viewer = Annotated[Principal, Depends(needs("viewer"))]


@router.get("/v1/status", responses=problems(401, 403))
def status(request: Request, who: _Viewer) -> StatusView:
    """Components, GPUs, the last errors, what the doctor says of this machine, and what the key may do."""
    app = request.app.state
    supervisor: Supervisor = app.supervisor
    missing = supervisor.missing()
    parts = [
        Component(name="triton", ok=supervisor.running, detail=f"started again {supervisor.restarts} times"),
        Component(name="models", ok=not missing, detail=f"missing: {', '.join(missing)}" if missing else "all answer"),
        _state(app.state),
    ]
    return StatusView(
        ready=all(part.ok for part in parts[:2]) and not app.limits.draining,
        roles=[role for role in ROLES if role in who.roles],
        gpus=read_gpus(supervisor.server.metrics_url) if supervisor.running else [],
        components=parts,
        last_errors=[Trouble(at=int(each.at_s), what=each.what) for each in reversed(supervisor.incidents)],
        doctor=list(_doctor()),
    )


@router.get("/v1/metadata", responses=problems(401, 403))
def metadata(request: Request, _: _Viewer) -> Metadata:
    """What is served, in NIM's form."""
    catalogue: Catalogue = request.app.state.catalogue
    served = [
        ModelInfo(shortName=f"{each.name}:{each.version}", source=each.manifest.source) for each in catalogue.versions
    ]
    return Metadata(version=__version__, modelInfo=served)


@router.get("/v1/version", responses=problems(401, 403))
async def version(_: _Viewer) -> Release:
    """Of this gateway and of its interface."""
    return Release(release=__version__, api="1")


def _state(state: State) -> Component:
    try:
        state.read("SELECT 1")
    except StateError as error:
        return Component(name="state", ok=False, detail=error.cause)
    return Component(name="state", ok=True, detail="can be read")


@functools.cache
def _doctor() -> tuple[Check, ...]:
    """The machine stays what it is while the gateway runs."""
    return tuple(Check(what=f.what, seen=f.seen, state=f.state, fix=f.fix) for f in doctor().findings)
