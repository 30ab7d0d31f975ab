"""How near to a GPU's limit the engines come, and what Triton leaves of it: one table, one JSON file.

Run on a machine with a GPU (under five minutes, some of it compiling):

    python -m benchmarks.gpu --output gpu.json

Every time is the median of calls that start with NumPy arrays on the host and end with NumPy arrays on the host.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import accel_lib as accel
from accel_lib.engines.batching import GPU_BATCH_TOKENS, plan_batches, run_batches
from accel_lib.engines.cuda_graphs import bucket
from accel_lib.errors import AccelError
from accel_lib.load.generator import Generator
from accel_lib.load.runner import load_test
from accel_lib.machine import inspect_machine
from accel_lib.models import Model
from accel_lib.triton import serialize

ECHO = Path(__file__).parents[1] / "tests" / "integration" / "models" / "echo"
SHAPES = ((1, 16), (8, 128), (256, 128))
MODELS = ("MiniLM-L12-H384-random", "all-MiniLM-L6-v2")
TARGETS_MS = {("MiniLM-L12-H384-random", 1, 16): 0.60, ("MiniLM-L12-H384-random", 256, 128): 6.2}
PEER = "torch.compile, its own graphs"
MATRIX = 8192
CALLS, WARM_UPS = 40, 4
INSTANCES = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--without-triton", action="store_true")
    options = parser.parse_args()
    rate = matrix_rate()
    facts = {"card": inspect_machine().gpus[0].name, "torch": torch.__version__, "matrix_tflops": rate}
    print(f"{facts['card']}, torch {facts['torch']}, FP16 matrices of {MATRIX}: {rate:.0f} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        rows += measure(accel.load_model(name), rate, compiling=not options.without_compile)
    served: list[dict[str, Any]] = []
    if not options.without_triton:
        with reported("Triton"):
            served = through_triton()
    options.output.write_text(json.dumps({"facts": facts, "engines": rows, "served": served}, indent=1) + "\n")
    for line in verdict(rows, served):
        print(line)


def measure(model: Model, rate: float, *, compiling: bool) -> list[dict[str, Any]]:
    """Every engine on full batches and on mixed lengths, held against PyTorch on the CPU first."""
    texts = accel.load_texts("mixed", limit=2048)
    ids = model.tokenizer(texts)
    exact = run_batches(accel.open_engine(model, device="cpu"), ids[:64])
    rows: list[dict[str, Any]] = []
    for name, options in engines(compiling=compiling).items():
        with reported(f"{model.name}, {name}"):
            engine = accel.open_engine(model, device="cuda", precision="fp16", **options)
            started = time.perf_counter()
            near = cosine(run_batches(engine, ids[:64]), exact)
            row = {"model": model.name, "engine": name, "cosine_min": near, "first_s": time.perf_counter() - started}
            for batch, tokens in SHAPES:
                full = np.random.default_rng(0).integers(1000, 2000, (batch, tokens))
                ms = median_ms(lambda engine=engine, full=full: engine.run(full, np.ones_like(full)))
                share = work(model, [tokens] * batch) / (ms / 1e3) / rate / 1e12
                row |= {f"{batch}x{tokens}_ms": ms, f"{batch}x{tokens}_of_matrix_rate": share}
            run_batches(engine, ids)  # captures what it needs
            ms = median_ms(lambda engine=engine: run_batches(engine, ids), calls=5)
            lengths = np.array([len(one) for one in ids])
            row["mixed_texts_per_s"] = len(ids) / ms * 1e3
            row["mixed_padding"] = padding(lengths, packed=engine.packed)  # type: ignore[attr-defined]
            row["mixed_of_matrix_rate"] = work(model, lengths) / (ms / 1e3) / rate / 1e12
            rows.append(row)
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
            engine.close()
    if compiling and model.name == MODELS[0]:
        with reported(f"{model.name}, {PEER}"):
            rows.append(peer(model, rate))
            print(rows[-1], flush=True)
    return rows


def engines(*, compiling: bool) -> dict[str, dict[str, bool]]:
    ours = {"eager": {}, "CUDA graphs": {"cuda_graphs": True}, "packed, CUDA graphs": {"packed": True}}
    if compiling:
        ours["compiled, CUDA graphs"] = {"compiled": True, "cuda_graphs": True}
        ours["packed, compiled, CUDA graphs"] = {"packed": True, "compiled": True}
    return ours


def peer(model: Model, rate: float) -> dict[str, Any]:
    """What PyTorch itself offers: ``torch.compile`` with its own graphs, a compilation for each shape."""
    from accel_lib.engines.torch import halve

    module = copy.deepcopy(model.module).to("cuda")
    halve(module)
    compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)
    row: dict[str, Any] = {"model": model.name, "engine": PEER}
    for batch, tokens in (SHAPES[0], SHAPES[-1]):
        full = np.random.default_rng(0).integers(1000, 2000, (batch, tokens))

        def call(full: np.ndarray = full) -> object:
            with torch.inference_mode():
                pair = (torch.from_numpy(full).to("cuda"), torch.from_numpy(np.ones_like(full)).to("cuda"))
                return compiled(*pair).cpu().numpy()

        ms = median_ms(call)
        share = work(model, [tokens] * batch) / (ms / 1e3) / rate / 1e12
        row |= {f"{batch}x{tokens}_ms": ms, f"{batch}x{tokens}_of_matrix_rate": share}
    return row


def matrix_rate() -> float:
    """TFLOP/s of one large FP16 product."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.float16) for _ in range(2))

    def call() -> None:
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()

    return 10 * 2 * MATRIX**3 / (median_ms(call, calls=10) / 1e3) / 1e12


