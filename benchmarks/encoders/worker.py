"""Candidates of one library in a process (and an environment) of its own, told what to do line by line.

    python worker.py TEXTS.json

Each line on standard input is a request in JSON, each answer one line of JSON. A way to batch is a string: ``32`` is a
batch size, ``t512`` a number of padded tokens; ``t512/2`` computes two batches side by side.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[Sequence[str], str], np.ndarray]
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]

CORES = len(os.sched_getaffinity(0))
_ANSWERS, sys.stdout = sys.stdout, sys.stderr  # libraries print; answers go to the one who asked


def sentence_transformers(folder: str, **options: Any) -> Encode:
    """Its own ``encode``, which sorts by length."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", **options)
    return lambda texts, way: model.encode(list(texts), batch_size=int(way), show_progress_bar=False)


def plain_onnxruntime(folder: str) -> Encode:
    """ONNX Runtime as its documentation starts it."""
    import onnxruntime

    def opened(lanes: int) -> Callable[[], Run]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES // lanes if lanes > 1 else 0
        session = onnxruntime.InferenceSession(Path(folder, "model.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda: lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return cut(tokenizer_of(folder), opened)


def plain_openvino(folder: str, *, file: str, precision: str | None = None) -> Encode:
    """OpenVINO's own calls; lanes are its streams, each with requests of its own."""
    import openvino

    def opened(lanes: int) -> Callable[[], Run]:
        settings = {"NUM_STREAMS": lanes, "INFERENCE_NUM_THREADS": CORES}
        settings |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        compiled = openvino.Core().compile_model(Path(folder, file), "CPU", settings)

        def request() -> Run:
            own = compiled.create_infer_request()
            return lambda ids, mask: own.infer({"input_ids": ids, "attention_mask": mask})[0].copy()

        return request

    return cut(tokenizer_of(folder), opened)


def torch_network(folder: str, *, compiled: bool = False, bf16: bool = False) -> Encode:
    """The network in PyTorch, as it is or compiled once for all sizes."""
    import torch

    from accel_lib import load_model

    model = load_model(folder)
    network = torch.compile(model.module, dynamic=True) if compiled else model.module

    def opened(lanes: int) -> Callable[[], Run]:
        def lane() -> Run:
            torch.set_num_threads(CORES // lanes)
            return run

        def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                return network(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()

        return lane

    return cut(model.tokenizer, opened)


def engine(folder: str, **options: Any) -> Encode:
    """One of our artifacts through our engine, which shares the cores among batches by itself."""
    from accel_lib import Artifact, open_engine
    from accel_lib.engines.batching import run_batches

    opened, tokenizer = open_engine(Artifact.load(folder), device="cpu", **options), tokenizer_of(folder)
    return lambda texts, way: run_batches(opened, tokenizer(texts), tokenizer.pad_id, **limits(way))


def tokenizer_of(folder: str) -> Any:
    """The tokenizer of an artifact's folder, without padding and with the model's own limit."""
    from accel_lib.models.tokenizer import Tokenizer

    return Tokenizer.load(Path(folder, "tokenizer.json"))


def cut(tokenizer: Any, opened: Callable[[int], Callable[[], Run]]) -> Encode:
    """Tokenize, sort and cut for a library that only runs batches; the network is opened once for each number of lanes.

    `opened` makes, for a number of lanes, what makes the call of one lane in that lane's thread.
    """
    from accel_lib.engines.batching import plan_batches
    from accel_lib.models.tokenizer import pad

    pools: dict[int, tuple[ThreadPoolExecutor, threading.local]] = {}

    def pool(lanes: int) -> tuple[ThreadPoolExecutor, threading.local]:
        if lanes not in pools:
            local, lane = threading.local(), opened(lanes)

            def begin() -> None:
                local.run = lane()

            pools[lanes] = ThreadPoolExecutor(lanes, initializer=begin), local
        return pools[lanes]

    def encode(texts: Sequence[str], way: str) -> np.ndarray:
        lanes = int(way.partition("/")[2] or 1)
        rows = tokenizer(texts)
        batches = plan_batches(np.array([len(row) for row in rows]), **limits(way))[::-1]  # long ones first
        executor, local = pool(lanes)
        parts = executor.map(lambda b: local.run(*pad([rows[i] for i in b], tokenizer.pad_id)), batches)
        return np.concatenate(list(parts))[np.argsort(np.concatenate(batches))]

    return encode


def limits(way: str) -> dict[str, int]:
    """Limits of a batch as ``plan_batches`` takes them."""
    size = way.partition("/")[0]
    if size.startswith("t"):
        return {"max_batch_tokens": int(size[1:])}
    return {"max_batch_size": int(size), "max_batch_tokens": 2**31}


KINDS: dict[str, Callable[..., Encode]] = {
    "torch": torch_network,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": plain_onnxruntime,
    "openvino": plain_openvino,
    "ours": engine,
}


class Candidates:
    """What is open in this process, by name, and what can be asked of it."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._open: dict[str, Encode] = {}

    def open(self, name: str, kind: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        self._open[name] = KINDS[kind](folder, **options)
        self._open[name](self._texts[:8], "1")
        return {}

    def close(self, name: str) -> dict[str, Any]:
        self._open.pop(name, None)
        return {}

    def time(self, name: str, way: str, count: int) -> dict[str, Any]:
        """Seconds that encoding that many texts takes, from strings to vectors."""
        started = time.perf_counter()
        self._open[name](self._texts[:count], way)
        return {"seconds": time.perf_counter() - started}

    def alone(self, name: str, count: int) -> dict[str, Any]:
        """Milliseconds of each of that many texts, encoded one at a time."""
        taken = []
        for text in self._texts[:count]:
            started = time.perf_counter()
            self._open[name]([text], "1")
            taken.append(1e3 * (time.perf_counter() - started))
        return {"ms": taken}

    def vectors(self, name: str, way: str, texts: str, save: str) -> dict[str, Any]:
        """Save what a candidate makes of the texts in a file."""
        np.save(save, self._open[name](json.loads(Path(texts).read_text(encoding="utf-8")), way))
        return {}


def main(texts_file: str) -> None:
    candidates = Candidates(json.loads(Path(texts_file).read_text(encoding="utf-8")))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(candidates, request.pop("do"))(**request)
        except Exception as error:  # whatever a library raises: the others go on
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        _ANSWERS.write(json.dumps(answer) + "\n")
        _ANSWERS.flush()


if __name__ == "__main__":
    main(sys.argv[1])
