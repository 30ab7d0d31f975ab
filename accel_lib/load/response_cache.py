"""What Triton's response cache gives, by how often callers repeat themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError, ServerError
from accel_lib.load import findings_cache
from accel_lib.load.interleave import in_rounds, whole
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.load.vary import ratios, speed
from accel_lib.measurement import Result, columns, to_frame
from accel_lib.stats import compare_medians
from accel_lib.triton.client import ServedModel
from accel_lib.triton.statistics import Statistics

_SLICES = 5
_WARM_S = 0.5  # in which the least that callers have asked before is asked
_CALLS_PER_S = 2_000  # requests made beforehand for a second; more than that go round again, and count as repeated


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class CacheGain(Result):
    """What `cache_gain` measured; `frame` has one row a workload, traffic and setting.

    Parameters
    ----------
    frame
        ``workload``, ``kinds`` (0: all differ), ``setting``; ``repeated``: share of the requests whose text had come
        before; ``hits``: share that the cache answered; throughput and latency as `accel_lib.load.vary` has them,
        ``speedup`` and ``p95_ratio`` over no cache with ``_low`` and ``_high``; ``mean_batch_size`` of what was
        computed.
    stopped
        Why it ended early; empty if it did not.
    """

    stopped: str = ""

    @property
    def headline(self) -> str:
        """What the cache gives where texts repeat most, and where least."""
        return findings_cache.gain(self.frame, self.stopped)

    @property
    def explanation(self) -> str:
        """Why, from what Triton counted."""
        return findings_cache.reason(self.frame)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Lookups(Result):
    """What `lookups` measured: ``workload``, ``name`` (miss or hit), ``ms`` and ``speedup`` over a miss, with ends."""

    @property
    def headline(self) -> str:
        """How long a hit takes in place of a miss."""
        return findings_cache.lookups(self.frame)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """Texts in the order in which they are sent, and the number of each: equal numbers are equal texts."""

    texts: list[str]
    numbers: NDArray[np.int64]

    def repeated(self, requests: int, before: NDArray[np.int64]) -> float:
        """Share of the first so many requests whose text had come before, also among the numbers sent earlier."""
        sent = np.resize(self.numbers, requests)
        return 1 - len(np.setdiff1d(sent, before)) / requests


def traffic(texts: Sequence[str], kinds: int, count: int, *, mark: str = "", start: int = 0, seed: int = 0) -> Traffic:
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
    seed
        Of the draw.
    """
    numbers = np.arange(start, start + count)
    if kinds:
        weights = 1 / np.arange(1, kinds + 1)
        numbers = np.random.default_rng(seed).choice(kinds, size=count, p=weights / weights.sum())
    mark = mark or secrets.token_hex(2)
    return Traffic(texts=[f"{mark} {n} {texts[n % len(texts)]}" for n in numbers.tolist()], numbers=numbers)


