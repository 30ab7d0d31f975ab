"""Engines that generate, in turns under the same load: CPU seconds, tokens per second, first token, and equal tokens.

32 chats of 34 to 151 tokens arrive at once, with forced answers of exponential length (mean 40, at most 160 tokens):

    python -m benchmarks.generation
    python -m benchmarks.generation --requests 8 --arms "openvino fp32" "openvino int8"
    python -m benchmarks.generation --turns 1 --rows 32 --peers    # llama.cpp, ONNX Runtime GenAI, OpenVINO GenAI

OpenVINO GenAI as it comes takes all requests at once, so peers are compared with as many rows as there are requests.

CPU seconds of one thread are the measure on a busy machine. The reference of equal tokens is transformers, one by one;
``same_tokens`` is the share of an answer before its first other token. Peers run in environments of their own, made on
the first run under ``build/bench``; they are compared with ours among those that are exact, and among the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from accel_lib.convert.generation import generation_to_openvino
from accel_lib.convert.generation_onnx import generation_to_onnx
from accel_lib.generate import GenerationEngine, Sampling
from accel_lib.generate.onnxruntime import OnnxEngine
from accel_lib.generate.openvino import OpenVINOEngine
from accel_lib.generate.scheduler import Scheduler
from accel_lib.generate.static import StaticBatchEngine
from accel_lib.generate.transformers import TransformersEngine
from accel_lib.measurement import machine_line
from accel_lib.models import load_model
from accel_lib.models.generation import GenerationModel
from accel_lib.texts import load_texts
from benchmarks import generation_peers

MODEL = "SmolLM2-135M-Instruct"
CACHE_TOKENS = 8_192
MEAN_TOKENS = 40
MOST_TOKENS = 160
REFERENCE = "one by one"
Requests = list[tuple[list[int], Sampling]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One arm under the whole load."""

    cpu_s: float
    wall_s: float
    first_token_s: float
    between_tokens_s: float
    ids: tuple[tuple[int, ...], ...]


def arms(model: GenerationModel, rows: int) -> dict[str, Callable[[], GenerationEngine]]:
    """Each engine, opened again for each turn: nothing is kept from one to the next."""

    def converted(precision: str, rows: int = rows) -> Callable[[], GenerationEngine]:
        artifact = generation_to_openvino(model, precision=precision)
        return lambda: OpenVINOEngine(artifact, rows=rows, cache_tokens=CACHE_TOKENS, threads=1, prefix_cache=False)

    return {
        REFERENCE: lambda: StaticBatchEngine(model, rows=1),
        "static batches": lambda: StaticBatchEngine(model, rows=rows),
        "onnxruntime, static batches": lambda: OnnxEngine(
            generation_to_onnx(model, progress=False), rows=rows, threads=1, device="cpu"
        ),
        "transformers, continuous": lambda: TransformersEngine(model, rows=rows, cache_tokens=CACHE_TOKENS),
        "openvino fp32, one by one": converted("fp32", 1),
        "openvino fp32": converted("fp32"),
        "openvino bf16": converted("bf16"),
        "openvino int8": converted("int8"),
    }


def ours(model: GenerationModel, rows: int) -> dict[str, Callable[[Requests], Turn]]:
    """Each engine of `arms`, as what takes the whole load."""
    return {name: lambda requests, make=make: turn(make(), requests) for name, make in arms(model, rows).items()}


def peers(model: GenerationModel, rows: int) -> dict[str, Callable[[Requests], Turn]]:
    """Each peer, as what takes the whole load."""

    def taking(peer: generation_peers.Peer) -> Callable[[Requests], Turn]:
        def take(requests: Requests) -> Turn:
            asked = [(ids, sampling.max_tokens) for ids, sampling in requests]
            found = generation_peers.run(peer, model, asked, rows=rows, cache_tokens=CACHE_TOKENS)
            return as_turn(found["cpu_s"], found["wall_s"], found["ids"], found["times"])

        return take

    return {name: taking(peer) for name, peer in generation_peers.PEERS.items()}


def load(model: GenerationModel, count: int) -> Requests:
    """Prompts and forced lengths, the same at every call."""
    random = np.random.default_rng(0)
    passages = list(load_texts("passages"))
    requests = []
    for index in range(count):
        sentences = passages[index * 7 : index * 7 + int(random.integers(1, 5))]
        prompt = model.encode_chat([{"role": "user", "content": " ".join(sentences)}])
        tokens = int(np.clip(random.exponential(MEAN_TOKENS), 1, MOST_TOKENS))
        requests.append((prompt, Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)))
    return requests


