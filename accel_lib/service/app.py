"""The gateway: one FastAPI app that wires the rooms of `accel_lib.service`.

A request finds these on ``request.app.state``:

=============  =======================================================================================================
``settings``   `Settings`, frozen
``clock``      monotonic seconds, injected by tests; deadlines and quotas know no other time
``supervisor`` owns Triton: ``.server`` (`accel_lib.triton.server.Server`, a new one after a restart, on the same
               ports), ``.ready`` (bool), ``.start()`` and ``.stop()`` (blocking)
``state``      SQLite: keys, experiments, audit
``path``       texts in, vectors or logits out: the way of one request
``limits``     admission, quotas, drain
``metrics``    Prometheus
=============  =======================================================================================================

A handler says who may call it, ``Depends(needs("inference"))``, and refuses by raising `problems.Problem`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import FastAPI

import accel_lib
from accel_lib.service import problems
from accel_lib.service.settings import Settings
from accel_lib.triton.server import Server


def create_app(
    settings: Settings | None = None,
    *,
    triton: Server | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The gateway's ASGI app.

    Parameters
    ----------
    settings
        Default: from the environment.
    triton
        A running server to stand in front of; None starts one, and owns it.
    clock
        Monotonic seconds.
    """
    app = FastAPI(title="accel gateway", version=accel_lib.__version__)
    app.state.settings = settings or Settings()
    app.state.clock = clock
    app.state.triton = triton
    problems.install(app)
    return app
