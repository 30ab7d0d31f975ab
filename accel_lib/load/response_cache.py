"""What Triton's response cache gives, by how often callers repeat themselves."""

from __future__ import annotations

import dataclasses
import functools
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import ServerError
from accel_lib.formatting import capital, change, number, percent
from accel_lib.load.rounds import Ways, compare, whole
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.measurement import Result, columns, highest, to_frame
from accel_lib.triton.client import ServedModel

_SLICES = 5  # of a run: hits come fast and misses in a lump, so the slices are long
_WARM_S = 0.5  # in which the least that callers have asked before is asked
_MISSED = 0.99  # share of hits from which too few miss to speak of their batches
_CALLS_PER_S = 2_000  # requests made beforehand for a second; more than that repeat from the start


class CacheGain(Ways):
    """`compare_response_cache`'s result: one row a workload, traffic and setting.

    `Ways`' columns, ``kinds`` (different texts; 0: all differ), ``repeated`` (share of the requests whose text had come
    before), ``hits`` (share from the cache) and ``mean_batch_size`` of what was computed, NaN where nothing was.
    """

    @property
    def headline(self) -> str:
        """What the cache gives where texts repeat most, by workload."""
        cached = self.frame[self.frame["setting"] == "cache"]
        told = []
        for workload, part in cached.groupby("workload", sort=False):
            row = highest(part, "repeated")
            gain = change(row, "speedup", "throughput")
            told.append(f"{workload}: {gain} where {percent(row['repeated'])} of the texts repeat")
        return self._and_stopped(capital("; ".join(told)) or "Nothing was measured with the cache on")


class Lookups(Result):
    """Time of cache misses and hits; one row a ``workload`` and ``name``, with ``ms`` and ``speedup`` over a miss."""

    @property
    def headline(self) -> str:
        """How long a hit takes instead of a miss."""
        said = []
        for workload, part in self.frame.groupby("workload", sort=False):
            miss, hit = part.set_index("name").loc[["miss", "hit"], "ms"]
            said.append(f"{workload}: a hit takes {number(hit)} ms, a miss {number(miss)} ms")
        return capital("; ".join(said))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """Texts in the order in which they are sent, and the number of each: equal numbers are equal texts."""

    texts: list[str]
    numbers: NDArray[np.int64]

    def repeated(self, requests: int, before: NDArray[np.int64]) -> float:
        """Share of the first `requests` whose text had come before, also among the numbers sent earlier."""
        sent = np.resize(self.numbers, requests)
        return 1 - len(np.setdiff1d(sent, before)) / requests


def zipf_traffic(
    texts: Sequence[str], kinds: int, count: int, *, mark: str = "", start: int = 0, seed: int = 0
) -> Traffic:
    """Requests as callers repeat them: the n-th most frequent text comes 1/n as often as the first (Zipf's law).

    Parameters
    ----------
    texts
        What they are made of; a mark and a number before each make it unlike all others, also where it is cut.
    kinds
        Different texts; 0 for as many as there are requests, so that none comes twice.
    count
        Requests.
    mark
        A word in each text; another one makes other texts. Empty draws one.
    start
        Number of the first text, where all differ.
    """
    numbers = np.arange(start, start + count)
    if kinds:
        weights = 1 / np.arange(1, kinds + 1)
        numbers = np.random.default_rng(seed).choice(kinds, size=count, p=weights / weights.sum())
    mark = mark or secrets.token_hex(2)
    return Traffic(texts=[f"{mark} {n} {texts[n % len(texts)]}" for n in numbers.tolist()], numbers=numbers)


def compare_response_cache(
    served: ServedModel,
    workloads: Mapping[str, Sequence[str]],
    kinds: Sequence[int] = (0, 300, 20),
    *,
    concurrency: int = 8,
    seconds: float = 1,
    repeats: int = 2,
) -> CacheGain:
    """Measure a model with and without the response cache, under callers who repeat themselves more and less.

    The model's own configuration is put back at the end.

    Parameters
    ----------
    workloads
        Texts by name, sent one a request.
    kinds
        Different texts of each traffic, as `zipf_traffic` takes them.
    """
    settings = {"no cache": False, "cache": True}
    ways = {name: functools.partial(served.configure, response_cache=on) for name, on in settings.items()}
    cases = [(workload, count) for workload in workloads for count in kinds]
    requests = max(64, int(_CALLS_PER_S * seconds))
    ask = functools.partial(load_test, served, concurrency=concurrency, warmup_s=0)

    def measure(case: tuple[str, int], way: str, turn: int) -> tuple[LoadRun, dict[str, float]]:
        make = functools.partial(zipf_traffic, workloads[case[0]], case[1], requests, mark=secrets.token_hex(2))
        earlier, now = make(seed=2 * turn), make(start=requests, seed=2 * turn + 1)
        before = np.empty(0, dtype=np.int64)
        if settings[way]:  # callers have been there for a while
            asked = len(whole(ask(earlier.texts, seconds=max(seconds / 2, _WARM_S))).frame)
            before = np.resize(earlier.numbers, asked + concurrency)  # each client's last one ends after the time
        run = whole(ask(now.texts, seconds=seconds))
        return run, {"kinds": case[1], "repeated": now.repeated(len(run.frame), before)} | _counted(run)

    loads = {case: functools.partial(measure, case) for case in cases}
    with served.own_config():
        rows, stopped = compare(ways, loads, repeats=repeats, slices=_SLICES)
    for row in rows:
        row |= {"workload": row["workload"][0], "mean_batch_size": _mean_batch(row)}
    frame = to_frame(rows)
    return CacheGain(frame=frame, explanation=_why(frame), stopped=stopped)


