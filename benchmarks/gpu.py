"""How near to a GPU's limit the engines come, and what Triton leaves of it: one table, one JSON file.

Run on a machine with a GPU (under five minutes, some of it compiling):

    python -m benchmarks.gpu --output gpu.json
    python -m benchmarks.gpu --draw gpu.json gpu.png

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
from datetime import UTC, datetime
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
from benchmarks import gpu_figure

ECHO = Path(__file__).parents[1] / "tests" / "integration" / "models" / "echo"
SHAPES = ((1, 16), (8, 128), (256, 128))
MINILM = "MiniLM-L12 shape"
MODELS = {  # with random weights: 384, 768 and 1,024 wide
    MINILM: {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536},
    "BGE-base shape": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "XLM-R-large shape": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
}  # fmt: skip
ONE = "packed, compiled, CUDA graphs"  # one engine that is to meet all targets
TARGETS_MS = {(1, 16): 0.55, (256, 128): 5.0}  # MiniLM-L12's shape
TARGET_SHARE = 0.45  # of the matrix rate, full batches
PEER = "torch.compile, its own graphs"
CAPTURED = [(8 * many, 128) for many in range(1, 17)]  # in ascending order, the worst one for a pool
MATRIX = 8192
CALLS, WARM_UPS = 40, 4
SERVED: dict[str, tuple[int, dict[str, Any]]] = {  # rows of a large request, and what is set
    "default settings": (256, {}),
    "1 instance": (256, {"instance_count": 1}),
    "a CPU's settings": (64, {"max_batch_size": 64, "instance_count": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--without-triton", action="store_true")
    parser.add_argument("--engines", nargs="*", default=[], help="these alone, by name")
    parser.add_argument("--draw", nargs=2, metavar=("JSON", "PNG"), help="draw kept results and end")
    options = parser.parse_args()
    if options.draw:
        gpu_figure.draw_speed(json.loads(Path(options.draw[0]).read_text()), Path(options.draw[1]))
        return
    rate = matrix_rate()
    facts = {"card": inspect_machine().gpus[0].name, "torch": torch.__version__, "matrix_tflops": rate}
    facts["date"] = datetime.now(UTC).date().isoformat()
    print(f"{facts['card']}, torch {facts['torch']}, FP16 matrices of {MATRIX}: {rate:.0f} TFLOP/s", flush=True)
    kept: dict[str, Any] = {"facts": facts, "engines": [], "kernels": {}, "memory": {}, "served": []}
    chosen = {n: o for n, o in engines(compiling=not options.without_compile).items() if n in (options.engines or [n])}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            model = random_model(name, Path(folder, name))
            kept["engines"] += measure(name, model, rate, chosen, kept["kernels"])
            if name == MINILM:
                kept["memory"] = memory(model)
                print(kept["memory"], flush=True)
            options.output.write_text(json.dumps(kept, indent=1) + "\n")
    if not options.without_triton:
        with reported("Triton"):
            kept["served"] = through_triton()
    options.output.write_text(json.dumps(kept, indent=1) + "\n")
    for line in verdict(kept["engines"], kept["served"]):
        print(line)


def random_model(name: str, folder: Path) -> Model:
    """A BERT of a shape with random weights, made on the GPU, with the course's tokenizer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    with torch.device("cuda"):
        network = BertModel(BertConfig(**MODELS[name]), add_pooling_layer=False)
    network.cpu().save_pretrained(folder)
    accel.load_model().tokenizer.save(folder / "tokenizer.json")
    return accel.load_model(str(folder))


