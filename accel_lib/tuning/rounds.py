"""Rounds of a sweep: kept line by line as they come, pooled by setting, and which settings are worth another one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.measurement import machine_line
from accel_lib.stats import mean_interval

_FIELD = 4  # settings of one round at most: the leader and the fastest of those that may beat it
_ENOUGH = 3  # rounds from which their spread decides, and not a run's own interval
_ALIKE = 0.05  # share of the leader's throughput within which a rival is as good
_LOST = 2  # rounds where nothing meets the target

Rounds = Sequence[Mapping[str, Any]]


class Journal:
    """Rounds by setting, also on disk where there is a file: a line of JSON each, the first says what is measured.

    A file that says something else than `measured`, or is no journal, is refused with an `AccelError`.
    """

    def __init__(self, file: str | Path | None, measured: Mapping[str, Any]) -> None:
        self._path = Path(file) if file else None
        self._rounds: dict[tuple[tuple[str, int], ...], list[dict[str, Any]]] = {}
        head = {"measured": dict(measured), "machine": machine_line()}
        if self._path and self._path.exists():
            self._read(self._path, head)
        elif self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(head)

    def rounds(self, setting: Mapping[str, int]) -> list[dict[str, Any]]:
        """The rounds of a setting so far."""
        return self._rounds.get(tuple(sorted(setting.items())), [])

    def add(self, setting: Mapping[str, int], values: Mapping[str, Any]) -> None:
        """Keep one more round of a setting."""
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        self._rounds.setdefault(tuple(sorted(setting.items())), []).append(plain)
        self._write({"setting": dict(setting), "run": plain})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _read(self, path: Path, head: Mapping[str, Any]) -> None:
        try:
            whole, _, half = path.read_bytes().decode().rpartition("\n")
            said, *lines = [dict(json.loads(line)) for line in whole.splitlines()]
        except (OSError, ValueError, TypeError) as error:
            raise AccelError("This file is no journal of a sweep.", seen=path.name, fix="name a new file") from error
        if said != head:
            seen = "; ".join(f"{name}: {said.get(name)} there, {head[name]} here" for name in head)
            fix = f"name another file, or remove {path.name}"
            raise AccelError("The journal is of another sweep.", seen=seen, fix=fix)
        if half:  # cut off while it was written
            os.truncate(path, len(whole.encode()) + 1)
        for line in lines:
            if "setting" in line:
                self._rounds.setdefault(tuple(sorted(line["setting"].items())), []).append(line["run"])


def pooled(rounds: Rounds) -> dict[str, Any]:
    """Rounds of one setting as one row: means, with their interval, or the runs' own where there are few."""
    rows = pd.DataFrame(list(rounds))
    row: dict[str, Any] = {"runs": len(rows), "errors": int(rows["errors"].sum())}
    for name in ("texts_per_s", "p50_ms", "p95_ms"):
        low, high = float(rows[f"{name}_low"].min()), float(rows[f"{name}_high"].max())
        if len(rows) >= _ENOUGH:
            low, high = mean_interval(rows[name].to_numpy())
        row |= {name: float(rows[name].mean()), f"{name}_low": low, f"{name}_high": high}
    if "mean_batch_size" in rows:
        row["mean_batch_size"] = float(rows["mean_batch_size"].mean())
    return row


def next_round(rounds: Mapping[int, Rounds], p95_ms: float, *, repeats: int) -> list[int]:
    """Settings to measure once more; none when the leader is known to be the fastest, or cannot be within `repeats`.

    A round has its number (``round``), ``texts_per_s`` and ``p95_ms`` with ``_low`` and ``_high``.
    """
    if not rounds:
        return []
    first = leader(rounds, p95_ms)
    if first is None:
        closest = sorted(rounds, key=lambda index: _mean(rounds[index], "p95_ms"))[:2]
        return [index for index in closest if len(rounds[index]) < min(repeats, _LOST)]
    if len(rounds[first]) >= repeats:
        return []
    others = sorted((i for i in rounds if i != first), key=lambda index: -_mean(rounds[index], "texts_per_s"))
    rivals = [i for i in others if len(rounds[i]) < repeats and _open(rounds[first], rounds[i], p95_ms)]
    if not rivals and len(rounds[first]) == 1:  # the winner of one round is a little lucky: once more
        return [first, *others[:1]]
    return [first, *rivals[: _FIELD - 1]] if rivals else []


def leader(rounds: Mapping[int, Rounds], p95_ms: float) -> int | None:
    """The setting with most throughput among those within the target."""
    meets = [index for index in rounds if _mean(rounds[index], "p95_ms") <= p95_ms]
    return max(meets, key=lambda index: _mean(rounds[index], "texts_per_s"), default=None)


def over(rounds: Rounds, best: Rounds) -> tuple[float, float, float]:
    """Throughput over the leader's: ratio and interval, from the rounds that both have.

    For fewer than three the interval is all that both settings' own runs allow.
    """
    if rounds is best:
        return 1.0, 1.0, 1.0
    logs = _logs(rounds, best)
    if len(logs) < _ENOUGH:
        least = min(run["texts_per_s_low"] for run in best)  # 0 of a run too short to say more
        low = min(run["texts_per_s_low"] for run in rounds) / max(run["texts_per_s_high"] for run in best)
        high = max(run["texts_per_s_high"] for run in rounds) / least if least > 0 else np.inf
        return _mean(rounds, "texts_per_s") / _mean(best, "texts_per_s"), float(low), float(high)
    low, high = mean_interval(logs)
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def _open(best: Rounds, rival: Rounds, p95_ms: float) -> bool:
    """Whether a rival may still be faster than the leader, and is not known to be just as fast."""
    if min(run["p95_ms_low"] for run in rival) > p95_ms:
        return False
    _, low, high = over(rival, best)
    as_good = len(_logs(rival, best)) >= _ENOUGH and 1 - _ALIKE <= low <= high <= 1 + _ALIKE
    return high >= 1 and not as_good


def _logs(rounds: Rounds, best: Rounds) -> NDArray[np.float64]:
    """Logarithms of the throughput's ratios, in the rounds that both have."""
    theirs = {run["round"]: run["texts_per_s"] for run in best}
    return np.array([np.log(run["texts_per_s"] / theirs[run["round"]]) for run in rounds if run["round"] in theirs])


def _mean(rounds: Rounds, name: str) -> float:
    return float(np.mean([run[name] for run in rounds]))
