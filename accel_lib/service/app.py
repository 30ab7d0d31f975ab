"""The gateway: one FastAPI app that wires the rooms of `accel_lib.service`.

A request finds these on ``request.app.state``:

===============  ====================================================================================================
``settings``     `Settings`, frozen
``clock``        monotonic seconds, injected by tests; deadlines and quotas know no other time
``supervisor``   `Supervisor`, the owner of Triton
``catalogue``    `Catalogue`: the versions that answer now, with tokenizers and manifests
``state``        `State`, the SQLite file
``auth``         `Authenticator`: whose key or token it is
``audit``        `Audit`: what operators did
``experiments``  `Experiments`: which version is live, who gets which
``shadows``      `Shadows`: copies of requests for candidates
``path``         `InferencePath`: token ids in, vectors or logits out
``limits``       `Limits`: admission, quotas, drain
``metrics``      `Metrics`, for Prometheus
``telemetry``    `Telemetry`, for traces
``pool``         ``workers`` threads for what burns CPU
``metrics_port`` where only the metrics are shown; 0 where there is none
===============  ====================================================================================================

A handler says who may call it, ``Depends(needs("inference"))``, and refuses by raising `problems.Problem`.
``request.state.record`` is the `edge.Record` of the request: its id, its deadline, and what is logged of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI

from accel_lib.errors import AccelError, RequestError
from accel_lib.machine import cores
from accel_lib.service import health, inference, operate, problems, status, tei, validation
from accel_lib.service.audit import Audit
from accel_lib.service.auth import Authenticator
from accel_lib.service.edge import Edge
from accel_lib.service.experiments import Experiments
from accel_lib.service.keys import Keys
from accel_lib.service.limits import Limits
from accel_lib.service.metrics import Metrics
from accel_lib.service.path import InferencePath
from accel_lib.service.served import Catalogue
from accel_lib.service.settings import Settings
from accel_lib.service.shadow import Shadows
from accel_lib.service.state import State
from accel_lib.service.supervisor import Supervisor
from accel_lib.service.telemetry import Telemetry, triton_flags
from accel_lib.service.tokens import Tokens
from accel_lib.triton.process import Ports
from accel_lib.triton.remote import attach
from accel_lib.triton.server import Server
from accel_lib.version import __version__

_REFRESH_S = 1.0
_MOST_THREADS = 4
_DESCRIPTION = """\
Embeddings and classification by models behind a Triton server. OpenAI's, NVIDIA's and text-embeddings-inference's
clients use it unmodified. Send a key of `accel keys create` as `Authorization: Bearer <key>`."""

log = logging.getLogger("accel.gateway")


class _App(FastAPI):
    """FastAPI, whose document says what `validation.install` does: 422 is a 400 here."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return document


def create_app(
    settings: Settings | None = None,
    *,
    triton: Server | None = None,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> FastAPI:
    """The gateway's ASGI app.

    It listens while Triton starts: ``/v1/health/ready`` says 503 until the models answer.

    Parameters
    ----------
    settings
        Default: from the environment.
    triton
        A running server to stand in front of; None takes the one that the settings name, or starts one, and owns it.
    clock, now
        Monotonic seconds, and seconds since 1970, which a token's end and the audit log go by.

    Raises
    ------
    AccelError
        The state file or the public key cannot be used.
    """
    settings = settings or Settings()
    app = _App(title="accel gateway", version=__version__, description=_DESCRIPTION, lifespan=_lifespan)
    ports = Ports(http=settings.triton_http_port, grpc=settings.triton_grpc_port, metrics=settings.triton_metrics_port)
    if triton is None and settings.triton_host:
        triton = attach(settings.triton_host, ports, settings.repository)
    metrics, state = Metrics(), State(settings.state_file)
    supervisor = Supervisor(
        settings.repository,
        models=settings.models,
        ports=ports,
        triton=triton,
        settings=operate.kept_settings(state),
        flags=triton_flags(settings.otlp_endpoint),
        clock=clock,
        now=now,
    )
    limits = Limits(
        max_in_flight=settings.max_in_flight,
        quota_tokens_per_minute=settings.quota_tokens_per_minute,
        metrics=metrics,
        clock=clock,
    )
    app.state.settings, app.state.clock = settings, clock
    app.state.supervisor, app.state.catalogue = supervisor, Catalogue(supervisor)
    app.state.state, app.state.auth = state, Authenticator(Keys(state, now), _tokens(settings, now))
    app.state.audit, app.state.experiments = Audit(state, now), Experiments(state, lambda: app.state.catalogue.versions)
    app.state.limits, app.state.metrics, app.state.failed = limits, metrics, None
    app.state.metrics_port = 0  # `command.run_gateway` knows it
    app.state.telemetry = Telemetry(settings.otlp_endpoint)
    app.state.path = InferencePath(
        lambda: supervisor.server.grpc_url, max_batch_tokens=settings.max_batch_tokens, metrics=metrics
    )
    app.state.shadows = Shadows(app.state.path, app.state.catalogue, app.state.experiments, clock)
    app.state.workers = min(_MOST_THREADS, cores())
    app.state.pool = ThreadPoolExecutor(app.state.workers, thread_name_prefix="accel-gateway")
    for room in (inference, tei, health, operate, status):
        app.include_router(room.router)
    problems.install(app)
    validation.install(app)
    telemetry = app.state.telemetry
    app.add_middleware(Edge, settings=settings, limits=limits, metrics=metrics, telemetry=telemetry, clock=clock)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start Triton and watch what it serves; end both, what is below last."""
    watching = asyncio.create_task(_watch(app))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await app.state.shadows.close()
        await app.state.path.close()
        app.state.supervisor.stop()  # blocks, as it must also do while the interpreter ends and starts no thread
        app.state.pool.shutdown(wait=False, cancel_futures=True)
        app.state.telemetry.close()
        app.state.experiments.close()
        app.state.state.close()


async def _watch(app: FastAPI) -> None:
    """Start Triton, then read once a second what answers; one that somebody else runs may still be on its way."""
    while True:
        try:
            await asyncio.to_thread(app.state.supervisor.start)
            break
        except AccelError as error:
            facts = {"cause": error.cause, "seen": error.seen, "fix": error.fix}
            log.error("Triton did not start", extra={"fields": facts})
            if not app.state.settings.triton_host:
                app.state.failed = error
                return
        await asyncio.sleep(_REFRESH_S)
    while True:
        await asyncio.to_thread(refresh, app)
        await asyncio.sleep(_REFRESH_S)


def refresh(app: FastAPI) -> None:
    """Read what answers now; blocks for some milliseconds."""
    state = app.state
    state.catalogue.refresh()
    state.metrics.triton_restarts.inc(state.supervisor.restarts - state.metrics.restarts_seen)
    state.metrics.restarts_seen = state.supervisor.restarts
    ready: set[tuple[str, str]] = set()
    with contextlib.suppress(RequestError):
        ready = {(each.model, each.version) for each in state.supervisor.versions() if each.state == "READY"}
    for model, version in ready | state.metrics.seen:
        state.metrics.model_ready.labels(model, version).set((model, version) in ready)
    state.metrics.seen |= ready
    state.metrics.ready.set(state.supervisor.served <= {model for model, _ in ready} and bool(ready))


def _tokens(settings: Settings, now: Callable[[], float]) -> Tokens | None:
    if settings.jwt_public_key_file is None:
        return None
    return Tokens(settings.jwt_public_key_file, issuer=settings.jwt_issuer, audience=settings.jwt_audience, now=now)
