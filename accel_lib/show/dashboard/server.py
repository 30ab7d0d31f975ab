"""``accel ui``: Voilà in the foreground, behind a token, over one gateway."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from accel_lib.errors import AccelError, MachineError, require

NOTEBOOK = Path("notebooks") / "app" / "dashboard.ipynb"
GATEWAY, KEY = "ACCEL_UI_GATEWAY", "ACCEL_UI_KEY"


def run_ui(gateway: str, *, host: str, port: int) -> None:
    """Serve the dashboard until Ctrl-C or SIGTERM.

    The key comes from ``$ACCEL_UI_KEY``, the token that opens the page from ``$ACCEL_UI_TOKEN``; either may be in a
    file that ``$ACCEL_UI_KEY_FILE`` or ``$ACCEL_UI_TOKEN_FILE`` names. Without a token one is made and printed.

    Raises
    ------
    AccelError
        There is no key, a file cannot be read, or Voilà or the notebook is not installed.
    """
    key = secret("ACCEL_UI_KEY")
    if not key:
        raise AccelError(
            "The UI needs a key of the gateway.",
            seen=f"no ${KEY} and no ${KEY}_FILE",
            fix="export ACCEL_UI_KEY=$(accel keys create ui --role operator --role inference)",
        )
    notebook = Path(__file__).resolve().parents[3] / NOTEBOOK
    if not notebook.is_file():
        raise MachineError(
            "The web UI is not part of this installation of accel_lib.",
            seen=f"no {NOTEBOOK} beside the package",
            fix="run it from a checkout of the project: make ui",
        )
    given = secret("ACCEL_UI_TOKEN")
    token = given or secrets.token_urlsafe(24)
    os.environ |= {GATEWAY: gateway, KEY: key}  # for the page's kernels, which are this process's children
    server = _voila(notebook, host=host, port=port, token=token)
    shown = "<the token you set>" if given else token
    print(f"dashboard  http://{host}:{server.port}/?token={shown}\ngateway    {gateway}", flush=True)
    server.start()


def secret(name: str) -> str:
    """A secret from the environment, or from the file that ``<name>_FILE`` names; empty if there is neither.

    Raises
    ------
    AccelError
        The file cannot be read.
    """
    file = os.environ.get(f"{name}_FILE", "")
    if not file:
        return os.environ.get(name, "")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise AccelError(
            f"${name}_FILE cannot be read.", seen=error, fix="name a file with the secret in it"
        ) from error


def _voila(notebook: Path, *, host: str, port: int, token: str) -> Any:
    """The server, listening on its port when this returns; the token is never on a command line."""
    from traitlets.config import Config

    settings = Config()
    settings.Voila.update(ip=host, port=port or _free_port(host), token=token, open_browser=False, log_level="ERROR")
    settings.Voila.preheat_kernel = False
    settings.VoilaConfiguration.update(show_tracebacks=False, theme="light", file_allowlist=[])
    settings.VoilaExecutor.timeout = 60
    settings.KernelManager.transport = "ipc"  # kernels are no business of the network
    settings.MappingKernelManager.update(cull_idle_timeout=600, cull_interval=60, cull_connected=False)
    server = require("voila.app", extra="ui").Voila(config=settings)
    server.initialize([str(notebook)])
    return server


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
