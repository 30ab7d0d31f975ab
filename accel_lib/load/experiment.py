"""Measure settings of a served model under the same load, in turns, and explain what each one changes.

Settings are applied by model control while the server runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from accel_lib.formatting import UNCHANGED, capital, differs, listed, number, percent, times
from accel_lib.load.rounds import MEASURES, in_rounds, ratios, speed, totals
from accel_lib.load.runner import LoadRun, in_flight, load_test
from accel_lib.measurement import Result, highest, lowest, to_frame
from accel_lib.stats import percentile, percentile_interval
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

_NOTICED = 1.1  # ratio from which on a mechanism counts as an explanation
_ALONE = 1.05  # mean batch up to which requests ran alone
_REFUSED = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Experiment(Result):
    """What `vary` measured; `frame` has one row a setting and load.

    Parameters
    ----------
    frame
        ``setting``, ``load`` (requests in flight, or requests/s), ``open`` (whether the load is a rate), ``runs``,
        ``instances``; the columns of `rounds.speed` and, over the first setting at the same load, of `rounds.ratios`;
        ``queue_ms`` a request, ``mean_batch_size``, ``text_ms`` of an instance's time for one text, ``busy``, the share
        of the instances' time; ``generator_bound``.
    runs
        The single runs, by setting and load.
    target_ms
        Latency within which a response counts for the goodput; infinite where none was given.
    """

    runs: Mapping[tuple[str, float], Sequence[LoadRun]]
    target_ms: float = math.inf

    @property
    def headline(self) -> str:
        """The strongest changes of throughput and p95 against the first setting, or that there are none."""
        frame, others = self.frame, self._others
        told: dict[tuple[str, str], list[str]] = {}
        for column, words in MEASURES.items():
            sure = [row for row in others.to_dict("records") if differs(row, column)]
            if sure:
                row = max(sure, key=lambda row: abs(math.log(row[column])))
                told.setdefault((row["setting"], _at(row)), []).append(f"{times(row[column])} the {words}")
        base = frame["setting"].iloc[0]
        said = [f"{name}: {' and '.join(facts)} of {base} {at}" for (name, at), facts in told.items()]
        worst = highest(frame, "refused")
        if worst["refused"] > _REFUSED:
            said.append(f"{worst['setting']}: {percent(worst['refused'])} of the requests rejected {_at(worst)}")
        if not said and others.empty:
            first = frame.iloc[0]
            said = [f"{base}: {number(first['texts_per_s'])} texts/s at a p95 of {number(first['p95_ms'])} ms"]
        if not said:
            said = [f"{capital(UNCHANGED)} between {listed(list(dict.fromkeys(frame['setting'])))}"]
        if frame["generator_bound"].any():
            said.append("the generator was the bottleneck in part of it")
        return self._and_stopped("; ".join(said))

    @property
    def explanation(self) -> str:
        """Why the setting with the largest effect has it, from what Triton counted."""
        others = self._others.dropna(subset=["mean_batch_size"])
        if others.empty:
            return "Triton counted nothing to explain it by"
        row = others.iloc[int(others.apply(_size_of_effect, axis=1).to_numpy().argmax())]
        base = self.frame[self.frame["load"] == row["load"]].iloc[0]
        return f"{row['setting']} against {base['setting']}, {_at(row)}: {_mechanism(row, base)}"

    @property
    def goodput(self) -> str:
        """Which settings give most responses within the target at the highest load, beside the first one.

        Those whose interval reaches that of the best are named with it: no difference between them was seen.
        """
        top = self.frame[self.frame["load"] == self.frame["load"].max()]
        ends = dict.fromkeys(("goodput_per_s_low", "goodput_per_s_high"), top["goodput_per_s"])
        top = top.fillna(ends)  # where there were too few answers for an interval
        base, best = top.iloc[0].to_dict(), highest(top, "goodput_per_s")
        reach = top[top["goodput_per_s_high"] >= best["goodput_per_s_low"]]
        names = reach.sort_values("goodput_per_s", ascending=False)["setting"].tolist()
        start = f"Responses within {self.target_ms:g} ms {_at(base)}"
        most = f"{number(best['goodput_per_s'])} per second"
        if len(names) > 1 and base["setting"] in names:
            least = number(reach["goodput_per_s"].min())
            return f"{start}: {UNCHANGED} between {listed(names)}, {least} to {most}"
        others = "" if base["setting"] in names else f"; {base['setting']} {number(base['goodput_per_s'])}"
        alike = f", not certainly more than with {listed(names[1:])}" if names[1:] else ""
        return f"{start}: {most} with {names[0]}{alike}{others}"

    def least_busy(self, p95_ms: float) -> str:
        """Which setting needs the least of the instances' time within a p95, at the highest load, beside the first."""
        top = self.frame[self.frame["load"] == self.frame["load"].max()].dropna(subset=["busy"])
        within = top[top["p95_ms"] <= p95_ms]
        if within.empty:
            return f"No setting holds a p95 of {p95_ms:g} ms {_at(self.frame.iloc[0])}"
        least, base = lowest(within, "busy"), top.iloc[0]
        where = f"a p95 of {p95_ms:g} ms {_at(base)}"
        over = [
            f"{row['setting']} has {number(row['p95_ms'])} ms and keeps them busy for {percent(row['busy'])}"
            for row in top[top["p95_ms"] > p95_ms].to_dict("records")
        ]
        if len(within) == 1:
            said = f"Only {least['setting']} holds {where}"
            return "; ".join([f"{said}, with the instances busy for {percent(least['busy'])} of the time", *over])
        said = f"Within {where}, {least['setting']} keeps the instances busy for {percent(least['busy'])} of the time"
        if least["setting"] == base["setting"]:
            return f"{said}, the least of all"
        price = f"{number(least['p95_ms'])} ms against {number(base['p95_ms'])}"
        return f"{said}, {base['setting']} for {percent(base['busy'])}; its p95 is {price}"

    @property
    def rejections(self) -> pd.DataFrame:
        """Failed requests: ``setting``, ``load``, ``error``, ``priority``, and ``ms`` after which the client knew."""
        parts = [
            run.frame.loc[run.frame["error"] != "", ["error", "priority", "ms"]].assign(setting=setting, load=at)
            for (setting, at), runs in self.runs.items()
            for run in runs
        ]
        frame = pd.concat(parts, ignore_index=True)[["setting", "load", "error", "priority", "ms"]]
        frame.attrs.update(self.frame.attrs)
        return frame

    @property
    def by_priority(self) -> pd.DataFrame:
        """Responses by setting, load and priority: ``share``, ``p50_ms``, ``p95_ms`` with its interval."""
        rows = []
        for (setting, at), runs in self.runs.items():
            everything = pd.concat([run.frame for run in runs])
            for priority, part in everything.groupby("priority"):
                ms = part.loc[part["error"] == "", "ms"].to_numpy()
                if len(ms):
                    row = {"setting": setting, "load": at, "priority": priority, "share": len(part) / len(everything)}
                    low, high = percentile_interval(ms, 95)
                    row |= {"p50_ms": percentile(ms, 50), "p95_ms": percentile(ms, 95)}
                    rows.append(row | {"p95_ms_low": low, "p95_ms_high": high})
        return to_frame(rows)

    @property
    def _others(self) -> pd.DataFrame:
        others: pd.DataFrame = self.frame.loc[self.frame["setting"] != self.frame["setting"].iloc[0]]
        return others


