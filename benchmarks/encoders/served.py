"""Throughput and latency of services under a closed loop, in turns, by one generator for all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tritonclient.grpc.service_pb2 import ModelInferResponse

import accel_lib as accel
from accel_lib.load.generator import Generator
from accel_lib.triton import ServedModel, Server, default_config, serialize, write_model
from accel_lib.tuning.grid import share_cores
from accel_lib.tuning.results import described
from benchmarks.encoders.peers import JSON, Service, Way, peers, started

HERE = Path(__file__).parent
CONCURRENCIES = (1, 8, 32, 64, 256)
TUNED_AT = 32  # clients
WARM_UP_S = 0.5
DRAIN_S = 60.0
CHECKED = 16  # answers of each measurement that are held against the reference


def measure(
    *,
    artifacts: Mapping[str, accel.Artifact],
    texts: Sequence[str],
    folder: Path,
    build: Path,
    reference: np.ndarray,
    seconds: float,
    rounds: int,
) -> list[dict[str, Any]]:
    """One row a service, concurrency and round: requests a second, p50, p95 in ms, failures, least cosine."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        server, services = stack.enter_context(triton(artifacts, texts, seconds=min(seconds, 2)))
        services += gateway(stack, server, texts)

        def measured(service: Service) -> dict[str, Any]:
            return load(service, TUNED_AT, min(seconds, 2), reference)

        services += peers(stack, folder, build, texts, measured=measured)
        for turn in range(rounds):
            for concurrency in CONCURRENCIES:
                first = turn % len(services)
                for service in services[first:] + services[:first]:
                    with service.awake():
                        row = load(service, concurrency, seconds, reference)
                    rows.append(row | {"round": turn})
                    words = "{name}, {concurrency}: {rate:.0f}/s, p95 {p95_ms:.0f} ms, failed {failed}"
                    print(f"{words}, cosine {{cosine:.4f}}".format(**rows[-1]), flush=True)
    return rows


def load(service: Service, concurrency: int, seconds: float, reference: np.ndarray) -> dict[str, Any]:
    """A closed loop on one service, one text a request; what is under way at its end is waited for, and counts."""
    options: dict[str, Any] = {"concurrency": concurrency, "protocol": service.protocol}
    with Generator(service.url, service.payloads, **options) as generator:
        generator._patience_s = DRAIN_S
        generator.wait(WARM_UP_S)
        begin = time.perf_counter()
        generator.wait(seconds)
    ended = [reply for reply in generator.replies if begin <= reply.ended_s]
    answered = [reply for reply in ended if reply.answer is not None]
    if not answered:
        why = ended[0].refusal if ended else "nothing came back"
        raise RuntimeError(f"{service.name} answered nothing with {concurrency} clients: {why}")
    waited = [1e3 * (reply.ended_s - reply.sent_s) for reply in answered]
    near = [float(vector(reply.answer, service.protocol) @ reference[reply.index]) for reply in answered[:CHECKED]]
    return {
        "name": service.name,
        "how": service.how,
        "concurrency": concurrency,
        "rate": len(answered) / (max(reply.ended_s for reply in answered) - begin),
        "p50_ms": float(np.percentile(waited, 50)),
        "p95_ms": float(np.percentile(waited, 95)),
        "failed": len(ended) - len(answered),
        "cosine": min(near),
    }


def vector(answer: bytes, protocol: str) -> np.ndarray:
    """The unit vector of an answer, whoever gave it."""
    if protocol == "grpc":
        (content,) = ModelInferResponse.FromString(answer).raw_output_contents
        found = np.frombuffer(content, dtype=np.float32)
    else:
        body = json.loads(answer)
        found = np.array(body["data"][0]["embedding"] if "data" in body else body["embedding"], dtype=np.float32)
    return found / np.linalg.norm(found)


@contextlib.contextmanager
def triton(
    artifacts: Mapping[str, accel.Artifact], texts: Sequence[str], *, seconds: float
) -> Iterator[tuple[Server, list[Service]]]:
    """Ours and a naive model in one Triton; it takes token ids, so the client's tokenizing is not in it.

    Ours share the cores among instances and threads as measured here, as each peer runs in its fastest way too.
    """
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "model_repository")
        for name in ("ours FP32", "ours INT8"):
            slug = name.replace(" ", "_").lower()
            write_model(repository, slug, artifacts[name], config=default_config(slug, artifacts[name]))
        shutil.copytree(HERE / "naive", repository / "naive", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(artifacts["plain"].path, repository / "naive" / "1")
        with accel.serve(repository) as server:
            ours = server.model("ours_fp32")
            ids = ours.tokenize(texts)
            names = {"naive": "Triton, naive", "ours_fp32": "Triton, ours FP32", "ours_int8": "Triton, ours INT8"}
            hows = {"naive": ""} | {
                slug: tuned(server.model(slug), texts, seconds) for slug in names if slug != "naive"
            }
            payloads = {slug: [serialize(server.model(slug), [row]) for row in ids] for slug in names}
            yield (
                server,
                [
                    Service(name=name, url=server.grpc_url, payloads=payloads[slug], protocol="grpc", how=hows[slug])
                    for slug, name in names.items()
                ],
            )


def tuned(served: ServedModel, texts: Sequence[str], seconds: float) -> str:
    """Give a model the instances and threads with which it answers most, and say which those are."""
    found = share_cores(served, texts, concurrency=TUNED_AT, seconds=seconds, repeats=3).frame
    fastest = found.loc[found["texts_per_s"].idxmax(), ["instance_count", "threads"]].astype(int)
    served.configure(**fastest.to_dict())
    return described(fastest)


def gateway(stack: contextlib.ExitStack, server: Server, texts: Sequence[str]) -> list[Service]:
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
    way = Way(how="", command=[command, "serve", "--port"], env=env)
    return started(stack, "our gateway, INT8", [way], payloads)


def addresses(server: Server) -> tuple[str, str, str]:
    """HTTP, gRPC and metrics."""
    return server.http_url, server.grpc_url, server.metrics_url
