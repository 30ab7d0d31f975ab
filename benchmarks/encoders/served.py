"""Throughput and latency of services under a closed loop, in turns, by one generator for all."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import re
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
from accel_lib.machine import cores
from accel_lib.stats import measure_quality
from accel_lib.triton import ServedModel, Server, default_config, serialize, write_model
from accel_lib.tuning.grid import share_cores
from accel_lib.tuning.results import described
from benchmarks.encoders.models import Files
from benchmarks.encoders.peers import JSON, Backends, Service, Way, peers, started

HERE = Path(__file__).parent
CONCURRENCIES = (1, 8, 32, 64, 256)
TUNED_AT = 32  # clients
DRAIN_S = 60.0
CHECKED = 16  # answers of each measurement that are held against the reference

Vectors = dict[str, dict[int, np.ndarray]]  # by service and text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """Rounds of all services, seconds of each at each number of clients, and whether each is tuned first."""

    rounds: int = 3
    seconds: float = 2.5
    warm_up_s: float = 0.5
    tuned: bool = True


QUICK = Effort(rounds=1, seconds=0.6, warm_up_s=0.2, tuned=False)


def measure(
    *,
    ours: Mapping[str, accel.Artifact],
    backends: Backends,
    classes: Mapping[str, str | None],
    small: Files,
    texts: Sequence[str],
    build: Path,
    reference: np.ndarray,
    effort: Effort,
) -> list[dict[str, Any]]:
    """One row a service, concurrency and round: requests a second, p50, p95 in ms, failures, least cosine, class.

    `ours` and `backends` are what our services and sentence-transformers' run on, `classes` the quality classes that
    these have in one process.
    """
    rows: list[dict[str, Any]] = []
    seen: Vectors = collections.defaultdict(dict)
    with contextlib.ExitStack() as stack:
        server, services = stack.enter_context(triton(ours, small.plain, texts, effort=effort))
        services += gateway(stack, server, texts, model=slug(list(ours)[-1]), name=list(ours)[-1])

        def measured(service: Service) -> dict[str, Any]:
            return load(service, TUNED_AT, effort, reference, seen)

        kinds = {"backends": backends, "quick": not effort.tuned, "measured": measured}
        services += peers(stack, small.folder, build, texts, **kinds)
        for turn in range(effort.rounds):
            for concurrency in CONCURRENCIES:
                first = turn % len(services)
                for service in services[first:] + services[:first]:
                    with service.awake():
                        row = load(service, concurrency, effort, reference, seen)
                    rows.append(row | {"round": turn})
                    words = "{name}, {concurrency}: {rate:.0f}/s, p95 {p95_ms:.0f} ms, failed {failed}"
                    print(f"{words}, cosine {{cosine:.4f}}".format(**rows[-1]), flush=True)
    found = {one.name: quality_class(seen[one.name], reference, classes, one.engine) for one in services}
    return [row | {"class": found[row["name"]]} for row in rows]


def quality_class(
    answers: Mapping[int, np.ndarray], reference: np.ndarray, classes: Mapping[str, str | None], engine: str
) -> str | None:
    """The class of what a service runs on, which was judged on more texts; none if its own answers are in none."""
    texts = sorted(answers)
    seen = measure_quality(np.stack([answers[i] for i in texts]), reference[texts]).quality_class
    return classes.get(engine, seen) if seen else None


def load(service: Service, concurrency: int, effort: Effort, reference: np.ndarray, seen: Vectors) -> dict[str, Any]:
    """A closed loop on one service, one text a request; requests in flight at its end are waited for, and count."""
    options: dict[str, Any] = {"concurrency": concurrency, "protocol": service.protocol, "drain_s": DRAIN_S}
    with Generator(service.url, service.payloads, **options) as generator:
        generator.wait(effort.warm_up_s)
        begin = time.perf_counter()
        generator.wait(effort.seconds)
    ended = [reply for reply in generator.replies if begin <= reply.ended_s]
    answered = [reply for reply in ended if reply.answer is not None]
    if not answered:
        why = ended[0].refusal if ended else "nothing came back"
        raise RuntimeError(f"{service.name} answered nothing with {concurrency} clients: {why}")
    waited = [1e3 * (reply.ended_s - reply.sent_s) for reply in answered]
    new = {reply.index: reply for reply in answered if reply.index not in seen[service.name]}
    checked = new | {reply.index: reply for reply in answered[:CHECKED]}
    found = {index: vector(reply.answer, service.protocol) for index, reply in checked.items()}
    seen[service.name] |= found
    return {
        "name": service.name,
        "how": service.how,
        "ours": service.ours,
        "concurrency": concurrency,
        "rate": len(answered) / (max(reply.ended_s for reply in answered) - begin),
        "p50_ms": float(np.percentile(waited, 50)),
        "p95_ms": float(np.percentile(waited, 95)),
        "failed": len(ended) - len(answered),
        "cosine": min(float(one @ reference[index]) for index, one in found.items()),
    }


def vector(answer: bytes, protocol: str) -> np.ndarray:
    """The unit vector of an answer, of any protocol."""
    if protocol == "grpc":
        (content,) = ModelInferResponse.FromString(answer).raw_output_contents
        found = np.frombuffer(content, dtype=np.float32)
    else:
        body = json.loads(answer)
        found = np.array(body["data"][0]["embedding"] if "data" in body else body["embedding"], dtype=np.float32)
    return found / np.linalg.norm(found)


@contextlib.contextmanager
def triton(
    ours: Mapping[str, accel.Artifact], plain: Path, texts: Sequence[str], *, effort: Effort
) -> Iterator[tuple[Server, list[Service]]]:
    """Ours and a naive model in one Triton; it takes token ids, so the client's tokenizing is not in it.

    Ours share the cores among instances and threads as measured here, as each peer runs in its fastest way too.
    """
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "model_repository")
        for name, artifact in ours.items():
            write_model(repository, slug(name), artifact, config=default_config(slug(name), artifact))
        shutil.copytree(HERE / "naive", repository / "naive", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(plain / "model.onnx", repository / "naive" / "1")
        with accel.serve(repository) as server:
            ids = server.model(slug(next(iter(ours)))).tokenize(texts)
            served = {"naive": ("Triton, naive", "padded, ONNX Runtime")}
            for name in ours:
                how = tuned(server.model(slug(name)), texts, effort.seconds) if effort.tuned else ""
                served[slug(name)] = (f"Triton + {name}", how)
            yield (
                server,
                [
                    Service(
                        name=name,
                        url=server.grpc_url,
                        payloads=[serialize(server.model(model), [row]) for row in ids],
                        protocol="grpc",
                        how=how,
                        ours=model != "naive",
                        engine=name.partition(" + ")[2],
                    )
                    for model, (name, how) in served.items()
                ],
            )


def slug(name: str) -> str:
    """A model's name in Triton: ``"ours FP32"`` is ``ours_fp32``."""
    return re.sub(r"\W+", "_", name).lower()


