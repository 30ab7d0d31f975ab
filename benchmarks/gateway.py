"""What the gateway costs: texts/s in process, through Triton, and through the gateway in front of it.

    python -m benchmarks.gateway

Three ways take turns on the same artifact and the same texts of mixed length, at saturation; a verdict comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd

import accel_lib as accel
from accel_lib.artifact import Artifact
from accel_lib.engines.batching import run_batches
from accel_lib.load.generator import Generator
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.triton import serialize

TURNS, SECONDS, WARMUP_S = 5, 4.0, 1.0
ROWS, CLIENTS = 16, 4
MOST_LOST = 0.15


@contextlib.contextmanager
def gateway(server):
    """`accel serve` in a process of its own, in front of this server: its address and a key."""
    settings = {
        "ACCEL_PORT": "0", "ACCEL_METRICS_PORT": "0", "ACCEL_TRITON_HOST": "127.0.0.1",
        "ACCEL_TRITON_GRPC_PORT": str(server.ports.grpc), "ACCEL_STATE_FILE": str(server.repository / ".bench.sqlite3"),
    }  # fmt: skip
    command = [sys.executable, "-c", "from accel_lib.cli import app; app()", "serve", "--model", "embedding"]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | settings, **quiet) as process:
        try:
            url = key = ""
            while not (url and key):
                words = process.stdout.readline().split()
                url = words[1].rstrip(",") if words[:1] == ["gateway"] else url
                key = words[1] if words[:1] == ["key"] else key
            yield url, key
        finally:
            process.terminate()
            process.wait()
            for file in server.repository.glob(".bench.sqlite3*"):
                file.unlink()


def through(url, payloads, protocol):
    """Sentences a second and p95 in milliseconds of a closed loop."""
    with Generator(url, payloads, concurrency=CLIENTS, protocol=protocol) as generator:
        generator.wait(WARMUP_S)
        begin = time.perf_counter()
        generator.wait(SECONDS)
        end = time.perf_counter()
    done = [reply for reply in generator.replies if begin <= reply.ended_s <= end]
    refused = [reply.refusal for reply in done if reply.answer is None]
    assert done, generator.stopped
    assert not refused, refused[:1]
    return len(done) * ROWS / (end - begin), 1e3 * np.percentile([r.ended_s - r.sent_s for r in done], 95)


def in_process(engine, tokenizer, groups):
    """The same without any server: tokenize, sort, cut, compute, as many texts at once as all clients send."""
    done, begin, turn = 0, time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        texts = [text for i in range(CLIENTS) for text in groups[(turn + i) % len(groups)]]
        run_batches(engine, tokenizer(texts), tokenizer.pad_id)
        done, turn = done + len(texts), turn + CLIENTS
    return done / (time.perf_counter() - begin), float("nan")


def main():
    texts = list(accel.load_texts("mixed", limit=16 * ROWS))
    groups = [texts[i : i + ROWS] for i in range(0, len(texts), ROWS)]
    with accel.serve(accel.ensure("embedding"), models=["embedding"]) as server, gateway(server) as (url, key):
        served = server.model("embedding", version=2)
        folder = server.repository / "embedding" / "2" / "artifact"
        artifact = Artifact.load(folder)
        tokenizer = Tokenizer.load(folder / "tokenizer.json", artifact.manifest.max_length)
        engine = accel.open_engine(artifact, device="auto", threads=len(os.sched_getaffinity(0)))
        direct = [serialize(served, tokenizer(group)) for group in groups]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "x-model-version": "2"}
        common = {"model": "embedding", "truncate": "END", "encoding_format": "base64"}
        posts = [("/v1/embeddings", headers, json.dumps(common | {"input": group}).encode()) for group in groups]
        ways = {
            "in process": lambda: in_process(engine, tokenizer, groups),
            "Triton, gRPC": lambda: through(server.grpc_url, direct, "grpc"),
            "gateway, HTTP": lambda: through(url, posts, "http"),
        }
        names, seen = list(ways), {name: [] for name in ways}
        for turn in range(TURNS):
            for name in names[turn % 3 :] + names[: turn % 3]:
                seen[name].append(ways[name]())
        engine.close()
    rates = {name: np.array([rate for rate, _ in runs]) for name, runs in seen.items()}
    table = pd.DataFrame(
        {
            "": names,
            "texts/s": [np.median(rates[name]).round(1) for name in names],
            "p95, ms": [np.median([p95 for _, p95 in seen[name]]).round(0) for name in names],
            "of in process": [np.median(rates[name] / rates["in process"]).round(3) for name in names],
            "of Triton": [np.median(rates[name] / rates["Triton, gRPC"]).round(3) for name in names],
        }
    )
    print(f"{CLIENTS} clients, {ROWS} texts a request, {TURNS} turns of {SECONDS:g} s, {artifact.name}")
    print(table.to_string(index=False))
    share = {name: rates[name] / rates["in process"] for name in names}
    triton = np.median(1 - share["Triton, gRPC"])
    own = np.median(share["Triton, gRPC"] - share["gateway, HTTP"])
    verdict = "reached" if own <= MOST_LOST else "missed"
    print(
        f"{verdict}: of in-process throughput the gateway itself costs {own:.1%} (at most {MOST_LOST:.0%}), "
        f"Triton and the clients before it {triton:.1%}"
    )


if __name__ == "__main__":
    main()
