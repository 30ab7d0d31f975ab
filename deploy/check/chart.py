"""Renders the chart with Helm's own engine in every shape it promises, and counts what it refuses; prints JSON.

    python chart.py CHART OUT

Helm runs in this process and asks no cluster: a rendering that was tried and not sent. The manifests of each scenario
go to OUT/<scenario>.yaml. check.py runs it in an environment that has helm-python-sdk.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from helm_python import HelmError, lint
from render import render

_OFF = {"autoscaling": {"enabled": False}, "networkPolicy": {"enabled": False}, "monitoring": {"enabled": False}}
_KEYS = {"auth": {"mode": "keys", "existingSecret": ""}, "gateway": {"replicas": 1}}
_MONITORS = {"monitoring": {"always": True}}  # of every shape that says nothing of monitoring
SCENARIOS: dict[str, dict[str, Any]] = {
    "without-crds": {"monitoring": {}},
    "default": {},
    "cpu": {"profile": "cpu", "autoscaling": {"metric": "cpu"}},
    "everything": {
        "ui": {"enabled": True, "existingSecret": "accel-ui"},
        "image": {"pullSecrets": ["registry"], "gateway": {"digest": "sha256:" + "a" * 64}},
        "gateway": {"env": {"ACCEL_DEADLINE_S": "10"}, "service": {"type": "LoadBalancer", "port": 443}},
        "monitoring": {"labels": {"release": "prometheus"}, "always": True},
        "triton": {"nodeSelector": {"accelerator": "t4"}, "sharedMemory": "512Mi"},
        "models": ["embedding", "generation"],
        "autoscaling": {"waitingRequests": 4},
        "upstreams": {
            "existingSecret": "accel-upstreams",
            "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 8000, "protocol": "TCP"}]}],
        },
    },
    "keys": _KEYS,
    "baked-image": {"store": {"kind": "image"}},
    "existing-claim": {"store": {"existingClaim": "models-of-mine"}},
    "one-node": {
        "store": {"accessMode": "ReadWriteOnce"},
        "gateway": {"replicas": 1},
        "autoscaling": {"enabled": False},
    },
    "all-optional-off": {"profile": "cpu", "store": {"kind": "image"}, **_OFF, **_KEYS},
}
# Values that make no sense, and a word of the message that must refuse them.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown profile": ({"profile": "tpu"}, "profile"),
    "no model": ({"models": []}, "models"),
    "a misspelt value": ({"gateway": {"replica": 3}}, "replica"),
    "memory without a unit": ({"triton": {"memory": "6"}}, "memory"),
    "a GPU pod without a GPU": ({"triton": {"gpus": 0}}, "gpus"),
    "the tag latest": ({"image": {"triton": {"tag": "latest"}}}, "tag"),
    "tokens without an issuer": ({"auth": {"issuer": ""}}, "issuer"),
    "two gateways with one file of keys": ({"auth": {"mode": "keys"}}, "replicas"),
    "a UI without its secret": ({"ui": {"enabled": True}}, "existingSecret"),
    "a claim for one node and many pods": ({"store": {"accessMode": "ReadWriteOnce"}}, "replicas"),
    "more pods at least than at most": ({"autoscaling": {"minReplicas": 9}}, "minReplicas"),
    "a variable that is no setting": ({"gateway": {"env": {"PATH": "/"}}}, "ACCEL_"),
}


def main(chart: Path, out: Path) -> dict[str, Any]:
    """Run all; what Helm says about each."""
    out.mkdir(parents=True, exist_ok=True)
    unlike = []
    for name, values in SCENARIOS.items():
        text = render(chart, _MONITORS | values)
        (out / f"{name}.yaml").write_text(text, encoding="utf-8")
        if render(chart, _MONITORS | values) != text:
            unlike.append(name)
    warnings = [message["error"] for message in lint(chart)["messages"] if message["severity"] > 1]
    refused = {name: word in _refusal(chart, values) for name, (values, word) in REFUSED.items()}
    return {"lint": warnings, "unlike": unlike, "rendered": list(SCENARIOS), "refused": refused}


def _refusal(chart: Path, values: dict[str, Any]) -> str:
    try:
        render(chart, values)
    except HelmError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2])), indent=1))