def tuned(served: ServedModel, texts: Sequence[str], seconds: float) -> str:
    """Give a model the instances and threads with which it answers most, and say which those are.

    Threads that are an instance's share of the cores are left unsaid: a lone request then gets all of them.
    """
    found = share_cores(served, texts, concurrency=TUNED_AT, seconds=min(seconds, 1.5), repeats=2).frame
    fastest = found.loc[found["texts_per_s"].idxmax(), ["instance_count", "threads"]].astype(int)
    count, threads = int(fastest["instance_count"]), int(fastest["threads"])
    served.configure(instance_count=count, threads=None if count * threads == cores() else threads)
    return described(fastest)


def gateway(
    stack: contextlib.ExitStack, server: Server, texts: Sequence[str], *, model: str, name: str
) -> list[Service]:
    """Our gateway in front of the same Triton: text in JSON, with a key, as a user of the service asks."""
    command = Path(sys.executable).with_name("accel")
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    http, grpc, metrics = (urlsplit(f"//{url.split('//')[-1]}").port for url in addresses(server))
    env = os.environ | {
        "ACCEL_STATE_FILE": f"{folder}/state.sqlite3",
        "ACCEL_REPOSITORY": str(server.repository),
        "ACCEL_MODELS": model,
        "ACCEL_METRICS_PORT": "0",
        "ACCEL_TRITON_HOST": "127.0.0.1",
        "ACCEL_TRITON_HTTP_PORT": str(http),
        "ACCEL_TRITON_GRPC_PORT": str(grpc),
        "ACCEL_TRITON_METRICS_PORT": str(metrics),
    }
    made = subprocess.run([command, "keys", "create", "bench"], env=env, capture_output=True, text=True, check=True)
    headers = JSON | {"Authorization": f"Bearer {made.stdout.strip().splitlines()[-1]}"}
    bodies = [json.dumps({"model": model, "input": text}).encode() for text in texts]
    payloads = [("/v1/embeddings", headers, body) for body in bodies]
    way = Way(how="", command=[command, "serve", "--port"], env=env)
    found = started(stack, f"our gateway + {name}", [way], payloads)
    return [dataclasses.replace(service, ours=True, engine=name) for service in found]


def addresses(server: Server) -> tuple[str, str, str]:
    """HTTP, gRPC and metrics."""
    return server.http_url, server.grpc_url, server.metrics_url