def work(model: Model, lengths: Any) -> float:
    """Floating-point operations of the matrix products on real tokens."""
    config = model.module.transformer.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = np.asarray(lengths, dtype=float)
    linear = 2 * (4 * width * width + 2 * width * inner) * lengths.sum()
    return float(layers * (linear + 4 * width * (lengths**2).sum()))


def padding(lengths: np.ndarray, *, packed: bool) -> float:
    """Share of the computed tokens that are none, as `run_batches` and the graphs' sizes cut them."""
    real = computed = 0
    for batch in plan_batches(lengths, max_batch_tokens=GPU_BATCH_TOKENS, packed=packed):
        held = int(lengths[batch].sum())
        real += held
        computed += bucket(held, len(batch))[0] if packed else len(batch) * int(lengths[batch].max())
    return 1 - real / computed


def through_triton() -> list[dict[str, Any]]:
    """Version 2 in Triton beside the same engine in this process, and an echo as the ceiling."""
    model = accel.load_model()
    texts = accel.load_texts("mixed", limit=2048)
    ids = model.tokenizer(texts)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model_repository").mkdir()
        os.environ["ACCEL_REPOSITORY"] = str(Path(folder, "model_repository"))
        repository = accel.ensure("embedding")
        shutil.copytree(ECHO, repository / "echo", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(repository / "embedding" / "2" / "artifact", Path(folder, "artifact"))
        with accel.serve(repository) as server:
            served = server.model("embedding", 2)
            runs = []
            for instances in INSTANCES:
                served.configure(max_batch_size=1024, max_batch_tokens=32_768, instance_count=instances)
                runs += [(instances, 256, under_load(served, texts, c, 256)) for c in (1, 4, 8)]
                runs += [(instances, 1, under_load(served, texts, c, 1)) for c in (1, 32, 256)]
            ceiling = echo(server, ids)
        engine = accel.open_engine(accel.Artifact.load(Path(folder, "artifact")))
        chunks = [ids[start : start + 256] for start in range(0, len(ids), 256)]
        ms = median_ms(lambda: [run_batches(engine, chunk, max_batch_tokens=32_768) for chunk in chunks], calls=10)
    rows = [{"what": f"in process, {engine.name}, 256 rows a call", "texts_per_s": len(ids) / ms * 1e3}]
    for instances, size, run in runs:
        what = f"Triton, {instances} instances, {size} rows a request, {run.concurrency} in flight"
        rows.append({"what": what, "texts_per_s": run.throughput, "p50_ms": run.p50_ms, "p95_ms": run.p95_ms})
    rows.append({"what": "Triton, an echo in Python, 1 row a request, 256 in flight", "texts_per_s": ceiling})
    for row in rows:
        print(row, flush=True)
    return rows


def under_load(served: Any, texts: Any, concurrency: int, rows: int) -> Any:
    """One run, warm: each new size of batch is captured once, which takes a while."""
    return load_test(served, texts, concurrency=concurrency, rows=rows, seconds=6, warmup_s=6 if rows > 1 else 3)


def echo(server: Any, ids: list[np.ndarray]) -> float:
    """Requests a second of a model that computes nothing: the ceiling of the Python backend and of the generator."""
    served = server.model("echo")
    payloads = [serialize(served, [row]) for row in ids[:256]]
    with Generator(server.grpc_url, payloads, concurrency=256) as generator:
        generator.wait(1)
        before, started = len(generator.replies), time.perf_counter()
        generator.wait(4)
        return (len(generator.replies) - before) / (time.perf_counter() - started)


def cosine(seen: np.ndarray, exact: np.ndarray) -> float:
    norms = np.linalg.norm(seen, axis=1) * np.linalg.norm(exact, axis=1)
    return float(((seen * exact).sum(axis=1) / norms).min())


def median_ms(call: Callable[[], object], *, calls: int = CALLS) -> float:
    for _ in range(WARM_UPS):
        call()
    taken = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return 1e3 * float(np.median(taken))


def verdict(rows: list[dict[str, Any]], served: list[dict[str, Any]]) -> list[str]:
    """Each target, reached or by how much not."""
    lines = []
    for (model, batch, tokens), target in TARGETS_MS.items():
        ours = [row for row in rows if row["model"] == model and row["engine"] != PEER]
        best = min((r[f"{batch}x{tokens}_ms"] for r in ours), default=float("nan"))
        lines.append(f"{model} {batch} × {tokens}: {best:.2f} ms, target {target} ms: {reached(target / best)}")
    waste = max((r["mixed_padding"] for r in rows if "packed" in r["engine"]), default=float("nan"))
    lines.append(f"padding on mixed lengths: {waste:.1%}, target under 10%: {'reached' if waste < 0.1 else 'missed'}")
    if served:
        most = max(row["texts_per_s"] for row in served if "256 rows a request" in row["what"])
        kept = most / served[0]["texts_per_s"]
        lines.append(f"Triton keeps {kept:.0%} of the in-process throughput, target 90%: {reached(kept / 0.9)}")
    return lines


def reached(share: float) -> str:
    return "reached" if share >= 1 else f"missed by {1 - share:.0%}"


@contextlib.contextmanager
def reported(what: str) -> Any:
    """Go on with the rest when one part cannot run here, and say so."""
    try:
        yield
    except (AccelError, RuntimeError) as error:
        print(f"{what}: not measured. {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
