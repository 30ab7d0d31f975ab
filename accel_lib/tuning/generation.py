"""Find rows, tokens of a step and threads for the most goodput of a model that generates: simulate all, measure few."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from accel_lib.errors import AccelError
from accel_lib.formatting import number, percent
from accel_lib.load.generation import generation_load_test
from accel_lib.load.generation_results import GenerationLoadRun
from accel_lib.load.lengths import Lengths
from accel_lib.machine import cores
from accel_lib.measurement import Result, lowest, to_frame
from accel_lib.progress import Progress
from accel_lib.simulation.generation_fit import fit_generation_simulator
from accel_lib.simulation.generation_prediction import GenerationSimulator
from accel_lib.stats import mean_interval
from accel_lib.triton.client import ServedModel

Setting = dict[str, int]
# The settings, each with the words that its value gets; simpler values are smaller.
SETTINGS: dict[str, Callable[[Any], str]] = {
    "rows": lambda value: f"{value:.0f} row{'s' if value > 1 else ''}",
    "threads": lambda value: f"{value:.0f} thread{'s' if value > 1 else ''}",
    "step_tokens": lambda value: f"≤ {value:.0f} tokens a step",
}
GRID: Mapping[str, Sequence[int]] = {"rows": (1, 2, 4, 8, 16), "step_tokens": (32, 64, 128, 256)}
_SHARES = (0.5, 0.65, 0.8, 0.9, 1.0, 1.2)  # of the predicted capacity: rates at which goodput is predicted
_REQUESTS = 300
_ALIKE = 0.05  # share of goodput within which predictions are the same
_CANDIDATES = 3


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class GenerationSweep(Result):
    """What `tune` found for a model that generates.

    `frame` has one row a setting that was measured: its values, ``predicted_goodput``, ``goodput`` (requests/s that
    keep both targets) and over the best one's, ``over_best``, both with ``_low`` and ``_high``; ``ttft_p95_ms``,
    ``itl_p95_ms``, ``runs``. `predicted` has every setting that was simulated.
    """

    served: ServedModel
    predicted: pd.DataFrame
    rate: float  # requests/s that were offered
    ttft_ms: float
    itl_ms: float

    @property
    def best(self) -> Setting:
        """The setting to take: the most goodput, the simplest of those that cannot be told apart."""
        return {name: int(self._best[name]) for name in SETTINGS}

    @property
    def headline(self) -> str:
        """Which setting to take, or that none keeps the targets."""
        best, alike = self._best, len(self._alike)
        targets = f"TTFT ≤ {number(self.ttft_ms)} ms and ITL ≤ {number(self.itl_ms)} ms"
        if not self.frame["goodput"].max() > 0:
            return f"No setting keeps {targets} at {number(self.rate)} requests/s: the closest, {described(best)}"
        said = f"{described(best)}: {number(best['goodput'])} requests/s keep {targets}, {number(self.rate)} offered"
        told = "; one run each" if self._once else ""
        if alike > 1:
            told = f"; {alike} of the {len(self.frame)} measured cannot be told apart, took the simplest"
        return self._and_stopped(said + told)

    @property
    def explanation(self) -> str:
        """How many were simulated, and how far the predictions of the measured ones are."""
        kept = self.frame[self.frame["goodput"] > 0]
        ratios = (kept["predicted_goodput"] / kept["goodput"]).to_numpy()
        off = percent(float(np.median(np.abs(ratios - 1)))) if len(ratios) else "an unknown share"
        return (
            f"{len(self.predicted)} settings were simulated, and {len(self.frame)} measured, in turns; predicted "
            f"goodput is off by {off} in their median"
        )

    def apply(self) -> None:
        """Set the running model to the best setting."""
        self.served.configure(**self.best)

    @property
    def _once(self) -> bool:
        return bool((self.frame["runs"] == 1).all())

    @property
    def _alike(self) -> pd.DataFrame:
        if self._once:  # nothing says how far apart two runs may lie: the most goodput it is
            return self.frame.head(1)
        return self.frame[self.frame["over_best_high"] >= 1]

    @property
    def _best(self) -> dict[Any, Any]:
        if not self.frame["goodput"].max() > 0:
            return lowest(self.frame, "ttft_p95_ms")
        return self._alike.sort_values(list(SETTINGS)).iloc[0].to_dict()


def described(setting: Mapping[Any, Any]) -> str:
    """One setting in words: ``"8 rows, 2 threads, ≤ 128 tokens a step"``."""
    return ", ".join(words(setting[name]) for name, words in SETTINGS.items())


def tune_generation(
    served: ServedModel,
    *,
    ttft_ms: float,
    itl_ms: float,
    prompt_tokens: Lengths = (32, 96),
    output_tokens: Lengths = "exponential:48:192",
    rate: float | None = None,
    seconds: float = 15,
    rounds: int = 3,
    calibrate_s: float = 10,
    grid: Mapping[str, Sequence[int]] = GRID,
) -> GenerationSweep:
    """What `accel.tune` does for a model that generates; its parameters are explained there."""
    if not (ttft_ms > 0 and itl_ms > 0) or not all(grid.values()) or not set(grid) <= set(SETTINGS):
        fix = "ttft_ms=1_000, itl_ms=100, grid={'rows': (1, 4, 8), 'step_tokens': (64, 128), 'threads': (1, 2)}"
        raise AccelError("Tuning needs targets above zero, and values for each setting.", seen=grid, fix=fix)
    load = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "ttft_ms": ttft_ms, "itl_ms": itl_ms}
    threads = grid.get("threads") or (served.config.threads or cores(),)
    values = {"rows": grid.get("rows", GRID["rows"]), "step_tokens": grid.get("step_tokens", GRID["step_tokens"])}
    most = {name: max(each) for name, each in values.items()}
    simulators = {}
    with served.own_config():
        for count in threads:
            served.configure(threads=count, **most)
            simulators[count] = fit_generation_simulator(served, seconds=calibrate_s)
    every = itertools.product(values["rows"], threads, values["step_tokens"])
    distinct = dict.fromkeys((rows, count, max(step, rows)) for rows, count, step in every)
    settings = [dict(zip(SETTINGS, each, strict=True)) for each in distinct]
    rate, goodputs = _predict(simulators, settings, load, rate)
    chosen = _candidates(settings, goodputs)
    runs: dict[int, list[GenerationLoadRun]] = {index: [] for index in chosen}
    progress = Progress("Tuning")
    with served.own_config():
        for turn, index in itertools.product(range(rounds), chosen):
            progress.tick(f"round {turn + 1} of {rounds}, {described(settings[index])}")
            served.configure(**settings[index])
            runs[index].append(generation_load_test(served, rate=rate, seconds=seconds, seed=turn, **load))  # type: ignore[arg-type]
    progress.done(f"{len(chosen)} settings, {rounds * len(chosen)} runs")
    predicted = [setting | {"predicted_goodput": goodput} for setting, goodput in zip(settings, goodputs, strict=True)]
    return GenerationSweep(
        frame=_table(runs, predicted),
        served=served,
        predicted=pd.DataFrame(predicted),
        rate=rate,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
    )


def _predict(
    simulators: Mapping[int, GenerationSimulator],
    settings: Sequence[Setting],
    load: Mapping[str, Any],
    rate: float | None,
) -> tuple[float, list[float]]:
    """The rate at which some setting has the most goodput, unless one is given; and each setting's goodput there."""

    def goodput(setting: Setting, rate: float) -> float:
        engine: dict[str, Any] = {name: setting[name] for name in ("rows", "step_tokens")}
        return simulators[setting["threads"]].predict(rate=rate, requests=_REQUESTS, **engine, **load).goodput

    rates = [rate] if rate else []
    if not rates:
        sent = {name: load[name] for name in ("prompt_tokens", "output_tokens")}
        capacity = max(simulator.predict(**sent).requests_per_s for simulator in simulators.values())
        rates = [share * capacity for share in _SHARES]
    table = np.array([[goodput(setting, each) for each in rates] for setting in settings])
    column = int(table.max(axis=0).argmax())
    return rates[column], table[:, column].tolist()


