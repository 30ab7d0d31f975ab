"""``accel serve``: the gateway and its Triton in the foreground."""

from __future__ import annotations

import json
import logging

from fastapi import FastAPI

from accel_lib.service.app import create_app
from accel_lib.service.connection import MOST_CONNECTIONS, Connection
from accel_lib.service.edge import JsonLines
from accel_lib.service.listener import Listener, bind
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
    with (
        bind(settings.host, settings.port) as api,
        bind(settings.host, settings.metrics_port, "ACCEL_METRICS_PORT") as metrics,
    ):
        app = create_app(settings)
        app.state.metrics_port = metrics.getsockname()[1]
        url, metrics_url = (f"http://{_shown(settings.host)}:{each.getsockname()[1]}" for each in (api, metrics))
        Listener(app, (api, metrics), lambda: print(_welcome(app, url, metrics_url), flush=True)).listen()


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _welcome(app: FastAPI, url: str, metrics_url: str) -> str:
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
        f"metrics  {metrics_url}/metrics",
        f"Triton   gRPC {state.supervisor.server.grpc_url}",
        f"serving  {', '.join(f'{each.name} {each.version}' for each in versions)}",
        f"key      {shown}",
        "",
        f"{curl} \\",
        f"  -H 'Authorization: Bearer {key}' -d '{json.dumps({'model': model, 'input': 'a cat on a mat'})}'",
    ]
    return "\n".join(lines)


def _open_files() -> int:
    """How many files this process may open, after asking for as many as it can get."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
