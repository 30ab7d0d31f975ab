"""Kubernetes' autoscaler, replayed over a day: its formula and its delays, on replicas that the simulator describes.

Between the autoscaler's looks, every 15 s, the load is spread evenly, and what replicas cannot answer waits. The rules
are those of kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale and of the behavior fields of
autoscaling/v2.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import capital, listed, number, percent
from accel_lib.measurement import Result, highest, lowest
from accel_lib.tuning.replica import SIGNALS, Replica

SYNC_S = 15  # between two looks of the autoscaler, its default
BURST_HOUR = 15.0
_BURST = 1.8  # times the usual load
MOST_LATE = 0.01  # share of late requests that still counts as meeting the target
_SAME_COST = 1.01  # times the least: no difference
_TOLERANCE = 0.1  # within which it leaves things alone, its default
_WINDOW = 4  # looks that the recorded rate(…[1m]) spans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hpa:
    """A HorizontalPodAutoscaler; the defaults are the chart's.

    `target` is in milliseconds of the signal ``"queue"``, and a share of ``"cpu"`` or ``"gpu"``. It adds at most the
    larger of `up_percent` and `up_pods` within `up_period_s`; it goes down to the most that it wanted within
    `down_window_s`, by at most `down_pods` within `down_period_s`.
    """

    signal: Literal["queue", "cpu", "gpu"] = "queue"
    target: float = 20.0
    min_replicas: int = 1
    max_replicas: int = 12
    up_percent: int = 100
    up_pods: int = 2
    up_period_s: int = 60
    down_window_s: int = 300
    down_pods: int = 1
    down_period_s: int = 120

    @property
    def column(self) -> str:
        """Where its signal is in a replica's table."""
        return "queue_ms" if self.signal == "queue" else self.signal

    def __str__(self) -> str:
        target = f"{number(self.target)} ms" if self.signal == "queue" else f"{self.target:.0%}"
        return f"{SIGNALS[self.column]} {target}"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Replay(Result):
    """A day under one policy, with its latency target and a replica's price.

    `frame` has one row a look: ``hour``, ``rate`` (requests/s), ``replicas`` (that answer), ``paid`` (with those that
    start), ``queue_ms``, ``p95_ms``, ``cpu``, ``gpu``, ``shed`` (requests rejected), ``needed`` (replicas).
    """

    name: str
    p95_ms: float
    price_per_hour: float

    @property
    def late(self) -> float:
        """Share of the requests that came while the p95 was over the target, or were rejected."""
        requests, over = self.frame["rate"] * SYNC_S, self.frame["p95_ms"] > self.p95_ms
        return float((requests[over].sum() + self.frame.loc[~over, "shed"].sum()) / requests.sum())

    @property
    def cost_per_million(self) -> float:
        """Price per million answered requests, in the unit of `price_per_hour`; replicas that start are paid for."""
        answered = float((self.frame["rate"] * SYNC_S).sum() - self.frame["shed"].sum())
        return float(self.frame["paid"].sum()) * SYNC_S / 3600 * self.price_per_hour / answered * 1e6

    def minutes_after(self, hour: float) -> float:
        """Minutes from an hour until the p95 is back within the target and stays there for five minutes."""
        after = self.frame[self.frame["hour"] >= hour]
        good = (after["p95_ms"] <= self.p95_ms).to_numpy()
        back = (step for step in range(len(good)) if good[step : step + 300 // SYNC_S].all())
        return next(back, float("nan")) * SYNC_S / 60

    @property
    def summary(self) -> dict[str, Any]:
        """The policy as one row of a comparison."""
        return {
            "name": self.name,
            "replicas_mean": float(self.frame["replicas"].mean()),
            "changes": int((self.frame["paid"].diff().fillna(0) != 0).sum()),
            "replicas_max": int(self.frame["replicas"].max()),
            "late": self.late,
            "cost_per_million": self.cost_per_million,
        }

    @property
    def headline(self) -> str:
        """What the day cost, and how many requests came late."""
        price, fleet = number(self.cost_per_million), number(float(self.frame["replicas"].mean()))
        late = f"{percent(self.late, 1)} of them came while the p95 was over {number(self.p95_ms)} ms"
        return f"{self.name}: {price} USD per million answered requests; {late}; {fleet} replicas on average"

    @property
    def _table(self) -> pd.DataFrame:
        return pd.DataFrame([self.summary])


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Policies(Result):
    """Some replays of one day, beside each other."""

    replays: tuple[Replay, ...]

    @property
    def best(self) -> str:
        """The cheapest policy that keeps the target; empty if none does."""
        kept = self.frame[self.frame["late"] <= MOST_LATE]
        return "" if kept.empty else str(lowest(kept, "cost_per_million")["name"])

    @property
    def headline(self) -> str:
        """Which policy meets the target for the least."""
        kept = self.frame[self.frame["late"] <= MOST_LATE]
        if kept.empty:
            best = lowest(self.frame, "late")
            return f"No policy keeps the target: {best['name']} comes closest, with {percent(best['late'], 1)} late"
        best, dearest = lowest(kept, "cost_per_million"), highest(kept, "cost_per_million")
        price = number(best["cost_per_million"])
        less = percent(1 - best["cost_per_million"] / dearest["cost_per_million"])
        names = kept.loc[kept["cost_per_million"] <= _SAME_COST * best["cost_per_million"], "name"].tolist()
        verb = "keeps" if len(names) == 1 else "keep"
        said = f"{listed(names)} {verb} the target for the least: {price} USD per million answered requests"
        return capital(f"{said}, {less} less than {dearest['name']}" if dearest["name"] not in names else said)

    def recovery_minutes(self, hour: float = BURST_HOUR) -> dict[str, float]:
        """Minutes from a burst until the p95 was back within the target for good; NaN if never."""
        return {each.name: each.minutes_after(hour) for each in self.replays}

    def recovery(self, *names: str, hour: float = BURST_HOUR) -> str:
        """What `recovery_minutes` says of some policies, or of all."""
        minutes = self.recovery_minutes(hour)
        said = [
            f"{name} {f'in {number(minutes[name])} min' if minutes[name] >= 0 else 'never'}"
            for name in names or minutes
        ]
        return f"From the beginning of the burst the p95 is back within the target: {listed(said)}"

    def fastest(self, *names: str, hour: float = BURST_HOUR) -> str:
        """Which of some was back within the target first after the burst; ``"no difference"`` within a look."""
        minutes = pd.Series(self.recovery_minutes(hour))[list(names)].fillna(math.inf)
        first = minutes.index[minutes <= minutes.min() + SYNC_S / 60].tolist()
        return listed(first) if len(first) < len(names) else "no difference"

    def confirmed_by(self, *others: Policies) -> str:
        """Whether replays of the same policies on other replicas name the same one as the best, and its cost there."""
        if not self.best:
            return self.headline
        replays = [each[self.best] for each in (self, *others)]
        costs = sorted(each.cost_per_million for each in replays)
        cost = _range([number(each) for each in costs])
        late = _range([percent(each, 1) for each in sorted(each.late for each in replays)])
        named = [each.best or "no policy" for each in others]
        agreed = all(name == self.best for name in named)
        other = " or ".join(dict.fromkeys(named))
        verdict = "the best in each of the days" if agreed else f"on the other days the best is {other}"
        return capital(f"{self.best}: {cost} USD per million answered requests, {late} late; {verdict}")

    def __getitem__(self, name: str) -> Replay:
        """The replay of that name."""
        return next(replay for replay in self.replays if replay.name == name)


def daily_load(peak: float) -> NDArray[np.float64]:
    """Requests/s at every look of a day: an idle night, two humps, noise, and a burst at three o'clock.

    `peak` is that of the evening; the burst multiplies the load for twenty minutes, from one look to the next.
    """
    hours = np.arange(0, 24, SYNC_S / 3600)
    shape = 0.12 + 0.6 * np.exp(-(((hours - 11) / 2.6) ** 2)) + 0.88 * np.exp(-(((hours - 19.5) / 2.4) ** 2))
    noise = np.random.default_rng(0).normal(1.0, 0.04, len(hours))
    during = (hours >= BURST_HOUR) & (hours < BURST_HOUR + 1 / 3)
    rates: NDArray[np.float64] = peak * shape * np.clip(noise, 0.85, 1.15) * np.where(during, _BURST, 1.0)
    return rates


def burst_load(before: float, after: float, *, minutes: int = 30) -> NDArray[np.float64]:
    """Requests/s at every look: some minutes of the one rate, then, from one look to the next, as many of the other."""
    rates: NDArray[np.float64] = np.repeat([before, after], minutes * 60 // SYNC_S).astype(np.float64)
    return rates


def replay(
    replica: Replica,
    rates: Sequence[float] | NDArray[np.float64],
    policy: Hpa | int,
    *,
    p95_ms: float,
    start_s: float,
    deadline_s: float = 10.0,
    price_per_hour: float = 1.0,
    name: str = "",
) -> Replay:
    """A day under an autoscaler, or under a fixed number of replicas.

    Parameters
    ----------
    rates
        Requests/s at every look.
    policy
        The autoscaler, or a number of replicas.
    p95_ms
        The latency target.
    start_s
        From the decision to a replica that answers: node, image, engine and model.
    deadline_s
        The gateway rejects what would wait longer.
    """
    if isinstance(policy, Hpa):
        if not (policy.target > 0 and 1 <= policy.min_replicas <= policy.max_replicas):
            fix = "Hpa(target=20, min_replicas=1, max_replicas=4)"
            raise AccelError("An autoscaler needs a target above zero and 1 ≤ min ≤ max.", seen=repr(policy), fix=fix)
        if replica.frame[policy.column].isna().any():
            raise AccelError(
                "The autoscaler has no such signal.",
                seen=f"{SIGNALS[policy.column]} was not measured",
                fix="fit the simulator to a server that this machine runs: accel_lib.serve()",
            )
    fleet = _Fleet(replica, policy, start_s=start_s, deadline_s=deadline_s)
    frame = pd.DataFrame([fleet.look(step, float(rate)) for step, rate in enumerate(rates)])
    frame["needed"] = replica.needed(frame["rate"], p95_ms)
    frame.attrs |= replica.frame.attrs
    name = name or (str(policy) if isinstance(policy, Hpa) else f"{policy} replicas, fixed")
    return Replay(frame=frame, name=name, p95_ms=p95_ms, price_per_hour=price_per_hour)


def compare_policies(
    replica: Replica, rates: Sequence[float] | NDArray[np.float64], policies: Mapping[str, Hpa | int], **settings: Any
) -> Policies:
    """The same day under some policies; `settings` as of `replay`."""
    replays = tuple(replay(replica, rates, policy, name=name, **settings) for name, policy in policies.items())
    frame = pd.DataFrame([each.summary for each in replays])
    frame.attrs |= replica.frame.attrs
    return Policies(frame=frame, replays=replays)


def _range(values: Sequence[str]) -> str:
    """From the first to the last, once where they are the same."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


class _Fleet:
    """Replicas, those that start, and the requests that wait; and the autoscaler that looks at them."""

    def __init__(self, replica: Replica, policy: Hpa | int, *, start_s: float, deadline_s: float) -> None:
        self._replica, self._hpa = replica, policy if isinstance(policy, Hpa) else None
        self._ready = policy if isinstance(policy, int) else policy.min_replicas
        self._loads = replica.frame["share"].to_numpy()
        self._curves = {column: replica.frame[column].to_numpy() for column in (*SIGNALS, "p95_ms")}
        self._start, self._deadline_s = max(1, round(start_s / SYNC_S)), deadline_s
        self._starting: list[int] = []
        self._waiting = 0.0
        self._seen: list[float] = []
        self._wanted: list[int] = []
        self._paid: list[int] = []

    def look(self, step: int, rate: float) -> dict[str, float]:
        """What happened since the last look, and what the autoscaler makes of it."""
        self._ready += sum(at <= step for at in self._starting)
        self._starting = [at for at in self._starting if at > step]
        capacity = self._ready * self._replica.capacity
        waiting = max(0.0, self._waiting + (rate - capacity) * SYNC_S)
        self._waiting = min(waiting, capacity * self._deadline_s)
        wait_ms = 1e3 * self._waiting / capacity
        load = 1.0 if self._waiting else min(rate / capacity, 1.0)
        row = {column: float(np.interp(load, self._loads, values)) for column, values in self._curves.items()}
        row["queue_ms"] += wait_ms
        row["p95_ms"] += wait_ms
        row |= {"hour": step * SYNC_S / 3600, "rate": rate, "shed": waiting - self._waiting}
        row |= {"replicas": self._ready, "paid": self._ready + len(self._starting)}
        self._paid.append(int(row["paid"]))
        if self._hpa:
            self._seen.append(row[self._hpa.column])
            self._scale(step, self._hpa)
        return row

    def _scale(self, step: int, hpa: Hpa) -> None:
        total = self._ready + len(self._starting)
        wanted = max(hpa.min_replicas, min(hpa.max_replicas, self._desired(hpa, total)))
        self._wanted.append(wanted)
        if wanted > total:
            before = self._paid[max(0, step - hpa.up_period_s // SYNC_S)]
            most = max(math.ceil(before * (1 + hpa.up_percent / 100)), before + hpa.up_pods)
            self._starting += [step + self._start] * (min(wanted, most) - total)
        elif wanted < total:
            window = max(1, hpa.down_window_s // SYNC_S)
            before = self._paid[max(0, step - hpa.down_period_s // SYNC_S)]
            gone = total - max(max(self._wanted[-window:]), before - hpa.down_pods)
            if gone > 0:
                self._ready -= max(0, gone - len(self._starting))
                self._starting = self._starting[: max(0, len(self._starting) - gone)]

    def _desired(self, hpa: Hpa, total: int) -> int:
        """The formula: replicas times metric over target. Pods that start count as idle when it goes up."""
        ratio = statistics.fmean(self._seen[-_WINDOW:]) / hpa.target
        if ratio > 1 and self._starting:
            ratio *= self._ready / total
            if ratio <= 1:
                return total
        if abs(ratio - 1) <= _TOLERANCE:
            return total
        return math.ceil(total * ratio)
