"""Installs the chart with Helm's own engine on a loopback API, in every shape it promises; prints JSON.

    python chart.py CHART OUT

It needs Python 3.12 and helm-sdkpy, so check.py runs it in an environment of its own. The manifests of each scenario go
to OUT/<scenario>.yaml.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, cluster
from helm_sdkpy import Configuration, HelmError, Install, Lint, Rollback, Uninstall, Upgrade
from render import helm

_OFF = {"autoscaling": {"enabled": False}, "networkPolicy": {"enabled": False}, "monitoring": {"enabled": False}}
_KEYS = {"auth": {"mode": "keys", "existingSecret": ""}, "gateway": {"replicas": 1}}
SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {},
    "cpu": {"profile": "cpu", "autoscaling": {"metric": "cpu"}},
    "everything": {
        "ui": {"enabled": True, "existingSecret": "accel-ui"},
        "image": {"pullSecrets": ["registry"], "gateway": {"digest": "sha256:" + "a" * 64}},
        "gateway": {"env": {"ACCEL_DEADLINE_S": "10"}, "service": {"type": "LoadBalancer", "port": 443}},
        "monitoring": {"labels": {"release": "prometheus"}},
        "triton": {"nodeSelector": {"accelerator": "t4"}, "sharedMemory": "512Mi"},
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


async def main(chart: str, out: Path) -> dict[str, Any]:
    """Run all; what Helm says about each."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"installed": {}, "refused": {}}
    with cluster() as running:
        lint = await Lint(Configuration(namespace="accel", kubeconfig=running.kubeconfig)).run(chart)
        found["lint"] = [str(m) for m in lint["Messages"] or [] if m["Severity"] > 1]
    for name, values in SCENARIOS.items():
        with cluster(monitoring=name != "all-optional-off") as running:
            found["installed"][name] = await _install(running, chart, values, out / f"{name}.yaml")
    with cluster(monitoring=False) as running:
        found["installed"]["without-crds"] = await _install(running, chart, {}, out / "without-crds.yaml")
    with cluster() as running:
        for name, (values, word) in REFUSED.items():
            message = await _refusal(running, chart, values)
            found["refused"][name] = {"message": message, "ok": word in message}
    with cluster() as running:
        found["life"] = await _life(running, chart)
    with cluster() as running:
        found["rollback"] = await _rollback(running, chart)
    return found


async def _install(running: Cluster, chart: str, values: dict[str, Any], file: Path) -> dict[str, int]:
    release = await helm(running, Install, chart, values)
    documents = [document for document in yaml.safe_load_all(release["manifest"]) if document]
    file.write_text(release["manifest"], encoding="utf-8")
    created = len(running.contents)
    if created != len(documents):
        raise SystemExit(f"{file.stem}: {created} objects were created of {len(documents)} rendered")
    return {"objects": created}


async def _refusal(running: Cluster, chart: str, values: dict[str, Any]) -> str:
    try:
        await helm(running, Install, chart, values)
    except HelmError as error:
        return str(error)
    return ""


async def _life(running: Cluster, chart: str) -> dict[str, Any]:
    """Install, upgrade to another profile, back again, uninstall: what is there after each."""
    steps = {}
    for step, action, values in (
        ("install", Install, {}),
        ("upgrade", Upgrade, {"profile": "cpu"}),
        ("back", Upgrade, {"profile": "gpu"}),
    ):
        await helm(running, action, chart, values)
        steps[step] = {
            "jobs": [job["metadata"]["name"] for job in running.of("jobs")],
            "gpus": [_gpus(each) for each in running.of("deployments") if each["metadata"]["name"].endswith("triton")],
        }
    configuration = Configuration(namespace="accel", kubeconfig=running.kubeconfig)
    await Uninstall(configuration).run("accel", wait=False)
    steps["uninstall"] = {"left": sorted(f"{plural}/{name}" for _, plural, _, name in running.objects)}
    return steps


async def _rollback(running: Cluster, chart: str) -> dict[str, list[str]]:
    """Install, upgrade, and Helm's own rollback: what differs from the first installation after each of the two.

    The last thing of a rollback is to wait for pods, if it was told how. These bindings cannot tell it, so that it ends
    there with an error, after all objects were changed; any other error is one.
    """
    await helm(running, Install, chart, {})
    first, differs = running.contents, {}
    await helm(running, Upgrade, chart, {"profile": "cpu"})
    differs["upgraded"] = sorted({name for name, _ in first.items() ^ running.contents.items()})
    try:
        await Rollback(Configuration(namespace="accel", kubeconfig=running.kubeconfig)).run("accel", revision=1)
    except HelmError as error:
        if "wait strategy not set" not in str(error):
            raise
    differs["rolled back"] = sorted({name for name, _ in first.items() ^ running.contents.items()})
    return differs


def _gpus(deployment: dict[str, Any]) -> int:
    limits = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], Path(sys.argv[2]))), indent=1))
