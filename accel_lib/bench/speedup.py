"""What a GPU gains over PyTorch run eagerly, by batch size and length: measured here, or recorded elsewhere."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence

import pandas as pd

from accel_lib.artifact import Profile
from accel_lib.bench.batching import SpeedupMap, map_speedup
from accel_lib.convert.onnx import to_onnx
from accel_lib.convert.tensorrt import to_tensorrt
from accel_lib.engines import Engine, open_engine
from accel_lib.errors import ConversionError, MissingDependencyError
from accel_lib.machine import cache_dir, inspect_machine
from accel_lib.models import Model

BATCH_SIZES = (1, 4, 16, 64, 256)
TOKENS = (16, 32, 64, 128, 256)


def speedup_over_eager(
    model: Model,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tokens: Sequence[int] = TOKENS,
    seconds: float = 60,
) -> SpeedupMap:
    """Time a TensorRT engine against PyTorch FP16, size by size; without a GPU, show what was recorded on another one.

    Where no TensorRT builds for the GPU of this machine, CUDA graphs of PyTorch take the engine's place. Which of the
    three it is, is printed, and is in the result.

    Parameters
    ----------
    model
        What to run; its ``max_length`` bounds `tokens`.
    batch_sizes, tokens
        Sizes to measure: texts a batch, and tokens a text.
    seconds
        About how long to measure, all sizes together.

    Returns
    -------
    SpeedupMap
        As `map_speedup` returns it.
    """
    if not inspect_machine().gpus:
        recorded = recorded_speedup()
        print(f"no GPU here: showing what was {recorded.machine}")
        return recorded
    lengths = [length for length in tokens if length <= model.max_length]
    baseline = open_engine(model, device="cuda", precision="fp16")
    candidate = _candidate(model, max(batch_sizes), max(lengths))
    try:
        return map_speedup(candidate, baseline, batch_sizes=batch_sizes, tokens=lengths, seconds=seconds)
    finally:
        candidate.close()
        baseline.close()


def recorded_speedup() -> SpeedupMap:
    """The recording that ships with the package: PyTorch FP16 with its launches captured in CUDA graphs, and without.

    Returns
    -------
    SpeedupMap
        ``frame.attrs["recorded"]`` names the card, the date, the model and torch's version.
    """
    with (importlib.resources.files("accel_lib") / "data" / "recorded_speedup.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    about = frame[["card", "recorded", "model", "torch"]].drop_duplicates()
    (card, date, model, torch) = about.to_numpy().tolist()[0]
    frame = frame.drop(columns=list(about))
    frame.attrs["recorded"] = f"{card}, {date} · {model} · torch {torch}"
    frame.attrs["machine"] = f"recorded on {frame.attrs['recorded']}"
    return SpeedupMap(frame=frame)


def _candidate(model: Model, max_batch_size: int, max_length: int) -> Engine:
    """An engine tuned for one short text and for large batches, or CUDA graphs where TensorRT cannot build one."""
    small = Profile(min=(1, 1), opt=(1, min(32, max_length)), max=(min(8, max_batch_size), max_length))
    rest = Profile(min=(1, 1), opt=(max_batch_size, min(128, max_length)), max=(max_batch_size, max_length))
    folder = cache_dir("artifacts", model.name.replace("/", "--"), "tensorrt-speedup")
    try:
        onnx = to_onnx(model, precision="fp16", progress=False)
        return open_engine(to_tensorrt(onnx, profiles=(small, rest), output=folder))
    except (ConversionError, MissingDependencyError) as refusal:
        print(f"no engine for this GPU, CUDA graphs of PyTorch in its place: {refusal.cause}")
        return open_engine(model, device="cuda", precision="fp16", cuda_graphs=True)
