"""How much memory a batch needs: fitted to few measurements, checked on one more, used to pick the largest safe one.

Each artifact is measured in a process of its own, as Triton runs one: Python, the engine's library, the weights and a
batch. A process that is killed for its memory harms no other; its size is remembered as too large.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from accel_lib.artifact import Artifact
from accel_lib.bench.memory_probe import gpu_bytes
from accel_lib.errors import AccelError
from accel_lib.formatting import number, percent
from accel_lib.machine import inspect_machine
from accel_lib.measurement import Result, to_frame
from accel_lib.triton.client import ServedModel

_RESERVE = 0.1  # of the free memory, left to others
_PROBE = "accel_lib.bench.memory_probe"
_CONTEXT_BYTES = 512 * 2**20  # a CUDA context and its libraries
_TIMEOUT_S = 300.0  # for all batch sizes
_COPY = 1.2  # times what an instance holds now, while another is loaded beside it


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """``instances × (fixed + tokens × bytes per token)``: what instances need while each runs a batch.

    Parameters
    ----------
    device
        ``"cpu"`` (resident memory) or ``"cuda:N"`` (memory of that GPU).
    length
        Tokens per text it was fitted at. Attention grows with the square of the length, so shorter texts need less.
    weights_bytes, fixed_bytes
        The model file, and all that an instance holds before its first batch: weights, context, libraries.
    bytes_a_token
        Activations for each padded token of a batch.
    failed_tokens
        The smallest batch that ran out of memory; 0 when none did.
    """

    device: str
    length: int
    weights_bytes: int
    fixed_bytes: int
    bytes_a_token: float
    failed_tokens: int = 0

    def bytes(self, tokens: int, *, instances: int = 1) -> int:
        """Bytes that `instances` need with a batch of `tokens` padded tokens each."""
        return round(instances * (self.fixed_bytes + tokens * self.bytes_a_token))

    def largest_batch(
        self,
        budget_bytes: int | None = None,
        *,
        instances: int = 1,
        length: int | None = None,
        reserve: float = _RESERVE,
    ) -> int:
        """Most texts of `length` tokens in a batch that fit into `budget_bytes` (None: what is free now).

        A share of `reserve` of the budget is left over. An `AccelError` says when not even one text fits.
        """
        budget = free_bytes(self.device) if budget_bytes is None else budget_bytes
        width = length or self.length
        room = budget * (1 - reserve) / instances - self.fixed_bytes
        tokens = room / max(self.bytes_a_token, 1e-9)
        if self.failed_tokens:
            tokens = min(tokens, self.failed_tokens / 2)
        if tokens < width:
            raise AccelError(
                f"The memory holds not even one text of {width} tokens.",
                seen=f"{budget / 1e6:,.0f} MB for {instances} × {self.bytes(width) / 1e6:,.0f} MB",
                fix="fewer instances, a smaller model or precision, or shorter texts",
            )
        return int(tokens // width)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class MemoryFit(Result):
    """What `fit_memory` measured; one row a batch size, the last one checked and not fitted."""

    model: MemoryModel
    free_bytes: int

    @property
    def error(self) -> float:
        """How far the check was from its prediction, as a share of what was measured; NaN without a check."""
        checked = self.frame[self.frame["role"] == "checked"]
        return float((checked["predicted_mb"] / checked["measured_mb"] - 1).mean())

    @property
    def headline(self) -> str:
        """What an instance needs, how well that predicts a larger batch, and what fits."""
        model = self.model
        each = f"{number(model.bytes_a_token / 1e3)} kB a token"
        said = f"An instance needs {number(model.fixed_bytes / 1e6)} MB and {each}"
        if model.failed_tokens:
            said += f"; {model.failed_tokens:,} tokens ran out of memory"
        elif not np.isnan(self.error):
            said += f", {percent(abs(self.error))} from what a larger batch needed"
        most = f"{model.largest_batch(self.free_bytes):,} texts of {model.length} tokens"
        return f"{said}; {most} are safe in the {number(self.free_bytes / 1e9)} GB that are free"


def fit_memory(
    artifact: Artifact,
    *,
    length: int = 128,
    sizes: Sequence[int] = (8, 16, 32),
    check: int = 64,
    device: str = "auto",
) -> MemoryFit:
    """Run a few batch sizes, fit what they need, and check the fit on a larger one.

    Parameters
    ----------
    length
        Tokens per text: the longest that is to be safe.
    sizes, check
        Batch sizes to fit, in order, and the larger one to check on.

    Examples
    --------
    >>> fit_memory(onnx, length=128).model.largest_batch(4 * 2**30)  # doctest: +SKIP
    """
    wanted = [*sorted(sizes), check]
    measured, words, where = _probe(artifact, length, wanted, device)
    if len(measured) < 2 or len(set(sizes)) < 2:
        raise AccelError(
            "A fit needs two sizes that ran.",
            seen=f"{len(measured)} of {wanted}: {words or 'nothing said'}",
            fix="fit_memory(artifact, length=64, sizes=(1, 2, 4), check=8)",
        )
    fitted = measured[: len(sizes)] if len(measured) > 2 else measured
    tokens, used = np.array([[batch * length, peak] for batch, peak in fitted], dtype=float).T
    slope = max(float(np.polyfit(tokens, used, 1)[0]), 0.0)
    failed = wanted[len(measured)] * length if len(measured) < len(wanted) else 0
    model = MemoryModel(
        device=where,
        length=length,
        weights_bytes=artifact.size_bytes,
        fixed_bytes=max(round(float((used - slope * tokens).mean())), 0),
        bytes_a_token=slope,
        failed_tokens=failed,
    )
    rows = [
        {
            "batch_size": batch,
            "tokens": batch * length,
            "measured_mb": peak / 1e6,
            "predicted_mb": model.bytes(batch * length) / 1e6,
            "role": "fitted" if (batch, peak) in fitted else "checked",
        }
        for batch, peak in measured
    ]
    return MemoryFit(frame=to_frame(rows), model=model, free_bytes=free_bytes(where))


def _probe(
    artifact: Artifact, length: int, sizes: Sequence[int], device: str
) -> tuple[list[tuple[int, int]], str, str]:
    """Batch and bytes at its peak, of each size that ran; last words; the device it became."""
    command = [sys.executable, "-m", _PROBE, str(artifact.folder), device, str(length), *map(str, sizes)]
    # The measured process finds the package this one uses, installed or not.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=_TIMEOUT_S, check=False)
        out, words = done.stdout, done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    except subprocess.TimeoutExpired as late:
        out, words = (late.stdout or b"").decode(), [f"no end within {_TIMEOUT_S:g} s"]
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
    where = lines[0]["device"] if lines else "cpu"
    return [(line["batch"], line["peak"]) for line in lines[1:]], words[0], where


def free_bytes(device: str = "cpu") -> int:
    """Memory that is free now: of the GPU, or of this machine and its container."""
    if device.startswith("cuda"):
        return gpu_bytes("memory.free", int(device.partition(":")[2] or 0))
    free = psutil.virtual_memory()
    return min(free.available, max(0, inspect_machine().memory_bytes - (free.total - free.available)))


def instance_bytes(served: ServedModel) -> int:
    """Resident bytes of the largest Python process that runs an instance of a served model; 0 where none is found."""
    place = f"{os.sep}{served.name}{os.sep}"
    held = [0]
    for process in _processes(served.server.pid):
        try:
            if any(place in word for word in process.cmdline()):
                held.append(process.memory_info().rss)
        except psutil.Error:
            continue
    return max(held)


def room_for(served: ServedModel, instances: int) -> str:
    """Empty if that many more instances fit beside what runs now, as a reload loads them; else what is missing.

    On a GPU the artifact is counted twice, weights and room to work, with a context for each instance.
    """
    needs = {"cpu": _COPY * instance_bytes(served)}
    config = served.config
    device = config.device or ("cpu" if config.instance_kind == "cpu" else "cuda")
    if device.startswith("cuda") and inspect_machine().gpus:
        needs["cuda:0"] = 2 * sum(file.stat().st_size for file in served.artifact.folder.iterdir()) + _CONTEXT_BYTES
    for device, each in needs.items():
        needed, free = instances * each, free_bytes(device)
        if needed > free:
            where = "" if device == "cpu" else " on the GPU"
            return (
                f"{instances} more of {served.name} need {needed / 1e6:,.0f} MB{where}, {free / 1e6:,.0f} MB are free"
            )
    return ""


def _processes(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True) if pid else []
    except psutil.Error:
        return []
