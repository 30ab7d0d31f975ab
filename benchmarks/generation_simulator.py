"""Compare the simulator of continuous batching with the real engine, in settings that it was not fitted to:

python -m benchmarks.generation_simulator [--precisions fp32 int8] [--seconds 10] [--output results.json] [--triton]

With ``--triton`` the course's own model is measured too, through a real Triton.

Each setting sends requests of given lengths at given times to an OpenVINO engine in this process, under the threads
that it has in Triton, and simulates the same requests. It fails where the median errors are over 10% in tokens/s or
15% in the p95 of the time to the first token. Errors are logarithms of predicted over measured, as percentages.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import accel_lib as accel
from accel_lib.artifact import Artifact
from accel_lib.convert.generation import generation_to_openvino
from accel_lib.generate.open import open_generation
from accel_lib.generate.scheduler import Scheduler
from accel_lib.load.generation import generation_load_test
from accel_lib.load.generation_results import GenerationRun
from accel_lib.load.lengths import Lengths
from accel_lib.measurement import machine_line
from accel_lib.simulation.generation_prediction import GenerationSimulator
from accel_lib.triton.client import ServedModel

Open = Callable[..., contextlib.AbstractContextManager[Scheduler | ServedModel]]
Row = dict[str, Any]

MODEL = "SmolLM2-135M-Instruct"
MOST_ROWS = 16
CACHE_TOKENS = 8_192
STEP_TOKENS = 128
MOST_SPEED_ERROR = 0.10
MOST_TTFT_ERROR = 0.15
MEASURES = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """An engine's settings and its load: a share of the predicted capacity, or everything at once (0)."""

    name: str
    rows: int
    share: float = 0.0
    prompt_tokens: Lengths = (16, 96)
    output_tokens: Lengths = "exponential:32:128"
    cache_tokens: int = CACHE_TOKENS
    step_tokens: int = STEP_TOKENS


SETTINGS = (
    Setting(name="1 row, 60%", rows=1, share=0.6),
    Setting(name="2 rows, 80%", rows=2, share=0.8),
    Setting(name="4 rows, 50%", rows=4, share=0.5),
    Setting(name="4 rows, all at once, equal answers", rows=4, prompt_tokens=48, output_tokens=40),
    Setting(name="8 rows, 80%", rows=8, share=0.8),
    Setting(name="8 rows, 130%", rows=8, share=1.3),
    Setting(name="8 rows, 70%, long prompts", rows=8, share=0.7, prompt_tokens=(150, 400), output_tokens=(8, 24)),
    Setting(name="8 rows, 130%, cache of 768", rows=8, share=1.3, cache_tokens=768),
    Setting(name="16 rows, all at once", rows=16),
    Setting(name="16 rows, 70%, 32 tokens a step", rows=16, share=0.7, step_tokens=32),
)


def load(simulator: GenerationSimulator, setting: Setting, seconds: float, seed: int) -> dict[str, Any]:
    """Requests for about `seconds`: when they are due, and their lengths."""
    engine = {name: getattr(setting, name) for name in ("rows", "cache_tokens", "step_tokens")}
    lengths = {name: getattr(setting, name) for name in ("prompt_tokens", "output_tokens")}
    capacity = simulator.predict(requests=200, **lengths, **engine).requests_per_s
    rate = (setting.share or 1.0) * capacity
    count = max(8, round(rate * seconds / max(setting.share, 1.0)))
    gaps = np.random.default_rng(seed).exponential(1 / rate, count) if setting.share else np.zeros(count)
    return {"arrivals": np.cumsum(gaps), "seed": seed, **lengths}


@contextlib.contextmanager
def in_process(artifact: Artifact, **engine: int) -> Iterator[Scheduler]:
    """An engine in this process."""
    opened = open_generation(artifact, **engine)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def in_triton(served: ServedModel, **engine: int) -> Iterator[ServedModel]:
    """The served model with an engine's settings."""
    with served.own_config():
        served.configure(**engine)
        yield served


