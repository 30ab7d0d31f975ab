"""The step test of a controller: from a fifth of the capacity to four fifths and back, beside static settings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from accel_lib.errors import AccelError, RequestError
from accel_lib.load.arrivals import steps
from accel_lib.load.runner import load_test
from accel_lib.measurement import Result, to_frame
from accel_lib.triton.client import ServedModel
from accel_lib.tuning import findings_control, findings_tune
from accel_lib.tuning.controlled_load import LiveRun, live
from accel_lib.tuning.sweep import Sweep, sweep

_LOW, _HIGH = 0.2, 0.8
_ENDS = (0.4, 1.2)  # of a closed loop's throughput, between which the capacity is sought


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class StepTest(Result):
    """What `step_test` measured; `frame` has one row a seed.

    Parameters
    ----------
    frame
        ``seed``, ``windows`` and ``met`` of the controller's settled windows, ``lost``, goodputs in requests a second
        (``control_per_s``, ``best_per_s``, ``worst_per_s``), ``over_best``, ``over_worst``.
    capacity_per_s
        Most requests a second that the best static setting holds at the target.
    runs
        The runs of the first seed: ``"controller"``, ``"best static"``, ``"worst static"``.
    settings
        The static settings in words, by the same names.
    statics
        The sweep that found them.
    """

    capacity_per_s: float
    runs: dict[str, LiveRun]
    settings: dict[str, str]
    statics: Sweep

    @property
    def windows(self) -> tuple[int, int, int]:
        """Settled windows that met the target, all of them, and accepted requests that were lost."""
        return int(self.frame["met"].sum()), int(self.frame["windows"].sum()), int(self.frame["lost"].sum())

    @property
    def passed(self) -> bool:
        """Target met in 95% of the windows, at least 90% of the best static's goodput, above the worst's, none lost."""
        met, windows, lost = self.windows
        fair = bool((self.frame["over_best"] >= 0.9).all() and (self.frame["over_worst"] > 1).all())
        return windows > 0 and met >= 0.95 * windows and fair and not lost

    @property
    def headline(self) -> str:
        """How the controller fares beside the static settings."""
        return findings_control.against(self.frame)


def capacity(
    served: ServedModel, texts: Sequence[str], *, p95_ms: float, about_per_s: float, seconds: float = 4, tries: int = 4
) -> float:
    """Highest Poisson rate that a model holds at a target as it is set, requests a second.

    Parameters
    ----------
    about_per_s
        Where to look: the throughput of a closed loop.
    seconds, tries
        How long to offer one rate, and how many to try: the interval is halved each time.
    """
    low, high = (end * about_per_s for end in _ENDS)
    for number in range(tries):
        rate = (low + high) / 2
        late = True
        with contextlib.suppress(RequestError):  # nothing answered: too much
            late = load_test(served, texts, rate=rate, seconds=seconds, warmup_s=0.2, seed=number).p95_ms > p95_ms
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
    grid: Mapping[str, Sequence[int]] | None = None,
    concurrency: int = 16,
    statics: Sweep | None = None,
    probe_s: float = 4,
    on_run: Callable[[str], None] = print,
) -> StepTest:
    """Step the load from 20% of the capacity to 80% and back: with a controller, then with static settings.

    The controller starts from the worst static setting and is told neither the load nor any measurement.

    Parameters
    ----------
    served
        A model of a running server; it gets its own setting back.
    texts
        Sent in turn.
    p95_ms
        The latency target.
    windows, window_s
        Windows before, during and after the step, and the length of one: twice a reload, and 5 s at least.
    seeds
        Of the arrivals: one comparison each.
    grid, concurrency
        The static settings, and how they are swept for the best and the worst; left out: one or two instances, no
        batches or large ones, no queue delay or one as long as the target.
    statics
        A sweep that was made already, with the same target.
    probe_s
        How long to offer each of the four rates that the capacity is sought with.
    on_run
        Told each run's name and finding.

    Returns
    -------
    StepTest
    """
    base = served.config
    found = statics or sweep(
        served, texts, p95_ms=p95_ms, grid=grid or _grid(p95_ms), concurrency=concurrency, seconds=2, repeats=2
    )
    try:
        return _compare(served, texts, found, p95_ms, windows, window_s, seeds, probe_s, on_run)
    finally:
        with contextlib.suppress(AccelError):
            if served.config != base:
                served._server.load(served.name, base)


def _compare(
    served: ServedModel,
    texts: Sequence[str],
    found: Sweep,
    p95_ms: float,
    windows: Sequence[int],
    window_s: float,
    seeds: Sequence[int],
    probe_s: float,
    on_run: Callable[[str], None],
) -> StepTest:
    frame = found.frame
    rows = {"best static": findings_tune.best_setting(frame, p95_ms), "worst static": _worst(frame)}
    fields = {name: {n: int(row[n]) for n in findings_tune.varied(frame)} for name, row in rows.items()}
    served.configure(**fields["best static"])
    about = float(rows["best static"]["sentences_per_s"])
    limit = capacity(served, texts, p95_ms=p95_ms, about_per_s=about, seconds=probe_s)
    on_run(f"capacity at {p95_ms:g} ms: {limit:.0f} requests/s with {findings_tune.setting(rows['best static'])}")
    lengths = [count * window_s for count in windows]
    changes = [lengths[0], lengths[0] + lengths[1]]
    first: dict[str, LiveRun] = {}
    table: list[dict[str, Any]] = []
    for seed in seeds:
        rates = (_LOW * limit, _HIGH * limit, _LOW * limit)
        arrivals = steps(list(zip(rates, lengths, strict=True)), seed=seed)
        common: dict[str, Any] = {
            "arrivals": arrivals, "p95_ms": p95_ms, "window_s": window_s, "changes_s": changes,
        }  # fmt: skip
        runs = {}
        for name, start in (
            ("best static", "best static"),
            ("worst static", "worst static"),
            ("controller", "worst static"),
        ):
            served.configure(**fields[start])
            load_test(served, texts, concurrency=2, seconds=0.5, warmup_s=0)  # a new process is slow at first
            runs[name] = live(served, texts, control=name == "controller", **common)
            on_run(f"{name}, seed {seed}: {runs[name].headline}")
        table.append({"seed": seed} | _row(runs))
        first = first or runs
    said = {name: findings_tune.setting(row) for name, row in rows.items()}
    return StepTest(frame=to_frame(table), capacity_per_s=limit, runs=first, settings=said, statics=found)


def _grid(p95_ms: float) -> Mapping[str, Sequence[int]]:
    return {
        "instance_count": (1, 2),
        "max_batch_size": (1, 64),
        "max_queue_delay_us": (0, round(p95_ms * 1e3)),
    }


def _row(runs: Mapping[str, LiveRun]) -> dict[str, Any]:
    control, best, worst = (runs[name] for name in ("controller", "best static", "worst static"))
    settled = control.frame[control.frame["settled"]]
    return {
        "windows": len(settled),
        "met": int(settled["met"].sum()),
        "lost": control.lost,
        "control_per_s": control.goodput_per_s,
        "best_per_s": best.goodput_per_s,
        "worst_per_s": worst.goodput_per_s,
        "over_best": control.goodput_per_s / max(best.goodput_per_s, 1e-9),
        "over_worst": control.goodput_per_s / max(worst.goodput_per_s, 1e-9),
    }


def _worst(frame: pd.DataFrame) -> pd.Series[Any]:
    row: pd.Series[Any] = frame.iloc[int(frame["sentences_per_s"].to_numpy(dtype=float).argmin())]
    return row