def measure(
    name: str, model: Model, rate: float, chosen: dict[str, dict[str, bool]], kernels: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every engine on full batches and on mixed lengths, held against PyTorch on the CPU first."""
    ids = model.tokenizer(accel.load_texts("mixed", limit=2048))
    exact = run_batches(accel.open_engine(model, device="cpu"), ids[:16])
    rows: list[dict[str, Any]] = []
    for engine_name, options in chosen.items():
        with reported(f"{name}, {engine_name}"):
            engine: Any = accel.open_engine(model, device="cuda", precision="fp16", **options)
            started = time.perf_counter()
            near = cosine(run_batches(engine, ids[:16]), exact)
            row = {"model": name, "engine": engine_name, "cosine_min": near, "first_s": time.perf_counter() - started}
            for batch, tokens in reversed(SHAPES):
                full = np.random.default_rng(0).integers(1000, 2000, (batch, tokens))
                mask = np.ones_like(full)
                ms = median_ms(lambda engine=engine, full=full, mask=mask: engine.run(full, mask))
                share = work(model, [tokens] * batch) / (ms / 1e3) / rate / 1e12
                row |= {f"{batch}x{tokens}_ms": ms, f"{batch}x{tokens}_of_matrix_rate": share}
            run_batches(engine, ids)  # captures what it needs
            ms = median_ms(lambda engine=engine: run_batches(engine, ids), calls=5)
            lengths = np.array([len(one) for one in ids])
            row["mixed_texts_per_s"] = len(ids) / ms * 1e3
            row["mixed_padding"] = padding(lengths, packed=engine.packed)
            row["mixed_of_matrix_rate"] = work(model, lengths) / (ms / 1e3) / rate / 1e12
            rows.append(row)
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
            if engine_name == ONE:
                kernels[name] = {f"{b}x{t}": kernel_table(engine, (b, t)) for b, t in (SHAPES[0], SHAPES[-1])}
                print(json.dumps(kernels[name], indent=1), flush=True)
            engine.close()
    if name == MINILM and len(chosen) > len(engines(compiling=False)):
        with reported(f"{name}, {PEER}"):
            rows.append(peer(name, model, rate))
            print(rows[-1], flush=True)
    return rows


def kernel_table(engine: Any, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """What the GPU does in one call: the ten kernels and copies that take most, and all the others together."""
    full = np.random.default_rng(0).integers(1000, 2000, shape)
    mask, calls = np.ones_like(full), 5
    engine.run(full, mask)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            engine.run(full, mask)
    found = [
        {"kernel": event.key[:100], "us": event.self_device_time_total / calls, "launches": event.count / calls}
        for event in seen.key_averages()
        if event.self_device_time_total
    ]
    found.sort(key=lambda row: -row["us"])
    rest = {name: sum(row[name] for row in found[10:]) for name in ("us", "launches")}
    return [*found[:10], {"kernel": f"{len(found[10:])} others", **rest}]


def memory(model: Model) -> dict[str, float]:
    """Bytes that captured shapes hold, each in an engine of its own, and all of them in one."""
    alone = [captured_bytes(model, [shape]) for shape in CAPTURED]
    shapes = f"{len(CAPTURED)} shapes, {CAPTURED[0][0]} to {CAPTURED[-1][0]} × {CAPTURED[-1][1]} tokens"
    together = captured_bytes(model, CAPTURED)
    return {"shapes": shapes, "own_pools_bytes": sum(alone), "largest_alone_bytes": alone[-1], "bytes": together}


def captured_bytes(model: Model, shapes: list[tuple[int, int]]) -> int:
    """Bytes that the graphs of some shapes hold, in FP16."""
    engine = accel.open_engine(model, device="cuda", precision="fp16", cuda_graphs=True)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for shape in 2 * shapes:  # in the second round, what a larger shape displaced is captured again beside it
        full = np.ones(shape, dtype=np.int64)
        engine.run(full, full)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() - before
    engine.close()
    return held


def engines(*, compiling: bool) -> dict[str, dict[str, bool]]:
    ours = {"eager": {}, "CUDA graphs": {"cuda_graphs": True}, "packed, CUDA graphs": {"packed": True}}
    if compiling:
        ours["compiled, CUDA graphs"] = {"compiled": True, "cuda_graphs": True}
        ours["packed, compiled, CUDA graphs"] = {"packed": True, "compiled": True}
    return ours


def peer(name: str, model: Model, rate: float) -> dict[str, Any]:
    """What PyTorch itself offers: ``torch.compile`` with its own graphs, a compilation for each shape."""
    from accel_lib.engines.torch import halve

    module = copy.deepcopy(model.module).to("cuda")
    halve(module)
    compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)
    row: dict[str, Any] = {"model": name, "engine": PEER}
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
            for name, (rows, settings) in SERVED.items():
                if settings:
                    served.configure(**settings)
                for size, concurrency in ((rows, 4), (rows, 8), (1, 256)):
                    runs.append((name, size, under_load(served, texts, concurrency, size)))
                    print(f"{name}, {size} rows a request: {runs[-1][2].throughput:,.0f} texts/s", flush=True)
            ceiling = echo(server, ids)
        engine = accel.open_engine(accel.Artifact.load(Path(folder, "artifact")))
        chunks = [ids[start : start + 256] for start in range(0, len(ids), 256)]
        ms = median_ms(lambda: [run_batches(engine, chunk, max_batch_tokens=32_768) for chunk in chunks], calls=10)
    table = [{"what": f"in process, {engine.name}, 256 rows a call", "texts_per_s": len(ids) / ms * 1e3}]
    for name, size, run in runs:
        what = f"Triton, {name}, {size} rows a request, {run.concurrency} in flight"
        table.append({"what": what, "texts_per_s": run.throughput, "p50_ms": run.p50_ms, "p95_ms": run.p95_ms})
    table.append({"what": "Triton, an echo in Python, 1 row a request, 256 in flight", "texts_per_s": ceiling})
    for row in table:
        print(row, flush=True)
    return table


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
    ours = {row["model"]: row for row in rows if row["engine"] == ONE}
    for (batch, tokens), target in TARGETS_MS.items() if MINILM in ours else ():
        ms = ours[MINILM][f"{batch}x{tokens}_ms"]
        lines.append(f"{MINILM}, {ONE}, {batch} × {tokens}: {ms:.2f} ms, target {target} ms: {reached(target / ms)}")
    for model, row in ours.items():
        share = row["256x128_of_matrix_rate"]
        lines.append(
            f"{model}: {share:.0%} of the matrix rate, target {TARGET_SHARE:.0%}: {reached(share / TARGET_SHARE)}"
        )
    waste = max((r["mixed_padding"] for r in rows if "packed" in r["engine"]), default=float("nan"))
    lines.append(f"padding on mixed lengths: {waste:.1%}, target under 10%: {'reached' if waste < 0.1 else 'missed'}")
    if served:
        most = max(row["texts_per_s"] for row in served if "rows a request" in row["what"])
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
