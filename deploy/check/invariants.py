"""What must hold between the objects of an installation, and what no schema can see. Each rule yields its breaches."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]


def breaches(objects: list[Object]) -> list[str]:
    """Every breach of every rule below, as ``rule: what``."""
    return [f"{name.replace('_', ' ')}: {what}" for name, rule in rules().items() for what in rule(objects)]


def rules() -> dict[str, Any]:
    """The rules by name: the functions of this module that yield breaches."""
    here = sys.modules[__name__]
    return {
        name: rule for name, rule in inspect.getmembers(here, inspect.isgeneratorfunction) if not name.startswith("_")
    }


def a_selector_finds_the_pods_it_is_for(objects: list[Object]) -> Iterator[str]:
    """Services, budgets, monitors and policies select at least one pod template."""
    labels = [labels for _, labels, _ in _pods(objects)]
    for thing in objects:
        spec = thing.get("spec", {})
        selector = {
            "Service": spec.get("selector"),
            "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
            "PodMonitor": spec.get("selector", {}).get("matchLabels"),
            "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
        }.get(thing["kind"])
        if selector is not None and not any(_matches(selector, pod) for pod in labels):
            yield f"{_name(thing)} selects no pod"
    for thing in _of(objects, "Deployment"):
        if not _matches(thing["spec"]["selector"]["matchLabels"], thing["spec"]["template"]["metadata"]["labels"]):
            yield f"{_name(thing)} does not select its own pods"


def a_service_and_a_probe_name_ports_that_are_there(objects: list[Object]) -> Iterator[str]:
    """Target ports of services and monitors, and ports of probes, exist in the containers."""
    for thing in objects:
        if thing["kind"] == "Service":
            wanted = [port["targetPort"] for port in thing["spec"]["ports"]]
            selector = thing["spec"]["selector"]
        elif thing["kind"] == "PodMonitor":
            wanted = [end["port"] for end in thing["spec"]["podMetricsEndpoints"]]
            selector = thing["spec"]["selector"]["matchLabels"]
        else:
            continue
        for _, labels, pod in _pods(objects):
            if _matches(selector, labels):
                missing = set(wanted) - set(_ports(pod))
                if missing:
                    yield f"{_name(thing)} wants {sorted(missing)}"
    for owner, _, pod in _pods(objects):
        for container in pod["containers"]:
            named = {port["name"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                if port is not None and port not in named:
                    yield f"{owner}: the {kind} asks {port}"


def every_pod_may_use_what_it_uses(objects: list[Object]) -> Iterator[str]:
    """Where policies deny by default, gateway to Triton, UI to gateway and DNS are allowed on both sides."""
    policies = _of(objects, "NetworkPolicy")
    if not policies:
        return
    pods = {labels["app.kubernetes.io/component"]: (labels, pod) for _, labels, pod in _pods(objects)}
    for labels, _ in pods.values():
        if not any(_matches(p["spec"]["podSelector"].get("matchLabels", {}), labels) for p in policies):
            yield f"no policy holds for {labels['app.kubernetes.io/component']}"
    for source, target in (("gateway", "triton"), ("ui", "gateway")):
        if source not in pods:
            continue
        labels, pod = pods[target]
        used = [port for name, port in _ports(pod).items() if name != "metrics"]
        for port in used:
            if not _allowed(policies, "egress", pods[source][0], labels, port):
                yield f"{source} may not send to {target}:{port}"
            if not _allowed(policies, "ingress", labels, pods[source][0], port):
                yield f"{target}:{port} does not admit {source}"
        if not _allowed(policies, "egress", pods[source][0], None, 53):
            yield f"{source} may not ask DNS"


def triton_admits_the_gateway_alone(objects: list[Object]) -> Iterator[str]:
    """A client that reaches Triton's own ports can do what the gateway refuses."""
    policies = _of(objects, "NetworkPolicy")
    for owner, labels, pod in _pods(objects):
        if labels["app.kubernetes.io/component"] != "triton" or not policies:
            continue
        stranger = {**labels, "app.kubernetes.io/component": "stranger"}
        for port in (_ports(pod)["http"], _ports(pod)["grpc"]):
            if _allowed(policies, "ingress", labels, stranger, port):
                yield f"{owner}: {port} is open to others"


def the_grace_period_outlasts_the_drain(objects: list[Object]) -> Iterator[str]:
    """Pause before the SIGTERM and drain after it fit into the grace period, with seconds to spare."""
    for owner, labels, pod in _pods(objects):
        part = labels["app.kubernetes.io/component"]
        if part not in ("gateway", "triton"):
            continue
        container = pod["containers"][0]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = next(
            int(found[1])
            for words in (*container.get("args", []), *(f"{e['name']}={e.get('value', '')}" for e in container["env"]))
            if (found := re.match(r"(?:--exit-timeout-secs|ACCEL_DRAIN_S)=(\d+)$", words))
        )
        if pod["terminationGracePeriodSeconds"] < pause + drain + 5:
            yield f"{owner}: {pod['terminationGracePeriodSeconds']} s for {pause} s and {drain} s"


