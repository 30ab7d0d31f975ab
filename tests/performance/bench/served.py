"""Throughput and latency of services under a closed loop, in turns, by one generator for all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np

import accel_lib as accel
from accel_lib.lab.generator import Generator
from accel_lib.lab.wire import serialize
from accel_lib.triton.repository import default_config, write_model
from accel_lib.triton.server import Server
from bench.environments import python_of

HERE = Path(__file__).parent
CONCURRENCIES = (1, 8, 32, 64, 256)
WARM_UP_S = 0.7
START_S = 120
JSON = {"Content-Type": "application/json"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """Something that answers one text a request."""

    name: str
    url: str
    payloads: Sequence[Any]
    protocol: Literal["grpc", "http"] = "http"
    process: subprocess.Popen[bytes] | None = None


def measure(
    *,
    artifacts: Mapping[str, accel.Artifact],
    texts: Sequence[str],
    folder: Path,
    build: Path,
    seconds: float,
    rounds: int,
) -> list[dict[str, Any]]:
    """One row a service, concurrency and round: requests a second, p50, p95 in ms, failures."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        server, services = stack.enter_context(triton(artifacts, texts))
        services += [*filter(None, [gateway(stack, server, texts)]), *peers(stack, folder, build, texts)]
        for turn in range(rounds):
            for concurrency in CONCURRENCIES:
                first = turn % len(services)
                for service in services[first:] + services[:first]:
                    rows.append(load(service, concurrency, seconds) | {"round": turn})
                    print(
                        "{name}, {concurrency}: {rate:.0f}/s, p95 {p95_ms:.0f} ms, failed {failed}".format(**rows[-1]),
                        flush=True,
                    )
    return rows


def load(service: Service, concurrency: int, seconds: float) -> dict[str, Any]:
    """A closed loop on one service; one text a request."""
    options: dict[str, Any] = {"concurrency": concurrency, "protocol": service.protocol}
    with Generator(service.url, service.payloads, **options) as generator:
        generator.wait(WARM_UP_S)
        begin = time.perf_counter()
        generator.wait(seconds)
        end = time.perf_counter()
    ended = [reply for reply in generator.replies if begin <= reply.ended_s]
    inside = [reply for reply in ended if reply.ended_s <= end and reply.answer is not None]
    waited = [1e3 * (reply.ended_s - reply.sent_s) for reply in ended if reply.answer is not None] or [float("nan")]
    return {
        "name": service.name,
        "concurrency": concurrency,
        "rate": len(inside) / (end - begin),
        "p50_ms": float(np.percentile(waited, 50)),
        "p95_ms": float(np.percentile(waited, 95)),
        "failed": sum(reply.answer is None for reply in ended),
    }


