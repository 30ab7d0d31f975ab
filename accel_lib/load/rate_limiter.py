"""Two models on one machine: what Triton's rate limiter changes for a quick one and for a busy one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from accel_lib.formatting import percent
from accel_lib.load.experiment import apply
from accel_lib.load.rounds import Ways, in_rounds, ratios, speed, totals, whole
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.measurement import to_frame
from accel_lib.triton.client import ServedModel
from accel_lib.triton.rate_limiter import limited

ALONE = "alone"
MEASURES = {"p95_ratio": "quick model's p95", "speedup": "busy model's throughput"}
_SHARES = (0.1, 0.25)  # of the rate that one client alone reaches: what is asked at least, and at most
_SAMPLES = 120  # requests to the quick model that give its p95 an interval

Limits = tuple[Mapping[str, Any], Mapping[str, Any]]  # what `limited` takes for the quick and for the busy model
_Pair = tuple[LoadRun, LoadRun]


def compare_rate_limits(
    quick: ServedModel,
    busy: ServedModel,
    texts: Sequence[str],
    documents: Sequence[str],
    settings: Mapping[str, Limits],
    *,
    concurrency: int = 4,
    seconds: float = 2,
    repeats: int = 2,
) -> Ways:
    """Send a quick model a request now and then while another one is kept busy, under settings of the rate limiter.

    Both models' own configurations are put back at the end. The server needs the flag
    `accel_lib.triton.rate_limiter.RATE_LIMIT`, else no setting does anything.

    Parameters
    ----------
    quick, busy
        Two models of one server, with one instance each.
    texts
        For the quick model, Poisson, at a tenth to a quarter of the rate that one client alone reaches.
    documents
        For the busy one, `concurrency` in flight at any time.
    settings
        By name, what `accel_lib.triton.rate_limiter.limited` takes for the quick and for the busy model; the first is
        what the others are compared with.

    Returns
    -------
    Ways
        One row a setting, and one for the quick model alone: its ``p50_ms``, ``p95_ms`` and ``p95_ratio``, the busy
        one's ``texts_per_s`` and ``speedup``, and ``busy``, the share of the time that both worked, summed.
    """
    alone = load_test(quick, texts, concurrency=1, seconds=max(seconds / 2, 0.5), warmup_s=0.3)
    least, most = (part * alone.throughput for part in _SHARES)
    rate = min(max(least, _SAMPLES / seconds / repeats), most)
    ask = functools.partial(load_test, quick, texts, rate=rate, seconds=seconds, warmup_s=0)
    quick_alone = [whole(ask(seed=turn)) for turn in range(repeats)]

    def measure(_way: str, turn: int) -> _Pair:
        with ThreadPoolExecutor(1) as pool:  # the busy one begins first, and is busy for as long as the other is asked
            working = pool.submit(load_test, busy, documents, concurrency=concurrency, seconds=seconds, warmup_s=0.2)
            asked = ask(seed=turn)
            return whole(asked), whole(working.result())

    with _configurations(quick, busy) as set_up:
        ways = {name: functools.partial(set_up, limits) for name, limits in settings.items()}
        measured, stopped = in_rounds(ways, {"both": measure}, repeats=repeats)
    runs = {name: ([a for a, _ in pairs], [b for _, b in pairs]) for (name, _), pairs in measured.items()}
    base = next(iter(runs.values()))
    rows = [_row(name, asked, working, base) for name, (asked, working) in runs.items()]
    rows.append(_row(ALONE, quick_alone, [], base))
    return Ways(frame=to_frame(rows), explanation=_why(rows), measures=MEASURES, stopped=stopped)


def share_at_once(
    quick: ServedModel, busy: ServedModel, documents: Sequence[str], limits: Limits, *, seconds: float = 1
) -> float:
    """Share of the time that two models worked while both had work, summed: 1 in turns, up to 2 at once.

    Parameters are those of `compare_rate_limits`, with one setting; four documents are in flight at each model.
    """
    ask = functools.partial(load_test, texts=documents, concurrency=4, seconds=seconds, warmup_s=0.2)
    with _configurations(quick, busy) as set_up, ThreadPoolExecutor(2) as pool:
        set_up(limits)
        runs = list(pool.map(ask, (quick, busy)))
    return sum(_busy([whole(run)]) for run in runs)


@contextlib.contextmanager
def _configurations(*models: ServedModel) -> Iterator[Callable[[Limits], None]]:
    """What gives each model its limits; their own configurations are put back at the end."""
    with contextlib.ExitStack() as stack:
        own = [stack.enter_context(served.own_config()) for served in models]

        def set_up(limits: Limits) -> None:
            for served, config, limit in zip(models, own, limits, strict=True):
                apply(served, limited(config, **limit))

        yield set_up


def _row(
    setting: str, asked: list[LoadRun], working: list[LoadRun], base: tuple[list[LoadRun], list[LoadRun]]
) -> dict[str, Any]:
    """One setting: latency of the quick model, throughput of the busy one, NaN where that had no work."""
    latency = speed(asked) | ratios(asked, base[0])
    throughput = speed(working) | ratios(working, base[1]) if working else {}
    row: dict[str, Any] = {"workload": "both models", "setting": setting}
    row |= {name: value for name, value in latency.items() if name.startswith(("p50", "p95"))}
    for name in ("texts_per_s", "speedup"):
        row |= {end: throughput.get(end, float("nan")) for end in (name, f"{name}_low", f"{name}_high")}
    return row | {"busy": _busy(asked) + (_busy(working) if working else 0.0)}


def _why(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much of the time both worked; a batch counts where it ends, so turns may come to a little more than 100%."""
    names = [f"the quick one {ALONE}" if row["setting"] == ALONE else row["setting"] for row in rows]
    told = "; ".join(f"{name} {percent(row['busy'])}" for name, row in zip(names, rows, strict=True))
    return (
        f"Share of the time that the two models worked, summed: {told}. Far above 100% they worked at once; a little "
        "above can be a batch that had begun before the measurement, which counts whole."
    )


def _busy(runs: Sequence[LoadRun]) -> float:
    """Share of the time that a model's instance worked, as Triton counted it."""
    counted, seconds = totals(runs)
    return counted.busy(seconds) if counted else float("nan")
