"""What experiments observe: samples kept in memory, written in the background, compared with confidence intervals."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
from typing import Literal

import numpy as np

from accel_lib.errors import StateError
from accel_lib.service.database import Database
from accel_lib.stats import compare_medians, compare_shares, percentile, percentile_interval, wilson

_log = logging.getLogger("accel.experiments")
_WAITING = 20_000  # samples that wait for a disk with room; older ones are dropped
_KEPT = 20_000  # samples of one experiment on disk
_COMPARED = 4_000  # latest samples of one version that a comparison looks at
_WRITE_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One request that a version answered, or computed as a shadow.

    Parameters
    ----------
    latency_ms, compute_ms
        Of the whole request, and of Triton alone; None for a shadow's latency, for which no client waited.
    agreement
        Of a shadow: texts with the same label as the response that was sent, or the sum of cosines to it.
    """

    experiment: str
    version: str
    latency_ms: float | None
    compute_ms: float
    texts: int
    failed: bool = False
    agreement: float | None = None


_COLUMNS = tuple(field.name for field in dataclasses.fields(Sample))
_INSERT = f"INSERT INTO observations ({', '.join(_COLUMNS)}) VALUES (:{', :'.join(_COLUMNS)})"  # noqa: S608 (our own names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95% interval; an end that so few samples cannot give is null."""

    value: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement(Interval):
    """Share of equal labels, or mean cosine, between a shadow and what was sent."""

    texts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Of whole requests, milliseconds."""

    p50: Interval
    p95: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """What one version did in an experiment."""

    version: str
    requests: int
    texts: int
    failed: int
    latency_ms: Latency | None
    compute_ms_per_text: Interval | None
    agreement: Agreement | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a version compares with the live one, and whether more than chance explains it."""

    measure: Literal["latency", "compute", "failures"]
    version: str
    significant: bool
    sentence: str


class Observations:
    """Takes samples without waiting for the disk; a thread writes them once per second.

    While the disk is full they wait in memory, the newest 20,000 of them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: collections.deque[Sample] = collections.deque(maxlen=_WAITING)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, name="accel-observations", daemon=True)
        self._writer.start()

    def record(self, sample: Sample) -> None:
        """Take a sample."""
        self._waiting.append(sample)

    def flush(self) -> None:
        """Write what is waiting; raises `StateError`, with everything still waiting."""
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not taken:
                return
            try:
                with self._database.changing() as change:
                    change.executemany(_INSERT, [dataclasses.asdict(sample) for sample in taken])
                    for experiment in {sample.experiment for sample in taken}:
                        change.execute(
                            "DELETE FROM observations WHERE experiment = ? AND number <= (SELECT number FROM "
                            "observations WHERE experiment = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                            (experiment, experiment, _KEPT),
                        )
            except StateError:
                self._waiting.extendleft(reversed(taken))
                raise

    def forget(self, experiment: str) -> None:
        """Drop what an experiment observed, as when it starts again."""
        with contextlib.suppress(StateError):
            self.flush()
        self._database.write("DELETE FROM observations WHERE experiment = ?", (experiment,))

    def close(self) -> None:
        """Write the last samples and end the thread."""
        self._over.set()
        self._writer.join()
        with contextlib.suppress(StateError):
            self.flush()

    def by_version(self, experiment: str) -> dict[str, list[Sample]]:
        """The latest samples of each version, written ones and waiting ones."""
        found: dict[str, list[Sample]] = {}
        query = f"SELECT {', '.join(_COLUMNS)} FROM observations WHERE experiment = ? ORDER BY number"  # noqa: S608 (our own names)
        with self._lock:
            waiting = [sample for sample in list(self._waiting) if sample.experiment == experiment]
            rows = self._database.read(query, (experiment,))
        for sample in [*(Sample(**row) for row in rows), *waiting]:
            found.setdefault(sample.version, []).append(sample)
        return {version: samples[-_COMPARED:] for version, samples in sorted(found.items())}

    def _write(self) -> None:
        while not self._over.wait(_WRITE_S):
            try:
                self.flush()
            except StateError as error:
                _log.warning(error.cause)


def summarize(version: str, samples: list[Sample], *, labels: bool) -> VersionSummary:
    """What one version did; `labels` says that agreement counts equal labels, which has an interval."""
    good = [sample for sample in samples if not sample.failed]
    waited = [sample.latency_ms for sample in good if sample.latency_ms is not None]
    return VersionSummary(
        version=version,
        requests=len(samples),
        texts=sum(sample.texts for sample in samples),
        failed=len(samples) - len(good),
        latency_ms=Latency(p50=_with_interval(waited, 50), p95=_with_interval(waited, 95)) if waited else None,
        compute_ms_per_text=_with_interval(_per_text(good), 50) if good else None,
        agreement=_agreement([sample for sample in good if sample.agreement is not None], labels=labels),
    )


def compare(base: str, other: str, a: list[Sample], b: list[Sample]) -> list[Verdict]:
    """How one version compares with the base: latency, compute, failures; each in a sentence."""
    names = f"version {base}", f"version {other}"
    sides = [[sample for sample in samples if not sample.failed] for samples in (a, b)]
    waited = [[sample.latency_ms for sample in side if sample.latency_ms] for side in sides]
    computed = [_per_text(side) for side in sides]
    found = []
    measures: tuple[Literal["latency", "compute"], ...] = ("latency", "compute")
    for measure, unit, (one, two) in zip(measures, ("ms", "ms per text"), (waited, computed), strict=True):
        if one and two:
            verdict = compare_medians(one, two)
            sentence = verdict.sentence(*names, unit, better="lower")
            found.append(Verdict(measure=measure, version=other, significant=verdict.significant, sentence=sentence))
    shares = compare_shares([sample.failed for sample in a], [sample.failed for sample in b])
    sentence = shares.sentence(*names, "failures")
    found.append(Verdict(measure="failures", version=other, significant=shares.significant, sentence=sentence))
    return found


def _agreement(compared: list[Sample], *, labels: bool) -> Agreement | None:
    if not compared:
        return None
    texts = sum(sample.texts for sample in compared)
    share = sum(sample.agreement or 0.0 for sample in compared) / texts
    low, high = wilson(min(texts, round(share * texts)), texts) if labels else (None, None)
    return Agreement(value=share, low=low, high=high, texts=texts)


def _per_text(samples: list[Sample]) -> list[float]:
    return [sample.compute_ms / sample.texts for sample in samples if sample.compute_ms > 0 and sample.texts]


def _with_interval(values: list[float], q: float) -> Interval:
    if not values:
        return Interval(value=None, low=None, high=None)
    low, high = (float(end) if np.isfinite(end) else None for end in percentile_interval(values, q))
    return Interval(value=float(percentile(values, q)), low=low, high=high)