@contextlib.contextmanager
def triton(artifacts: Mapping[str, accel.Artifact], texts: Sequence[str]) -> Iterator[tuple[Server, list[Service]]]:
    """Ours and a naive model in one Triton; it takes token ids, so the client's tokenizing is not in it."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "model_repository")
        for name in ("ours FP32", "ours INT8"):
            slug = name.replace(" ", "_").lower()
            write_model(repository, slug, artifacts[name], config=default_config(slug, artifacts[name]))
        shutil.copytree(HERE / "naive", repository / "naive", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(artifacts["plain"].path, repository / "naive" / "1")
        with accel.serve(repository) as server:
            ours = server.model("ours_fp32")
            ids = ours._tokenize(texts, None)[1]
            names = {"naive": "Triton, naive", "ours_fp32": "Triton, ours FP32", "ours_int8": "Triton, ours INT8"}
            payloads = {slug: [serialize(server.model(slug), [row]) for row in ids] for slug in names}
            yield (
                server,
                [
                    Service(name=name, url=server.grpc_url, payloads=payloads[slug], protocol="grpc")
                    for slug, name in names.items()
                ],
            )


def gateway(stack: contextlib.ExitStack, server: Server, texts: Sequence[str]) -> Service | None:
    """Our gateway in front of the same Triton: text in JSON, with a key, as a user of the service asks."""
    command = Path(sys.executable).with_name("accel")
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    http, grpc, metrics = (urlsplit(f"//{url.split('//')[-1]}").port for url in addresses(server))
    env = os.environ | {
        "ACCEL_STATE_FILE": f"{folder}/state.sqlite3",
        "ACCEL_REPOSITORY": str(server.repository),
        "ACCEL_MODELS": "ours_int8",
        "ACCEL_METRICS_PORT": "0",
        "ACCEL_TRITON_HOST": "127.0.0.1",
        "ACCEL_TRITON_HTTP_PORT": str(http),
        "ACCEL_TRITON_GRPC_PORT": str(grpc),
        "ACCEL_TRITON_METRICS_PORT": str(metrics),
    }
    made = subprocess.run([command, "keys", "create", "bench"], env=env, capture_output=True, text=True, check=True)
    headers = JSON | {"Authorization": f"Bearer {made.stdout.strip().splitlines()[-1]}"}
    bodies = [json.dumps({"model": "ours_int8", "input": text}).encode() for text in texts]
    payloads = [("/v1/embeddings", headers, body) for body in bodies]
    return started(stack, "our gateway, INT8", [command, "serve", "--port"], payloads, env=env)


def addresses(server: Server) -> tuple[str, str, str]:
    """HTTP, gRPC and metrics."""
    return server.http_url, server.grpc_url, server.metrics_url


def peers(stack: contextlib.ExitStack, folder: Path, build: Path, texts: Sequence[str]) -> list[Service]:
    """Every peer that can be installed and started here."""
    services = []
    for name, peer, path, field in (
        ("infinity", "infinity", "/embeddings", "input"),
        ("FastAPI + sentence-transformers", "fastapi", "/embed", "text"),
        ("LitServe", "litserve", "/predict", "text"),
    ):
        python = python_of(peer, build)
        if python is None:
            continue
        bodies = [{field: text} | ({"model": "m"} if peer == "infinity" else {}) for text in texts]
        payloads = [(path, JSON, json.dumps(body).encode()) for body in bodies]
        found = [started(stack, name, command, payloads) for command in commands(peer, python, folder)]
        running = [service for service in found if service]
        if len(running) > 1:
            running.sort(key=lambda service: -load(service, 32, 2)["rate"])
            for slower in running[1:]:
                slower.process.kill()
        services += running[:1]
    return services


def commands(peer: str, python: Path, folder: Path) -> list[list[Any]]:
    """Ways to start a peer, of which the fastest is taken."""
    if peer != "infinity":
        return [[python, HERE / f"{peer}_service.py", folder]]
    start = [python.with_name("infinity_emb"), "v2", "--model-id", folder, "--served-model-name", "m"]
    start += ["--engine", "torch", "--device", "cpu", "--no-compile", "--log-level", "error"]
    return [[*start, "--batch-size", size] for size in ("4", "8", "32")]


def started(
    stack: contextlib.ExitStack,
    name: str,
    command: list[Any],
    payloads: Sequence[Any],
    *,
    env: Mapping[str, str] | None = None,
) -> Service | None:
    """A service that answers, on a free port; None, with a line that says so, where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    last = ["--port", str(port)] if "v2" in command else [str(port)]
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet = apart | {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = subprocess.Popen(list(map(str, [*command, *last])), env=env or quiet, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.kill)
    path, headers, body = payloads[0]
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with (
            contextlib.suppress(URLError, OSError),
            urlopen(Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers), timeout=30),
        ):
            return Service(name=name, url=f"http://127.0.0.1:{port}", payloads=payloads, process=process)
        time.sleep(0.3)
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()
    print(f"{name} is left out: it did not start. {said[-1] if said else ''}", flush=True)
    return None
