"""Throughput in one process: every contender at its best way to batch, in turns, and the machine's own limit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import accel_lib as accel
from accel_lib.stats import agreement
from benchmarks.encoders.environments import python_of

WORKER = Path(__file__).parent / "worker.py"
OWN, THEIRS = ("1", "8", "32", "t512"), ("1", "8", "32")
PACKED = ("t256", "t512", "t1024", "t2048", "t4096")
TRIALS = 2
SIZE, PRODUCTS, TRIES = 512, 24, 40  # of the products that show the limit


class Worker:
    """A contender in its own process."""

    def __init__(self, python: Path | str, kind: str, folder: Path, texts: Path) -> None:
        self._process = subprocess.Popen(
            [python, WORKER, kind, folder, texts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def wait(self) -> None:
        """Until it can encode."""
        self._answer()

    def seconds(self, how: str) -> float:
        """Seconds for all texts, batched in one way."""
        return float(self._ask(how)["seconds"])

    def vectors(self) -> np.ndarray:
        """What it makes of the texts."""
        with tempfile.TemporaryDirectory() as folder:
            self._ask(f"vectors {folder}/vectors.npy")
            return np.load(f"{folder}/vectors.npy")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _ask(self, line: str) -> dict[str, Any]:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with {self._process.wait()}")
        return json.loads(line)


def measure(
    *,
    artifacts: Mapping[str, accel.Artifact],
    texts: Sequence[str],
    folder: Path,
    build: Path,
    reference: np.ndarray,
    turns: int,
) -> dict[str, Any]:
    """Rows by contender: best batching, sentences a second, agreement; and the rates of matrix products."""
    listed = build / "texts.json"
    listed.write_text(json.dumps(list(texts)), encoding="utf-8")
    workers: dict[str, tuple[Worker, Sequence[str]]] = {}
    rows: list[dict[str, Any]] = []
    try:
        for name, (peer, kind, place, ways) in contenders(artifacts, folder).items():
            python = sys.executable if peer is None else python_of(peer, build)
            if python is not None:
                workers[name] = Worker(python, kind, place, listed), ways
        for name, (worker, _) in list(workers.items()):  # they start side by side
            try:
                worker.wait()
            except RuntimeError as error:
                print(f"{name} is left out: it {error}", flush=True)
                worker.close()
                del workers[name]
        best: dict[str, str] = {}
        tried: dict[str, dict[str, float]] = {}
        sorted32: dict[str, list[float]] = {name: [] for name in workers}
        for name, (worker, ways) in workers.items():
            tried[name] = {how: len(texts) / min(worker.seconds(how) for _ in range(TRIALS)) for how in ways}
            best[name] = max(tried[name], key=lambda how: tried[name][how])
            print(f"{name}: " + ", ".join(f"{how} {rate:.0f}/s" for how, rate in tried[name].items()), flush=True)
        taken: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(turns):
            order = list(workers)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                taken[name].append(len(texts) / workers[name][0].seconds(best[name]))
                sorted32[name].append(len(texts) / workers[name][0].seconds("32"))
        for name, (worker, _) in workers.items():
            kept = agreement(worker.vectors(), reference, task="embedding")
            rows.append(
                {"name": name, "batching": best[name], "rates": taken[name], "rates_32": sorted32[name], **kept}
                | {"tried": tried[name]}
            )
    finally:
        for worker, _ in workers.values():
            worker.close()
    return {"inprocess": rows, "limits": matrix_rates()}


def contenders(
    artifacts: Mapping[str, accel.Artifact], folder: Path
) -> dict[str, tuple[str | None, str, Path, Sequence[str]]]:
    """Environment, kind, folder and ways to batch, by name."""
    own = {name: artifact.folder for name, artifact in artifacts.items()}
    peer = "sentence-transformers"
    return {
        "torch eager": (None, "torch eager", folder, OWN),
        "torch.compile": (None, "torch.compile", folder, OWN),
        "sentence-transformers": (peer, "sentence-transformers", folder, THEIRS),
        "sentence-transformers, ONNX": (peer, "sentence-transformers, ONNX", folder, THEIRS),
        "ONNX Runtime": (None, "ONNX Runtime", own["plain"], OWN),
        "ours FP32": (None, "ours", own["ours FP32"], PACKED),
        "ours INT8": (None, "ours", own["ours INT8"], PACKED),
    }


def matrix_rates() -> dict[str, float]:
    """Billions of operations a second in products of a size that stays in the caches, by precision, all cores."""
    values = (
        np.random.default_rng(0).normal(0, SIZE**-0.5, (SIZE, SIZE)).astype(np.float32)
    )  # products neither grow nor fade
    whole = np.random.default_rng(0).integers(0, 127, (SIZE, SIZE))
    chain = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(PRODUCTS)]
    beside = [helper.make_node("MatMulInteger", ["x0", "w"], [f"x{i + 1}"]) for i in range(PRODUCTS)]
    return {
        "FP32": _rate(chain, {f"x{PRODUCTS}": TensorProto.FLOAT}, values, values),
        "INT8": _rate(
            beside,
            {f"x{i + 1}": TensorProto.INT32 for i in range(PRODUCTS)},
            whole.astype(np.uint8),
            whole.astype(np.int8),
        ),
    }


def _rate(nodes: Sequence[Any], outputs: Mapping[str, int], x: np.ndarray, weight: np.ndarray) -> float:
    """The best of some tries."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    ends = [helper.make_tensor_value_info(name, kind, [SIZE, SIZE]) for name, kind in ({"x0": kind} | outputs).items()]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], [numpy_helper.from_array(weight, name="w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    taken = []
    for _ in range(TRIES):
        started = time.perf_counter()
        session.run(None, {"x0": x})
        taken.append(time.perf_counter() - started)
    return 2 * SIZE**3 * PRODUCTS / min(taken) / 1e9
