"""Speed-up of one engine over another by batch size and length: measured here, or recorded on another GPU."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from accel_lib.artifact import Profile
from accel_lib.bench.timing import full_batch
from accel_lib.convert.onnx import to_onnx
from accel_lib.convert.tensorrt import to_tensorrt
from accel_lib.engines import Engine, open_engine
from accel_lib.errors import ConversionError, MissingDependencyError
from accel_lib.formatting import UNCHANGED, capital, listed, number, times
from accel_lib.machine import cache_dir, inspect_machine
from accel_lib.measurement import Result, columns, highest, lowest, take_turns, to_frame
from accel_lib.models import Model

BATCH_SIZES = (1, 4, 16, 64, 256)
TOKENS = (16, 32, 64, 128, 256)
_TURNS = 22
_FLAT = 1.25  # times the least: still the same time


class SpeedupMap(Result):
    """Speed-up by batch size and length."""

    @property
    def headline(self) -> str:
        """Where the candidate gains most and least."""
        frame = self.frame
        most, least = highest(frame, "speedup"), lowest(frame, "speedup")
        candidate, baseline = most["candidate"], most["baseline"]
        if not ((frame["speedup_low"] > 1) | (frame["speedup_high"] < 1)).any():
            return f"{capital(UNCHANGED)} between {candidate} and {baseline} at any size"
        at = [f"at {row['batch_size']:.0f} × {row['tokens']:.0f} tokens" for row in (most, least)]
        said = (
            f"{candidate} is {times(most['speedup'])} as fast as {baseline} {at[0]}, {times(least['speedup'])} {at[1]}"
        )
        slower = int((frame["speedup_high"] < 1).sum())
        return said + (f"; slower at {slower} of {len(frame)} sizes" if slower else "")

    @property
    def floor(self) -> str:
        """Up to which size a batch takes the baseline the same time."""
        work = self.frame["batch_size"] * self.frame["tokens"]
        slow = self.frame["baseline_ms"] > _FLAT * self.frame["baseline_ms"].min()
        flat = self.frame[work < work[slow].min()] if slow.any() else self.frame
        smallest = self.frame.iloc[int(work.argmin())]
        if flat.empty or work[flat.index].max() < 4 * work.min():
            return f"{smallest['baseline']} has no floor here: more tokens take longer at any size"
        limit, typical = work[flat.index].max(), number(float(flat["baseline_ms"].median()))
        return (
            f"{smallest['baseline']} takes about {typical} ms for any batch of up to {limit:,} tokens; "
            f"{smallest['candidate']} takes {number(smallest['candidate_ms'])} ms for the smallest"
        )


def map_speedup(
    candidate: Engine,
    baseline: Engine,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    tokens: Sequence[int] = (16, 64, 128),
    seconds: float = 30,
) -> SpeedupMap:
    """Time two engines of one model on full batches of one length, size by size, in turns.

    The result has one row a size (texts in a batch, and tokens of each): ``candidate``, ``baseline``, ``batch_size``,
    ``tokens``, ``candidate_ms``, ``baseline_ms``, and ``speedup`` with its interval.
    """
    engines, sizes = {"candidate": candidate, "baseline": baseline}, [(b, t) for b in batch_sizes for t in tokens]
    rows: list[dict[str, Any]] = []
    for batch_size, length in sizes:
        runs = {role: full_batch(engine, batch_size, length) for role, engine in engines.items()}
        take_turns(runs, repeats=2)
        taken = take_turns(runs, repeats=_TURNS, seconds=seconds / len(sizes))
        row: dict[str, Any] = {role: engine.name for role, engine in engines.items()}
        row |= {"batch_size": batch_size, "tokens": length}
        row |= {f"{role}_ms": float(np.median(taken[role])) * 1e3 for role in runs}
        rows.append(row | columns("speedup", taken["baseline"] / taken["candidate"]))
    return SpeedupMap(frame=to_frame(rows))


def speedup_over_eager(
    model: Model,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tokens: Sequence[int] = TOKENS,
    seconds: float = 60,
) -> SpeedupMap:
    """Time a TensorRT engine against eager PyTorch FP16, size by size; without a GPU, show what was recorded on one.

    Where TensorRT builds no engine for the GPU of this machine, CUDA graphs of PyTorch are measured instead. Which of
    the three it is, is printed, and is in the result. Parameters are those of `map_speedup`; the model's ``max_length``
    bounds `tokens`.
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
    """The recording that ships with the package: PyTorch FP16 with and without its launches captured in CUDA graphs.

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


def recorded_engines() -> pd.DataFrame:
    """Milliseconds of one batch by engine and size, recorded on a card that is not here: PyTorch and TensorRT in FP16.

    Runs of several days, so that small differences say nothing. ``attrs["recorded"]`` names card, dates and model.
    """
    with (importlib.resources.files("accel_lib") / "data" / "recorded_engines.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype={"recorded": str})
    rows = rows.sort_values(["batch_size", "tokens"], kind="stable")
    size = rows["batch_size"].astype(str) + " × " + rows["tokens"].astype(str) + " tokens"
    table = rows.assign(size=size).pivot(index="engine", columns="size", values="ms")
    table = table[list(dict.fromkeys(size))].rename_axis(index=None, columns=None)
    days = listed(sorted(set(rows["recorded"])))
    table.attrs["recorded"] = f"{rows['card'].iloc[0]}, {days} · {rows['model'].iloc[0]}"
    return table


def _candidate(model: Model, max_batch_size: int, max_length: int) -> Engine:
    """An engine tuned for one short text and for large batches, or CUDA graphs where TensorRT cannot build one."""
    small = Profile(min=(1, 1), opt=(1, min(32, max_length)), max=(min(8, max_batch_size), max_length))
    rest = Profile(min=(1, 1), opt=(max_batch_size, min(128, max_length)), max=(max_batch_size, max_length))
    folder = cache_dir("artifacts", model.name.replace("/", "--"), "tensorrt-speedup")
    try:
        onnx = to_onnx(model, precision="fp16", progress=False)
        return open_engine(to_tensorrt(onnx, profiles=(small, rest), output=folder))
    except (ConversionError, MissingDependencyError) as refusal:
        print(f"no engine for this GPU, CUDA graphs of PyTorch instead: {refusal.cause}")
        return open_engine(model, device="cuda", precision="fp16", cuda_graphs=True)
