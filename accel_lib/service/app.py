"""The gateway's ASGI app: makes its `Services`, adds the endpoints, and watches Triton while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI

from accel_lib.errors import AccelError
from accel_lib.machine import cores
from accel_lib.service import errors, validation
from accel_lib.service.abtest.experiments import Experiments
from accel_lib.service.abtest.shadow import Shadows
from accel_lib.service.audit import Audit
from accel_lib.service.auth import Authenticator, InferenceRoute
from accel_lib.service.catalog import Catalog
from accel_lib.service.database import Database
from accel_lib.service.jwt_tokens import Tokens
from accel_lib.service.keys import Keys
from accel_lib.service.limits import Limits
from accel_lib.service.metrics import Metrics
from accel_lib.service.middleware import GatewayMiddleware
from accel_lib.service.routes import admin, chat, health, inference, rerank, status, tei
from accel_lib.service.services import Services
from accel_lib.service.settings import Settings
from accel_lib.service.supervisor import Supervisor
from accel_lib.service.telemetry import Telemetry, triton_flags
from accel_lib.service.triton_client import TritonClient
from accel_lib.service.upstreams import Upstreams
from accel_lib.triton.process import Ports
from accel_lib.triton.remote import attach
from accel_lib.triton.repository import model_names
from accel_lib.triton.server import Server
from accel_lib.version import __version__

_REFRESH_S = 1.0
_MOST_THREADS = 4
_DESCRIPTION = """\
Embeddings, classification and reranking by models behind a Triton server. OpenAI's, NVIDIA's, Cohere's and
text-embeddings-inference's clients use it unmodified. Send a key of `accel keys create` as
`Authorization: Bearer <key>`."""

log = logging.getLogger("accel.gateway")


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, without FastAPI's 422: it is a 400 here."""
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return document


def create_app(
    settings: Settings | None = None,
    *,
    triton: Server | None = None,
    metrics_port: int = 0,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> FastAPI:
    """The gateway's ASGI app; it listens while Triton starts, and ``/v1/health/ready`` says 503 until models answer.

    Parameters
    ----------
    settings
        Default: from the environment.
    triton
        A running server to stand in front of; None takes the one that the settings name, or starts one, and owns it.
    metrics_port
        A port that shows the metrics and nothing else.
    clock, now
        Monotonic seconds, and seconds since 1970, which keys and the audit log go by.

    Raises
    ------
    AccelError
        The state file or the public key cannot be used.
    """
    app = _App(title="accel gateway", version=__version__, description=_DESCRIPTION, lifespan=_lifespan)
    made = _make_services(settings or Settings(), triton, metrics_port, clock, now)
    app.state.services = made
    for endpoints in (inference, rerank, chat, tei, health, admin, status):
        app.include_router(endpoints.router)
    errors.install(app)
    validation.install(app)
    routes = (route for endpoints in (inference, rerank, chat, tei) for route in endpoints.router.routes)
    texts = {route.path: route for route in routes if isinstance(route, InferenceRoute) and route.methods == {"POST"}}
    app.add_middleware(GatewayMiddleware, services=made, direct=texts)
    return app


def _make_services(
    settings: Settings, triton: Server | None, metrics_port: int, clock: Callable[[], float], now: Callable[[], float]
) -> Services:
    ports = Ports(http=settings.triton_http_port, grpc=settings.triton_grpc_port, metrics=settings.triton_metrics_port)
    if triton is None and settings.triton_host:
        triton = attach(settings.triton_host, ports, settings.repository)
    tokens = None
    if settings.jwt_public_key_file is not None:
        tokens = Tokens(settings.jwt_public_key_file, issuer=settings.jwt_issuer, audience=settings.jwt_audience)
    metrics, database = Metrics(), Database(settings.state_file)
    supervisor = Supervisor(
        settings.repository,
        models=settings.models,
        ports=ports,
        triton=triton,
        settings=admin.saved_settings(database),
        flags=triton_flags(settings.otlp_endpoint),
        clock=clock,
        now=now,
    )
    upstreams = Upstreams(settings.upstreams)
    both = sorted(upstreams.names & set(model_names(supervisor.repository)))
    if both:
        raise AccelError(
            "A model of the repository has the name of an upstream.",
            seen=", ".join(both),
            fix="give the upstream another name in ACCEL_UPSTREAMS",
        )
    catalog = Catalog(supervisor, upstreams.versions)
    experiments = Experiments(database, lambda: catalog.versions)
    client = TritonClient(
        lambda: supervisor.server.grpc_url, max_batch_tokens=settings.max_batch_tokens, metrics=metrics
    )
    workers = min(_MOST_THREADS, cores())
    return Services(
        settings=settings,
        clock=clock,
        metrics_port=metrics_port,
        database=database,
        auth=Authenticator(Keys(database, now), tokens),
        audit=Audit(database, now),
        supervisor=supervisor,
        catalog=catalog,
        experiments=experiments,
        shadows=Shadows(client, catalog, experiments, clock),
        triton=client,
        upstreams=upstreams,
        limits=Limits(
            max_in_flight=settings.max_in_flight,
            quota_tokens_per_minute=settings.quota_tokens_per_minute,
            metrics=metrics,
            clock=clock,
        ),
        metrics=metrics,
        telemetry=Telemetry(settings.otlp_endpoint),
        pool=ThreadPoolExecutor(workers, thread_name_prefix="accel-gateway"),
        workers=workers,
    )


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    made: Services = app.state.services
    watching = asyncio.create_task(_watch(made))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await made.close()


async def _watch(services: Services) -> None:
    """Start Triton, then read once per second what is ready; a Triton that runs elsewhere may start later."""
    while True:
        try:
            await asyncio.to_thread(services.supervisor.start)
            break
        except AccelError as error:
            log.error("Triton did not start", extra={"cause": error.cause, "seen": str(error.seen), "fix": error.fix})
            if not services.settings.triton_host:
                services.supervisor.failed = error
                return
        await asyncio.sleep(_REFRESH_S)
    while True:
        await asyncio.to_thread(refresh, services)
        await asyncio.sleep(_REFRESH_S)


def refresh(services: Services) -> None:
    """Read which versions are ready, and count restarts; blocks for some milliseconds."""
    services.catalog.refresh()
    services.metrics.watch(services.supervisor)
