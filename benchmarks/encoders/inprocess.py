"""Throughput, latency and quality in one process a library: each candidate at its best way to batch, in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel_lib.bench import QualityJudge
from benchmarks.encoders.candidates import Candidate
from benchmarks.encoders.environments import python_of

WORKER = Path(__file__).parent / "worker.py"
LARGE = ", large"  # behind a name: the candidate with the larger model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Parameters
    ----------
    tuning
        Texts with which each way to batch is tried.
    trials, turns
        Times that each way is tried, and turns of all candidates, each at its best way.
    alone
        Texts that are encoded one at a time.
    large_texts, large_turns
        As `turns`, for the larger model.
    """

    tuning: int = 128
    trials: int = 2
    turns: int = 7
    alone: int = 48
    large_texts: int = 48
    large_turns: int = 3


QUICK = Effort(tuning=48, trials=1, turns=3, alone=16, large_texts=12, large_turns=1)


class Worker:
    """A library's process, in which its candidates are open."""

    def __init__(self, python: Path | str, texts: Path) -> None:
        self._process = subprocess.Popen(
            [python, WORKER, texts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, do: str, name: str, **request: Any) -> dict[str, Any]:
        """One request and its answer; a RuntimeError says what the library said, or that the process has ended."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, "name": name} | request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended with {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def seconds(self, name: str, way: str, count: int) -> float:
        """Seconds for the first `count` texts, batched in one way."""
        return float(self.ask("time", name, way=way, count=count)["seconds"])

    def vectors(self, name: str, way: str, texts: Sequence[str]) -> np.ndarray:
        """What a candidate makes of texts."""
        with tempfile.TemporaryDirectory() as folder:
            listed, saved = Path(folder, "texts.json"), Path(folder, "vectors.npy")
            listed.write_text(json.dumps(list(texts)), encoding="utf-8")
            self.ask("vectors", name, way=way, texts=str(listed), save=str(saved))
            return np.load(saved)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def measure(
    field: Sequence[Candidate], texts: Sequence[str], *, judge: QualityJudge, build: Path, effort: Effort
) -> list[dict[str, Any]]:
    """One row a candidate: quality, best way to batch, texts a second by turn, milliseconds of one text alone."""
    with workers(field, texts, build) as opened:
        rows: dict[str, dict[str, Any]] = {}
        for one in field:
            if starts(opened, one):
                with or_left_out(one.name):
                    rows[one.name] = tuned(opened[one.process], one, len(texts), effort)
        field = [one for one in field if one.name in rows]
        for one in field:
            judged(opened[one.process], rows[one.name], judge)
        for turn in range(effort.turns):
            for one in turned(field, turn):
                row = rows[one.name]
                row["rates"].append(len(texts) / opened[one.process].seconds(one.name, row["way"], len(texts)))
        for one in field:
            rows[one.name]["alone_ms"] = float(
                np.median(opened[one.process].ask("alone", one.name, count=effort.alone)["ms"])
            )
            opened[one.process].ask("close", one.name)
        in_large(opened, [one for one in field if one.large], rows, effort)
    return list(rows.values())


@contextlib.contextmanager
def workers(field: Sequence[Candidate], texts: Sequence[str], build: Path) -> Iterator[dict[str, Worker]]:
    """A worker for each library whose environment could be made."""
    listed = build / "texts.json"
    listed.write_text(json.dumps(list(texts)), encoding="utf-8")
    opened: dict[str, Worker] = {}
    try:
        for process in dict.fromkeys(one.process for one in field):
            python = python_of(process, build) if process == "sentence-transformers" else sys.executable
            if python is not None:
                opened[process] = Worker(python, listed)
        yield opened
    finally:
        for worker in opened.values():
            worker.close()


def starts(opened: dict[str, Worker], one: Candidate, *, large: bool = False) -> bool:
    """Open a candidate; whether it could be, with a line that says why not."""
    if one.process not in opened:
        return False
    name, folder = (one.name + LARGE, one.large) if large else (one.name, one.folder)
    with or_left_out(name):
        opened[one.process].ask("open", name, kind=one.kind, folder=str(folder), options=dict(one.options))
        return True
    return False


@contextlib.contextmanager
def or_left_out(name: str) -> Iterator[None]:
    """Go on without a candidate that fails, with a line that says why."""
    try:
        yield
    except RuntimeError as error:
        print(f"{name} is left out: {error}", flush=True)


def tuned(worker: Worker, one: Candidate, count: int, effort: Effort) -> dict[str, Any]:
    """The row of a candidate with the ways that were tried, in texts a second, and the best of them."""
    few = min(effort.tuning, count)
    tried = {way: few / min(worker.seconds(one.name, way, few) for _ in range(effort.trials)) for way in one.ways}
    print(f"{one.name}: " + ", ".join(f"{way} {rate:.0f}/s" for way, rate in tried.items()), flush=True)
    best = max(tried, key=lambda way: tried[way])
    return {"name": one.name, "ours": one.ours, "way": best, "tried": tried, "rates": [], "large_rates": []}


def judged(worker: Worker, row: dict[str, Any], judge: QualityJudge) -> None:
    """Add the quality of a candidate's vectors, batched as they are fastest, and the class that follows."""
    quality = judge.quality(lambda texts: worker.vectors(row["name"], row["way"], list(texts)))
    row |= {"class": quality.quality_class, "quality": dataclasses.asdict(quality)}
    print(f"{row['name']}: {quality}", flush=True)


def in_large(
    opened: dict[str, Worker], field: Sequence[Candidate], rows: dict[str, dict[str, Any]], effort: Effort
) -> None:
    """Add texts a second with the larger model, batched as is best with the smaller one."""
    field = [one for one in field if starts(opened, one, large=True)]
    for turn in range(-1, effort.large_turns):  # the first turn warms up
        for one in turned(field, max(turn, 0)):
            seconds = opened[one.process].seconds(one.name + LARGE, rows[one.name]["way"], effort.large_texts)
            rows[one.name]["large_rates"] += [effort.large_texts / seconds] if turn >= 0 else []


def turned(field: Sequence[Candidate], turn: int) -> list[Candidate]:
    """All of them, another one first each turn."""
    first = turn % len(field) if field else 0
    return [*field[first:], *field[:first]]
