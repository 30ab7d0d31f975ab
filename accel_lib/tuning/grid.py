"""Measure a served model over a grid of settings, and the best ones again until they are told apart.

Each setting is loaded beside the running one and measured in a closed loop, once a round. The rounds after the first
hold only the settings that may still be the best, so that they are compared under the same conditions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from accel_lib.errors import AccelError, RequestError, ServerError
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.machine import inspect_machine
from accel_lib.measurement import to_frame
from accel_lib.progress import Progress
from accel_lib.stats import median_interval
from accel_lib.triton.client import ServedModel
from accel_lib.tuning.actuators import reconfigure
from accel_lib.tuning.results import SETTINGS, Sweep, config_fields, described
from accel_lib.tuning.rounds import Journal, leader, next_round, over, pooled

Grid = Mapping[str, Sequence[int]]
GRID: Grid = {
    "instance_count": (1, 2),
    "max_batch_size": (1, 8, 64),
    "max_batch_tokens": (512, 2_048),
    "max_queue_delay_us": (0, 2_000),
}
SMALL_GRID: Grid = {"instance_count": (1, 2), "max_batch_tokens": (512, 2_048), "max_queue_delay_us": (0, 2_000)}
_NONE_PER_S = 1e-3  # instead of nothing in time, as ratios need numbers above zero
_COMPILES_S = 3.0  # after a load OpenVINO's p95 was two to three times as high for so long
_INSTANCES = (1, 2, 4, 8)  # each holds the model and a Python process of its own


def sweep(
    served: ServedModel,
    texts: Sequence[str],
    *,
    p95_ms: float,
    grid: Grid | Sequence[Mapping[str, int]] = GRID,
    concurrency: int = 16,
    rate: float | None = None,
    seconds: float = 2,
    repeats: int = 5,
    file: str | Path | None = None,
) -> Sweep:
    """Measure every setting of a grid, and the best ones again until they are told apart.

    Closed loops find the setting that answers most; an open loop, at a `rate` that comes whatever happens, the one that
    answers most of it in time, and the simplest of those that answer all of it.

    The model's own setting is restored at the end, and after an error; ``.apply()`` of the result takes the best one.

    Parameters
    ----------
    grid
        Values to try, each at least one: ``version`` (of the model: its engine and precision), ``instance_count``,
        ``threads`` (of an instance, on a CPU), ``max_batch_size``, ``preferred_batch_size`` (0: none),
        ``max_batch_tokens`` (padded tokens of one engine call), ``max_queue_delay_us``. What it leaves out stays as it
        is. A list of settings, each with the same names, is tried as it is.
    concurrency
        Requests in flight at any time.
    rate
        Requests/s in an open loop instead, Poisson: throughput then counts what was answered within the target.
    seconds
        How long to measure a setting in one round.
    repeats
        Rounds at most; no more are run once every rival of the best one is known to be slower, or to be alike.
    file
        Keeps each measurement as a line of JSON, at once: a sweep that was cut off goes on with what is there.

    Raises
    ------
    AccelError
        A target that is not above zero, a grid that names something else, a file of another sweep, or the cause why the
        first setting could not be measured, if none could. What a dying server leaves is returned: `stopped` says so.

    Examples
    --------
    >>> sweep(mine, texts, p95_ms=50, grid={"max_batch_size": (1, 8, 64)}, file="sweep.jsonl")  # doctest: +SKIP
    """
    settings = _settings(served, grid, p95_ms)
    load: dict[str, Any] = {"concurrency": concurrency} if rate is None else {"rate": rate}
    key = {"model": served.name, **load, "seconds": seconds, "texts": [len(texts), *texts[:2]]}
    journal = Journal(file, key)
    return _Sweeping(served, texts, settings, journal, p95_ms, load, seconds).run(repeats)


def share_cores(
    served: ServedModel, texts: Sequence[str], *, concurrency: int = 16, seconds: float = 2, repeats: int = 5
) -> Sweep:
    """Sweep how many instances of a model, and how many threads each, share this machine's cores, by throughput alone.

    >>> share_cores(server.model("embedding"), texts).write()  # doctest: +SKIP
    """
    grid = core_settings(inspect_machine().cores)
    return sweep(served, texts, p95_ms=math.inf, grid=grid, concurrency=concurrency, seconds=seconds, repeats=repeats)


def core_settings(cores: int) -> list[dict[str, int]]:
    """Ways to share cores among instances, from one with all of them to many with few, and one with half of them.

    Half, as two threads of one core share its arithmetic, and as the clients need a core where they run here too.

    >>> [tuple(one.values()) for one in core_settings(4)]
    [(1, 4), (2, 2), (4, 1), (1, 2)]
    """
    shared = [(count, cores // count) for count in _INSTANCES if count <= cores]
    pairs = dict.fromkeys([*shared, (1, max(1, cores // 2))])
    return [{"instance_count": count, "threads": threads} for count, threads in pairs]


@dataclasses.dataclass
class _Sweeping:
    """A sweep in progress."""

    served: ServedModel
    texts: Sequence[str]
    settings: Sequence[dict[str, int]]
    journal: Journal
    p95_ms: float
    load: Mapping[str, Any]  # of `load_test`
    seconds: float
    refused: dict[int, AccelError] = dataclasses.field(default_factory=dict)
    stopped: str = ""

    def __post_init__(self) -> None:
        self.base = self.served.config
        self.progress = Progress("Sweep")

    def run(self, repeats: int) -> Sweep:
        with self.served.own_config():
            alone_ms = unloaded_latency_ms(self.served, self.texts, seconds=min(1.0, self.seconds))
            self._round(range(len(self.settings)), 1, f"of {len(self.settings)}")
            if alone_ms <= self.p95_ms:
                self._repeat(repeats)
        self.progress.clear()
        table = self._table()
        if table.empty:
            raise next(iter(self.refused.values()), ServerError(self.stopped, fix="server.log says why"))
        self.progress.done(f"{len(table)} settings, {sum(table['runs'])} runs")
        return Sweep(
            frame=table,
            served=self.served,
            base=self.base,
            p95_ms=self.p95_ms,
            unloaded_latency_ms=alone_ms,
            rate=float(self.load.get("rate", 0)),
            refused=tuple(f"{described(self.settings[i])}: {e.seen or e.cause}" for i, e in self.refused.items()),
            stopped=self.stopped,
        )

    def _repeat(self, repeats: int) -> None:
        while not self.stopped:
            rounds = self._rounds()
            rivals = next_round(rounds, self.p95_ms, repeats=repeats)
            if not rivals:
                return
            self._round(rivals, max(len(rounds[index]) for index in rivals) + 1, "of the best ones")

    def _round(self, indices: Sequence[int], number: int, words: str) -> None:
        for place, index in enumerate(indices, 1):
            if not self.stopped and len(self.journal.rounds(self.settings[index])) < number:
                self.progress.tick(f"round {number}, setting {place} {words}")
                self._visit(index, number)

    def _visit(self, index: int, number: int) -> None:
        setting, server = self.settings[index], self.served.server
        try:
            wanted = self.base.replace(**config_fields(setting))
            if wanted != self.served.config:
                reconfigure(self.served, config_fields(setting), copies=wanted.instance_count)
            served = server.model(self.served.name, setting["version"]) if "version" in setting else self.served
            compiled = served.artifact.manifest.format == "openvino"
            warmup_s = _COMPILES_S if compiled else min(1.0, self.seconds / 2)
            run = load_test(served, self.texts, seconds=self.seconds, warmup_s=warmup_s, seed=number, **self.load)
        except (ServerError, RequestError) as error:
            if server.running:
                self.refused[index] = error
            else:
                self.stopped = "Triton has ended."
            return
        self.stopped = run.stopped
        if not run.stopped:
            row = {str(name): value for name, value in run.summary.iloc[0].items()}
            if not run.concurrency:
                row |= in_time(run, self.p95_ms)
            self.journal.add(setting, row | {"round": number})

    def _rounds(self) -> dict[int, list[dict[str, Any]]]:
        """The rounds of each setting that has some."""
        rounds = {index: self.journal.rounds(setting) for index, setting in enumerate(self.settings)}
        return {index: part for index, part in rounds.items() if part}

    def _table(self) -> pd.DataFrame:
        rounds = self._rounds()
        first = leader(rounds, self.p95_ms)
        rows = []
        for index, part in rounds.items():
            setting = self.settings[index]
            row = setting | pooled(part)
            if "version" in setting:
                version = ServedModel(self.served.server, self.served.name, str(setting["version"]))
                row["engine"] = version.artifact.name
            if first is not None:
                names = ("over_best", "over_best_low", "over_best_high")
                row |= dict(zip(names, over(part, rounds[first]), strict=True))
            rows.append(row)
        return to_frame(rows)


def in_time(run: LoadRun, p95_ms: float) -> dict[str, float]:
    """What an open-loop run answered within the target, as ``texts_per_s`` with its interval."""
    low, high = median_interval(run.rates(target_ms=p95_ms))
    return {"texts_per_s": max(run.goodput(p95_ms), _NONE_PER_S), "texts_per_s_low": low, "texts_per_s_high": high}


def unloaded_latency_ms(served: ServedModel, texts: Sequence[str], *, seconds: float = 0.5) -> float:
    """Median latency of one request at a time, ms, without the queue delay that is set: no setting is faster."""
    run = load_test(served, texts, concurrency=1, seconds=seconds, warmup_s=0.2)
    return max(run.p50_ms - served.config.max_queue_delay_us / 1e3, 0.0)


def _settings(served: ServedModel, grid: Grid | Sequence[Mapping[str, int]], p95_ms: float) -> list[dict[str, int]]:
    """Every combination, those that need no reload between them side by side; or a list as it is."""
    if isinstance(grid, Mapping):
        names = sorted(grid, key=lambda name: name == "version")
        product = itertools.product(*(dict.fromkeys(grid[name]) for name in names))
        settings = [dict(zip(names, map(int, values), strict=True)) for values in product]
    else:
        settings = [dict(setting) for setting in grid]
    if not p95_ms > 0 or not settings or not all(setting and set(setting) <= set(SETTINGS) for setting in settings):
        fix = f"p95_ms=50, grid={{{', '.join(f'{name!r}: [...]' for name in SETTINGS)}}}, or some of these"
        raise AccelError("A sweep needs a target above zero and values for each setting.", seen=grid, fix=fix)
    for setting in settings:
        served.config.replace(**config_fields(setting))  # refused before anything is measured
    return settings
