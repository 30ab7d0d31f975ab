"""Step test of the controller: load from a fifth of the capacity to four fifths and back, beside static settings."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from accel_lib.errors import RequestError
from accel_lib.formatting import percent, times
from accel_lib.load.arrivals import steps
from accel_lib.load.runner import load_test
from accel_lib.measurement import Result, to_frame
from accel_lib.triton.client import ServedModel
from accel_lib.tuning.controlled_load import ControlledRun, run_load
from accel_lib.tuning.grid import sweep
from accel_lib.tuning.results import Sweep, config_fields, described

_LOW, _HIGH = 0.2, 0.8
_ENDS = (0.4, 1.2)  # of a closed loop's throughput, between which the capacity is sought
_TRIES = 4  # rates that are offered for it: the interval is halved each time


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class StepTest(Result):
    """What `step_test` measured.

    `frame` has one row a seed: ``seed``, the controller's settled ``windows``, those ``met``, ``lost``, goodputs in
    requests/s (``control_per_s``, ``best_per_s``, ``worst_per_s``), ``over_best``, ``over_worst``.
    """

    runs: dict[str, ControlledRun]  # of the first seed: "best static", "worst static", "controller"
    settings: dict[str, str]  # the static ones in words, by the same names

    @property
    def passed(self) -> bool:
        """Target met in 95% of the windows, at least 90% of the best static's goodput, above the worst's, none lost."""
        met, windows, lost = (int(self.frame[name].sum()) for name in ("met", "windows", "lost"))
        fair = bool((self.frame["over_best"] >= 0.9).all() and (self.frame["over_worst"] > 1).all())
        return windows > 0 and met >= 0.95 * windows and fair and not lost

    @property
    def headline(self) -> str:
        """How the controller fares beside the static settings, at worst."""
        best, worst = float(self.frame["over_best"].min()), float(self.frame["over_worst"].min())
        return (
            f"Without knowing the load, the controller gives {percent(best)} of the best static setting's goodput, "
            f"{times(worst)} the worst's"
        )


def capacity(served: ServedModel, texts: Sequence[str], *, p95_ms: float, about_per_s: float, seconds: float) -> float:
    """Highest Poisson rate that a model holds at a target as it is set, requests/s.

    `about_per_s` is where to look, the throughput of a closed loop; `seconds` is how long to offer one rate.
    """
    low, high = (end * about_per_s for end in _ENDS)
    for seed in range(_TRIES):
        rate = (low + high) / 2
        late = True
        with contextlib.suppress(RequestError):  # nothing answered: too much
            late = load_test(served, texts, rate=rate, seconds=seconds, warmup_s=0.2, seed=seed).p95_ms > p95_ms
        low, high = (low, rate) if late else (rate, high)
    return low


def step_test(
    served: ServedModel,
    texts: Sequence[str],
    *,
    p95_ms: float,
    windows: Sequence[int] = (4, 8, 5),
    window_s: float = 8,
    seeds: Sequence[int] = (0,),
    statics: Sweep | None = None,
    probe_s: float = 4,
) -> StepTest:
    """Step the load from 20% of the capacity to 80% and back: with static settings, then with a controller.

    The controller starts from the worst static setting and is told neither the load nor any measurement. The model's
    own setting is restored at the end.

    Parameters
    ----------
    windows, window_s
        Windows before, during and after the step, and the length of one: twice a reload, and 5 s at least.
    seeds
        Of the arrivals: one comparison each.
    statics
        A sweep with the same target, for the best and the worst static setting; if left out, of one or two instances,
        no batches or large ones, no queue delay or one as long as the target.
    probe_s
        How long to offer each of the four rates that the capacity is sought with.
    """
    grid = {"instance_count": (1, 2), "max_batch_size": (1, 64), "max_queue_delay_us": (0, round(p95_ms * 1e3))}
    found = statics or sweep(served, texts, p95_ms=p95_ms, grid=grid, repeats=2)
    settings = {"best static": found.best, "worst static": found.slowest, "controller": found.slowest}
    said = {name: described(settings[name]) for name in ("best static", "worst static")}
    lengths = [count * window_s for count in windows]
    common: dict[str, Any] = {"p95_ms": p95_ms, "window_s": window_s, "changes_s": [*itertools.accumulate(lengths)][:2]}
    first: dict[str, ControlledRun] = {}
    table: list[dict[str, Any]] = []
    with served.own_config():
        served.configure(**config_fields(found.best))
        limit = capacity(served, texts, p95_ms=p95_ms, about_per_s=found.throughput, seconds=probe_s)
        print(f"capacity at {p95_ms:g} ms: {limit:.0f} requests/s with {said['best static']}")
        for seed in seeds:
            rates = (_LOW * limit, _HIGH * limit, _LOW * limit)
            arrivals = steps(list(zip(rates, lengths, strict=True)), seed=seed)
            runs = {}
            for name, setting in settings.items():
                served.configure(**config_fields(setting))
                load_test(served, texts, concurrency=2, seconds=0.5, warmup_s=0)  # a new process is slow at first
                runs[name] = run_load(served, texts, arrivals=arrivals, control=name == "controller", **common)
                print(f"{name}, seed {seed}: {runs[name].headline}")
            best, worst, control = (run.goodput_per_s for run in runs.values())
            met, settled = runs["controller"].settled
            row: dict[str, Any] = {"seed": seed, "windows": settled, "met": met, "lost": runs["controller"].lost}
            row |= {"control_per_s": control, "best_per_s": best, "worst_per_s": worst}
            row |= {"over_best": control / max(best, 1e-9), "over_worst": control / max(worst, 1e-9)}
            table.append(row)
            first = first or runs
    return StepTest(frame=to_frame(table), runs=first, settings=said)
