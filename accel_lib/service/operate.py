"""The endpoints for those who run the service: models, batching, experiments and the audit log.

They talk to Triton and to the disk, so they are plain functions, which FastAPI runs in its thread pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request

from accel_lib.errors import RequestError, ServerError
from accel_lib.service.audit import Audit
from accel_lib.service.auth import Principal, needs
from accel_lib.service.describe import problems
from accel_lib.service.experiments import Experiments
from accel_lib.service.operate_schemas import (
    AuditEntry,
    AuditLog,
    Batching,
    BatchingChange,
    DynamicBatching,
    ExperimentChange,
    ExperimentPlan,
    ExperimentView,
    InstanceGroup,
    ModelList,
    ModelView,
    Promotion,
    ResponseCache,
    Rollback,
    StatisticsView,
    VersionView,
)
from accel_lib.service.problems import Problem
from accel_lib.service.served import Catalogue
from accel_lib.service.state import State
from accel_lib.service.supervisor import Supervisor
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.repository import model_names
from accel_lib.triton.statistics import Statistics

router = APIRouter(tags=["operation"])
_Viewer = Annotated[Principal, Depends(needs("viewer"))]
_Operator = Annotated[Principal, Depends(needs("operator"))]
_Admin = Annotated[Principal, Depends(needs("admin"))]
_Model = Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200, examples=["embedding"])]
_Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", examples=["int8"])]
_RETRY_S = 2.0


@router.get("/v1/models", responses=problems(400, 401, 403, 503))
def models(request: Request, _: _Viewer) -> ModelList:
    """Every model that Triton knows."""
    triton = _triton(request)
    with _translated():
        return ModelList(data=[_view(request, name) for name in sorted({each.model for each in triton.versions()})])


@router.get("/v1/models/{model}", responses=problems(400, 401, 403, 404, 503))
def model(request: Request, model: _Model, _: _Viewer) -> ModelView:
    """One model and the state of its versions."""
    _known(_triton(request), model)
    with _translated():
        return _view(request, model)


@router.post("/v1/models/{model}/load", responses=problems(400, 401, 403, 404, 409, 503))
def load(request: Request, model: _Model, who: _Operator) -> ModelView:
    """Load a model, or load it anew from its files; what answers now goes on answering until then, or if this fails."""
    return _moved(request, model, who, "load")


@router.post("/v1/models/{model}/unload", responses=problems(400, 401, 403, 404, 409, 503))
def unload(request: Request, model: _Model, who: _Operator) -> ModelView:
    """Unload a model; the service is not ready until it is loaded again."""
    return _moved(request, model, who, "unload")


@router.get("/v1/models/{model}/batching", responses=problems(400, 401, 403, 404, 503))
def batching_now(request: Request, model: _Model, _: _Viewer) -> Batching:
    """How a model is batched now."""
    triton = _triton(request)
    _known(triton, model)
    return _batching(model, triton.server.config(model))


@router.put("/v1/models/{model}/batching", responses=problems(400, 401, 403, 404, 409, 503))
def batching(request: Request, model: _Model, change: BatchingChange, who: _Operator) -> Batching:
    """Change how a model is batched, from now on and after every restart; what answers now goes on meanwhile."""
    triton, settings = _triton(request), change.settings()
    _known(triton, model)
    with _acting(request, who, "batching", model, **settings):
        config = triton.configure(model, settings)
        request.app.state.state.write(
            "INSERT OR REPLACE INTO batching VALUES (?, ?)", (model, json.dumps(triton.settings(model)))
        )
        _catalogue(request).refresh()
    return _batching(model, config)


@router.get("/v1/models/{model}/statistics", responses=problems(400, 401, 403, 404, 409, 503))
def statistics(request: Request, model: _Model, _: _Viewer) -> StatisticsView:
    """What Triton counted since the model was last loaded: batch sizes, queue and compute times."""
    triton = _triton(request)
    _known(triton, model)
    with _translated():
        return _statistics(model, triton.server.model(model).statistics())


@router.get("/v1/experiments/{name}", responses=problems(400, 401, 403, 404, 503))
def experiment(request: Request, name: _Name, _: _Operator) -> ExperimentView:
    """An experiment, and what it shows by now."""
    return ExperimentView(**_experiments(request).report(name))


@router.put("/v1/experiments/{name}", responses=problems(400, 401, 403, 404, 409, 503))
def change_experiment(request: Request, name: _Name, change: ExperimentChange, who: _Operator) -> ExperimentView:
    """Begin an experiment or change its plan, promote one of its versions, or roll back."""
    found = _experiments(request)
    action = "experiment" if isinstance(change, ExperimentPlan) else change.action
    with _acting(request, who, action, name, **change.model_dump(exclude={"action"})):
        match change:
            case ExperimentPlan():
                _catalogue(request).refresh()  # a version may have been loaded this second
                found.begin(name, change.plan())
            case Promotion():
                found.promote(name, change.version, vector_space_id=change.vector_space_id)
            case Rollback():
                found.roll_back(name)
    return ExperimentView(**found.report(name))


@router.get("/v1/audit", responses=problems(400, 401, 403, 503))
def audit(request: Request, _: _Admin, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> AuditLog:
    """What operators did, latest first."""
    log: Audit = request.app.state.audit
    entries = [dataclasses.asdict(entry) for entry in log.entries(limit)]
    return AuditLog(data=[AuditEntry(at=entry.pop("at_s"), **entry) for entry in entries])


def kept_settings(state: State) -> dict[str, dict[str, Any]]:
    """What `batching` changed of each model, before the last restart too."""
    return {row["model"]: json.loads(row["settings"]) for row in state.read("SELECT * FROM batching")}


def _triton(request: Request) -> Supervisor:
    supervisor: Supervisor = request.app.state.supervisor
    if not supervisor.running:
        raise Problem(503, "Triton does not run now; it is being started.", code="not_ready", retry_after_s=_RETRY_S)
    return supervisor


def _experiments(request: Request) -> Experiments:
    found: Experiments = request.app.state.experiments
    return found


def _catalogue(request: Request) -> Catalogue:
    found: Catalogue = request.app.state.catalogue
    return found


def _known(triton: Supervisor, model: str) -> None:
    if model not in model_names(triton.server.repository):
        raise Problem(404, f"The repository has no model {model!r}.", param="model", code="model_not_found")


_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _acting(request: Request, who: Principal, action: str, target: str, **detail: Any) -> Iterator[None]:
    """One change after the other, each in the audit log; a refusal of Triton is a 409."""
    audit: Audit = request.app.state.audit
    record = getattr(request.state, "record", None)
    with (
        _ONE_AT_A_TIME,
        _translated(),
        audit.action(who.id, action, target, request_id=getattr(record, "request_id", ""), **detail),
    ):
        yield


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        raise Problem(
            503, f"Triton does not answer: {error.cause}", code="not_ready", retry_after_s=_RETRY_S
        ) from error
    except ServerError as error:
        raise Problem(409, f"{error.cause} Seen: {error.seen}.", code="refused_by_triton") from error


def _moved(request: Request, model: str, who: Principal, action: Literal["load", "unload"]) -> ModelView:
    triton = _triton(request)
    _known(triton, model)
    with _acting(request, who, action, model):
        (triton.load if action == "load" else triton.unload)(model)
        _catalogue(request).refresh()
        return _view(request, model)


def _view(request: Request, model: str) -> ModelView:
    triton: Supervisor = request.app.state.supervisor
    served = {each.version: each for each in _catalogue(request).versions if each.name == model}
    created = [each.created_s for each in served.values()]
    return ModelView(
        id=model,
        created=max(created, default=0),
        root=next(iter(served.values())).manifest.model if served else model,
        live_version=_experiments(request).live(model),
        versions=[
            VersionView(
                version=each.version,
                state=each.state or "not loaded",
                reason=each.reason,
                precision=served[each.version].manifest.precision if each.version in served else "",
                vector_space_id=_space(served.get(each.version)),
            )
            for each in triton.versions()
            if each.model == model
        ],
    )


def _space(served: Any) -> str | None:
    return served.vector_space_id if served and served.manifest.task == "embedding" else None


def _batching(model: str, config: ModelConfig) -> Batching:
    return Batching(
        model=model,
        dynamic_batching=DynamicBatching(
            max_queue_delay_us=config.max_queue_delay_us,
            preferred_batch_sizes=list(config.preferred_batch_sizes),
            priority_levels=config.priority_levels,
            default_priority_level=config.default_priority_level,
            max_queue_size=config.max_queue_size,
        ),
        instance_group=InstanceGroup(count=config.instance_count),
        version_policy=list(config.versions) if isinstance(config.versions, tuple) else config.versions,
        response_cache=ResponseCache(enable=config.response_cache),
    )


def _statistics(model: str, counted: Statistics) -> StatisticsView:
    each_ms = 1e-6 / max(1, counted.requests)
    return StatisticsView(
        model=model,
        requests=counted.requests,
        failures=counted.failures,
        cache_hits=counted.cache_hits,
        inferences=counted.inferences,
        executions=counted.executions,
        mean_batch_size=counted.mean_batch_size,
        batch_sizes={str(size): count for size, count in counted.batch_sizes.items()},
        batch_ms={str(n): 1e-6 * counted.batch_ns[n] / count for n, count in counted.batch_sizes.items() if count},
        queue_ms=counted.queue_ns * each_ms,
        compute_input_ms=counted.compute_input_ns * each_ms,
        compute_infer_ms=counted.compute_infer_ns * each_ms,
        compute_output_ms=counted.compute_output_ns * each_ms,
        resets=counted.resets,
    )
