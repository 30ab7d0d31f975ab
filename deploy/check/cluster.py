"""A Kubernetes API on the loopback interface, as much as Helm's engine talks to: discovery, and a store of objects.

It schedules nothing and starts nothing. What Helm sends is kept as it came, so that a test can read what an
installation would have created. Kubernetes' own admission is not here: kubernetes-validate checks schemas instead.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import protobuf
import yaml

# API group and version -> kind -> plural; every kind here lives in a namespace.
KINDS = {
    "v1": {
        "Secret": "secrets",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Pod": "pods",
    },
    "apps/v1": {"Deployment": "deployments"},
    "batch/v1": {"Job": "jobs"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
}
MONITORING = {"monitoring.coreos.com/v1": {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}}
_PATH = re.compile(
    r"^/(?:api|apis)/(?P<api>v1|[^/]+/[^/]+)/namespaces/(?P<ns>[^/]+)/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?$"
)


class Cluster:
    """The API, its address, and what was created in it."""

    def __init__(self, version: str, *, monitoring: bool) -> None:
        self.kinds = KINDS | (MONITORING if monitoring else {})
        self.version = version
        self.objects: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self.log: list[str] = []
        self._count = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"cluster": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def kubeconfig(self) -> str:
        """What Helm is given to find it."""
        address = f"http://127.0.0.1:{self._server.server_port}"
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "check",
                "clusters": [{"name": "check", "cluster": {"server": address}}],
                "users": [{"name": "check", "user": {}}],
                "contexts": [{"name": "check", "context": {"cluster": "check", "user": "check"}}],
            }
        )

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The objects of a kind, such as ``"deployments"``."""
        return [thing for (_, plural, _, _), thing in sorted(self.objects.items()) if plural == kind]

    @property
    def contents(self) -> dict[str, str]:
        """Every object but Helm's own records, by plural and name, as JSON without what only this API adds."""
        added = ("uid", "resourceVersion")
        return {
            f"{plural}/{name}": json.dumps(
                thing | {"metadata": {key: value for key, value in thing["metadata"].items() if key not in added}},
                sort_keys=True,
            )
            for (_, plural, _, name), thing in self.objects.items()
            if not name.startswith("sh.helm.release")
        }

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Status and body of one request."""
        with self._lock:
            self.log.append(f"{method} {path}")
            found = _PATH.match(path)
            if not found:
                return self._discovery(path)
            key = (
                found["api"],
                found["kind"],
                found["ns"],
                found["name"] or (body or {}).get("metadata", {}).get("name", ""),
            )
            if found["name"] is None and method == "GET":
                return 200, self._list(key, query)
            return self._object(method, key, body)

    def _object(self, method: str, key: tuple[str, str, str, str], body: Any) -> tuple[int, Any]:
        exists = key in self.objects
        if method in ("GET", "DELETE") and not exists:
            return 404, _status(404, "NotFound", key)
        if method == "GET":
            return 200, self.objects[key]
        if method == "DELETE":
            return 200, self.objects.pop(key)
        if method == "POST" and exists:
            return 409, _status(409, "AlreadyExists", key)
        if method == "PATCH" and exists and "spec" not in body and "data" not in body:
            body = self.objects[key] | body
        self._count += 1
        body.setdefault("metadata", {}).update(
            namespace=key[2], uid=f"uid-{self._count}", resourceVersion=str(self._count)
        )
        self.objects[key] = body
        return (200 if exists else 201), body

    def _list(self, key: tuple[str, str, str, str], query: dict[str, list[str]]) -> dict[str, Any]:
        wanted = [pair.split("=") for pair in ",".join(query.get("labelSelector", [])).split(",") if "=" in pair]
        items = [
            thing
            for (api, plural, namespace, _), thing in self.objects.items()
            if (api, plural, namespace) == key[:3]
            and all(thing["metadata"].get("labels", {}).get(name.strip()) == value.strip() for name, value in wanted)
        ]
        kind = next(kind for kind, plural in self.kinds[key[0]].items() if plural == key[1])
        return {"kind": f"{kind}List", "apiVersion": key[0], "metadata": {"resourceVersion": "1"}, "items": items}

    def _discovery(self, path: str) -> tuple[int, Any]:
        groups: dict[str, list[str]] = {}
        for api in self.kinds:
            group, _, version = api.rpartition("/")
            groups.setdefault(group, []).append(version)
        if path == "/version":
            major, minor = self.version.split(".")[:2]
            return 200, {"major": major, "minor": minor, "gitVersion": f"v{self.version}"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            listed = [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{v}", "version": v} for v in versions],
                    "preferredVersion": {"groupVersion": f"{group}/{versions[0]}", "version": versions[0]},
                }
                for group, versions in groups.items()
                if group
            ]
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        api = path.removeprefix("/apis/").removeprefix("/api/")
        if api in self.kinds:
            resources = [
                {
                    "name": plural,
                    "singularName": "",
                    "namespaced": True,
                    "kind": kind,
                    "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
                }
                for kind, plural in self.kinds[api].items()
            ]
            return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}
        return 404, {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": 404,
            "reason": "NotFound",
            "message": path,
        }


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        address = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        read = protobuf.secret if sent.startswith(protobuf.MAGIC) else yaml.safe_load
        body = read(sent) if sent else None
        code, answer = self.cluster.answer(self.command, address.path, parse_qs(address.query), body)
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Silence: the cluster keeps its own log."""


def _status(code: int, reason: str, key: tuple[str, str, str, str]) -> dict[str, Any]:
    message = f'{key[1]} "{key[3]}": {reason}'
    details = {"name": key[3], "kind": key[1]}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }


@contextlib.contextmanager
def cluster(version: str = "1.36.0", *, monitoring: bool = True) -> Iterator[Cluster]:
    """A running API that ends with the block."""
    running = Cluster(version, monitoring=monitoring)
    try:
        yield running
    finally:
        running.stop()
