"""Compare the simulator with a real Triton, in settings that it was not fitted to:

python -m benchmarks.simulator_check [--figure errors.png] [--seconds 6] [--texts short mixed]

It fails where the median errors are over 10% in throughput or 15% in p95.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import accel_lib as accel
from accel_lib.formatting import percent
from accel_lib.load.arrivals import poisson
from accel_lib.load.results import Run
from accel_lib.measurement import Result, to_frame
from accel_lib.progress import Progress
from accel_lib.show.plots.style import BLUE, GREY, LIGHT, VERMILLION, canvas, finish
from accel_lib.simulation.curve import saturated
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.triton.client import ServedModel
from benchmarks.cpu_affinity import apart, neighbours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_THROUGHPUT_ERROR = 0.10
MOST_P95_ERROR = 0.15
_SETTLE_S = 2.0  # of load after a reload: while the former copy ends and the new one grows, its first second is slower
_DISTURBED = 0.05  # share of the cores taken by others, from which on it is said


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
        ``workload``, ``setting``, ``texts_per_s`` and ``p95_ms`` measured, ``simulated_per_s`` and
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
    def errors(self) -> tuple[float, float]:
        """Medians of the relative errors, without their signs, in throughput and p95."""
        throughput, p95 = (float(self.frame[name].abs().median()) for name in ("throughput_error", "p95_error"))
        return throughput, p95

    @property
    def passed(self) -> bool:
        """Whether both medians are within their limits."""
        return self.errors[0] <= MOST_THROUGHPUT_ERROR and self.errors[1] <= MOST_P95_ERROR

    @property
    def headline(self) -> str:
        """Both median errors, beside how far the real thing differs from itself."""
        throughput, p95 = map(percent, self.errors)
        said = f"The simulator is off by {throughput} in throughput and {p95} in p95, medians of {len(self.frame)}"
        spreads = f"{percent(self.throughput_spread)} and {percent(self.p95_spread)}"
        said = f"{said} settings; repeats of one real setting lie {spreads} apart"
        others = float(self.frame["others"].median())
        return f"{said}, and other processes took {percent(others)} of the cores" if others > _DISTURBED else said

    @property
    def verdict(self) -> str:
        """Both median errors with their limits."""
        throughput, p95 = self.errors
        said = f"median error {throughput:.1%} in throughput (limit {MOST_THROUGHPUT_ERROR:.0%}), "
        return f"{said}{p95:.1%} in p95 (limit {MOST_P95_ERROR:.0%}): {'within' if self.passed else 'over'} the limits"


def check_fidelity(
    served: ServedModel,
    workloads: Mapping[str, Sequence[str]],
    *,
    settings: Sequence[Setting] = SETTINGS,
    seconds: float = 6,
    repeats: int = 5,
) -> Fidelity:
    """Fit the simulator to each workload, then measure and simulate the same arrivals of the same texts.

    Client and server are pinned to cores of their own, and a setting is measured once the reload that made it is over.
    The model's configuration is restored at the end.

    Parameters
    ----------
    served
        A model of a running server.
    workloads
        Texts by name.
    settings
        What to compare; no point that the simulator is fitted to is among the default ones.
    seconds
        How long to measure a setting.
    repeats
        How often to measure the first setting of each workload, for the spread.
    """
    rows, spreads = [], []
    progress = Progress("Comparing")
    with apart(served) as pinned, served.own_config() as own:
        counts = sorted({setting.changes.get("instance_count", own.instance_count) for setting in settings})
        for workload, texts in workloads.items():
            _settle(served, texts, seconds)
            service = accel.fit_simulator(served, texts, instance_counts=counts)
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
                    served.server.load(served.name, own)
    progress.done(f"{len(rows)} settings")
    apart_by = [np.ptp(spread, axis=0) / np.median(spread, axis=0) for spread in spreads]
    throughput_spread, p95_spread = np.max(apart_by, axis=0).tolist()
    return Fidelity(frame=to_frame(rows), throughput_spread=throughput_spread, p95_spread=p95_spread, pinned=pinned)


def _settle(served: ServedModel, texts: Sequence[str], seconds: float) -> None:
    accel.load_test(served, texts, concurrency=8, seconds=min(_SETTLE_S, seconds))


def _both(
    served: ServedModel, texts: Sequence[str], service: ServiceTime, setting: Setting, seconds: float, *, seed: int
) -> tuple[Run, Run]:
    """The setting measured, and simulated."""
    config = served.config
    if setting.clients:
        asked: dict[str, Any] = {"concurrency": setting.clients}
        return accel.load_test(served, texts, seconds=seconds, **asked), accel.simulate(service, config, **asked)
    due = poisson(setting.share * saturated(service, config), seconds, seed=seed)
    return accel.load_test(served, texts, arrivals=due, warmup_s=0.5), accel.simulate(service, config, arrivals=due)


def _row(measured: Run, simulated: Run) -> dict[str, Any]:
    return {
        "texts_per_s": measured.throughput,
        "simulated_per_s": simulated.throughput,
        "throughput_error": simulated.throughput / measured.throughput - 1,
        "p95_ms": measured.p95_ms,
        "simulated_p95_ms": simulated.p95_ms,
        "p95_error": simulated.p95_ms / measured.p95_ms - 1,
        "requests": len(measured.frame),
    }


def plot(found: Fidelity) -> Axes:
    """The errors by setting, beside the p95's limit."""
    frame = found.frame
    ax = canvas(found.headline, rows=max(len(frame) // 2, 5))
    y = np.arange(len(frame))
    limit = 100 * MOST_P95_ERROR
    ax.axvspan(-limit, limit, color=LIGHT, alpha=0.45, linewidth=0)
    ax.axvline(0, color=GREY, linewidth=1)
    for column, color, marker, shift in (("throughput_error", BLUE, "o", -0.12), ("p95_error", VERMILLION, "D", 0.12)):
        ax.scatter(frame[column] * 100, y + shift, color=color, marker=marker, s=42, zorder=3)
    ax.set_yticks(y, [f"{row['workload']}: {row['setting']}" for _, row in frame.iterrows()])
    ax.invert_yaxis()
    reach = max(20.0, 115 * float(frame[["throughput_error", "p95_error"]].abs().max().max()))
    ax.set_xlim(-reach, reach)
    ax.set_xlabel("simulated over measured, % (dots: throughput, diamonds: p95)")
    return finish(ax, frame)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", default=["short", "mixed"])
    parser.add_argument("--seconds", type=float, default=6, help="how long to measure a setting")
    parser.add_argument("--figure", help="PNG of the errors to write")
    asked = parser.parse_args()
    with accel.serve(accel.ensure("embedding"), models=["embedding"]) as server:
        workloads = {name: accel.load_texts(name) for name in asked.texts}
        found = check_fidelity(server.model("embedding", 1), workloads, seconds=asked.seconds)
    if asked.figure:
        plot(found).figure.savefig(asked.figure)
    print(f"{found}\n({found.pinned})\n{found.verdict}")
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