def _candidates(settings: Sequence[Setting], goodputs: Sequence[float]) -> list[int]:
    """Indices of the most goodput, the simplest first of those that are predicted alike."""
    best = max(max(goodputs), 1e-9)

    def order(index: int) -> tuple[float, ...]:
        worse = round((1 - goodputs[index] / best) / _ALIKE)
        return (worse, *(settings[index][name] for name in SETTINGS))

    return sorted(range(len(settings)), key=order)[:_CANDIDATES]


def _table(runs: Mapping[int, Sequence[GenerationLoadRun]], settings: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a setting, the most goodput first; ratios from rounds of the same arrivals."""
    goodputs = {index: np.array([run.goodput for run in each]) for index, each in runs.items()}
    leader = max(goodputs, key=lambda index: float(goodputs[index].mean()))
    best = max(float(goodputs[leader].mean()), 1e-9)
    rows = []
    for index, each in goodputs.items():
        low, high = mean_interval(each)
        less, more = mean_interval((each - goodputs[leader]) / best)
        known = len(each) > 1
        row = {"goodput": float(each.mean()), "goodput_low": low, "goodput_high": high}
        row |= {"over_best": float(each.mean()) / best, "over_best_low": 1 + less if known else 0.0}
        row |= {"over_best_high": 1 + more if known else np.inf, "runs": len(each)}
        for name in ("ttft", "itl"):
            row[f"{name}_p95_ms"] = float(np.mean([run.percentile(f"{name}_ms", 95) for run in runs[index]]))
        rows.append({**settings[index], **row})
    return to_frame(sorted(rows, key=lambda row: -row["goodput"]))
