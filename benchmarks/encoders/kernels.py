"""Where our engine's time goes, by ONNX Runtime's own profile: how much of it is matrix products, and what else."""

from __future__ import annotations

import collections
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import accel_lib as accel
from accel_lib.engines.batching import CPU_BATCH_TOKENS, plan_batches
from accel_lib.engines.onnxruntime import SLOW_FUSIONS
from accel_lib.models.tokenizer import Tokenizer, pad

REPEATS = 5
KINDS = {
    "products with weights": ("MatMul", "Gemm", "MatMulIntegerToFloat"),
    "attention": ("FusedMatMul", "Softmax"),
    "layout": ("Gather", "Transpose", "Reshape", "Expand", "Unsqueeze", "Concat", "Shape"),
    "sums, norms, activations": ("Add", "BiasGelu", "Gelu", "LayerNormalization", "BiasAdd"),
}


def measure(artifacts: Mapping[str, accel.Artifact], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Share of the time by kind of operator, largest first, for each artifact that ONNX Runtime runs."""
    return {name: shares(one, texts) for name, one in artifacts.items() if one.manifest.format == "onnx"}


def shares(artifact: accel.Artifact, texts: Sequence[str]) -> dict[str, float]:
    """Share of the time by kind of operator, in batches as the engine cuts them."""
    tokenizer = Tokenizer.load(artifact.folder / "tokenizer.json")
    rows = tokenizer(texts)
    lengths, packed = np.array([len(row) for row in rows]), artifact.manifest.packed
    batches = plan_batches(lengths, max_batch_tokens=CPU_BATCH_TOKENS, packed=packed, padded_attention=packed)
    feeds = [
        dict(zip(("input_ids", "attention_mask"), pad([rows[i] for i in batch], tokenizer.pad_id), strict=True))
        for batch in batches
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(
            artifact.path, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(SLOW_FUSIONS)
        )
        for _ in range(REPEATS):
            for feed in feeds:
                session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[kind(event)] += event["dur"]
    return {name: time / spent.total() for name, time in spent.most_common()}


def kind(event: dict[str, Any]) -> str:
    """What an operator of a profile is for, by its name, and by the ranks of what flows into it."""
    name, operator = event["name"], event["args"]["op_name"]
    if name.startswith("int8/") or "/by_token" in name:
        return "rounding to INT8"
    ranks = [len(shape) for entry in event["args"]["input_type_shape"] for shape in entry.values()]
    if operator in ("MatMul", "Add") and max(ranks, default=0) == 4:
        return "attention"
    return next((known for known, operators in KINDS.items() if operator in operators), "the rest")
