"""What a step of generation takes, by its rows and by the tokens of a prompt, beside the two limits of the machine.

A step reads every weight once, however many tokens are in it, and multiplies each token with every weight. A step that
generates has one token a row: reading is most of it. A prompt brings all its tokens at once: multiplying is.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", CACM 52 (2009).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.errors import EngineError, require
from accel_lib.formatting import number, percent, times
from accel_lib.generate import Sampling
from accel_lib.generate.open import open_generation
from accel_lib.generate.scheduler import Scheduler
from accel_lib.machine import cores
from accel_lib.measurement import Result, columns, to_frame
from accel_lib.models.generation import GenerationModel

ROWS = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = (16, 64, 256, 1_024)
_MANY_ROWS = 8  # of which the headline speaks
_SHORT_PROMPT = 8  # tokens; so that the cache of what came before weighs nothing
_LONGEST = 48  # tokens to generate; more than are timed, as requests start one after the other
_ROW_TOKENS = 128  # of the cache, for a row: whole blocks, of any engine
_WINDOWS = 4  # measurements of a size in a turn
_STEPS = 4  # of one measurement
_TURNS = 2  # sizes upward, then downward: a machine that slows down meanwhile does not decide
_PROMPT_TURNS = 3
_SIDE = 8_192  # of the matrix that is read and multiplied: 256 MiB in FP32, more than any cache holds
_MANY_COLUMNS = 256
_REPEATS = 6
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of a weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """How fast a device reads its memory, and how fast it multiplies in one precision, at best."""

    device: str
    precision: str
    read_gb_per_s: float
    gflops: float

    def __str__(self) -> str:
        return f"it reads {number(self.read_gb_per_s)} GB/s and multiplies at {number(self.gflops)} GFLOP/s"


def machine_limits(device: str = "cpu") -> MachineLimits:
    """Measure both on one matrix: times one column, which reads it; times many, which is arithmetic.

    FP32 on a CPU, FP16 on a GPU, as generation is computed there; on a CPU by OpenVINO where it is installed, since
    PyTorch's products take twice as long on some.
    """
    torch = require("torch", extra="models")
    precision, dtype = ("fp32", torch.float32) if device == "cpu" else ("fp16", torch.float16)
    matrix = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)

    def best_s(compute: Callable[[], object]) -> float:
        taken = []
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            compute()
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begin)
        return min(taken)

    def product(columns: int) -> Callable[[], object]:
        if device == "cpu" and importlib.util.find_spec("openvino"):
            return _openvino_product(matrix.numpy(), columns)
        other = matrix[:, :columns].clone()
        return lambda: matrix @ other

    read_s = min(best_s(product(1)), best_s(matrix.sum))
    multiply_s = best_s(product(_MANY_COLUMNS))
    return MachineLimits(
        device=device,
        precision=precision,
        read_gb_per_s=matrix.nbytes / read_s / 1e9,
        gflops=2 * _SIDE * _SIDE * _MANY_COLUMNS / multiply_s / 1e9,
    )


def _openvino_product(matrix: NDArray[np.float32], columns: int) -> Callable[[], object]:
    openvino = require("openvino", extra="openvino")
    operations = require("openvino.opset13", extra="openvino")
    others = np.ones((columns, len(matrix)), dtype=np.float32)
    given = operations.parameter(others.shape, np.float32)
    product = operations.matmul(given, operations.constant(matrix, shared_memory=True), False, True)
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(openvino.Model([product], [given]), "CPU", config)
    request = compiled.create_infer_request()
    return lambda: request.infer([others], share_inputs=True)


class GenerationSteps(Result):
    """What `time_steps` measured; `frame` has a row for each number of rows, and for each length of a prompt.

    Its columns: ``kind``, "decode" or "prefill"; ``rows``; ``tokens`` that are computed; ``ms`` of a step, or to the
    first token, with ``ms_low`` and ``ms_high``; ``tokens_per_s``; what the machine's limits allow at best,
    ``reading_ms`` and ``multiplying_ms`` (none where the limits are of another precision); and, the same in every row,
    ``weights``, ``weight_bytes``, ``precision`` and ``device``.
    """

    @property
    def decode(self) -> pd.DataFrame:
        """Steps that generate, by rows."""
        return self.frame[self.frame["kind"] == "decode"].sort_values("rows")

    @property
    def prefill(self) -> pd.DataFrame:
        """First tokens, by the prompt's tokens."""
        return self.frame[self.frame["kind"] == "prefill"].sort_values("tokens")

    @property
    def name(self) -> str:
        """Precision and device."""
        return f"{self.frame['precision'].iloc[0].upper()} on the {self.frame['device'].iloc[0].upper()}"

    @property
    def doubling_rows(self) -> float | None:
        """At how many rows a step takes twice as long as with one; None where that was not reached."""
        ratio = self.decode["ms"].to_numpy() / self.decode["ms"].iloc[0]
        if ratio.max() < 2:
            return None
        above = int(np.argmax(ratio >= 2))
        ends = slice(above - 1, above + 1)
        return float(np.interp(2, ratio[ends], self.decode["rows"].to_numpy(dtype=float)[ends]))

    @property
    def headline(self) -> str:
        """What more rows cost, and give."""
        one, many = self.decode.iloc[0], self._many
        longer, more = many["ms"] / one["ms"], many["tokens_per_s"] / one["tokens_per_s"]
        return (
            f"A step of {many['rows']:.0f} rows takes {times(longer)} as long as one of {one['rows']:.0f}, and gives "
            f"{times(more)} the tokens per second"
        )

    @property
    def _many(self) -> pd.Series:  # type: ignore[type-arg]  # pandas' stubs give rows no type
        return self.decode.iloc[int((self.decode["rows"] - _MANY_ROWS).abs().argmin())]

    @property
    def explanation(self) -> str:
        """How much of a step of one row is reading the weights, and from how many rows on a step is twice as long."""
        one = self.decode.iloc[0]
        share = percent(one["reading_ms"] / one["ms"])
        read = f"Reading {number(one['weight_bytes'] / 1e6)} MB of weights takes {number(one['reading_ms'])} ms here"
        said = f"{read}, {share} of what a step of one row takes ({number(one['ms'])} ms)"
        doubled = self.doubling_rows
        if doubled is None:
            return f"{said}; with {self.decode['rows'].max()} rows a step is not yet twice as long"
        return f"{said}; with {doubled:.0f} rows a step is twice as long"

    @property
    def first_token(self) -> str:
        """What a token of a prompt costs beside a generated one."""
        short, long = self.prefill.iloc[0], self.prefill.iloc[-1]
        each_ms = (long["ms"] - short["ms"]) / (long["tokens"] - short["tokens"])
        return (
            f"The first token comes after {number(short['ms'])} ms for a prompt of {short['tokens']:,.0f} tokens, "
            f"after {number(long['ms'])} ms for {long['tokens']:,.0f}: {number(each_ms)} ms for each token of a "
            f"prompt, {number(self.decode['ms'].iloc[0])} ms for one that is generated alone"
        )

    def against(self, other: GenerationSteps) -> str:
        """How many times as fast this is as the other, with one row and with the most."""
        both = self.decode.merge(other.decode, on="rows", suffixes=("", "_other"))
        gains = (both["ms_other"] / both["ms"]).to_numpy()
        rows = both["rows"].to_numpy()
        share = self.frame["weight_bytes"].iloc[0] / other.frame["weight_bytes"].iloc[0]
        return (
            f"{self.name} reads {percent(share)} of the bytes of {other.name}: a step of {rows[0]} row is "
            f"{times(gains[0])} as fast, one of {rows[-1]} rows {times(gains[-1])}"
        )

    @property
    def _table(self) -> pd.DataFrame:
        shown = self.frame[["kind", "rows", "tokens", "ms", "tokens_per_s"]]
        return shown.rename(columns={"tokens": "step_tokens", "ms": "step_ms"})