def cache_gain(
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
    served
        A model of a running server; its texts are sent one a request.
    workloads
        Texts by name.
    kinds
        Different texts of each traffic, as `traffic` takes them.
    concurrency
        Requests under way.
    seconds, repeats
        Length and number of the measurements of each.

    Raises
    ------
    AccelError
        Nothing to measure, or the first measurement failed.
    """
    own = served.config
    settings = {"no cache": False, "cache": True}
    ways = {name: functools.partial(served.configure, response_cache=on) for name, on in settings.items()}
    cases = {f"{workload}, {count}": (workload, count) for workload in workloads for count in kinds}
    requests = max(64, int(_CALLS_PER_S * seconds))
    ask = functools.partial(load_test, served, concurrency=concurrency, warmup_s=0)

    def measure(case: str, way: str, turn: int) -> tuple[LoadRun, float]:
        workload, count = cases[case]
        mark = secrets.token_hex(2)
        make = functools.partial(traffic, workloads[workload], count, requests, mark=mark)
        earlier, now = make(seed=2 * turn), make(start=requests, seed=2 * turn + 1)
        before = np.empty(0, dtype=np.int64)
        if settings[way]:  # callers have been there for a while
            before = np.resize(earlier.numbers, len(whole(ask(earlier.texts, seconds=max(seconds / 2, _WARM_S))).frame))
        run = whole(ask(now.texts, seconds=seconds))
        return run, now.repeated(len(run.frame), before)

    try:
        loads = {case: functools.partial(measure, case) for case in cases}
        measured, stopped = in_rounds(ways, loads, repeats=repeats)
    finally:
        with contextlib.suppress(AccelError):  # a server that is gone has no configuration to put back
            served.configure(response_cache=own.response_cache)
    rows = []
    for (way, case), pairs in measured.items():
        runs, base = [run for run, _ in pairs], [run for run, _ in measured.get(("no cache", case), pairs)]
        row: dict[str, Any] = {"workload": cases[case][0], "kinds": cases[case][1], "setting": way}
        row |= {"repeated": float(np.mean([share for _, share in pairs]))} | counted(runs)
        rows.append(row | speed(runs) | ratios(runs, base) | _speedup(runs, base))
    return CacheGain(frame=to_frame(rows), stopped=stopped)


def counted(runs: Sequence[LoadRun]) -> dict[str, float]:
    """Share of the requests that the cache answered, and the mean batch of the others, as columns."""
    parts: list[Statistics] = [run.statistics for run in runs if run.statistics]
    requests, executions = sum(part.requests for part in parts), sum(part.executions for part in parts)
    return {
        "hits": sum(part.cache_hits for part in parts) / requests if requests else float("nan"),
        "mean_batch_size": sum(p.inferences for p in parts) / executions if executions else float("nan"),
    }


def lookups(served: ServedModel, workloads: Mapping[str, Sequence[str]], *, pairs: int = 40) -> Lookups:
    """Ask each text twice, one request at a time: the first time the model computes, the second time it is a hit.

    Raises
    ------
    ServerError
        The second requests were no hits: the model's cache is off, or too small for one answer.
    """
    rows = []
    for workload, texts in workloads.items():
        asked = list(served._tokenize(traffic(texts, 0, pairs).texts, None)[1])
        served.infer(asked[0][None, ::-1].copy())  # so that the first one does not pay for waking up
        before = served.statistics()
        spent = np.array([[_timed_ms(served, ids[None]) for _ in range(2)] for ids in asked])
        hits = (served.statistics() - before).cache_hits
        if hits < pairs // 2:
            fix = "served.configure(response_cache=True), on a server with a larger --cache-config"
            raise ServerError("The cache does not answer.", seen=f"{hits} hits in {pairs} second requests", fix=fix)
        for name, ms in (("miss", spent[:, 0]), ("hit", spent[:, 1])):
            row: dict[str, Any] = {"workload": workload, "name": name} | columns("ms", ms)
            rows.append(row | columns("speedup", spent[:, 0] / ms))
    return Lookups(frame=to_frame(rows))


def _speedup(runs: Sequence[LoadRun], base: Sequence[LoadRun]) -> dict[str, float]:
    """Throughput over that of others, with the interval of fifths of the runs: hits come fast and misses in a lump."""
    fifths = [np.concatenate([run.rates.reshape(_SLICES, -1).mean(axis=1) for run in part]) for part in (runs, base)]
    least = _SLICES / 2 / max(run.seconds for run in (*runs, *base))  # half an answer where there was none
    told = compare_medians(*(np.maximum(rates, least) for rates in fifths))
    ratio = float(np.mean([run.throughput for run in runs]) / np.mean([run.throughput for run in base]))
    return {"speedup": ratio, "speedup_low": min(told.low, ratio), "speedup_high": max(told.high, ratio)}


def _timed_ms(served: ServedModel, ids: NDArray[np.int64]) -> float:
    begin = time.perf_counter()
    served.infer(ids)
    return (time.perf_counter() - begin) * 1e3
