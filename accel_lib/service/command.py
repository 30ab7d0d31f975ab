"""``accel serve``: the gateway and its Triton in the foreground."""

from __future__ import annotations

import json
import logging

import prometheus_client
from fastapi import FastAPI

from accel_lib.errors import ServerError
from accel_lib.service.app import create_app
from accel_lib.service.edge import JsonLines
from accel_lib.service.listener import MOST_CONNECTIONS, Connection, Listener, listening
from accel_lib.service.settings import Settings

_MOST_FILES, _FILES_OF_OUR_OWN = 65_536, 256


def run_gateway(settings: Settings) -> None:
    """Run a gateway in the foreground, with its Triton, until SIGTERM or Ctrl-C.

    Prints where it is once the models answer, with a key if there was none yet; logs JSON lines to stderr.

    Raises
    ------
    AccelError
        A port is taken, the state file cannot be used, or Triton or its models do not come up.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    Connection.most = min(MOST_CONNECTIONS, _open_files() - _FILES_OF_OUR_OWN)
    opened = listening(settings.host, settings.port)
    app = create_app(settings)
    metrics_port = _serve_metrics(app, settings)
    url = f"http://{settings.host}:{opened.getsockname()[1]}"
    Listener(app, opened, lambda: print(_welcome(app, url, metrics_port), flush=True)).listen()


def _welcome(app: FastAPI, url: str, metrics_port: int) -> str:
    state, curl = app.state, f"curl {url}/v1/embeddings -H 'Content-Type: application/json'"
    keys, versions = state.auth.keys, state.catalogue.versions
    known = any(key.revoked_s is None for key in keys.all())
    if state.settings.jwt_public_key_file is not None:  # a provider says who may call: no key that nobody asked for
        key, shown = "$ACCEL_TOKEN", f"tokens of {state.settings.jwt_issuer}"
    elif known:
        key, shown = "$ACCEL_KEY", "made earlier; accel keys create makes another"
    else:
        key = keys.create("first", ["admin"])
        shown = f"{key}  (an admin's, shown once)"
    model = next((each.name for each in versions if each.manifest.task == "embedding"), versions[0].name)
    lines = [
        f"gateway  {url}, its documentation {url}/docs",
        f"metrics  http://{state.settings.host}:{metrics_port}/metrics",
        f"Triton   gRPC {state.supervisor.server.grpc_url}",
        f"serving  {', '.join(f'{each.name} {each.version}' for each in versions)}",
        f"key      {shown}",
        "",
        f"{curl} \\",
        f"  -H 'Authorization: Bearer {key}' -d '{json.dumps({'model': model, 'input': 'a cat on a mat'})}'",
    ]
    return "\n".join(lines)


def _serve_metrics(app: FastAPI, settings: Settings) -> int:
    """Show the metrics on their own port too, and return it."""
    try:
        server, _ = prometheus_client.start_http_server(
            settings.metrics_port, settings.host, registry=app.state.metrics.registry
        )
    except OSError as error:
        fix = "end what listens there, or take a free port: ACCEL_METRICS_PORT=0"
        raise ServerError(f"Port {settings.metrics_port} is taken.", seen=error.strerror, fix=fix) from error
    return int(server.server_port)


def _open_files() -> int:
    """How many files this process may open, after asking for as many as it can get."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
