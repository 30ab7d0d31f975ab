"""`make fuzz`: schemathesis makes requests from the OpenAPI document; no 5xx, and every answer as the document says."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from accel_lib.triton.repository import write_model
from tests.chats import add_generation
from tests.rig import Rig, build_repository, table
from tests.tiny import TABLE, tiny_artifact

_ROOT = Path(__file__).parents[2]
_FULL, _SHORT = 900, 25  # cases an endpoint and phase
FEWEST, FEWEST_SHORT = 10_000, 200  # cases in all
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
_ST = Path(sys.executable).with_name("st")


def run(*, short):
    """Fuzz a gateway; returns schemathesis's report, what it printed, and whether gateway and Triton outlived it."""
    with tempfile.TemporaryDirectory(prefix="accel-fuzz-") as folder, Rig(folder, repository=_served(folder)) as rig:
        rig.wait_until(True)
        before = rig.triton.pid
        report = Path(folder) / "report.json"
        phases = "examples,fuzzing" if short else "examples,coverage,fuzzing"
        command = [
            *(_ST, "run", f"{rig.url}/openapi.json", "--header", f"Authorization: Bearer {rig.key}"),
            *("--checks", ",".join(_CHECKS), "--phases", phases, "--continue-on-failure"),
            *("--max-examples", str(_SHORT if short else _FULL), "--seed", "1", "--request-timeout", "90"),
            *("--suppress-health-check", "all", "--report", "json", "--report-json-path", report, "--warnings", "off"),
        ]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(_ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise RuntimeError(f"schemathesis made no report: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        alive = rig.process.is_running() and rig.triton is not None and rig.triton.pid == before
        return json.loads(report.read_text()), done.stdout, alive


def _served(folder):
    """The rig's models, one that generates, and a reranker: the sum of one number a word."""
    repository = build_repository(Path(folder))
    facts = {"task": "classification", "labels": ("relevance",), "unit": False}
    write_model(repository, "rerank", tiny_artifact(Path(folder) / "rerank", TABLE[:, :1], **facts))
    add_generation(folder, repository, context=512, cache=4_096)
    return repository


def rows(report):
    """One row an endpoint: what was accepted, and what was refused as the document says."""
    found = []
    for endpoint, phases in sorted(report["valid_rates"].items()):
        counts = {name: sum(phase[name] for phase in phases.values()) for name in ("accepted", "rejected", "conflicts")}
        found.append({"endpoint": endpoint, **counts})
    return found


def verdict(report, alive, *, fewest):
    """What went wrong, or how much went well, in one line."""
    cases = report["test_cases"]["generated"]
    wrong = [f"{group['count']} × {group['title']} at {', '.join(group['operations'])}" for group in report["failures"]]
    wrong += [f"{error['count']} × {error['title']}" for error in report["errors"]]
    wrong += [] if alive else ["the gateway or Triton ended"]
    wrong += [] if cases >= fewest else [f"only {cases:,} cases"]
    operations = report["operations"]["tested"]
    said = f"{cases:,} cases on {operations} endpoints, no 5xx, every answer as the document says"
    return (False, f"FAILED: {'; '.join(wrong)}") if wrong else (True, f"ok: {said}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="as in CI")
    asked = parser.parse_args()
    result, printed, outlived = run(short=asked.short)
    well, line = verdict(result, outlived, fewest=FEWEST_SHORT if asked.short else FEWEST)
    if not well:
        print(printed)
    table(rows(result))
    print(line)
    sys.exit(not well)