def vary(
    served: ServedModel,
    texts: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    concurrency: Sequence[int] = (16,),
    rates: Sequence[float] | None = None,
    seconds: float = 1,
    repeats: int = 2,
    warmup_s: float = 0.3,
    target_ms: float = math.inf,
    **request: Any,
) -> Experiment:
    """Measure settings of a served model against the first of them, each at every load, in turns.

    The model's own configuration is put back at the end, and after an error. When something ends it early, the result
    has what was measured so far, and `stopped` says why.

    Parameters
    ----------
    settings
        Settings by name, as ``served.configure`` takes them; what one leaves out is as the model had it before.
    concurrency
        Closed loops: requests in flight.
    rates
        Open loops instead of them: requests/s, Poisson.
    target_ms
        Latency within which a response counts for the goodput.
    request
        What else `accel_lib.load_test` takes, such as ``priority``, ``queue_timeout_us`` or ``rows``.

    Examples
    --------
    >>> delays = {"no delay": {"max_queue_delay_us": 0}, "5 ms": {"max_queue_delay_us": 5_000}}
    >>> vary(embedding, texts, delays, concurrency=(1, 16))  # doctest: +SKIP
    """
    configs = {name: served.config.replace(**change) for name, change in settings.items()}
    how: dict[str, Any] = {"seconds": seconds, "warmup_s": warmup_s, **request}

    def measure(at: float, _name: str, turn: int) -> LoadRun:
        load: dict[str, Any] = {"concurrency": int(at)} if rates is None else {"rate": at, "seed": turn}
        return load_test(served, texts, **load, **how)

    ways = {name: functools.partial(apply, served, config) for name, config in configs.items()}
    loads = {float(at): functools.partial(measure, at) for at in (concurrency if rates is None else rates)}
    with served.own_config():
        runs, stopped = in_rounds(ways, loads, repeats=repeats)
    rows = []
    for (name, at), part in runs.items():
        config, base = configs[name], runs.get((next(iter(configs)), at), part)
        row: dict[str, Any] = {"setting": name, "load": at, "open": rates is not None, "runs": len(part)}
        row |= {"instances": config.instance_count} | speed(part, target_ms) | _inside(part, config)
        rows.append(row | ratios(part, base) | {"generator_bound": any(run.generator_bound for run in part)})
    return Experiment(frame=to_frame(rows), runs=runs, target_ms=target_ms, stopped=stopped)