def time_lookups(served: ServedModel, workloads: Mapping[str, Sequence[str]], *, pairs: int = 40) -> Lookups:
    """Send each text twice, one request at a time: the first time the model computes, the second time it is a hit.

    Raises
    ------
    ServerError
        The second requests were no hits: the model's cache is off, or too small for one response.
    """
    rows = []
    for workload, texts in workloads.items():
        asked = list(served.tokenize(zipf_traffic(texts, 0, pairs).texts))
        served.infer(asked[0][None, ::-1].copy())  # so that the first one does not pay for waking up
        before = served.statistics()
        spent = np.array([[_timed_ms(served, ids[None]) for _ in range(2)] for ids in asked])
        hits = (served.statistics() - before).cache_hits
        if hits < pairs // 2:
            fix = "served.configure(response_cache=True), on a server with a larger --cache-config"
            raise ServerError("The cache does not respond.", seen=f"{hits} hits in {pairs} second requests", fix=fix)
        for name, ms in (("miss", spent[:, 0]), ("hit", spent[:, 1])):
            row: dict[str, Any] = {"workload": workload, "name": name} | columns("ms", ms)
            rows.append(row | columns("speedup", spent[:, 0] / ms))
    return Lookups(frame=to_frame(rows))


def _counted(run: LoadRun) -> dict[str, float]:
    """Share of the requests that were hits, and how many of the others ran in how many batches, as columns."""
    counted = run.statistics
    if not counted or not counted.requests:
        return dict.fromkeys(("hits", "inferences", "executions"), float("nan"))
    hits = counted.cache_hits / counted.requests
    return {"hits": hits, "inferences": float(counted.inferences), "executions": float(counted.executions)}


def _mean_batch(row: dict[str, Any]) -> float:
    """Rows per execution in all rounds together, from their means, taken out; NaN where nothing was computed."""
    rows, executions = row.pop("inferences"), row.pop("executions")
    return float(rows / executions) if executions else float("nan")


def _why(frame: pd.DataFrame) -> str:
    """The share of hits where it is highest, the batches of the misses, and what a cache without hits costs."""
    cached = frame[frame["setting"] == "cache"].dropna(subset=["hits"])
    if cached.empty:
        return "Triton counted nothing to explain it by."
    row = highest(cached, "hits")
    most = "Up to " if len(cached) > 1 else ""
    told = [f"{most}{percent(row['hits'])} of the requests are hits ({_where(row)}), which never reach the batcher."]
    missed = cached[(cached["hits"] > 0) & (cached["hits"] < _MISSED)].dropna(subset=["mean_batch_size"])
    if len(missed):
        row = highest(missed, "hits")
        same = (frame["workload"] == row["workload"]) & (frame["kinds"] == row["kinds"])
        without = frame.loc[same & (frame["setting"] == "no cache"), "mean_batch_size"]
        said = f"What misses ({_where(row)}) runs in batches of {number(row['mean_batch_size'])} on average"
        told.append(f"{said}, without the cache in batches of {number(float(without.mean()))}.")
    if len(new := cached[cached["kinds"] == 0]):
        rows = new.to_dict("records")
        costs = "; ".join(f"{row['workload']} {change(row, 'speedup', 'throughput')}" for row in rows)
        told.append(f"Where no text comes twice, with the cache over without: {costs}.")
    return " ".join(told)


def _where(row: Mapping[Any, Any]) -> str:
    kinds = f"{row['kinds']:.0f} different texts" if row["kinds"] else "all different"
    return f"{row['workload']}, {kinds}"


def _timed_ms(served: ServedModel, ids: NDArray[np.int64]) -> float:
    begin = time.perf_counter()
    served.infer(ids)
    return (time.perf_counter() - begin) * 1e3
