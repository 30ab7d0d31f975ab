"""Hold the simulator to one measured load before it is believed: by how many times its p95 is off, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from accel_lib.errors import AccelError
from accel_lib.formatting import number, times
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.measurement import Result, to_frame
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import simulate
from accel_lib.stats import percentile_interval
from accel_lib.triton.client import ServedModel

_HOLDS = 1.3  # repeats of one real load lie 18% apart in their p95 on two idle cores
_KEEPS_UP = 0.95  # share of the offered load, under which a server falls behind
_BATCHES = 50  # of the texts that were sent, whose mean represents a batch size
_SHOWN = ("texts_per_s", "p50_ms", "p95_ms", "queue_ms", "compute_infer_ms", "client_ms", "mean_batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SimulatorCheck(Result):
    """What `check_simulator` found; `frame` has a row ``"measured"`` and a row ``"simulated"``.

    Parameters
    ----------
    service
        The fit that was checked.
    execution_ratio
        Measured over fitted time of the executions under this load.
    answered
        Share of the requests that were answered before the load ended, of those that were due early enough for it.
    p95_ratio, p95_ratio_low, p95_ratio_high
        Measured over simulated p95, with the interval of the measured one.
    """

    _bold = False  # neither row is the better one

    service: ServiceTime
    execution_ratio: float
    answered: float
    p95_ratio: float
    p95_ratio_low: float
    p95_ratio_high: float

    @property
    def factor(self) -> float:
        """By how many times a simulated p95 may be too high or too low here, as the interval has it: above 1."""
        ends = [self.p95_ratio, self.p95_ratio_low, self.p95_ratio_high]
        known = [ratio for ratio in ends if not math.isnan(ratio)]
        return max(*known, 1 / min(known))

    @property
    def keeps_up(self) -> bool:
        """Whether the real server answered as much as was offered."""
        return self.answered >= _KEEPS_UP

    @property
    def holds(self) -> bool:
        """Whether the p95 is within 1.3 times of what was simulated, which is what repeats of a load differ by."""
        return self.keeps_up and max(self.p95_ratio, 1 / self.p95_ratio) <= _HOLDS

    @property
    def headline(self) -> str:
        """How far the p95 is from the simulated one, and what follows for others."""
        measured, simulated = (number(ms) for ms in self.frame["p95_ms"])
        rate = number(self.frame["offered_per_s"].iloc[0])
        if not self.keeps_up:
            most = number(self.frame["texts_per_s"].iloc[0])
            return (
                f"Of {rate} requests/s the server answers {most}: it falls behind, so no simulated p95 can be trusted"
            )
        off = times(self.p95_ratio, self.p95_ratio_low, self.p95_ratio_high)
        said = f"At {rate} requests/s the p95 is {measured} ms, {off} the simulated {simulated} ms"
        if self.holds:
            return f"{said}: trust simulated p95s near this load within a factor of {math.ceil(10 * self.factor) / 10}"
        return f"{said}: too far to trust. Calibrate again under this load"

    @property
    def explanation(self) -> str:
        """Whether executions took longer under this load than the fit says."""
        ratio = self.execution_ratio
        word = "as long as fitted" if 0.95 <= ratio <= 1.05 else f"{number(ratio)} times as long as fitted"
        return f"Under this load executions take {word}"

    def recalibrated(self) -> ServiceTime:
        """The fit with execution times as they were under this load, where client and server share the machine."""
        return self.service.scaled(self.service.config, self.execution_ratio)


def check_simulator(
    served: ServedModel, service: ServiceTime, texts: Sequence[str], *, rate: float, seconds: float = 4
) -> SimulatorCheck:
    """Measure one open-loop load that a fit has not seen, and simulate the same.

    Parameters
    ----------
    service
        What `accel_lib.fit_simulator` found for this model and its configuration.
    rate
        Requests/s, Poisson, best from the middle of what will be predicted.

    Raises
    ------
    AccelError
        Triton counted no execution meanwhile, such as after a reload.

    Examples
    --------
    >>> check = check_simulator(mine, service, texts, rate=300)  # doctest: +SKIP
    >>> service = service if check.holds else check.recalibrated()  # doctest: +SKIP
    """
    config = served.config
    service = dataclasses.replace(service, config=config)
    run = load_test(served, texts, rate=rate, seconds=seconds, warmup_s=0.5)
    execution_ratio, predicted = _execution_ratio(run, service), simulate(service, config, rate=rate)
    rows = []
    for kind, one in (("measured", run), ("simulated", predicted)):
        summary = one.summary.iloc[0]
        rows.append({"kind": kind, "offered_per_s": one.offered} | {name: summary[name] for name in _SHOWN})
    low, high = percentile_interval(run.frame.loc[run.frame["error"] == "", "ms"].to_numpy(), 95)
    return SimulatorCheck(
        frame=to_frame(rows),
        service=service,
        execution_ratio=execution_ratio,
        answered=_answered(run, predicted.p95_ms),
        p95_ratio=run.p95_ms / predicted.p95_ms,
        p95_ratio_low=low / predicted.p95_ms,
        p95_ratio_high=high / predicted.p95_ms,
    )


def _answered(run: LoadRun, p95_ms: float) -> float:
    """Share that was answered by the end of the load, of the requests that were due a simulated p95 before it."""
    early = run.frame[run.frame["start_s"] <= run.seconds - p95_ms / 1e3]
    ended_s = early["start_s"] + early["ms"] / 1e3
    return float(((early["error"] == "") & (ended_s <= run.seconds)).mean()) if len(early) else 1.0


def _execution_ratio(run: LoadRun, service: ServiceTime) -> float:
    """Measured over fitted time of all executions of a run, batch size by batch size."""
    counted, instances = run.statistics, service.config.instance_count
    if not counted or not counted.executions:
        fix = "server.models() says whether it was loaded again; then check_simulator(...) once more"
        raise AccelError("Triton counted no execution during the check.", seen=f"{len(run.frame)} requests", fix=fix)
    seconds, sent = service.of(service.config), run.frame["tokens"].tolist()
    starts = np.unique(np.linspace(0, len(sent) - 1, min(_BATCHES, len(sent))).astype(int))
    fitted_s = 0.0
    for size, count in counted.batch_sizes.items():
        batches = (np.take(sent, range(start, start + size), mode="wrap").tolist() for start in starts)
        fitted_s += count * float(np.mean([seconds(batch) for batch in batches]))
    others = (instances - 1) * counted.busy(run.counted_s or run.seconds, instances)  # compute meanwhile, on average
    each = service.slowdown(service.config)(2) - 1 if instances > 1 else 0.0
    return counted.busy_s / (fitted_s * (1 + each * others))
