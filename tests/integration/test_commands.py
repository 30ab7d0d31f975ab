"""`accel serve` as a shell starts it: it serves what is there, adds nothing, and refuses what is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accel_lib.triton.repository import write_model
from tests.tiny import TABLE, tiny_artifact

pytestmark = pytest.mark.triton
ACCEL = Path(sys.executable).with_name("accel")
PORTS = (
    "ACCEL_PORT",
    "ACCEL_METRICS_PORT",
    "ACCEL_TRITON_HTTP_PORT",
    "ACCEL_TRITON_GRPC_PORT",
    "ACCEL_TRITON_METRICS_PORT",
)


def start(repository, tmp_path):
    settings = {"ACCEL_REPOSITORY": str(repository), "ACCEL_STATE_FILE": str(tmp_path / "state"), "LC_ALL": "C"}
    environment = os.environ | dict.fromkeys(PORTS, "0") | settings
    return subprocess.Popen(
        [ACCEL, "serve"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def files(folder):
    kept = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.name != ".accel.lock"}


def test_your_own_repository_is_served_as_it_is_from_any_path(tmp_path):
    repository = tmp_path / "it's José's \"$HOME\" & more"
    for name in ("embedding", "mine"):
        write_model(repository, name, tiny_artifact(tmp_path / name, TABLE))
    before = files(repository)
    command = start(repository, tmp_path)
    try:
        serving = next((line for line in command.stdout if line.startswith("serving")), "")
        assert serving.split() == ["serving", "embedding", "1,", "mine", "1"], command.stderr.read()
        command.send_signal(signal.SIGTERM)
        command.communicate(timeout=60)
    finally:
        command.kill()
    assert files(repository) == before


def test_a_mistyped_repository_is_an_error_and_is_not_made(tmp_path):
    command = start(tmp_path / "mistyped", tmp_path)
    said = command.communicate(timeout=60)[1]
    assert command.returncode == 2
    assert f"ACCEL_REPOSITORY={tmp_path / 'mistyped'}" in said
    assert list(tmp_path.iterdir()) == []