def a_slow_load_is_not_killed(objects: list[Object]) -> Iterator[str]:
    """Liveness waits for a startup probe, which leaves minutes."""
    for owner, labels, pod in _pods(objects):
        for container in pod["containers"]:
            if "livenessProbe" not in container:
                continue
            startup = container.get("startupProbe")
            if not startup:
                yield f"{owner}: liveness without startup"
            elif labels["app.kubernetes.io/component"] == "triton" and _seconds(startup) < 300:
                yield f"{owner}: under five minutes to load"


def memory_backed_volumes_are_limited_and_counted(objects: list[Object]) -> Iterator[str]:
    """/dev/shm takes from the pod's memory limit."""
    for owner, _, pod in _pods(objects):
        held = [v["emptyDir"] for v in pod.get("volumes", []) if v.get("emptyDir", {}).get("medium") == "Memory"]
        limit = sum(_mebibytes(c["resources"]["limits"]["memory"]) for c in pod["containers"])
        shared = sum(_mebibytes(v["sizeLimit"]) for v in held)
        if shared and limit <= 2 * shared:
            yield f"{owner}: {limit} Mi for processes and {shared} Mi of shared memory"


def nothing_runs_as_root_or_writes_to_its_image(objects: list[Object]) -> Iterator[str]:
    """Non-root, read-only root, no privileges, a writable /tmp, no token for the API."""
    for owner, _, pod in _pods(objects):
        if not pod["securityContext"].get("runAsNonRoot") or pod.get("automountServiceAccountToken") is not False:
            yield f"{owner}: root, or an API token"
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            context = container["securityContext"]
            tight = context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            if not tight or context["capabilities"]["drop"] != ["ALL"]:
                yield f"{owner}/{container['name']}: privileges"
            if "/tmp" not in [mount["mountPath"] for mount in container["volumeMounts"]]:
                yield f"{owner}/{container['name']}: no writable /tmp"


def every_mount_has_its_volume_and_every_claim_its_object(objects: list[Object]) -> Iterator[str]:
    """Names of volumes and claims agree; a claim that exists beforehand is named in the values."""
    claims = {_name(claim).partition("/")[2] for claim in _of(objects, "PersistentVolumeClaim")}
    for owner, _, pod in _pods(objects):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            for mount in container["volumeMounts"]:
                if mount["name"] not in volumes:
                    yield f"{owner}: no volume {mount['name']}"
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims and claim != "models-of-mine":
                yield f"{owner}: no claim {claim}"


def an_autoscaler_and_a_replica_count_do_not_fight(objects: list[Object]) -> Iterator[str]:
    """A scaled deployment sets no replicas, or each upgrade would reset them; and the target exists."""
    deployments = {thing["metadata"]["name"]: thing for thing in _of(objects, "Deployment")}
    for scaler in _of(objects, "HorizontalPodAutoscaler"):
        target = deployments.get(scaler["spec"]["scaleTargetRef"]["name"])
        if target is None or "replicas" in target["spec"]:
            yield f"{_name(scaler)}"


def an_uninstall_leaves_the_claims_and_nothing_else(objects: list[Object]) -> Iterator[str]:
    """What was built, and the keys, outlive the release; everything else goes with it."""
    for thing in objects:
        kept = thing["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
        if kept != (thing["kind"] == "PersistentVolumeClaim"):
            yield _name(thing)


def no_password_is_in_a_manifest(objects: list[Object]) -> Iterator[str]:
    """Secrets are named, never made here."""
    for thing in objects:
        if thing["kind"] == "Secret":
            yield _name(thing)


def _of(objects: list[Object], kind: str) -> list[Object]:
    return [thing for thing in objects if thing["kind"] == kind]


def _name(thing: Object) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


def _pods(objects: list[Object]) -> list[tuple[str, dict[str, str], Object]]:
    """Owner, labels and spec of every pod template."""
    templates = [(_name(t), t["spec"]["template"]) for t in objects if t["kind"] in ("Deployment", "Job")]
    return [(owner, template["metadata"]["labels"], template["spec"]) for owner, template in templates]


def _ports(pod: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for c in pod["containers"] for port in c.get("ports", [])}


def _matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def _allowed(policies: list[Object], way: str, pod: dict[str, str], peer: dict[str, str] | None, port: int) -> bool:
    """Whether some policy for `pod` lets `peer` (None: a pod of another namespace) through on a port."""
    side = "from" if way == "ingress" else "to"
    for policy in policies:
        if not _matches(policy["spec"]["podSelector"].get("matchLabels", {}), pod):
            continue
        for rule in policy["spec"].get(way, []):
            if port not in [entry["port"] for entry in rule["ports"]]:
                continue
            for other in rule[side]:
                if peer is None and "namespaceSelector" in other:
                    return True
                inside = "namespaceSelector" not in other
                if peer is not None and inside and _matches(other["podSelector"].get("matchLabels", {}), peer):
                    return True
    return False


def _seconds(probe: Object) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def _mebibytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "Gi" else 1)


def objects_in(*files: Path) -> list[Object]:
    """The objects of some YAML files."""
    return [thing for file in files for thing in yaml.safe_load_all(file.read_text(encoding="utf-8")) if thing]


if __name__ == "__main__":
    broken = {file: breaches(objects_in(Path(file))) for file in sys.argv[1:]}
    for file, found in broken.items():
        for breach in found:
            print(f"{Path(file).stem}: {breach}")
    sys.exit(any(broken.values()))
