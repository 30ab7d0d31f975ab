"""``accel serve``: the gateway and its Triton in the foreground."""

from __future__ import annotations

import json
import logging

from fastapi import FastAPI
from pythonjsonlogger.orjson import OrjsonFormatter

from accel_lib.service.app import create_app
from accel_lib.service.connection import MOST_CONNECTIONS, Connection
from accel_lib.service.server import GatewayServer, bind
from accel_lib.service.services import Services
from accel_lib.service.settings import Settings

_MOST_FILES = 65_536
_OWN_FILES = 256  # of the process itself, beside its connections
_LOG_FORMAT = "%(levelname)s %(name)s %(message)s"
_LOG_NAMES = {"levelname": "level", "name": "logger", "message": "event", "exc_info": "exception"}


def run_gateway(settings: Settings) -> None:
    """Run a gateway in the foreground, with its Triton, until SIGTERM or Ctrl-C.

    Prints where it is once the models answer, with a key if there was none yet; logs JSON lines to stderr.

    Raises
    ------
    AccelError
        A port is taken, the state file cannot be used, or Triton or its models do not come up.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OrjsonFormatter(_LOG_FORMAT, rename_fields=_LOG_NAMES, timestamp="time"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    Connection.most = min(MOST_CONNECTIONS, _open_files() - _OWN_FILES)
    with (
        bind(settings.host, settings.port) as api,
        bind(settings.host, settings.metrics_port, "ACCEL_METRICS_PORT") as metrics,
    ):
        app = create_app(settings, metrics_port=metrics.getsockname()[1])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url, metrics_url = (f"http://{host}:{each.getsockname()[1]}" for each in (api, metrics))
        GatewayServer(app, (api, metrics), lambda: print(_welcome(app, url, metrics_url), flush=True)).listen()


def _welcome(app: FastAPI, url: str, metrics_url: str) -> str:
    services: Services = app.state.services
    settings, keys, versions = services.settings, services.auth.keys, services.catalog.versions
    if settings.jwt_public_key_file is not None:  # an identity provider says who may call: no key is made
        key, shown = "$ACCEL_TOKEN", f"tokens of {settings.jwt_issuer}"
    elif any(key.revoked_s is None for key in keys.all()):
        key, shown = "$ACCEL_KEY", "made earlier; accel keys create makes another"
    else:
        key = keys.create("first", ["admin"])
        shown = f"{key}  (an admin's, shown once)"
    model = next((each.name for each in versions if each.manifest.task == "embedding"), versions[0].name)
    return f"""\
gateway  {url}, its documentation {url}/docs
metrics  {metrics_url}/metrics
Triton   gRPC {services.supervisor.server.grpc_url}
serving  {", ".join(f"{each.name} {each.version}" for each in versions)}
key      {shown}

curl {url}/v1/embeddings -H 'Content-Type: application/json' \\
  -H 'Authorization: Bearer {key}' -d '{json.dumps({"model": model, "input": "a cat on a mat"})}'"""


def _open_files() -> int:
    """How many files this process may open, after asking for as many as it can get."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


if __name__ == "__main__":
    run_gateway(Settings())