def measure(open_engine: Open, simulator: GenerationSimulator, setting: Setting, seconds: float, seed: int) -> Row:
    """One setting, measured and simulated, as a row."""
    engine = {name: getattr(setting, name) for name in ("rows", "cache_tokens", "step_tokens")}
    with open_engine(**engine) as opened:
        began, cpu = time.perf_counter(), time.process_time()
        run = generation_load_test(opened, **load(simulator, setting, seconds, seed))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    frame = run.frame
    sent = {name: frame[name].tolist() for name in ("prompt_tokens", "output_tokens")}
    guess = simulator.predict(arrivals=frame["intended_s"].to_numpy(), **sent, **engine)
    row: Row = {"setting": setting.name, "requests": len(frame), "cores": cpu_s / wall_s}
    row |= {"failed": sum(run.errors.values()), "limit": guess.bottleneck}
    for name, real, simulated in zip(MEASURES, facts(run), facts(guess), strict=True):
        row |= {name: real, f"simulated_{name}": simulated, f"{name}_error": float(np.log(simulated / real))}
    return row


def facts(run: GenerationRun) -> tuple[float, ...]:
    """What is compared, in the order of `MEASURES`."""
    latencies = [run.percentile(f"{name}_ms", q) for name in ("ttft", "itl") for q in (50, 95)]
    return (run.output_tokens_per_s, *latencies)


def verdict(table: pd.DataFrame) -> tuple[bool, str]:
    """Whether both medians are within their limits, and the sentence that says so."""
    speed, ttft = (float(table[f"{name}_error"].abs().median()) for name in ("output_tokens_per_s", "ttft_p95_ms"))
    passed = speed <= MOST_SPEED_ERROR and ttft <= MOST_TTFT_ERROR
    worst = table.loc[table["ttft_p95_ms_error"].abs().idxmax()]
    said = (
        f"median error {speed:.1%} in tokens/s (limit {MOST_SPEED_ERROR:.0%}), {ttft:.1%} in the p95 of TTFT "
        f"(limit {MOST_TTFT_ERROR:.0%}): {'within' if passed else 'over'} the limits; furthest off: "
        f"{worst['engine']}, {worst['setting']}, {worst['ttft_p95_ms_error']:+.0%} in the p95 of TTFT"
    )
    return passed, said


def speed(simulator: GenerationSimulator) -> str:
    """How long the simulator itself takes."""
    taken = {}
    for name, requests in (("10,000 requests", 10_000), ("300 requests, a move of a slider", 300)):
        began = time.perf_counter()
        simulator.predict(rate=3, requests=requests, prompt_tokens=(16, 96), output_tokens="exponential:48:192")
        taken[name] = time.perf_counter() - began
    return "simulated: " + ", ".join(f"{name} in {seconds:.2f} s" for name, seconds in taken.items())


def compare(name: str, open_engine: Open, seconds: float, only: Sequence[str]) -> list[Row]:
    """Fit the simulator to an engine, then measure and simulate each setting."""
    with open_engine(rows=MOST_ROWS, cache_tokens=CACHE_TOKENS, step_tokens=STEP_TOKENS) as opened:
        simulator = accel.fit_generation_simulator(opened)
    print(simulator, simulator.cost, speed(simulator), sep="\n", flush=True)
    rows = []
    for seed, setting in enumerate(SETTINGS):
        if not only or any(words in setting.name for words in only):
            rows.append({"engine": name} | measure(open_engine, simulator, setting, seconds, seed))
            print(name, setting.name, {each: f"{rows[-1][f'{each}_error']:+.0%}" for each in MEASURES}, flush=True)
    return rows


def main() -> None:
    """Fit, measure, simulate and compare; exit with 1 where a median is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "int8"])
    parser.add_argument("--seconds", type=float, default=10, help="of load in each setting, about")
    parser.add_argument("--only", nargs="*", default=[], help="words that a setting's name has")
    parser.add_argument("--triton", action="store_true", help="the course's model in a Triton as well")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    model = accel.load_model(MODEL)
    rows: list[Row] = []
    for precision in asked.precisions:
        artifact = generation_to_openvino(model, precision=precision)
        rows += compare(precision, functools.partial(in_process, artifact), asked.seconds, asked.only)
    if asked.triton:
        with accel.serve(accel.ensure("generation"), models=["generation"]) as server:
            opened = functools.partial(in_triton, server.model("generation"))
            rows += compare("in Triton", opened, asked.seconds, asked.only)
    table = pd.DataFrame(rows)
    passed, said = verdict(table)
    print(table.round(2).to_string(index=False), said, machine_line(), sep="\n")
    if asked.output:
        kept = {"machine": machine_line(), "verdict": said, "rows": table.round(4).to_dict(orient="records")}
        asked.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
