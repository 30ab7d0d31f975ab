"""`make fuzz`: schemathesis makes requests from the OpenAPI document; no 5xx, and every answer as the document says."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.rig import Rig, table

_FULL, _SHORT = 600, 12  # cases an endpoint and phase
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
_ST = Path(sys.executable).with_name("st")


def run(*, short):
    """Fuzz a gateway; returns the rows of the table, the number of cases and what failed."""
    with tempfile.TemporaryDirectory(prefix="accel-fuzz-") as folder, Rig(folder) as rig:
        rig.wait_until(True)
        before = rig.process.pid, rig.triton.pid
        report = Path(folder) / "report.json"
        command = [
            *(_ST, "run", f"{rig.url}/openapi.json", "--header", f"Authorization: Bearer {rig.key}"),
            *("--checks", ",".join(_CHECKS), "--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
            *("--max-examples", str(_SHORT if short else _FULL), "--seed", "1", "--request-timeout", "30"),
            *("--suppress-health-check", "all", "--report", "json", "--report-json-path", report, "--warnings", "off"),
        ]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        alive = before == (rig.process.pid, getattr(rig.triton, "pid", None)) and rig.process.is_running()
        return json.loads(report.read_text()), done, alive


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="as in CI")
    found, done, alive = run(short=parser.parse_args().short)
    print(done.stdout[-6000:])
    print(json.dumps(found)[:3000])
    print(alive, table)
