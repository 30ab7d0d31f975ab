"""What the gateway costs: one artifact in process, through Triton, through a bare proxy and through the gateway.

    python -m benchmarks.gateway

All ways take turns on the same texts of mixed length, at saturation and with one client. Beside rates it counts the
processor time of a request by process, which neighbours on the machine disturb less. The bare proxy is uvicorn with an
app that hands a body on to Triton and does nothing else: what a gateway in Python costs at least.
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
import psutil

import accel_lib as accel
from accel_lib.artifact import Artifact
from accel_lib.engines.batching import run_batches
from accel_lib.load.generator import Generator
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.stats import median_interval
from accel_lib.triton import serialize

TURNS, SECONDS, WARMUP_S = 9, 3.0, 0.7
SHAPES = ((32, 1), (4, 16), (1, 1))  # clients, texts per request
VERSION = 2
LEAST_KEPT = 0.85  # of Triton's rate, by 32 clients with a text each
IN_PROCESS, TRITON, PROXY, GATEWAY = "in process", "Triton, gRPC", "bare proxy, HTTP", "gateway, HTTP"


def main():
    """Measure all shapes, and print a table for each and a verdict."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(accel.serve(accel.ensure("embedding"), models=["embedding"]))
        served = server.model("embedding", version=VERSION)
        stack.enter_context(served.own_config())
        served.configure(instance_count=len(os.sched_getaffinity(0)))
        url, key, gateway = stack.enter_context(started_gateway(server))
        proxy_url, proxy = stack.enter_context(started_proxy(server.grpc_url))
        processes = {"Triton": server.pid, "gateway": gateway, "proxy": proxy}
        for clients, rows in SHAPES:
            ways = make_ways(server, url, key, proxy_url, clients, rows)
            report(take_turns(ways, processes), clients, rows)


@contextlib.contextmanager
def started_gateway(server, model="embedding"):
    """`accel serve` in a process of its own, in front of this server: its address, a key and its process id."""
    state = server.repository / ".bench.sqlite3"
    settings = {
        "ACCEL_PORT": "0", "ACCEL_METRICS_PORT": "0", "ACCEL_TRITON_HOST": "127.0.0.1",
        "ACCEL_TRITON_GRPC_PORT": str(server.ports.grpc), "ACCEL_STATE_FILE": str(state),
    }  # fmt: skip
    command = [sys.executable, "-c", "from accel_lib.cli import app; app()", "serve", "--model", model]
    try:
        with started(command, settings) as (process, lines):
            url = key = ""
            while not (url and key):
                words = next(lines).split()
                url = words[1].rstrip(",") if words[:1] == ["gateway"] else url
                key = words[1] if words[:1] == ["key"] else key
            yield url, key, process.pid
    finally:
        for file in server.repository.glob(".bench.sqlite3*"):
            file.unlink()


@contextlib.contextmanager
def started_proxy(grpc_url):
    """`bare_proxy` in a process of its own: its address and its process id."""
    command = [sys.executable, "-m", "benchmarks.bare_proxy", grpc_url]
    with started(command, {}) as (process, lines):
        yield next(lines).strip(), process.pid


@contextlib.contextmanager
def started(command, settings):
    """A process, and the lines that it prints; it is ended afterwards."""
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | settings, **quiet) as process:
        try:
            yield process, process.stdout
        finally:
            process.terminate()


def make_ways(server, url, key, proxy_url, clients, rows):
    """What takes turns, by name: each call runs for some seconds."""
    texts = list(accel.load_texts("mixed", limit=256))
    groups = [texts[i : i + rows] for i in range(0, len(texts), rows)]
    folder = server.repository / "embedding" / str(VERSION) / "artifact"
    artifact = Artifact.load(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json", artifact.manifest.max_length)
    engine = accel.open_engine(artifact, device="auto", threads=len(os.sched_getaffinity(0)))
    direct = [serialize(server.model("embedding", version=VERSION), tokenizer(group)) for group in groups]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "x-model-version": str(VERSION)}
    common = {"model": "embedding", "truncate": "END", "encoding_format": "base64"}
    posts = [("/v1/embeddings", headers, json.dumps(common | {"input": group}).encode()) for group in groups]
    bare = [("/", {}, message) for message in direct]
    return {
        IN_PROCESS: lambda: in_process(engine, tokenizer, groups, clients),
        TRITON: lambda: through(server.grpc_url, direct, "grpc", clients),
        PROXY: lambda: through(proxy_url, bare, "http", clients),
        GATEWAY: lambda: through(url, posts, "http", clients),
    }


def through(url, payloads, protocol, clients):
    """Requests per second in a closed loop, every latency in milliseconds, and all requests that were answered."""
    with Generator(url, payloads, concurrency=clients, protocol=protocol) as generator:
        generator.wait(WARMUP_S)
        begin = time.perf_counter()
        generator.wait(SECONDS)
        end = time.perf_counter()
    refused = [reply.refusal for reply in generator.replies if reply.answer is None]
    assert not refused, refused[:1]
    done = [reply for reply in generator.replies if begin <= reply.ended_s <= end]
    waited_ms = [1e3 * (reply.ended_s - reply.sent_s) for reply in done]
    return len(done) / (end - begin), waited_ms, len(generator.replies)


def in_process(engine, tokenizer, groups, clients):
    """The same without a server: as many texts at once as all clients send."""
    waited_ms, start = [], time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        first, begin = len(waited_ms) * clients, time.perf_counter()
        texts = [text for i in range(clients) for text in groups[(first + i) % len(groups)]]
        run_batches(engine, tokenizer(texts), tokenizer.pad_id)
        waited_ms.append(1e3 * (time.perf_counter() - begin))
    requests = len(waited_ms) * clients
    return requests / (time.perf_counter() - start), waited_ms, requests


def take_turns(ways, processes):
    """A row for each way and turn; `*_cpu_ms` is processor time per request, of a process and its children."""
    rows, names = [], list(ways)
    for turn in range(TURNS):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            before = {who: cpu_s(pid) for who, pid in processes.items()} | {"client": time.process_time()}
            rate, waited_ms, requests = ways[name]()
            after = {who: cpu_s(pid) for who, pid in processes.items()} | {"client": time.process_time()}
            spent = {who: 1e3 * (after[who] - before[who]) / requests for who in after}
            p50, p95 = np.percentile(waited_ms, (50, 95))
            rows.append({"way": name, "turn": turn, "rate": rate, "p50_ms": p50, "p95_ms": p95} | spent)
    return pd.DataFrame(rows)


def cpu_s(pid):
    """Processor time of a process and its children."""
    process = psutil.Process(pid)
    each = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
    return sum(one.user + one.system for one in each)


def report(frame, clients, rows):
    """Print the medians of all turns, and the share of Triton's rate, turn by turn."""
    rates = frame.pivot_table(index="turn", columns="way", values="rate")
    medians = frame.groupby("way", sort=False).median(numeric_only=True).drop(columns="turn")
    kept = rates.div(rates[TRITON], axis=0)
    table = medians.round(2).assign(of_triton=kept.median().round(3))
    print(f"\n{clients} clients, {rows} texts per request, {len(rates)} turns of {SECONDS:g} s; CPU in ms per request")
    print(table.to_string())
    if (clients, rows) == SHAPES[0]:
        low, high = median_interval(kept[GATEWAY])
        share = kept[GATEWAY].median()
        verdict = "reached" if share >= LEAST_KEPT else "missed"
        print(f"{verdict}: the gateway keeps {share:.1%} of Triton's rate (95%: {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
