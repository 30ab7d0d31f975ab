"""Find the setting of a served model that answers most within a latency target."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from accel_lib.errors import AccelError
from accel_lib.lab import findings
from accel_lib.lab.load import LoadRun, load
from accel_lib.lab.measure import Result, tidy
from accel_lib.progress import Progress
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

GRID: Mapping[str, Sequence[int]] = {
    "instance_count": (1, 2),
    "max_batch_tokens": (512, 2_048),
    "max_queue_delay_us": (0, 2_000),
}
_FINALISTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Tuning(Result):
    """What `tune` measured: `frame` has one row a setting, with throughput, p95 and their intervals."""

    served: ServedModel
    p95_ms: float
    base: ModelConfig

    @property
    def best(self) -> dict[str, int]:
        """The setting to take: most throughput within the target; the closest where none meets it."""
        row = findings.best_setting(self.frame, self.p95_ms)
        return {name: int(row[name]) for name in findings.SETTINGS}

    @property
    def config(self) -> str:
        """The best setting as ``config.pbtxt``."""
        return self.base.replace(**self.best).to_text()

    @property
    def finding(self) -> str:
        """Which setting wins, or why none does."""
        return findings.tuning(self.frame, self.p95_ms)

    def apply(self) -> ModelConfig:
        """Set the running model to the best setting."""
        return self.served.configure(**self.best)


def tune(
    served: ServedModel,
    texts: Sequence[str],
    *,
    p95_ms: float,
    concurrency: int = 16,
    seconds: float = 2,
    grid: Mapping[str, Sequence[int]] = GRID,
) -> Tuning:
    """Measure a small grid of settings under load, the two best ones again, and say which to take.

    Each setting is loaded beside the running one and measured in a closed loop. The model's own setting is put back at
    the end, and after an error; ``.apply()`` takes the best one.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        What to send.
    p95_ms
        The latency target.
    concurrency
        Requests under way at any time.
    seconds
        How long to measure a setting, after a second of warm-up.
    grid
        Values to try: ``instance_count``, ``max_batch_tokens`` (padded tokens of one engine call) and
        ``max_queue_delay_us``, each at least one.

    Returns
    -------
    Tuning

    Raises
    ------
    AccelError
        A target that is not above zero, or a grid that names another setting.
    ServerError
        Triton refused a setting.
    RequestError
        A setting answered nothing.

    Examples
    --------
    >>> accel.tune(mine, texts, p95_ms=50).apply()  # doctest: +SKIP
    """
    if p95_ms <= 0 or set(grid) != set(findings.SETTINGS) or not all(grid.values()):
        fix = f"tune(served, texts, p95_ms=50, grid={{{', '.join(f'{name!r}: [...]' for name in findings.SETTINGS)}}})"
        raise AccelError("Tuning needs a target above zero and values for each setting.", seen=dict(grid), fix=fix)
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    before, progress = served.config, Progress("Tuning")
    own = {name: getattr(before, name) for name in findings.SETTINGS}
    runs: list[list[LoadRun]] = [[] for _ in settings]

    def measure(index: int, note: str) -> None:
        progress.tick(note)
        served.configure(**settings[index])
        runs[index].append(load(served, texts, concurrency=concurrency, seconds=seconds))

    try:
        for index in range(len(settings)):
            measure(index, f"setting {index + 1} of {len(settings)}")
        frame = _table(settings, runs)
        for index in _finalists(frame, p95_ms):
            measure(index, "the best ones again")
    except BaseException:
        with contextlib.suppress(AccelError):  # the first error is the one to see
            served.configure(**own)
        raise
    served.configure(**own)
    progress.done(f"{len(settings)} settings")
    return Tuning(frame=_table(settings, runs), served=served, p95_ms=p95_ms, base=before)


def _table(settings: Sequence[dict[str, int]], runs: Sequence[Sequence[LoadRun]]) -> pd.DataFrame:
    return tidy([setting | _pooled(part) for setting, part in zip(settings, runs, strict=True)])


def _pooled(runs: Sequence[LoadRun]) -> dict[str, Any]:
    """Repeats of one setting as one run: the mean of their rates and latencies, the widest of their intervals."""
    rows = pd.concat([run.summary for run in runs])
    pooled: dict[str, Any] = {"runs": len(runs), "errors": int(rows["errors"].sum())}
    for name in ("sentences_per_s", "p50_ms", "p95_ms"):
        pooled[name] = float(rows[name].mean())
        pooled[f"{name}_low"], pooled[f"{name}_high"] = (
            float(rows[f"{name}_low"].min()),
            float(rows[f"{name}_high"].max()),
        )
    if "mean_batch_size" in rows:
        pooled["mean_batch_size"] = float(rows["mean_batch_size"].mean())
    return pooled


def _finalists(frame: pd.DataFrame, p95_ms: float) -> list[int]:
    """Positions of the settings to measure again: most throughput within the target, or closest to it."""
    meets = frame[frame["p95_ms"] <= p95_ms]
    order = meets.sort_values("sentences_per_s", ascending=False) if len(meets) else frame.sort_values("p95_ms")
    return [int(index) for index in order.index[:_FINALISTS]]
