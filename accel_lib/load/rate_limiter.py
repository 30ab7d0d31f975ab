"""Two models on one machine: what the rate limiter changes for the quick one and for the busy one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from accel_lib.errors import AccelError
from accel_lib.load import findings_limiter
from accel_lib.load.interleave import in_rounds, whole
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.load.vary import apply, ratios, speed
from accel_lib.measurement import Result, to_frame
from accel_lib.triton.client import ServedModel
from accel_lib.triton.limiter import limited

ALONE = "alone"
_SHARES = (0.1, 0.25)  # of the rate that one client alone reaches: what is asked at least, and at most
_SAMPLES = 120  # requests to the quick model that give its p95 an interval

Wishes = tuple[Mapping[str, Any], Mapping[str, Any]]
_Pair = tuple[LoadRun, LoadRun]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Sharing(Result):
    """What `share` measured; `frame` has one row a setting, and one for the quick model alone.

    Parameters
    ----------
    frame
        ``setting``; of the quick model ``p50_ms`` and ``p95_ms``, and ``p95_ratio`` over the first setting; of the busy
        one ``sentences_per_s`` and ``speedup`` over the first setting; all but the p50 with ``_low`` and ``_high``;
        ``busy``: share of the time that the instances of both worked, summed: above 1 they worked at once.
    rate
        Requests a second to the quick model.
    stopped
        Why it ended early; empty if it did not.
    """

    rate: float
    stopped: str = ""

    @property
    def headline(self) -> str:
        """What the settings change against the first one, or that they change nothing."""
        return findings_limiter.sharing(self.frame, self.stopped)

    @property
    def explanation(self) -> str:
        """Why, from how long both worked."""
        return findings_limiter.reason(self.frame)


def share(
    quick: ServedModel,
    busy: ServedModel,
    texts: Sequence[str],
    documents: Sequence[str],
    settings: Mapping[str, Wishes],
    *,
    concurrency: int = 4,
    seconds: float = 2,
    repeats: int = 2,
) -> Sharing:
    """Ask a quick model now and then while another one is kept busy, under settings of Triton's rate limiter.

    Both models' own configurations are put back at the end. The server needs the flag
    `accel_lib.triton.limiter.RATE_LIMIT`, else no setting does anything.

    Parameters
    ----------
    quick, busy
        Two models of one server, with one instance each.
    texts
        To the quick model, Poisson, at a tenth to a quarter of the rate that one client alone reaches.
    documents
        To the busy one, `concurrency` under way at any time.
    settings
        By name, what `accel_lib.triton.limiter.limited` takes for the quick and for the busy model. The first one is
        what the others are compared with.
    seconds, repeats
        Length and number of the measurements of each.

    Raises
    ------
    AccelError
        Nothing to measure, or the first measurement failed.
    """
    alone = [load_test(quick, texts, concurrency=1, seconds=max(seconds / 2, 0.5), warmup_s=0.3)]
    least, most = (part * alone[0].throughput for part in _SHARES)
    rate = min(max(least, _SAMPLES / seconds / repeats), most)
    ask = functools.partial(load_test, quick, texts, rate=rate, seconds=seconds, warmup_s=0)
    alone = [whole(ask(seed=turn)) for turn in range(repeats)]

    def measure(_way: str, turn: int) -> _Pair:
        with ThreadPoolExecutor(1) as pool:  # the busy one begins first, and is busy for as long as the other is asked
            working = pool.submit(load_test, busy, documents, concurrency=concurrency, seconds=seconds, warmup_s=0.2)
            asked = ask(seed=turn)
            return whole(asked), whole(working.result())

    with _configurations(quick, busy) as set_up:
        ways = {name: functools.partial(set_up, wishes) for name, wishes in settings.items()}
        measured, stopped = in_rounds(ways, {"both": measure}, repeats=repeats)
    runs = {name: pairs for (name, _), pairs in measured.items()}
    base = runs.get(next(iter(settings)), next(iter(runs.values())))
    rows = [
        _row(ALONE, alone, [], base),
        *(_row(name, [a for a, _ in p], [b for _, b in p], base) for name, p in runs.items()),
    ]
    return Sharing(frame=to_frame(rows), rate=rate, stopped=stopped)


def at_once(
    quick: ServedModel, busy: ServedModel, documents: Sequence[str], wishes: Wishes, *, seconds: float = 1
) -> float:
    """Share of the time that two models worked while both had work, summed: 1 in turns, up to 2 at once.

    Parameters
    ----------
    quick, busy, wishes
        As `share` takes them, one setting.
    documents
        To both, four under way at each.
    seconds
        How long to measure.
    """
    ask = functools.partial(load_test, texts=documents, concurrency=4, seconds=seconds, warmup_s=0.2)
    with _configurations(quick, busy) as set_up, ThreadPoolExecutor(2) as pool:
        set_up(wishes)
        runs = list(pool.map(ask, (quick, busy)))
    return sum(_busy([whole(run)]) for run in runs)


@contextlib.contextmanager
def _configurations(*models: ServedModel) -> Iterator[Callable[[Wishes], None]]:
    """What gives each model its wishes; their own configurations are put back at the end."""
    own = [served.config for served in models]

    def set_up(wishes: Wishes) -> None:
        for served, config, wish in zip(models, own, wishes, strict=True):
            apply(served, limited(config, **wish))

    try:
        yield set_up
    finally:
        with contextlib.suppress(AccelError):  # a server that is gone has no configuration to put back
            for served, config in zip(models, own, strict=True):
                apply(served, config)


def _row(setting: str, quick: Sequence[LoadRun], busy: Sequence[LoadRun], base: Sequence[_Pair]) -> dict[str, Any]:
    names = ("p50_ms", "p95_ms", "p95_ms_low", "p95_ms_high")
    spent, against = speed(quick), ratios(quick, [a for a, _ in base])
    row: dict[str, Any] = {"setting": setting} | {name: spent[name] for name in names}
    row |= {name: value for name, value in against.items() if name.startswith("p95_ratio")}
    row["busy"] = float(np.sum([_busy(runs) for runs in (quick, busy) if runs]))
    done, over = (speed(busy), ratios(busy, [b for _, b in base])) if busy else ({}, {})
    for name in ("sentences_per_s", "sentences_per_s_low", "sentences_per_s_high"):
        row[name] = done.get(name, 0.0)
    for name in ("speedup", "speedup_low", "speedup_high"):
        row[name] = over.get(name, float("nan"))
    return row


def _busy(runs: Sequence[LoadRun]) -> float:
    """Share of the time that a model's instance worked, as Triton counted it."""
    counted = [(run.statistics.busy_s, run.seconds) for run in runs if run.statistics]
    return sum(busy_s for busy_s, _ in counted) / sum(seconds for _, seconds in counted) if counted else float("nan")
