"""Hold the simulator to a real Triton: settings that it was not calibrated on, beside the spread of the real thing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accel_lib.errors import AccelError
from accel_lib.load.arrivals import poisson
from accel_lib.load.cpu_affinity import apart, neighbours
from accel_lib.load.results import Run
from accel_lib.load.runner import load_test
from accel_lib.measurement import Result, to_frame
from accel_lib.progress import Progress
from accel_lib.simulation import findings
from accel_lib.simulation.calibrate import fit_simulator
from accel_lib.simulation.curve import saturated
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import simulate
from accel_lib.triton.client import ServedModel

MOST_THROUGHPUT_ERROR, MOST_P95_ERROR = 0.10, 0.15
_SETTLE_S = 2.0  # of load after a reload: while the former copy ends and the new one grows, its first second is slower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is changed of a model's configuration, and the load: clients, or a share of what the setting can take."""

    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clients: int = 0
    share: float = 0.0


SETTINGS = (
    Setting(name="half of capacity", share=0.5),
    Setting(name="80% of capacity", share=0.8),
    Setting(name="16 clients", clients=16),
    Setting(name="40 clients, batches of 8", changes={"max_batch_size": 8}, clients=40),
    Setting(name="one at a time, 60%", changes={"max_batch_size": 1}, share=0.6),
    Setting(name="5 ms delay, half", changes={"max_queue_delay_us": 5_000}, share=0.5),
    Setting(
        name="preferred 4 and 8, 10 ms",
        changes={"preferred_batch_sizes": (4, 8), "max_queue_delay_us": 10_000},
        share=0.6,
    ),
    Setting(name="2 instances, 12 clients", changes={"instance_count": 2}, clients=12),
    Setting(name="2 instances, 60%", changes={"instance_count": 2, "max_batch_size": 8}, share=0.6),
)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Fidelity(Result):
    """Measured beside simulated, one row a setting; and how far repeats of one real setting lie apart.

    Parameters
    ----------
    frame
        ``workload``, ``setting``, ``sentences_per_s`` and ``p95_ms`` measured, ``simulated_per_s`` and
        ``simulated_p95_ms``, ``throughput_error`` and ``p95_error`` (simulated over measured, less 1), ``requests``,
        ``others``: share of the cores that other processes took meanwhile.
    throughput_spread, p95_spread
        Largest less smallest over the median of the repeats.
    pinned
        Which cores client and server had.
    """

    throughput_spread: float
    p95_spread: float
    pinned: str

    @property
    def throughput_error(self) -> float:
        """Median of the throughput's relative errors, without their signs."""
        return float(self.frame["throughput_error"].abs().median())

    @property
    def p95_error(self) -> float:
        """Median of the p95's relative errors, without their signs."""
        return float(self.frame["p95_error"].abs().median())

    @property
    def passed(self) -> bool:
        """Whether both medians are within 10% and 15%."""
        return self.throughput_error <= MOST_THROUGHPUT_ERROR and self.p95_error <= MOST_P95_ERROR

    def table(self) -> str:
        """The settings as plain text."""
        return self._readable().to_string(index=False)

    @property
    def headline(self) -> str:
        """Both median errors, beside how far the real thing differs from itself."""
        return findings.fidelity(self.frame, self.throughput_spread, self.p95_spread)


def check_fidelity(
    served: ServedModel,
    workloads: Mapping[str, Sequence[str]],
    *,
    settings: Sequence[Setting] = SETTINGS,
    seconds: float = 6,
    repeats: int = 5,
) -> Fidelity:
    """Calibrate on each workload, then measure and simulate the same arrivals of the same texts in every setting.

    Client and server are pinned to cores of their own, and a setting is measured once the reload that made it is over.
    The model's configuration is put back at the end.

    Parameters
    ----------
    served
        A model of a running server.
    workloads
        Texts by name.
    settings
        What to compare; no point of the calibration is among the default ones.
    seconds
        How long to measure a setting.
    repeats
        How often to measure the first setting of each workload, for the spread.

    Returns
    -------
    Fidelity

    Raises
    ------
    RequestError
        A setting answered nothing.
    """
    own, rows, spreads = served.config, [], []
    counts = sorted({setting.changes.get("instance_count", own.instance_count) for setting in settings})
    progress = Progress("Comparing")
    try:
        with apart(served) as pinned:
            for workload, texts in workloads.items():
                _settle(served, texts, seconds)
                service = fit_simulator(served, texts, instance_counts=counts)
                for index, setting in enumerate(settings):
                    progress.tick(f"{workload}, {setting.name}")
                    if setting.changes:
                        served.configure(**setting.changes)
                        _settle(served, texts, seconds)
                    with neighbours(served) as others:
                        runs = [
                            _both(served, texts, service, setting, seconds, seed=index)
                            for _ in range(1 if index else repeats)
                        ]
                    if not index:
                        spreads.append([(run.throughput, run.p95_ms) for run, _ in runs])
                    rows.append({"workload": workload, "setting": setting.name, "others": others[0]} | _row(*runs[0]))
                    if setting.changes:
                        served._server.load(served.name, own)
    except BaseException:
        with contextlib.suppress(AccelError):  # the first error is the one to see
            served._server.load(served.name, own)
        raise
    progress.done(f"{len(rows)} settings")
    apart_by = [np.ptp(spread, axis=0) / np.median(spread, axis=0) for spread in spreads]
    throughput_spread, p95_spread = np.max(apart_by, axis=0).tolist()
    return Fidelity(frame=to_frame(rows), throughput_spread=throughput_spread, p95_spread=p95_spread, pinned=pinned)


def _settle(served: ServedModel, texts: Sequence[str], seconds: float) -> None:
    load_test(served, texts, concurrency=8, seconds=min(_SETTLE_S, seconds))


def _both(
    served: ServedModel, texts: Sequence[str], service: ServiceTime, setting: Setting, seconds: float, *, seed: int
) -> tuple[Run, Run]:
    """The setting measured, and simulated."""
    config = served.config
    if setting.clients:
        asked: dict[str, Any] = {"concurrency": setting.clients}
        return load_test(served, texts, seconds=seconds, **asked), simulate(service, config, **asked)
    due = poisson(setting.share * saturated(service, config), seconds, seed=seed)
    return load_test(served, texts, arrivals=due, warmup_s=0.5), simulate(service, config, arrivals=due)


def _row(measured: Run, simulated: Run) -> dict[str, Any]:
    return {
        "sentences_per_s": measured.throughput,
        "simulated_per_s": simulated.throughput,
        "throughput_error": simulated.throughput / measured.throughput - 1,
        "p95_ms": measured.p95_ms,
        "simulated_p95_ms": simulated.p95_ms,
        "p95_error": simulated.p95_ms / measured.p95_ms - 1,
        "requests": len(measured.frame),
    }


def verdict_line(result: Fidelity) -> str:
    """The last line of ``accel simulate --check``."""
    return findings.verdict(result.throughput_error, result.p95_error, MOST_THROUGHPUT_ERROR, MOST_P95_ERROR)
