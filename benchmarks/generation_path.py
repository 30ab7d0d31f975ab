"""What the way of a chat costs: one engine in this process, through Triton, and through the gateway, in turns.

    python -m benchmarks.generation_path
    python -m benchmarks.generation_path --turns 1 --requests 16

All get the same load: a closed loop that fills the rows gives tokens per second, one client alone the time to the first
token and between tokens. CPU milliseconds of a token count by process, which neighbours on the machine disturb less;
the engine's own are those of this process, load generator and all. Then the prefix cache: two prompts that share 300
tokens, one after the other, through each way.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import accel_lib as accel
from accel_lib.generate.open import open_generation
from accel_lib.load import GenerationLoadRun
from accel_lib.load.cpu_time import cpu_seconds
from accel_lib.measurement import machine_line
from accel_lib.stats import median_interval
from benchmarks.gateway import started_gateway

ROWS = 8
ENGINE, TRITON, GATEWAY = "engine in process", "Triton, gRPC", "gateway, HTTP"
LOAD = {"prompt_tokens": (48, 160), "output_tokens": "exponential:64:160"}
ALONE = {"prompt_tokens": 64, "output_tokens": 32}
SHARED_TOKENS = 300
LEAST_KEPT = 0.9  # of the engine's tokens/s
MOST_FIRST_MS, MOST_BETWEEN_MS, MOST_PREFIX = 2.0, 0.5, 0.2


class Way:
    """One way to the model, and the processes that work on it."""

    def __init__(self, target: Any, pids: list[int], **how: Any) -> None:
        self.target, self.pids, self.how = target, pids, how

    def load(self, **load: Any) -> tuple[GenerationLoadRun, float]:
        """A run, and CPU milliseconds of a token."""
        before = self._cpu_s()
        run = accel.generation_load_test(self.target, **load, **self.how)
        made = run.frame["output_tokens"].sum()
        return run, 1e3 * (self._cpu_s() - before) / made

    def _cpu_s(self) -> float:
        return sum(sum(cpu_seconds(pid).values()) for pid in self.pids)


@contextlib.contextmanager
def opened(threads: int) -> Any:
    """The three ways, open side by side; who is not asked is idle."""
    import os

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(accel.serve(accel.ensure("generation"), models=["generation"]))
        served = server.model("generation")
        stack.enter_context(served.own_config())
        served.configure(rows=ROWS, threads=threads)
        artifact = served.artifact
        engine = open_generation(artifact, rows=ROWS, threads=threads)
        stack.callback(engine.close)
        url, key, gateway = stack.enter_context(started_gateway(server, "generation"))
        yield {
            ENGINE: Way(engine, [os.getpid()], artifact=artifact),
            TRITON: Way(served, [server.pid]),
            GATEWAY: Way(url, [server.pid, gateway], key=key, artifact=artifact),
        }


def in_turns(ways: dict[str, Way], turns: int, measure: Callable[[Way, int], dict[str, float]]) -> pd.DataFrame:
    """One row a way and turn."""
    rows = []
    for turn in range(turns):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rows.append({"way": name, "turn": turn} | measure(ways[name], turn))
            print(
                f"{name}: "
                + ", ".join(f"{key} {value:.3g}" for key, value in rows[-1].items() if key not in ("way", "turn")),
                flush=True,
            )
    return pd.DataFrame(rows)


def filled(requests: int) -> Callable[[Way, int], dict[str, float]]:
    """A closed loop with a client for each row."""

    def measure(way: Way, turn: int) -> dict[str, float]:
        run, cpu_ms = way.load(clients=ROWS, requests=requests, seed=turn, **LOAD)
        assert not run.errors, run.errors
        return {"tokens_per_s": run.output_tokens_per_s, "cpu_ms_per_token": cpu_ms}

    return measure


def alone(requests: int) -> Callable[[Way, int], dict[str, float]]:
    """One client."""

    def measure(way: Way, turn: int) -> dict[str, float]:
        run, cpu_ms = way.load(clients=1, requests=requests, seed=turn, **ALONE)
        first, between = run.percentile("ttft_ms", 50), run.percentile("itl_ms", 50)
        return {"ttft_ms": first, "itl_ms": between, "cpu_ms_per_token": cpu_ms}

    return measure


def prefix(way: Way, turn: int) -> dict[str, float]:
    """Two prompts that begin alike, one after the other; a short one before them wakes everything."""
    shape = {"prompt_tokens": SHARED_TOKENS + 60, "shared_prefix_tokens": SHARED_TOKENS, "output_tokens": 2}
    way.load(clients=1, requests=1, prompt_tokens=40, output_tokens=2)
    run, _ = way.load(clients=1, requests=2, warmup=0, seed=turn, **shape)
    first, second = run.frame["ttft_ms"]
    return {"first_ms": first, "second_ms": second, "share": second / first}


def report(filled_: pd.DataFrame, alone_: pd.DataFrame, prefixes: pd.DataFrame) -> dict[str, Any]:
    """Print medians and verdicts; the same as a dictionary."""
    found: dict[str, Any] = {"machine": machine_line()}
    for title, frame in (("rows filled", filled_), ("one client", alone_), ("prefix of 300 tokens", prefixes)):
        medians = (
            frame.groupby("way", sort=False)
            .median(numeric_only=True)
            .drop(columns="turn")
            .loc[[ENGINE, TRITON, GATEWAY]]
        )
        print(f"\n{title}\n{medians.round(3).to_string()}")
        found[title] = medians.to_dict("index")
    by_turn = {
        name: frame.pivot(index="turn", columns="way") for name, frame in (("filled", filled_), ("alone", alone_))
    }
    speed = by_turn["filled"]["tokens_per_s"]
    verdicts = {
        f"{way}, tokens/s over the engine's": (speed[way] / speed[ENGINE], LEAST_KEPT, ">") for way in (TRITON, GATEWAY)
    }
    for earlier, later in itertools.pairwise((ENGINE, TRITON, GATEWAY)):
        for column, most in (("ttft_ms", MOST_FIRST_MS), ("itl_ms", MOST_BETWEEN_MS)):
            added = by_turn["alone"][column][later] - by_turn["alone"][column][earlier]
            verdicts[f"{later} over {earlier}, {column}"] = (added, most if later == GATEWAY else math.inf, "<")
    for way, share in prefixes.groupby("way", sort=False)["share"]:
        verdicts[f"{way}, second first token over the first one"] = (share, MOST_PREFIX, "<")
    print()
    for name, (values, bound, side) in verdicts.items():
        median = float(np.median(values))
        low, high = median_interval(np.asarray(values, dtype=float))
        good = median >= bound if side == ">" else median <= bound
        wanted = "" if math.isinf(bound) else f", wanted {'≥' if side == '>' else '≤'} {bound:g}"
        word = "kept" if good and wanted else "" if good else "MISSED"
        print(f"{word:7}{name}: {median:.3g} ({low:.3g} to {high:.3g}){wanted}")
        found[name] = {"median": median, "low": low, "high": high, "wanted": bound if wanted else None}
    return found


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument(
        "--threads", type=int, default=1, help="of the engine, everywhere; one leaves a core to the way"
    )
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with opened(asked.threads) as ways:
        speeds = in_turns(ways, asked.turns, filled(asked.requests))
        latencies = in_turns(ways, asked.turns, alone(max(3, asked.requests // 4)))
        prefixes = in_turns(ways, asked.turns, prefix)
    found = report(speeds, latencies, prefixes)
    if asked.output:
        asked.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