def time_steps(
    model: GenerationModel,
    artifact: Artifact,
    *,
    rows: Sequence[int] = ROWS,
    prompt_tokens: Sequence[int] = PROMPT_TOKENS,
    limits: MachineLimits | None = None,
) -> GenerationSteps:
    """Time steps of an engine in this process, with random prompts that have nothing in common.

    Parameters
    ----------
    model
        Whose weights are counted.
    artifact
        What is opened: any that `accel_lib.generate.open.open_generation` takes.
    rows
        Requests that generate at the same time.
    prompt_tokens
        Lengths of the prompts whose first token is waited for, each alone.
    limits
        What `machine_limits` measured on the engine's device; None measures them.

    Raises
    ------
    EngineError
        The limits are of another device, or the artifact does not open.
    """
    room = 2 * (max(rows) * _ROW_TOKENS + max(prompt_tokens))
    engine = open_generation(artifact, rows=max(rows), cache_tokens=room)
    try:
        limits = limits or machine_limits(engine.device)
        if limits.device.partition(":")[0] != engine.device.partition(":")[0]:
            raise EngineError(
                "These limits were measured on another device than the engine's.",
                seen=f"{limits.device}, {engine.device}",
                fix=f"time_steps(model, artifact, limits=machine_limits({engine.device!r}))",
            )
        clock = _Clock(engine)
        clock.first_token_ms(_SHORT_PROMPT)  # what is done once is done
        decode: dict[int, list[float]] = {each: [] for each in rows}
        for turn in range(_TURNS):
            for each in rows if turn % 2 == 0 else rows[::-1]:
                decode[each] += clock.step_ms(each)
        prefill = {each: [clock.first_token_ms(each) for _ in range(_PROMPT_TURNS)] for each in prompt_tokens}
    finally:
        engine.close()
    measured = [{"kind": "decode", "rows": each, "tokens": each, **columns("ms", ms)} for each, ms in decode.items()]
    measured += [{"kind": "prefill", "rows": 1, "tokens": each, **columns("ms", ms)} for each, ms in prefill.items()]
    frame = to_frame(measured)
    frame["tokens_per_s"] = 1e3 * frame["tokens"] / frame["ms"]
    _add_limits(frame, _weights(model), engine, limits)
    return GenerationSteps(frame=frame)


