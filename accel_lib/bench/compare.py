"""Speed, size and agreement of candidates in one table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accel_lib.artifact import Artifact
from accel_lib.bench.candidates import BASELINE, Candidate, baseline, open_candidate
from accel_lib.bench.timing import Timing, affordable, sample, time_candidates
from accel_lib.errors import ModelError, TextError
from accel_lib.formatting import UNCHANGED, capital, differs, listed, percent, ratio
from accel_lib.measurement import Result, columns, highest, lowest, speedup, to_frame
from accel_lib.models import Model, load_model
from accel_lib.progress import Progress
from accel_lib.stats import agreement, measure_quality

_FEWEST_TEXTS = 16
_FEWEST_COMPARED = 48  # texts that agreement is measured on
_SPEED_SHARE = 0.7  # of the seconds


class Comparison(Result):
    """What `compare` measured: one row a candidate, baselines first."""

    @property
    def headline(self) -> str:
        """Which candidate is fastest, by how much, what it keeps of the reference, and which others may be as fast."""
        candidates = self.frame[self.frame["over"] != ""]
        best = highest(candidates, "texts_per_s")
        speed = f"{best['name']} encodes {ratio(best, 'speedup')} as many texts/s as {best['over']}"
        if not differs(best, "speedup"):
            speed = f"{capital(UNCHANGED)} in speed between {best['name']} and {best['over']}"
        near = candidates["texts_per_s_high"] >= best["texts_per_s_low"]
        others = candidates.loc[near & (candidates["name"] != best["name"]), "name"].tolist()
        alike = f"; not certainly slower: {listed(others)}" if others else ""
        return f"{speed}, and keeps {_kept(best)}{alike}"

    @property
    def agreement(self) -> str:
        """Which embedding candidate agrees least with the reference, and what it keeps."""
        column = "cosine_mean" if self.frame["top10_overlap"].isna().any() else "top10_overlap"
        worst = lowest(self.frame, column)
        return f"{worst['name']} agrees least: a mean cosine of {worst['cosine_mean']:.4f}, and {_kept(worst)} kept"


def compare(
    candidates: Sequence[Model | Artifact],
    texts: Sequence[str],
    *,
    reference: Model | None = None,
    device: str = "auto",
    seconds: float = 20,
) -> Comparison:
    """Measure candidates against sentence-transformers and against each other.

    Each one tokenizes and encodes the same texts in the batches that suit it best. Candidates take turns; speed-ups are
    ratios of the medians, their intervals those of the ratios within a turn. On a GPU, half-precision candidates
    are compared with sentence-transformers in half precision.

    Parameters
    ----------
    candidates
        The model itself (PyTorch) or artifacts, in the order of the steps that made them.
    texts
        At least 16.
    reference
        The model that all should agree with; the first model among the candidates if left out, else loaded by name.
    seconds
        About how long to measure: where all texts would take longer, fewer represent them, but at least 8 (for
        agreement 48).

    Returns
    -------
    Comparison
        Columns for speed (``texts_per_s``, ``speedup`` over the row named in ``over``, ``ms_at_batch_1``, each
        with how it was batched), size (``size_mb``) and agreement with the reference on ``texts_compared`` texts
        (``cosine_mean``, ``cosine_min``, ``top10_overlap``; ``same_label`` for classifiers), and the class of
        ``quality`` on these texts that follows from it (`accel_lib.stats.QUALITY_CLASSES`), "–" in none.

    Examples
    --------
    >>> accel.compare([model, onnx, int8], texts)  # doctest: +SKIP
    """
    texts = list(texts)
    model = reference or _reference(candidates)
    if len(texts) < _FEWEST_TEXTS:
        fix = "pass more of your texts, or accel_lib.load_texts('mixed', limit=96)"
        raise TextError(f"A comparison needs at least {_FEWEST_TEXTS} texts.", seen=len(texts), fix=fix)
    until = time.perf_counter() + seconds
    progress = Progress(f"Comparing {len(candidates)} candidates")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(contextlib.closing(open_candidate(c, device=device))) for c in candidates]
        field = [*_baselines(model, opened), *opened]
        progress.tick("speed")
        timings = time_candidates(field, texts, seconds=_SPEED_SHARE * seconds)
        progress.tick("agreement")
        each_s = sum(1 / float(np.median(timing.rates)) for timing in timings)
        count = affordable(until - time.perf_counter(), each_s, most=len(texts), fewest=_FEWEST_COMPARED)
        kept = _agreements(model, field, timings, sample(field[0], texts, count))
        rows = []
        for index, (one, timing) in enumerate(zip(field, timings, strict=True)):
            row = _speed(field, timings, index) | {"ms_at_batch_1": timing.single_text_ms}
            row |= {"size_mb": one.size_bytes / 1e6} | kept[index] | {"texts_compared": count}
            rows.append(row | {"batching": timing.strategy.name, "padding": one.padding(texts, timing.strategy)})
    progress.done(f"{len(texts)} texts, agreement on {count}")
    return Comparison(frame=to_frame(rows))


def _kept(row: Mapping[str, Any]) -> str:
    if "same_label" in row:
        return f"the reference's label for {percent(row['same_label'])} of the texts"
    if np.isnan(row["top10_overlap"]):
        return f"a mean cosine of {row['cosine_mean']:.4f} to the reference"
    return f"{percent(row['top10_overlap'])} of the ten nearest neighbours"


def _reference(candidates: Sequence[Model | Artifact]) -> Model:
    if not candidates:
        raise ModelError("There is nothing to compare.", seen="no candidates", fix="accel_lib.compare([model], texts)")
    models = [candidate for candidate in candidates if isinstance(candidate, Model)]
    return models[0] if models else load_model(next(c.manifest.model for c in candidates if isinstance(c, Artifact)))


def _baselines(model: Model, opened: Sequence[Candidate]) -> list[Candidate]:
    """sentence-transformers where the candidates run; on a GPU in half precision too, if one of them is."""
    device = next((one.device for one in opened if one.device != "cpu"), "cpu")
    half = device != "cpu" and model.task == "embedding" and any(one.precision == "fp16" for one in opened)
    return [baseline(model, device=device), *([baseline(model, device=device, half=True)] if half else [])]


def _agreements(
    model: Model, field: Sequence[Candidate], timings: Sequence[Timing], texts: list[str]
) -> list[dict[str, Any]]:
    """What each candidate keeps of the reference; the first one is the reference."""
    truth = model.reference(texts)
    judged: dict[str, Any] = {"task": model.task, "activation": model.activation}
    classifier = model.activation if model.task == "classification" else None
    kept: list[dict[str, Any]] = [agreement(truth, truth, **judged) | {"quality": "exact"}]
    for one, timing in zip(field[1:], timings[1:], strict=True):
        seen = one.encode(texts, timing.strategy)
        if seen.shape != truth.shape:
            raise ModelError(
                f"{one.name} has another output than {model.name}.",
                seen=f"{seen.shape[1]} dimensions where the reference has {truth.shape[1]}",
                fix="compare candidates of one model, or pass reference=",
            )
        found = measure_quality(seen, truth, activation=classifier)
        kept.append(agreement(seen, truth, **judged) | {"quality": found.quality_class or "–"})
    return kept


def _speed(field: Sequence[Candidate], timings: Sequence[Timing], index: int) -> dict[str, Any]:
    """Rates of one candidate, and its speed-up over the baseline of its precision (else over the first)."""
    one, bases = field[index], [i for i, other in enumerate(field) if other.name.startswith(BASELINE)]
    over = next((i for i in bases if field[i].precision == one.precision), 0)
    twins = sum(other.name == one.name for other in field[:index])
    row: dict[str, Any] = {
        "name": f"{one.name} #{twins + 1}" if twins else one.name,
        "over": "" if index in bases else field[over].name,
        "precision": one.precision,
        "device": one.device,
    }
    rates = timings[index].rates
    return row | columns("texts_per_s", rates) | speedup(1 / rates, 1 / timings[over].rates)