def apply(served: ServedModel, config: ModelConfig) -> None:
    """Load the model with a whole configuration, unless it runs with that one."""
    if served.config != config:
        served.server.load(served.name, config)


def _inside(runs: Sequence[LoadRun], config: ModelConfig) -> dict[str, float]:
    """What Triton counted, the runs together; NaN where a reload or an unload set its counts back."""
    counted, seconds = totals(runs)
    names = ("queue_ms", "mean_batch_size", "text_ms")
    if counted is None:
        return dict.fromkeys((*names, "busy"), math.nan)
    return {name: getattr(counted, name) for name in names} | {"busy": counted.busy(seconds, config.instance_count)}


def _mechanism(row: pd.Series[Any], base: pd.Series[Any]) -> str:
    """What Triton counted differently: rejections, batches, the time of a text, and the time in the queue."""
    if row["refused"] > max(base["refused"], _REFUSED):
        waits = f"the others wait {number(row['queue_ms'])} instead of {number(base['queue_ms'])} ms"
        return f"{percent(row['refused'])} of the requests are rejected, and {waits}"
    waits = row["queue_ms"] - base["queue_ms"]
    if waits > (_NOTICED - 1) * base["p50_ms"] and max(row["mean_batch_size"], base["mean_batch_size"]) <= _ALONE:
        return f"the setting adds {number(waits)} ms of waiting in vain: nearly every batch holds one request"
    rows = f"from {number(base['mean_batch_size'])} to {number(row['mean_batch_size'])} rows"
    text = f"from {number(base['text_ms'])} to {number(row['text_ms'])} ms"
    batch_ratio, text_ratio = row["mean_batch_size"] / base["mean_batch_size"], row["text_ms"] / base["text_ms"]
    said = []
    if not 1 / _NOTICED <= batch_ratio <= _NOTICED:
        said.append(f"batches {'grow' if batch_ratio > 1 else 'shrink'} {rows}")
    if not 1 / _NOTICED <= text_ratio <= _NOTICED:
        said.append(f"an instance's time for a text {'grows' if text_ratio > 1 else 'falls'} {text}")
    elif said:
        said.append(f"a text costs the same {number(row['text_ms'])} ms: arithmetic is the limit")
    if row["instances"] != base["instances"]:
        most = max(row["instances"], base["instances"])
        if not row["open"] and row["load"] < most:
            said.append(f"no more than {row['load']:.0f} of {most} instances have a request at a time")
        else:
            word = "less than" if row["speedup_high"] < 1 else "more than" if row["speedup_low"] > 1 else "as much as"
            said.append(f"{row['instances']} instances together do {word} {base['instances']}")
    if abs(waits) > (_NOTICED - 1) * base["p50_ms"]:
        said.append(f"requests wait {number(abs(waits))} ms {'longer' if waits > 0 else 'less'} in the queue")
    same = f"batches of {number(row['mean_batch_size'])} rows and {number(row['text_ms'])} ms per text"
    return "; ".join(said) or f"nothing changes inside: {same} with either setting"


def _size_of_effect(row: pd.Series[Any]) -> float:
    """How far throughput or p95 is from unchanged, on the side that is certain."""
    certain = [max(row[f"{side}_low"], 1 / row[f"{side}_high"]) for side in MEASURES]
    return max((value for value in certain if not math.isnan(value)), default=0.0)


def _at(row: Mapping[Any, Any] | pd.Series[Any]) -> str:
    return f"at {number(row['load'])} requests/s" if row["open"] else f"with {in_flight(row['load'])}"
