"""Measure a served model over a grid of settings, until the best ones are told apart or cannot be.

Every setting is loaded beside the running one and measured in a closed loop, once a round. The rounds after the first
hold only the settings that may still be the best, so that each is compared with the others under the same conditions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from accel_lib.artifact import Artifact
from accel_lib.bench.memory import room_for
from accel_lib.errors import AccelError, RequestError, ServerError
from accel_lib.load.runner import load_test
from accel_lib.measurement import Result, to_frame
from accel_lib.progress import Progress
from accel_lib.stats import mean_interval
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.repository import ARTIFACT_FOLDER, write_config
from accel_lib.tuning import findings_tune
from accel_lib.tuning.journal import Journal
from accel_lib.tuning.racing import leader, over, settle

GRID: Mapping[str, Sequence[int]] = {
    "instance_count": (1, 2),
    "max_batch_size": (1, 8, 64),
    "max_batch_tokens": (512, 2_048),
    "preferred_batch_size": (0,),
    "max_queue_delay_us": (0, 2_000),
}
_MEASURES = ("sentences_per_s", "p50_ms", "p95_ms")
_OVER = ("over_best", "over_best_low", "over_best_high")
_ENOUGH = 3  # rounds from which their spread, and not a run's own interval, says how sure a mean is


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Sweep(Result):
    """What `sweep` measured; one row a setting: throughput, p50 and p95 with intervals, rounds, and the Pareto front.

    Parameters
    ----------
    served, base
        The model, and the configuration it had, which it has again.
    p95_ms
        The latency target.
    alone_ms
        Median latency of one request at a time: no setting of this model answers sooner.
    refused
        Settings that were not measured, each with the reason.
    stopped
        Why the sweep ended early; empty if it did not.
    """

    served: ServedModel
    base: ModelConfig
    p95_ms: float
    alone_ms: float
    refused: tuple[str, ...] = ()
    stopped: str = ""

    @property
    def best(self) -> dict[str, int]:
        """The setting to take: most throughput within the target; the closest where none meets it."""
        row = findings_tune.best_setting(self.frame, self.p95_ms)
        return {name: int(row[name]) for name in findings_tune.varied(self.frame)}

    @property
    def front(self) -> pd.DataFrame:
        """The settings that no other one beats in both p95 and throughput, by p95."""
        rows: pd.DataFrame = self.frame[self.frame["on_front"]].sort_values("p95_ms")
        return rows

    def front_table(self) -> str:
        """The front in words, a line a setting."""
        return "\n".join(findings_tune.front(self.front))

    @property
    def config(self) -> str:
        """The best setting as ``config.pbtxt``."""
        return _configured(self.base, self.best).to_text()

    @property
    def headline(self) -> str:
        """Which setting wins, or why none does."""
        said = findings_tune.tuning(self.frame, self.p95_ms, alone_ms=self.alone_ms)
        if self.refused:
            more = f"; and {len(self.refused) - 1} more" if len(self.refused) > 1 else ""
            said += f". Not measured: {self.refused[0]}{more}"
        return f"{said}. It ended early: {self.stopped}" if self.stopped else said

    @property
    def why(self) -> str:
        """What each setting alone changes, beside the best one: a line a setting."""
        return "\n".join(findings_tune.reasons(self.frame, self.p95_ms))

    def apply(self) -> ModelConfig:
        """Set the running model to the best setting."""
        return self.served.configure(**_fields(self.best))

    def write(self, path: str | Path | None = None) -> Path:
        """Write the best setting's ``config.pbtxt``: to the model's folder in its repository, or to `path`."""
        folder = Path(path) if path else self.served._server.repository / self.served.name
        write_config(folder, _configured(self.base, self.best))
        return folder


def sweep(
    served: ServedModel,
    texts: Sequence[str],
    *,
    p95_ms: float,
    grid: Mapping[str, Sequence[int]] | Sequence[Mapping[str, int]] = GRID,
    concurrency: int = 16,
    seconds: float = 2,
    repeats: int = 5,
    tolerance: float = 0.05,
    file: str | Path | None = None,
) -> Sweep:
    """Measure every setting of a grid, and the best ones again until they are told apart.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        What to send.
    p95_ms
        The latency target.
    grid
        Values to try, each at least one: ``version`` (of the model: its engine and precision), ``instance_count``,
        ``threads`` (of an instance, on a CPU), ``max_batch_size``, ``preferred_batch_size`` (0: none),
        ``max_batch_tokens`` (padded tokens of one engine call), ``max_queue_delay_us``. What it leaves out stays as it
        is. A list of settings, each with the same names, is tried as it stands.
    concurrency
        Requests under way at any time.
    seconds
        How long to measure a setting in one round.
    repeats
        Rounds at most; no more are run once every rival of the best one is known to be slower, or known to be within
        `tolerance` of it.
    file
        Keeps each measurement as a line of JSON, at once: a sweep that was cut off goes on with what is there.

    Returns
    -------
    Sweep
        With what was measured, when the server died or the model was unloaded meanwhile: `stopped` says so.

    Raises
    ------
    AccelError
        A target that is not above zero, a grid that names something else, or a file of another sweep.
    ServerError, RequestError
        No setting could be measured: with the cause of the first one.

    Examples
    --------
    >>> sweep(mine, texts, p95_ms=50, grid={"max_batch_size": (1, 8, 64)}, file="sweep.jsonl")  # doctest: +SKIP
    """
    settings = _settings(served.config, grid, p95_ms)
    key = {"model": served.name, "concurrency": concurrency, "seconds": seconds, "texts": [len(texts), *texts[:2]]}
    return _Sweeping(served, texts, settings, Journal(file, key), p95_ms, concurrency, seconds).run(repeats, tolerance)


class _Sweeping:
    """A sweep under way."""

    def __init__(
        self,
        served: ServedModel,
        texts: Sequence[str],
        settings: Sequence[dict[str, int]],
        journal: Journal,
        p95_ms: float,
        concurrency: int,
        seconds: float,
    ) -> None:
        self.served, self.texts, self.settings, self.journal = served, texts, settings, journal
        self.p95_ms, self.concurrency, self.seconds = p95_ms, concurrency, seconds
        self.base = served.config
        self.refused: dict[int, AccelError] = {}
        self.stopped = ""
        self.progress = Progress("Sweep")

    def run(self, repeats: int, tolerance: float) -> Sweep:
        try:
            alone_ms = self._alone()
            self._round(range(len(self.settings)), 1, f"of {len(self.settings)}")
            self._repeat(repeats if alone_ms <= self.p95_ms else 1, tolerance)
        except BaseException:
            self._put_back()
            self.progress.clear()
            raise
        self._put_back()
        table = self._table()
        if table.empty:
            self.progress.clear()
            raise next(iter(self.refused.values()), ServerError(self.stopped, fix="server.log says why"))
        self.progress.done(f"{len(table)} settings, {sum(table['runs'])} runs")
        return Sweep(
            frame=table,
            served=self.served,
            base=self.base,
            p95_ms=self.p95_ms,
            alone_ms=alone_ms,
            refused=tuple(
                f"{_words(self.settings[index])}: {error.seen or error.cause}" for index, error in self.refused.items()
            ),
            stopped=self.stopped,
        )

    def _alone(self) -> float:
        if not self.journal.alone_ms:
            self.journal.alone_ms = alone_ms(self.served, self.texts, seconds=min(1.0, self.seconds))
        return self.journal.alone_ms

    def _repeat(self, repeats: int, tolerance: float) -> None:
        while not self.stopped:
            runs = {index: self.journal.runs(self.settings[index]) for index in self._measured()}
            rivals = settle(runs, self.p95_ms, repeats=repeats, tolerance=tolerance)
            if not rivals:
                return
            self._round(rivals, max(len(runs[index]) for index in rivals) + 1, "of the best ones")

    def _round(self, indices: Sequence[int] | range, number: int, words: str) -> None:
        for place, index in enumerate(indices, 1):
            if self.stopped:
                return
            if len(self.journal.runs(self.settings[index])) < number:
                self.progress.tick(f"round {number}, setting {place} {words}")
                self._visit(index, number)

    def _visit(self, index: int, number: int) -> None:
        setting = self.settings[index]
        try:
            self._configure(setting)
            version = setting.get("version")
            served = self.served._server.model(self.served.name, version) if version else self.served
            run = load_test(
                served,
                self.texts,
                concurrency=self.concurrency,
                seconds=self.seconds,
                warmup_s=min(1.0, self.seconds / 2),
            )
        except (ServerError, RequestError) as error:
            if not self.served._server.running:
                self.stopped = "Triton has ended."
            else:
                self.refused[index] = error
            return
        if run.stopped:
            self.stopped = run.stopped
            return
        row = {str(name): value for name, value in run.summary.iloc[0].items()}
        self.journal.add(setting, row | {"round": number})

    def _configure(self, setting: Mapping[str, int]) -> None:
        wanted = _configured(self.base, setting)
        if wanted == self.served.config:
            return
        lack = room_for(self.served, wanted.instance_count)
        if lack:
            raise ServerError("The memory does not hold it beside what runs.", seen=lack, fix="a smaller grid")
        self.served.configure(**_fields(setting))

    def _put_back(self) -> None:
        with contextlib.suppress(AccelError):  # the first error is the one to see
            if self.served.config != self.base:
                self.served._server.load(self.served.name, self.base)

    def _measured(self) -> list[int]:
        return [index for index, setting in enumerate(self.settings) if self.journal.runs(setting)]

    def _table(self) -> pd.DataFrame:
        names, runs = self._engines(), {index: self.journal.runs(self.settings[index]) for index in self._measured()}
        first = leader(runs, self.p95_ms)
        rows = []
        for index, part in runs.items():
            row = self.settings[index] | pooled(part)
            if "version" in row:
                row["engine"] = names[row["version"]]
            if first is not None:
                row |= dict(zip(_OVER, over(part, runs[first]), strict=True))
            rows.append(row)
        return findings_tune.with_front(to_frame(rows)) if rows else to_frame(rows)

    def _engines(self) -> dict[int, str]:
        folder = self.served._server.repository / self.served.name
        wanted = {self.settings[i]["version"] for i in self._measured() if "version" in self.settings[i]}
        return {version: Artifact.load(folder / str(version) / ARTIFACT_FOLDER).name for version in wanted}


def alone_ms(served: ServedModel, texts: Sequence[str], *, seconds: float = 0.5) -> float:
    """Median latency of one request at a time, ms, without the queue delay that is set: nothing answers sooner."""
    run = load_test(served, texts, concurrency=1, seconds=seconds, warmup_s=0.2)
    return max(run.p50_ms - served.config.max_queue_delay_us / 1e3, 0.0)


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rounds of one setting as one row: means, with the interval that their spread gives.

    Under three rounds their spread says little: then it is the widest of the runs' own intervals.
    """
    rows = pd.DataFrame(list(runs))
    row: dict[str, Any] = {"runs": len(rows), "errors": int(rows["errors"].sum())}
    for name in _MEASURES:
        row[name] = float(rows[name].mean())
        if len(rows) >= _ENOUGH:
            row[f"{name}_low"], row[f"{name}_high"] = mean_interval(rows[name].to_numpy())
        else:
            row[f"{name}_low"] = float(rows[f"{name}_low"].min())
            row[f"{name}_high"] = float(rows[f"{name}_high"].max())
    if "mean_batch_size" in rows:
        row["mean_batch_size"] = float(rows["mean_batch_size"].mean())
    return row


