"""What experiments see: samples kept in memory, written in the background, compared with confidence."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
from typing import Any

import numpy as np

from accel_lib.errors import StateError
from accel_lib.service.state import State
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
    experiment, version
        Who saw it.
    latency_ms, compute_ms
        Of the whole request, and of Triton alone; None for a shadow's latency, which nobody waited for.
    texts
        Texts in the request.
    failed
        Whether it ended in an error.
    agreement
        Of a shadow: texts with the same label as the answer that was sent, or the sum of cosines to it.
    """

    experiment: str
    version: str
    latency_ms: float | None
    compute_ms: float
    texts: int
    failed: bool = False
    agreement: float | None = None


class Observations:
    """Takes samples without waiting for the disk; a thread writes them once a second.

    While the disk is full they wait in memory, the newest 20,000 of them.
    """

    def __init__(self, state: State) -> None:
        self._state = state
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
            columns = [field.name for field in dataclasses.fields(Sample)]
            marks = ", ".join(f":{column}" for column in columns)
            statement = f"INSERT INTO observations ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 (names of our own fields)
            try:
                with self._state.changing() as change:
                    change.executemany(statement, [dataclasses.asdict(sample) for sample in taken])
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
        """Drop what an experiment saw, as when it starts anew."""
        with contextlib.suppress(StateError):
            self.flush()
        self._state.write("DELETE FROM observations WHERE experiment = ?", (experiment,))

    def close(self) -> None:
        """Write the last samples and end the thread."""
        self._over.set()
        self._writer.join()
        with contextlib.suppress(StateError):
            self.flush()

    def by_version(self, experiment: str) -> dict[str, list[Sample]]:
        """The latest samples of each version, written ones and waiting ones."""
        found: dict[str, list[Sample]] = {}
        with self._lock:
            waiting = [sample for sample in list(self._waiting) if sample.experiment == experiment]
            rows = self._state.read("SELECT * FROM observations WHERE experiment = ? ORDER BY number", (experiment,))
        names = [field.name for field in dataclasses.fields(Sample)]
        for sample in [*(Sample(**{name: row[name] for name in names}) for row in rows), *waiting]:
            found.setdefault(sample.version, []).append(sample)
        return {version: samples[-_COMPARED:] for version, samples in sorted(found.items())}

    def _write(self) -> None:
        while not self._over.wait(_WRITE_S):
            try:
                self.flush()
            except StateError as error:
                _log.warning(error.cause)


def summary(version: str, samples: list[Sample], *, labels: bool) -> dict[str, Any]:
    """What one version did: requests, failures, latency, compute and agreement, with 95% intervals.

    Parameters
    ----------
    version, samples
        The version, and what it did.
    labels
        Whether agreement counts equal labels, which has an interval, or sums cosines.
    """
    good = [sample for sample in samples if not sample.failed]
    waited = [sample.latency_ms for sample in good if sample.latency_ms is not None]
    compared = [sample for sample in good if sample.agreement is not None]
    shown: dict[str, Any] = {
        "version": version,
        "requests": len(samples),
        "texts": sum(sample.texts for sample in samples),
        "failed": len(samples) - len(good),
        "latency_ms": {name: _with_interval(waited, q) for name, q in (("p50", 50), ("p95", 95))} if waited else None,
        "compute_ms_per_text": _with_interval(_per_text(good), 50) if good else None,
        "agreement": None,
    }
    if compared:
        texts = sum(sample.texts for sample in compared)
        share = sum(sample.agreement or 0.0 for sample in compared) / texts
        low, high = wilson(min(texts, round(share * texts)), texts) if labels else (None, None)
        shown["agreement"] = {"value": share, "low": low, "high": high, "texts": texts}
    return shown


def verdicts(base: str, other: str, a: list[Sample], b: list[Sample]) -> list[dict[str, Any]]:
    """How one version compares with the base: latency, cost, failures; each a sentence that chance is counted in."""
    names = f"version {base}", f"version {other}"
    good_a, good_b = ([s for s in samples if not s.failed] for samples in (a, b))
    waited = [[s.latency_ms for s in side if s.latency_ms] for side in (good_a, good_b)]
    computed = [_per_text(side) for side in (good_a, good_b)]
    found = []
    for measure, unit, (one, two) in (("latency", "ms", waited), ("compute", "ms a text", computed)):
        if one and two:
            verdict = compare_medians(one, two)
            sentence = verdict.sentence(*names, unit, better="lower")
            found.append(_verdict(measure, other, verdict.significant, sentence))
    shares = compare_shares([s.failed for s in a], [s.failed for s in b])
    found.append(_verdict("failures", other, shares.significant, shares.sentence(*names, "failures")))
    return found


def _verdict(measure: str, version: str, significant: bool, sentence: str) -> dict[str, Any]:
    return {"measure": measure, "version": version, "significant": significant, "sentence": sentence}


def _per_text(samples: list[Sample]) -> list[float]:
    return [sample.compute_ms / sample.texts for sample in samples if sample.compute_ms > 0 and sample.texts]


def _with_interval(values: list[float], q: float) -> dict[str, float | None]:
    if not values:
        return {"value": None, "low": None, "high": None}
    low, high = percentile_interval(values, q)
    ends = {"value": percentile(values, q), "low": low, "high": high}
    return {name: float(value) if np.isfinite(value) else None for name, value in ends.items()}
