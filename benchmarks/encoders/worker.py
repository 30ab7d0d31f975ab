"""One in-process contender in a process (and an environment) of its own, told what to do line by line.

    python worker.py KIND FOLDER TEXTS.json

Each line on standard input is a way to batch: a batch size, or ``t`` and a number of tokens. The answer is one line of
JSON: the seconds that encoding all texts took, from strings to vectors. ``vectors PATH`` saves the vectors instead.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[Sequence[str], str], np.ndarray]

_ANSWERS, sys.stdout = sys.stdout, sys.stderr  # libraries print; answers go to the one who asked


def say(**answer: Any) -> None:
    _ANSWERS.write(json.dumps(answer) + "\n")
    _ANSWERS.flush()


def sentence_transformers(folder: str, backend: str) -> Encode:
    """Its own ``encode``, which sorts by length; with ONNX Runtime it exports the model by itself."""
    from sentence_transformers import SentenceTransformer

    extra: dict[str, Any] = {"model_kwargs": {"provider": "CPUExecutionProvider"}} if backend == "onnx" else {}
    model = SentenceTransformer(folder, device="cpu", backend=backend, **extra)
    return lambda texts, how: model.encode(list(texts), batch_size=int(how), show_progress_bar=False)


def plain_onnxruntime(folder: str) -> Encode:
    """ONNX Runtime as its documentation starts it, on our FP32 file; texts sorted and padded by us."""
    import onnxruntime

    from accel_lib.engines.batching import plan_batches
    from accel_lib.models.tokenizer import Tokenizer, pad

    session = onnxruntime.InferenceSession(Path(folder, "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.load(Path(folder, "tokenizer.json"))

    def encode(texts: Sequence[str], how: str) -> np.ndarray:
        rows = tokenizer(texts)
        lengths = np.array([len(row) for row in rows])
        parts = []
        batches = plan_batches(lengths, **limits(how))
        for batch in batches:
            ids, mask = pad([rows[i] for i in batch], tokenizer.pad_id)
            parts.append(session.run(None, {"input_ids": ids, "attention_mask": mask})[0])
        return np.concatenate(parts)[np.argsort(np.concatenate(batches))]

    return encode


def engine(folder: str) -> Encode:
    """One of our artifacts through our engine."""
    from accel_lib import Artifact, open_engine
    from accel_lib.engines.batching import run_batches
    from accel_lib.models.tokenizer import Tokenizer

    opened = open_engine(Artifact.load(folder), device="cpu")
    tokenizer = Tokenizer.load(Path(folder, "tokenizer.json"))
    return lambda texts, how: run_batches(opened, tokenizer(texts), tokenizer.pad_id, **limits(how))


def torch_network(compiled: bool) -> Encode:
    """The network in PyTorch, as it is or compiled once for all sizes, with batches cut by us."""
    import torch

    from accel_lib import load_model
    from accel_lib.engines.batching import run_batches
    from accel_lib.engines.torch import TorchEngine

    model = load_model()
    opened = TorchEngine(model, device="cpu", compiled=compiled)
    torch.set_grad_enabled(False)
    return lambda texts, how: run_batches(opened, model.tokenizer(texts), model.tokenizer.pad_id, **limits(how))


def limits(how: str) -> dict[str, int]:
    """``"32"`` is a batch size, ``"t512"`` a number of tokens."""
    if how.startswith("t"):
        return {"max_batch_tokens": int(how[1:])}
    return {"max_batch_size": int(how), "max_batch_tokens": 2**31}


KINDS: dict[str, Callable[[str], Encode]] = {
    "torch eager": lambda _: torch_network(compiled=False),
    "torch.compile": lambda _: torch_network(compiled=True),
    "sentence-transformers": lambda folder: sentence_transformers(folder, "torch"),
    "sentence-transformers, ONNX": lambda folder: sentence_transformers(folder, "onnx"),
    "ONNX Runtime": plain_onnxruntime,
    "ours": engine,
}


def main(kind: str, folder: str, texts_file: str) -> None:
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    encode = KINDS[kind](folder)
    encode(texts[:8], "1")
    say(ready=True)
    for line in sys.stdin:
        how = line.strip()
        if how.startswith("vectors "):
            np.save(how.removeprefix("vectors "), encode(texts, "1"))
            say(saved=True)
            continue
        started = time.perf_counter()
        encode(texts, how)
        say(seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:4])
