"""How many requests/s one process can send to a model that only echoes, beside tritonclient's own client.

The load generator and a plain ``tritonclient.grpc.aio`` client, 32 requests in flight, take turns on one Triton:

    python -m benchmarks.generator_ceiling

Prints requests/s of each turn, and the ratio of the medians. Under 4,000 on two cores the generator would only
measure itself where a model is fast.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as aio

from accel_lib.load.generator import Generator
from accel_lib.measurement import machine_line
from accel_lib.triton import serialize
from accel_lib.triton.server import serve

ECHO = Path(__file__).parents[1] / "tests" / "integration" / "models" / "echo"
CONCURRENCY, SECONDS, TURNS = 32, 2.0, 5
IDS = np.arange(1, 9, dtype=np.int64)[None, :]


def generator(url: str, payload: bytes) -> float:
    """Requests a second of the library's generator."""
    with Generator(url, [payload], concurrency=CONCURRENCY) as sending:
        sending.wait(SECONDS)
        answered, took = len(sending.replies), time.perf_counter() - sending.began_s
    assert not sending.stopped
    return answered / took


def plain(url: str) -> float:
    """Requests a second of a client as tritonclient's examples write it."""

    async def ask(client: aio.InferenceServerClient, until: float) -> int:
        answered = 0
        while time.perf_counter() < until:
            inputs = [aio.InferInput(name, IDS.shape, "INT64") for name in ("input_ids", "attention_mask")]
            for tensor in inputs:
                tensor.set_data_from_numpy(IDS)
            answer = await client.infer("echo", inputs)
            answer.as_numpy("echo")
            answered += 1
        return answered

    async def all_clients() -> int:
        async with aio.InferenceServerClient(url) as client:
            until = time.perf_counter() + SECONDS
            return sum(await asyncio.gather(*(ask(client, until) for _ in range(CONCURRENCY))))

    began = time.perf_counter()
    return asyncio.run(all_clients()) / (time.perf_counter() - began)


def main() -> None:
    """Alternate the two, and print what each reached."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        shutil.copytree(ECHO, repository / "echo", ignore=shutil.ignore_patterns("__pycache__"))
        with serve(repository) as server:
            echo = server.model("echo")
            payload = serialize(echo, [IDS[0]])
            generator(server.grpc_url, payload)
            turns = [(generator(server.grpc_url, payload), plain(server.grpc_url)) for _ in range(TURNS)]
    for ours, theirs in turns:
        print(f"generator {ours:,.0f} requests/s, tritonclient.grpc.aio {theirs:,.0f}")
    ours, theirs = np.median(turns, axis=0)
    print(f"median: generator {ours:,.0f} requests/s, {ours / theirs:.1f} times tritonclient.grpc.aio's {theirs:,.0f}")
    print(machine_line())


if __name__ == "__main__":
    main()