def turn(opened: GenerationEngine, requests: Requests) -> Turn:
    """All requests at once, to their end."""
    engine = Scheduler(opened)
    try:
        engine.add("warm", requests[0][0][:8], Sampling(max_tokens=2, temperature=0))
        while not engine.idle:
            engine.step()
        ids: list[list[int]] = [[] for _ in requests]
        times: list[list[float]] = [[] for _ in requests]
        cpu, began = time.process_time(), time.perf_counter()
        for index, (prompt, sampling) in enumerate(requests):
            engine.add(str(index), prompt, sampling)
        while not engine.idle:
            for event in engine.step():
                ids[int(event.key)] += event.token_ids
                times[int(event.key)] += [time.perf_counter() - began] * len(event.token_ids)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    finally:
        engine.close()
    return as_turn(cpu, wall, ids, times)


def as_turn(cpu_s: float, wall_s: float, ids: list[list[int]], times: list[list[float]]) -> Turn:
    """What a turn comes to; `times` are seconds since the requests were sent, one a token."""
    between = [(each[-1] - each[0]) / (len(each) - 1) for each in times if len(each) > 1]
    return Turn(
        cpu_s=cpu_s,
        wall_s=wall_s,
        first_token_s=statistics.median(each[0] for each in times),
        between_tokens_s=statistics.median(between) if between else 0.0,
        ids=tuple(map(tuple, ids)),
    )


def table(turns: dict[str, list[Turn]]) -> pd.DataFrame:
    """One row an arm, medians over its turns; ``equal`` counts answers with the reference's tokens."""
    reference = turns[REFERENCE][0] if REFERENCE in turns else None
    rows = []
    for name, each in turns.items():
        cpu_s = statistics.median(one.cpu_s for one in each)
        made = sum(map(len, each[0].ids))
        row = {
            "engine": name,
            "cpu_s": round(cpu_s, 2),
            "tokens": made,
            "tokens_per_cpu_s": round(made / cpu_s, 1),
            "wall_s": round(statistics.median(one.wall_s for one in each), 2),
            "first_token_s": round(statistics.median(one.first_token_s for one in each), 3),
            "between_tokens_ms": round(1e3 * statistics.median(one.between_tokens_s for one in each), 1),
        }
        if reference:
            base = statistics.median(one.cpu_s for one in turns[REFERENCE])
            equal = sum(a == b for a, b in zip(each[0].ids, reference.ids, strict=True))
            row |= {"times": round(base / cpu_s, 2), "equal": f"{equal}/{len(reference.ids)}"}
            row["same_tokens"] = round(statistics.mean(map(begins_alike, each[0].ids, reference.ids)), 3)
        rows.append(row)
    return pd.DataFrame(rows)


def begins_alike(ids: Sequence[int], reference: Sequence[int]) -> float:
    """Share of the reference's tokens before the first that differs."""
    pairs = enumerate(zip(ids, reference, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(ids), len(reference))) / len(reference)


def verdict(found: pd.DataFrame) -> str:
    """Ours against the strongest peer, among those whose tokens are the reference's, and among all."""
    lines = []
    exact = found["equal"].map(lambda text: len({*text.split("/")}) == 1)
    for name, field in (("exact", found[exact]), ("rounded", found[~exact])):
        is_peer = field["engine"].isin(generation_peers.PEERS)
        if is_peer.any() and not is_peer.all():
            ours, theirs = (field[which].nlargest(1, "tokens_per_cpu_s").iloc[0] for which in (~is_peer, is_peer))
            ratio = ours["tokens_per_cpu_s"] / theirs["tokens_per_cpu_s"]
            said = [
                f"{each['engine']} {each['tokens_per_cpu_s']} tokens/CPU s, same {each['same_tokens']:.0%}"
                for each in (ours, theirs)
            ]
            lines.append(f"{name}: {said[0]}; strongest peer {said[1]}: {ratio:.2f}×")
    return "\n".join(lines)


def main() -> None:
    """Run the arms in turns, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8, help="requests at once in an engine that has such a bound")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(MODEL)
    requests = load(model, asked.requests)
    field = ours(model, asked.rows) | (peers(model, asked.rows) if asked.peers else {})
    chosen = {name: take for name, take in field.items() if not asked.arms or name in asked.arms}
    turns: dict[str, list[Turn]] = {name: [] for name in chosen}
    for _ in range(asked.turns):
        for name, take in chosen.items():
            try:
                turns[name].append(take(requests))
            except RuntimeError as error:  # a peer that does not run here is no reason to lose the others
                print(f"{name} is left out: {error}", flush=True)
                continue
            print(f"{name}: {turns[name][-1].cpu_s:.1f} CPU s", flush=True)
    found = table({name: each for name, each in turns.items() if each})
    print(found.to_string(index=False), machine_line(), sep="\n")
    if asked.peers and REFERENCE in turns:
        print(verdict(found))
    if asked.output:
        rows = found.to_dict(orient="records")
        asked.output.write_text(json.dumps({"machine": machine_line(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
