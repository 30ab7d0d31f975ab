"""What a sweep of settings found: the one to take, the Pareto front, and what each setting alone changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from accel_lib.formatting import UNCHANGED, number, times
from accel_lib.measurement import Result, lowest
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.repository import write_config

# The settings of a sweep, each with the words that its value gets; simpler values are smaller.
SETTINGS: dict[str, Callable[[Any], str]] = {
    "version": lambda value: f"version {value:.0f}",
    "instance_count": lambda value: f"{value:.0f} instance{'s' if value > 1 else ''}",
    "threads": lambda value: f"{value:.0f} thread{'s' if value > 1 else ''} each",
    "max_queue_delay_us": lambda value: f"{value / 1e3:g} ms queue delay" if value else "no queue delay",
    "max_batch_tokens": lambda value: f"≤ {value:,.0f} tokens a batch",
    "max_batch_size": lambda value: f"batches of up to {value:.0f}" if value > 1 else "no batches",
    "preferred_batch_size": lambda value: f"preferably {value:.0f}" if value else "no preferred size",
}


def described(setting: Mapping[Any, Any]) -> str:
    """One setting in words: ``"1 instance, no queue delay, ≤ 512 tokens a batch"``."""
    engine = [setting["engine"]] if "engine" in setting else []
    return ", ".join(engine + [words(setting[name]) for name, words in SETTINGS.items() if name in setting])


def config_fields(setting: Mapping[str, int]) -> dict[str, Any]:
    """A setting as fields of `ModelConfig`."""
    fields: dict[str, Any] = {n: v for n, v in setting.items() if n not in ("version", "preferred_batch_size")}
    if "preferred_batch_size" in setting:
        size = setting["preferred_batch_size"]
        fields["preferred_batch_sizes"] = (size,) if size else ()
    return fields


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Sweep(Result):
    """What `sweep` measured.

    `frame` has one row a setting: its values, ``texts_per_s``, ``p50_ms``, ``p95_ms``, and its throughput over the
    fastest within the target, ``over_best``, each with ``_low`` and ``_high``; ``runs``.
    """

    served: ServedModel
    base: ModelConfig  # that it had before, and has again
    p95_ms: float  # the latency target
    unloaded_latency_ms: float  # median of one request at a time: no setting of this model is faster
    rate: float = 0.0  # requests/s of an open loop, whose throughput is what was answered within the target
    refused: tuple[str, ...] = ()  # settings that were not measured, each with the reason

    @property
    def best(self) -> dict[str, int]:
        """The setting to take: most throughput within the target, the simplest of equals; the lowest p95 if none is."""
        return self._setting(self._best)

    @property
    def throughput(self) -> float:
        """Texts/s of the best setting."""
        return float(self._best["texts_per_s"])

    @property
    def slowest(self) -> dict[str, int]:
        """The setting with the least throughput."""
        return self._setting(lowest(self.frame, "texts_per_s"))

    @property
    def front(self) -> pd.DataFrame:
        """The settings that no other one beats in both p95 and throughput, by p95."""
        ordered = self.frame.sort_values(["p95_ms", "texts_per_s"], ascending=[True, False])
        rates = ordered["texts_per_s"]
        rows: pd.DataFrame = ordered[rates > rates.cummax().shift(fill_value=-1.0)]
        return rows

    def front_table(self) -> str:
        """The front in words, a line a setting."""
        rows, in_time = self.front.to_dict("records"), bool(self.rate)
        return "\n".join(f"{_speed(row, in_time=in_time)}: {described(row)}" for row in rows)

    @property
    def config(self) -> str:
        """The best setting as ``config.pbtxt``."""
        return self.base.replace(**config_fields(self.best)).to_text()

    @property
    def headline(self) -> str:
        """Which setting to take, or that none meets the target."""
        best, alike = self._best, len(self._alike)
        said = f"{described(best)}: {_speed(best, in_time=bool(self.rate))}"
        if not alike:
            said = f"No setting meets a p95 of {self.p95_ms:g} ms: the closest, {said}"
            if self.unloaded_latency_ms > self.p95_ms:
                said += f"; none can, as one request alone takes {number(self.unloaded_latency_ms)} ms"
        elif alike == len(self.frame) > 1:
            said = f"No significant difference between the {alike} settings: took the simplest, {said}"
        elif alike > 1:
            said += f"; {alike} settings are indistinguishable, took the simplest"
        if self.rate:
            said += f". Offered: {number(self.rate)} requests/s in an open loop"
        if self.refused:
            more = f"; and {len(self.refused) - 1} more" if len(self.refused) > 1 else ""
            said += f". Not measured: {self.refused[0]}{more}"
        return self._and_stopped(said)

    @property
    def explanation(self) -> str:
        """What each setting alone changes: the best one beside those that differ from it in one value, a line each."""
        best = self._best
        lines = []
        for row in self.frame.to_dict("records"):
            changed = [name for name in self._setting(best) if row[name] != best[name]]
            if len(changed) == 1:
                start = f"{SETTINGS[changed[0]](row[changed[0]])} instead of {SETTINGS[changed[0]](best[changed[0]])}"
                if changed == ["version"]:
                    start += f" ({row['engine']} instead of {best['engine']})"
                lines.append(f"{start}: {_effect(row, best, in_time=bool(self.rate))}")
        return "\n".join(lines)

    def apply(self) -> ModelConfig:
        """Set the running model to the best setting."""
        return self.served.configure(**config_fields(self.best))

    def write(self, path: str | Path | None = None) -> Path:
        """Write the best setting's ``config.pbtxt``: to the model's folder in its repository, or to `path`."""
        folder = Path(path) if path else self.served.server.repository / self.served.name
        write_config(folder, self.base.replace(**config_fields(self.best)))
        return folder

    def _setting(self, row: Mapping[Any, Any]) -> dict[str, int]:
        return {name: int(row[name]) for name in SETTINGS if name in self.frame}

    @property
    def _alike(self) -> pd.DataFrame:
        """The settings within the target that may be as fast as the fastest of them."""
        meets: pd.DataFrame = self.frame[self.frame["p95_ms"] <= self.p95_ms]
        return meets if meets.empty else meets[meets["over_best_high"] >= 1]

    @property
    def _best(self) -> dict[Any, Any]:
        if self._alike.empty:
            return lowest(self.frame, "p95_ms")
        return self._alike.sort_values([name for name in SETTINGS if name in self.frame]).iloc[0].to_dict()


def _speed(row: Mapping[Any, Any], *, in_time: bool) -> str:
    return (
        f"{number(row['texts_per_s'])} texts/s {'in time, ' if in_time else ''}at a p95 of {number(row['p95_ms'])} ms"
    )


def _effect(row: Mapping[Any, Any], best: Mapping[Any, Any], *, in_time: bool) -> str:
    """``"0.50× the throughput and 2.0× the p95, batches of 1.0 against 6.0"``."""
    changed = [
        f"{times(row[name] / best[name])} the {words}"
        for name, words in (("texts_per_s", "answers in time" if in_time else "throughput"), ("p95_ms", "p95"))
        if row[f"{name}_low"] > best[f"{name}_high"] or row[f"{name}_high"] < best[f"{name}_low"]
    ]
    sizes = [number(one["mean_batch_size"]) for one in (row, best) if one.get("mean_batch_size", 0) > 0]
    batches = f", batches of {sizes[0]} against {sizes[1]}" if len(sizes) == 2 else ""
    return f"{' and '.join(changed) or UNCHANGED}{batches}"
