"""Endpoints for those who run the service: models, batching, experiments and the audit log.

They talk to Triton and to the disk, so they are plain functions, which FastAPI runs in its thread pool.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from accel_lib.errors import RequestError, ServerError
from accel_lib.service import admin_schemas as schemas
from accel_lib.service.abtest.experiments import ExperimentView
from accel_lib.service.abtest.routing import Plan
from accel_lib.service.auth import require_role
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.database import Database
from accel_lib.service.errors import Problem
from accel_lib.service.keys import Principal
from accel_lib.service.openapi import problems
from accel_lib.service.services import Services, services
from accel_lib.service.supervisor import Served, Supervisor
from accel_lib.triton.repository import model_names

router = APIRouter(tags=["operation"])
_Viewer = Annotated[Principal, Depends(require_role("viewer"))]
_Operator = Annotated[Principal, Depends(require_role("operator"))]
_Admin = Annotated[Principal, Depends(require_role("admin"))]
_Model = Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200, examples=["embedding"])]
_Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", examples=["int8"])]
_RETRY_S = 2.0
_ONE_AT_A_TIME = threading.Lock()


@router.get("/v1/models", responses=problems(400, 401, 403, 503))
def models(request: Request, _: _Viewer) -> schemas.ModelList:
    """Every model that Triton knows."""
    own = services(request)
    triton = _triton(request)
    with _triton_errors():
        names = sorted({each.model for each in triton.versions()} | own.upstreams.names)
        return schemas.ModelList(data=[_view(own, name) for name in names])


@router.get("/v1/models/{model}", responses=problems(400, 401, 403, 404, 503))
def model(request: Request, model: _Model, _: _Viewer) -> schemas.ModelView:
    """One model and the state of its versions."""
    own = services(request)
    _triton(request, "" if model in own.upstreams.names else model)
    with _triton_errors():
        return _view(own, model)


@router.post("/v1/models/{model}/load", responses=problems(400, 401, 403, 404, 409, 503))
def load(request: Request, model: _Model, who: _Operator) -> schemas.ModelView:
    """Load a model, or load it again from its files; the loaded one answers until then, and if this fails."""
    triton = _triton(request, model)
    with _acting(request, who, "load", model):
        triton.load(model)
        services(request).catalog.refresh()
        return _view(services(request), model)


@router.post("/v1/models/{model}/unload", responses=problems(400, 401, 403, 404, 409, 503))
def unload(request: Request, model: _Model, who: _Operator) -> schemas.ModelView:
    """Unload a model; the service is not ready until it is loaded again."""
    triton = _triton(request, model)
    with _acting(request, who, "unload", model):
        triton.unload(model)
        services(request).catalog.refresh()
        return _view(services(request), model)


@router.get("/v1/models/{model}/batching", responses=problems(400, 401, 403, 404, 503))
def batching_now(request: Request, model: _Model, _: _Viewer) -> schemas.Batching:
    """How a model is batched now."""
    return schemas.Batching.of(model, _triton(request, model).server.config(model))


@router.put("/v1/models/{model}/batching", responses=problems(400, 401, 403, 404, 409, 503))
def batching(request: Request, model: _Model, change: schemas.BatchingChange, who: _Operator) -> schemas.Batching:
    """Change how a model is batched, from now on and after every restart; it answers meanwhile."""
    triton, settings, own = _triton(request, model), change.settings(), services(request)
    with _acting(request, who, "batching", model, **settings):
        config = triton.configure(model, settings)
        saved = json.dumps(triton.settings(model))
        own.database.write("INSERT OR REPLACE INTO batching VALUES (?, ?)", (model, saved))
        own.catalog.refresh()
    return schemas.Batching.of(model, config)


@router.get("/v1/models/{model}/statistics", responses=problems(400, 401, 403, 404, 409, 503))
def statistics(request: Request, model: _Model, _: _Viewer) -> schemas.StatisticsView:
    """What Triton counted since the model was last loaded: batch sizes, queue and compute times."""
    triton = _triton(request, model)
    with _triton_errors():
        return schemas.StatisticsView.of(model, triton.server.model(model).statistics())


@router.get("/v1/experiments/{name}", responses=problems(400, 401, 403, 404, 503))
def experiment(request: Request, name: _Name, _: _Operator) -> ExperimentView:
    """An experiment, and what it shows by now."""
    return services(request).experiments.report(name)


@router.put("/v1/experiments/{name}", responses=problems(400, 401, 403, 404, 409, 503))
def change_experiment(
    request: Request, name: _Name, change: schemas.ExperimentChange, who: _Operator
) -> ExperimentView:
    """Begin an experiment or change its plan, promote one of its versions, or roll back."""
    own = services(request)
    action = "experiment" if isinstance(change, Plan) else change.action
    with _acting(request, who, action, name, **change.model_dump(exclude={"action"})):
        match change:
            case Plan():
                own.catalog.refresh()  # a version may have been loaded this second
                own.experiments.begin(name, change)
            case schemas.Promotion():
                own.experiments.promote(name, change.version, vector_space_id=change.vector_space_id)
            case schemas.Rollback():
                own.experiments.roll_back(name)
    return own.experiments.report(name)


@router.get("/v1/audit", responses=problems(400, 401, 403, 503))
def audit(request: Request, _: _Admin, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> schemas.AuditLog:
    """What operators did, latest first."""
    return schemas.AuditLog(data=services(request).audit.entries(limit))


def saved_settings(database: Database) -> dict[str, dict[str, Any]]:
    """What `batching` changed of each model, before the last restart too."""
    return {row["model"]: json.loads(row["settings"]) for row in database.read("SELECT * FROM batching")}


def _triton(request: Request, model: str = "") -> Supervisor:
    """The running Triton; raises the `Problem` 503 while it does not run, 404 if its repository has no such model."""
    supervisor = services(request).supervisor
    if not supervisor.running:
        raise Problem(503, "Triton does not run now; it is being started.", code="not_ready", retry_after_s=_RETRY_S)
    if model and model not in model_names(supervisor.server.repository):
        raise Problem(404, f"The repository has no model {model!r}.", param="model", code="model_not_found")
    return supervisor


@contextlib.contextmanager
def _acting(request: Request, who: Principal, action: str, target: str, **detail: Any) -> Iterator[None]:
    """One change after the other, each in the audit log; a refusal of Triton is a 409."""
    request_id = request.state.context.request_id
    entry = services(request).audit.action(who.id, action, target, request_id=request_id, **detail)
    with _ONE_AT_A_TIME, _triton_errors(), entry:
        yield


@contextlib.contextmanager
def _triton_errors() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        message = f"Triton does not answer: {error.cause}"
        raise Problem(503, message, code="not_ready", retry_after_s=_RETRY_S) from error
    except ServerError as error:
        raise Problem(409, f"{error.cause} Seen: {error.seen}.", code="refused_by_triton") from error


def _view(own: Services, model: str) -> schemas.ModelView:
    served = {each.version: each for each in own.catalog.versions if each.name == model}
    return schemas.ModelView(
        id=model,
        created=max((each.created_s for each in served.values()), default=0),
        root=next(iter(served.values())).manifest.model if served else model,
        live_version=own.experiments.live(model),
        versions=[
            schemas.VersionView(
                version=each.version,
                state=each.state or "not loaded",
                reason=each.reason,
                precision=served[each.version].manifest.precision if each.version in served else "",
                vector_space_id=_space(served.get(each.version)),
            )
            for each in (*own.supervisor.versions(), *_elsewhere(own))
            if each.model == model
        ],
    )


def _elsewhere(own: Services) -> list[Served]:
    found = own.upstreams.versions.values()
    return [Served(model=e.name, version=e.version, state="READY", reason="answered by an upstream") for e in found]


def _space(served: ServedVersion | None) -> str | None:
    return served.vector_space_id if served and served.manifest.task == "embedding" else None