def _weights(model: GenerationModel) -> int:
    """Weights that every token is multiplied with: all, and the table of token ids where it is the last matrix too."""
    network: Any = model.network
    table, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    count: int = sum(weight.numel() for weight in network.parameters()) - (0 if table is head else table.numel())
    return count


def _add_limits(frame: pd.DataFrame, weights: int, engine: Scheduler, limits: MachineLimits) -> None:
    frame["weights"], frame["weight_bytes"] = weights, weights * _BYTES[engine.precision]
    frame["reading_ms"] = frame["weight_bytes"] / limits.read_gb_per_s / 1e6
    same = engine.precision == limits.precision
    frame["multiplying_ms"] = 2 * weights * frame["tokens"] / limits.gflops / 1e6 if same else np.nan
    frame["precision"], frame["device"] = engine.precision, engine.device


class _Clock:
    """Times an engine that has nothing else to do."""

    def __init__(self, engine: Scheduler) -> None:
        self._engine = engine
        self._keys = map(str, itertools.count())
        self._random = np.random.default_rng(0)

    def first_token_ms(self, prompt_tokens: int) -> float:
        begin = time.perf_counter()
        self._add(prompt_tokens, max_tokens=1)
        self._finish()
        return 1e3 * (time.perf_counter() - begin)

    def step_ms(self, rows: int) -> list[float]:
        """Milliseconds of a step while that many requests generate, several measurements."""
        keys = {self._add(_SHORT_PROMPT, max_tokens=_LONGEST) for _ in range(rows)}
        started: set[str] = set()
        while started < keys:
            started |= {event.key for event in self._engine.step() if event.token_ids}
        found = []
        for _ in range(_WINDOWS):
            begin, made = time.perf_counter(), 0
            while made < rows * _STEPS:
                made += sum(len(event.token_ids) for event in self._engine.step())
            found.append(1e3 * (time.perf_counter() - begin) * rows / made)
        for key in keys:
            self._engine.cancel(key)
        self._finish()
        return found

    def _add(self, prompt_tokens: int, *, max_tokens: int) -> str:
        key = next(self._keys)
        ids = self._random.integers(0, self._engine.limits.vocabulary, prompt_tokens).tolist()
        sampling = Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        self._engine.add(key, ids, sampling)
        return key

    def _finish(self) -> None:
        while not self._engine.idle:
            self._engine.step()
