"""The Helm chart and its manifests as a lesson reads them: what there is and why, and the autoscaler's own settings."""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from accel_lib.errors import AccelError, require
from accel_lib.tuning.autoscale import Hpa

_WHY = {
    "Deployment": "keeps pods running and replaces them one by one",
    "Service": "gives pods a name",
    "HorizontalPodAutoscaler": "adds and removes pods by the queue time",
    "PodDisruptionBudget": "lets maintenance take one pod at a time",
    "NetworkPolicy": "closes every connection but those in use",
    "Job": "builds the models on the GPU that serves them",
    "PersistentVolumeClaim": "keeps what was built",
    "ServiceAccount": "an identity without any right",
}


def render(root: Path) -> Path:
    """The folder of what the chart renders with its default values; prints where it comes from.

    Helm's own engine renders it here if this Python has it; otherwise it is what that engine rendered before, which
    ``make deploy-check`` keeps equal.

    Parameters
    ----------
    root
        The project's folder.

    Raises
    ------
    AccelError
        Helm refuses the chart.
    """
    deploy, folder = Path(root) / "deploy", Path(root) / "build" / "rendered"
    if not importlib.util.find_spec("helm_python"):
        print("deploy/k8s, as Helm rendered it before: there is no Helm here (pip install helm-python-sdk)")
        return deploy / "k8s"
    helm = import_module("helm_python")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        config, chart = helm.Config(storage_driver="memory"), helm.Chart.load(deploy / "helm" / "accel")
        done = config.install(chart, "accel", namespace="accel", dry_run="client")
    except helm.HelmError as error:
        raise AccelError("Helm refuses the chart.", seen=error, fix="correct the value that it names") from error
    (folder / "accel.yaml").write_text(done["manifest"], encoding="utf-8")
    print("deploy/helm/accel, rendered by Helm just now")
    return folder


def values(root: Path, name: str) -> str:
    """A part of the chart's default values, as YAML with its comments: ``values(root, "autoscaling")``."""
    text = (Path(root) / "deploy" / "helm" / "accel" / "values.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\n(?:[ \t].*\n|\n)*", text, re.MULTILINE)
    if not found:
        raise AccelError("The chart has no such value.", seen=name, fix="read deploy/helm/accel/values.yaml")
    return found[0].strip()


def objects(folder: Path) -> pd.DataFrame:
    """Every object of some manifests: ``kind``, ``name``, ``why``.

    Raises
    ------
    AccelError
        There are none.
    """
    found = _read(folder)
    rows = [(thing["kind"], thing["metadata"]["name"], _WHY.get(thing["kind"], "")) for thing in found]
    return pd.DataFrame(rows, columns=["kind", "name", "why"]).sort_values(["kind", "name"], ignore_index=True)


def excerpt(folder: Path, kind: str, *path: str | int) -> str:
    """A part of the first object of a kind, as YAML: ``excerpt(folder, "HorizontalPodAutoscaler", "spec")``."""
    part: Any = next(thing for thing in _read(folder) if thing["kind"] == kind)
    for step in path:
        part = part[step]
    text: str = require("yaml", extra="notebook").safe_dump(part, sort_keys=False)
    return text


def autoscaler(folder: Path) -> Hpa:
    """The autoscaler that the manifests install, for `accel_lib.tuning.autoscale.replay`."""
    spec = next(thing for thing in _read(folder) if thing["kind"] == "HorizontalPodAutoscaler")["spec"]
    pods = next(metric["pods"] for metric in spec["metrics"] if metric["type"] == "Pods")
    seconds = _quantity(str(pods["target"]["averageValue"]))
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
    by_type = {policy["type"]: policy for policy in up["policies"]}
    return Hpa(
        signal="queue",
        target=1e3 * seconds,
        min_replicas=spec["minReplicas"],
        max_replicas=spec["maxReplicas"],
        up_percent=by_type["Percent"]["value"],
        up_pods=by_type["Pods"]["value"],
        up_period_s=by_type["Percent"]["periodSeconds"],
        down_window_s=down["stabilizationWindowSeconds"],
        down_pods=down["policies"][0]["value"],
        down_period_s=down["policies"][0]["periodSeconds"],
    )


def _quantity(text: str) -> float:
    """Kubernetes writes thousandths as ``20m``."""
    found = re.fullmatch(r"(\d+)(m?)", text)
    if not found:
        raise AccelError("That is no quantity.", seen=text, fix="write 20m or 1")
    return float(found[1]) / (1000 if found[2] else 1)


def _read(folder: Path) -> list[dict[str, Any]]:
    yaml = require("yaml", extra="notebook")
    files = sorted(Path(folder).glob("*.yaml"))
    found = [thing for file in files for thing in yaml.safe_load_all(file.read_text(encoding="utf-8")) if thing]
    if not found:
        raise AccelError(
            "There are no manifests.", seen=Path(folder).name, fix="open the notebook in a checkout of the project"
        )
    return found
