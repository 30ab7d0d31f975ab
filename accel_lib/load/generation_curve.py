"""Goodput, first token and gap between tokens against the offered rate, up to more than can be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from accel_lib.errors import AccelError
from accel_lib.formatting import listed, number, percent
from accel_lib.load.generation import generation_load_test
from accel_lib.load.generation_results import GenerationLoadRun
from accel_lib.measurement import Result, highest, to_frame
from accel_lib.progress import Progress

SHARES = (0.5, 0.8, 1.0, 1.2, 1.5)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class GenerationCurve(Result):
    """What `generation_curve` measured; `frame` has one row a rate.

    Parameters
    ----------
    frame
        ``share`` of the capacity, ``rate_per_s`` offered, ``kept_per_s``: the goodput, ``kept``: its share of the
        requests, ``tokens_per_s``, ``ttft_p50_ms``, ``ttft_p95_ms``, ``itl_p50_ms``, ``itl_p95_ms``, ``failed``.
    runs
        The single runs.
    capacity
        Requests/s in the closed loop.
    """

    runs: Sequence[GenerationLoadRun]
    capacity: float

    @property
    def headline(self) -> str:
        """The goodput at the highest rate beside the highest goodput."""
        frame = self.frame
        best, last = highest(frame, "kept_per_s"), frame.iloc[-1]
        said = f"At {percent(last['share'])} of capacity {number(last['kept_per_s'])} of {number(last['rate_per_s'])} "
        said += f"requests/s keep {self.runs[-1].targets or 'no target'}"
        if best["share"] != last["share"]:
            said += f"; at {percent(best['share'])} it was {number(best['kept_per_s'])}"
        bound = any(run.generator_bound for run in self.runs)
        return said + ("; the generator was the bottleneck in part of it" if bound else "")

    @property
    def explanation(self) -> str:
        """Which of the two targets is missed first and most at the highest rate."""
        run = self.runs[-1]
        answered = run.frame[run.frame["error"] == ""]
        late = {
            "the first token came too late": float((answered["ttft_ms"] > run.ttft_ms).mean()),
            "the tokens came too slowly": float((answered["itl_ms"] > run.itl_ms).mean()),
        }
        facts = [f"{what} for {percent(share)} of the answers" for what, share in late.items()]
        missed = f"{percent(1 - len(answered) / len(run.frame))} of the requests had no answer"
        return f"At {percent(float(self.frame['share'].iloc[-1]))} of capacity {listed([*facts, missed])}"


def generation_curve(
    target: Any,
    *,
    clients: int = 16,
    shares: Sequence[float] = SHARES,
    requests: int | None = None,
    seconds: float | None = None,
    capacity: float | None = None,
    seed: int = 0,
    **how: Any,
) -> GenerationCurve:
    """Measure a closed loop, then open loops at shares of the requests/s that it reached.

    Parameters
    ----------
    clients
        Of the closed loop: more than the rows of the engine, so that none is free.
    shares
        Rates as shares of the closed loop's, rising.
    requests, seconds
        Of each rate, and of the closed loop: how many, or for how long.
    capacity
        Requests/s, where they are known: the closed loop is then left out.
    how
        What else `generation_load_test` takes, the same for all.
    """
    if not shares or min(shares) <= 0:
        raise AccelError("A curve needs rates.", seen=tuple(shares), fix="shares=(0.5, 0.8, 1.0, 1.5), above zero")
    how |= {"requests": requests, "seconds": seconds}
    progress = Progress("Curve")
    if capacity is None:
        capacity = generation_load_test(target, clients=clients, seed=seed, **how).capacity
    runs, rows = [], []
    for share in shares:
        progress.tick(f"{share:.0%} of {number(capacity)} requests/s")
        run = generation_load_test(target, rate=share * capacity, seed=seed, **how)
        runs.append(run)
        rows.append({"share": share} | _row(run))
    progress.clear()
    return GenerationCurve(frame=to_frame(rows), runs=tuple(runs), capacity=capacity)


def _row(run: GenerationLoadRun) -> dict[str, float]:
    row = {
        "rate_per_s": run.offered,
        "kept_per_s": run.goodput,
        "kept": float(run.kept.mean()),
        "tokens_per_s": run.output_tokens_per_s,
    }
    for measure in ("ttft", "itl"):
        for q in (50, 95):
            row[f"{measure}_p{q}_ms"] = run.percentile(f"{measure}_ms", q)
    return row | {"failed": float((run.frame["error"] != "").mean())}