def _settings(
    config: ModelConfig, grid: Mapping[str, Sequence[int]] | Sequence[Mapping[str, int]], p95_ms: float
) -> list[dict[str, int]]:
    """Every combination, those that need no reload between them side by side; or a list as it stands."""
    known = findings_tune.SETTINGS
    if isinstance(grid, Mapping):
        names = sorted(grid, key=lambda name: name == "version")
        product = itertools.product(*(dict.fromkeys(grid[name]) for name in names))
        settings = [dict(zip(names, map(int, values), strict=True)) for values in product]
    else:
        settings = [dict(setting) for setting in grid]
    if not p95_ms > 0 or not settings or not all(setting and not set(setting) - set(known) for setting in settings):
        fix = f"p95_ms=50, grid={{{', '.join(f'{name!r}: [...]' for name in known)}}}, or some of these"
        raise AccelError("A sweep needs a target above zero and values for each setting.", seen=grid, fix=fix)
    for setting in settings:
        _configured(config, setting)  # what no configuration may hold is refused before anything is measured
    return settings


def _fields(setting: Mapping[str, int]) -> dict[str, Any]:
    """A setting as fields of `ModelConfig`."""
    fields: dict[str, Any] = {n: v for n, v in setting.items() if n not in ("version", "preferred_batch_size")}
    if "preferred_batch_size" in setting:
        size = setting["preferred_batch_size"]
        fields["preferred_batch_sizes"] = (size,) if size else ()
    return fields


def _configured(config: ModelConfig, setting: Mapping[str, int]) -> ModelConfig:
    return config.replace(**_fields(setting))


def _words(setting: Mapping[str, int]) -> str:
    return findings_tune.setting(pd.Series(setting))
