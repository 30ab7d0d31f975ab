"""Gateways for tests: in front of a running Triton, on a free port, with a state file of their own."""

from __future__ import annotations

import contextlib

from accel_lib.service.gateway import Gateway, wait_until_ready
from accel_lib.service.settings import Settings


@contextlib.contextmanager
def gateway_on(server, folder, **settings):
    """One more gateway in front of the same server; without a server, where the settings say."""
    made = Gateway(Settings(port=0, state_file=folder / "state.sqlite3", **settings), server)
    with made:
        wait_until_ready(made)
        yield made
