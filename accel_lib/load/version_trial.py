"""A trial: labelled requests through a running gateway, split between two versions, judged as responses arrive."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from accel_lib.errors import AccelError
from accel_lib.load.gateway_requests import Gateway
from accel_lib.measurement import Result, to_frame
from accel_lib.stats import Difference, compare_shares, wilson
from accel_lib.texts import Texts

_CLIENTS = 8
_LOOK_EVERY = 50  # requests
_FEWEST = 30  # responses of a version before it is judged


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Trial(Result):
    """How versions `a` and `b` answered labelled requests, of which `lost` failed.

    `frame` has one row a version: ``name``, ``requests``, ``right`` with ``_low`` and ``_high``, ``p50_ms``; `answers`
    one a request, in the order of their responses: ``version``, ``right``, ``ms``.
    """

    answers: pd.DataFrame
    a: str
    b: str
    lost: int

    @property
    def difference(self) -> Difference:
        """How the share of right answers of `b` differs from that of `a`."""
        return _difference(self.answers, self.a, self.b)

    @property
    def headline(self) -> str:
        """Which version has more right answers, if either has."""
        return self.difference.sentence(f"version {self.a}", f"version {self.b}", "right answers")

    @property
    def alarms(self) -> int:
        """Looks at which the fixed-horizon interval leaves out zero and the sequential one does not."""
        return sum(_leaves_out_zero(self.course, "") & ~_leaves_out_zero(self.course, "anytime_"))

    @property
    def peeking(self) -> str:
        """At how many looks each interval leaves out zero: that often, who looks would have stopped."""
        once, always = (sum(_leaves_out_zero(self.course, kind)) for kind in ("", "anytime_"))
        looks = f"Of {len(self.course)} looks the fixed-horizon interval leaves out zero at {once}"
        return f"{looks}, the sequential one at {always}"

    @property
    def course(self) -> pd.DataFrame:
        """How the difference settled, request by request: see `narrowing`."""
        return narrowing(self.answers["version"].to_list(), self.answers["right"], a=self.a, b=self.b)


def run_trial(
    gateway: Gateway,
    name: str,
    texts: Texts,
    weights: Mapping[str, float],
    *,
    requests: int,
    model: str = "sentiment",
    until_significant: bool = False,
    seed: int = 0,
) -> Trial:
    """Begin an experiment on a gateway and send it labelled texts, each as another user; it runs on afterwards.

    Parameters
    ----------
    name
        Of the experiment.
    texts
        With labels; drawn at random, with repeats.
    weights
        Two versions and their shares; the first is the one that the other is compared with.
    requests
        How many to send at most.
    until_significant
        Stop as soon as the interval for all looks leaves out zero; it may be looked at as often as one likes.

    Raises
    ------
    AccelError
        The texts have no labels, there are not two versions, or the gateway refuses the plan.
    """
    if not texts.labels or len(weights) != 2:
        fix = 'run_trial(gateway, "trial", load_texts("sentiment-test"), {"1": 1, "2": 1}, requests=500)'
        raise AccelError("A trial takes labelled texts and two versions.", seen=f"{texts}, {weights}", fix=fix)
    a, b = weights
    with gateway.client() as client:
        answer = client.put(f"/v1/experiments/{name}", json={"model": model, "weights": dict(weights)})
    if answer.status_code != 200:
        fix = "choose versions that gateway.client().get('/v1/models') lists as READY, or end the experiment it names"
        raise AccelError("The gateway refuses that plan.", seen=answer.json()["message"], fix=fix)
    random = np.random.default_rng(seed)
    order = random.integers(0, len(texts), requests).tolist()
    salt, labels = random.integers(2**31), texts.labels
    turns, lock, over = itertools.count(), threading.Lock(), threading.Event()
    rows: list[dict[str, Any]] = []

    def work() -> None:
        with gateway.client() as client:
            while not over.is_set() and (turn := next(turns)) < requests:
                body = {"model": model, "input": texts[order[turn]], "user": f"user {salt} {turn}"}
                row = _ask(client, body, labels[order[turn]])
                with lock:
                    if row and over.is_set():  # decided already; only what is lost still counts
                        continue
                    rows.append(row)
                    if until_significant and len(rows) % _LOOK_EVERY == 0 and _decided(rows, a, b):
                        over.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = pd.DataFrame([row for row in rows if row], columns=["version", "right", "ms"])
    return Trial(frame=_by_version(answers, a, b), answers=answers, a=a, b=b, lost=sum(not row for row in rows))


def _ask(client: httpx.Client, body: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Version, verdict and milliseconds of one request; nothing if it was lost."""
    began = time.perf_counter()
    try:
        answer = client.post("/v1/classify", json=body)
    except httpx.TransportError:
        return {}
    if answer.status_code != 200:
        return {}
    ms = (time.perf_counter() - began) * 1e3
    right = answer.json()["data"][0]["label"].casefold() == label.casefold()
    return {"version": answer.headers["x-model-version"], "right": right, "ms": ms}


def _decided(rows: list[dict[str, Any]], a: str, b: str) -> bool:
    answers = pd.DataFrame([row for row in rows if row])
    counts = answers["version"].value_counts()
    return min(counts.get(a, 0), counts.get(b, 0)) >= _FEWEST and _difference(answers, a, b).significant


def _difference(answers: pd.DataFrame, a: str, b: str) -> Difference:
    first, second = (answers.loc[answers["version"] == version, "right"].to_numpy(dtype=bool) for version in (a, b))
    return compare_shares(first, second)


def _by_version(answers: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    rows = []
    for version in (a, b):
        own = answers[answers["version"] == version]
        right, n = int(own["right"].sum()), len(own)
        low, high = wilson(right, n) if n else (0.0, 1.0)
        shares = {"right": right / max(1, n), "right_low": low, "right_high": high}
        rows.append({"name": f"version {version}", "requests": n} | shares | {"p50_ms": own["ms"].median()})
    return to_frame(rows)


def _leaves_out_zero(course: pd.DataFrame, kind: str) -> pd.Series[bool]:
    return (course[f"{kind}low"] > 0) | (course[f"{kind}high"] < 0)


def narrowing(versions: Sequence[str], right: ArrayLike, *, a: str, b: str, looks: int = 40) -> pd.DataFrame:
    """How the difference of two versions settles as requests come in.

    Parameters
    ----------
    versions, right
        One entry a request, in their order: the version that answered, and whether it was right.
    a, b
        The versions to compare.
    looks
        Rows of the table, closer together at the beginning.

    Returns
    -------
    DataFrame
        ``requests``, ``difference`` of b to a, ``low``, ``high``, ``anytime_low``, ``anytime_high``;
        ``attrs["versions"]`` are a and b.
    """
    who, hits = np.asarray(versions), np.asarray(right, dtype=bool)
    rows = []
    for n in np.unique(np.geomspace(20, max(20, len(who)), looks).astype(int)):
        first, second = hits[:n][who[:n] == a], hits[:n][who[:n] == b]
        if len(first) and len(second):
            found = compare_shares(first, second)
            ends = ("difference", "low", "high", "anytime_low", "anytime_high")
            rows.append({"requests": int(n)} | {name: getattr(found, name) for name in ends})
    table = to_frame(rows)
    table.attrs["versions"] = (a, b)
    return table
