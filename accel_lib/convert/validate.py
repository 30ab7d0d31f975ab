"""Before an artifact is served: the same texts through the reference and through it, and a verdict."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.convert.precision import graph_precision
from accel_lib.engines import Engine, open_engine
from accel_lib.engines.batching import run_batches
from accel_lib.errors import ValidationError
from accel_lib.models.tokenizer import pad
from accel_lib.stats import cosine

if TYPE_CHECKING:
    import pandas as pd

    from accel_lib.models import Model

_FEWEST_TEXTS = 4
_BATCH_SIZES = (1, 8, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an artifact may be from its reference; see `TOLERANCES` for the one that follows from each precision.

    Parameters
    ----------
    cosine_min, cosine_mean
        Least allowed cosine between a text's vector and its reference, in the worst case and on average.
    top1
        Least share of texts whose nearest other text (or label) is the reference's.
    padding
        Most that a number of a vector (or a probability) may move when padding or batch mates change.
    probability
        Most that a probability may differ from the reference's, for classifiers.
    """

    cosine_min: float
    cosine_mean: float
    top1: float
    padding: float
    probability: float


# Rounding of the element type through a dozen layers: FP32 has 24 bits, FP16 11, INT8 8, where a last bit of FP32 can
# decide to which whole number a number is rounded.
TOLERANCES = {
    "fp32": Tolerance(cosine_min=0.9999, cosine_mean=0.99999, top1=0.98, padding=1e-4, probability=1e-3),
    "fp16": Tolerance(cosine_min=0.999, cosine_mean=0.9995, top1=0.95, padding=5e-3, probability=2e-2),
    "int8": Tolerance(cosine_min=0.95, cosine_mean=0.99, top1=0.85, padding=2e-2, probability=0.25),
    "int8-qdq": Tolerance(cosine_min=0.95, cosine_mean=0.99, top1=0.85, padding=2e-2, probability=0.25),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at: what was seen, what is allowed, and whether it passed."""

    name: str
    seen: str
    limit: str
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a validation; as a table in a notebook.

    Parameters
    ----------
    name
        What was validated.
    checks
        Every check, in order.
    cosine_min, cosine_mean
        Cosine to the reference, over all texts.
    top1_agreement
        Share of texts whose nearest other text (or label) is the reference's.
    artifact
        The artifact with this verdict in its manifest; None for an engine without one.
    """

    name: str
    checks: tuple[Check, ...]
    cosine_min: float
    cosine_mean: float
    top1_agreement: float
    artifact: Artifact | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        """One row a check."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(check) for check in self.checks])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if check.passed else '✗'}</td>"
            + "".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in _words(check))
            + "</tr>"
            for check in self.checks
        )
        head = "<tr><th></th><th>check</th><th>seen</th><th>allowed</th></tr>"
        return f"<table><caption>{html.escape(str(self))}</caption>{head}{rows}</table>"

    def __str__(self) -> str:
        failed = sum(not check.passed for check in self.checks)
        said = (
            f"refused, {failed} of {len(self.checks)} checks failed" if failed else f"{len(self.checks)} checks passed"
        )
        return f"{self.name}: {said}"

    def __repr__(self) -> str:
        lines = (f"{'✓' if check.passed else '✗'} {', '.join(_words(check))}" for check in self.checks)
        return "\n".join([str(self), *lines])


def validate(
    candidate: Artifact | Engine,
    *,
    reference: Model,
    texts: Sequence[str],
    tolerance: Tolerance | None = None,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
    device: str = "auto",
) -> Verdict:
    """Run texts through a model's own reference and through a candidate, and compare.

    Parameters
    ----------
    candidate
        An artifact, or any open engine.
    reference
        The model; its `reference` (sentence-transformers' own ``encode``) is what counts as right.
    texts
        At least four; better some dozens of different lengths.
    tolerance
        None takes the one in `TOLERANCES` that follows from the candidate's precision.
    batch_sizes
        Sizes to try; alone, in the middle and at the maximum.
    device
        Where to open an artifact.

    Returns
    -------
    Verdict
        All checks passed; for an artifact they are recorded in its manifest, and it may be served.

    Raises
    ------
    ValidationError
        At least one check failed; the message lists which, with what was seen and what is allowed.
    """
    if len(set(texts)) < _FEWEST_TEXTS:
        raise ValidationError(
            "Too few texts to judge by.", seen=f"{len(set(texts))} different texts", fix="give dozens, short and long"
        )
    engine = open_engine(candidate, device=device) if isinstance(candidate, Artifact) else candidate
    rows = reference.tokenizer(_prompted(reference, texts))
    wanted = reference.reference(list(texts))
    allowed = tolerance or TOLERANCES[engine.precision]
    try:
        answers = {
            size: run_batches(engine, rows, reference.tokenizer.pad_id, max_batch_size=size) for size in batch_sizes
        }
        moved = _moved(engine, rows, reference)
    finally:
        if isinstance(candidate, Artifact):
            engine.close()
    seen = np.concatenate(list(answers.values()))
    checks = [*_sanity(seen, wanted, len(answers)), *_holds(candidate, reference)]
    with np.errstate(invalid="ignore"):  # of what is not finite; it passes no check
        near = cosine(seen, np.tile(wanted, (len(answers), 1)))
        top1 = float(np.mean([_top1(answer, wanted, reference.task) for answer in answers.values()]))
        checks += _agreement(seen, np.tile(wanted, (len(answers), 1)), near, top1, allowed, reference.task)
    checks.append(_check("padding and batch mates move a number by", moved, allowed.padding, most=True))
    verdict = Verdict(
        name=candidate.name,
        checks=tuple(checks),
        cosine_min=float(near.min()),
        cosine_mean=float(near.mean()),
        top1_agreement=top1,
    )
    if not verdict.passed:
        raise ValidationError(
            f"{candidate.name} does not agree with {reference.name}, and must not be served.",
            seen="; ".join(f"{c.name} {c.seen}, allowed {c.limit}" for c in verdict.checks if not c.passed),
            fix="convert it again, or in another precision: accel.to_onnx(model)",
        )
    if isinstance(candidate, Artifact):
        verdict = dataclasses.replace(verdict, artifact=candidate.record_validation(_record(verdict, len(texts))))
    return verdict


def _prompted(reference: Model, texts: Sequence[str]) -> list[str]:
    from accel_lib.models.tokenizer import prompt_text

    prompt = prompt_text(reference.prompts, reference.default_prompt)
    return [prompt + text for text in texts]


def _sanity(seen: NDArray[np.float32], wanted: NDArray[np.float32], batches: int) -> list[Check]:
    right = seen.shape == (batches * len(wanted), wanted.shape[1])
    finite = bool(np.isfinite(seen).all())
    size = float(np.linalg.norm(seen, axis=1).min()) if finite else 0.0
    spread = float(np.ptp(seen[: len(wanted)], axis=0).max()) if finite else 0.0
    return [
        Check(name="numbers a text", seen=str(seen.shape[1]), limit=str(wanted.shape[1]), passed=right),
        Check(name="finite", seen="yes" if finite else "NaN or infinity", limit="yes", passed=finite),
        Check(name="smallest length of a row", seen=f"{size:.2g}", limit="> 0", passed=size > 1e-6),
        Check(name="texts give different rows", seen=f"spread {spread:.2g}", limit="> 0", passed=spread > 1e-6),
    ]


def _holds(candidate: Artifact | Engine, reference: Model) -> list[Check]:
    """What the manifest says, against what the file holds and the model is."""
    if not isinstance(candidate, Artifact):
        return []
    manifest = candidate.manifest
    labels = manifest.labels == reference.labels
    checks = [Check(name="labels", seen=str(manifest.labels), limit=str(reference.labels), passed=labels)]
    if manifest.format in ("onnx", "tensorrt"):
        held = graph_precision(candidate.folder / "model.onnx")
        same = held == manifest.precision
        checks.append(Check(name="precision of the graph", seen=held, limit=manifest.precision, passed=same))
    return checks if reference.labels else checks[1:]


def _agreement(
    seen: NDArray[np.float32],
    wanted: NDArray[np.float32],
    cosine: NDArray[np.float64],
    top1: float,
    allowed: Tolerance,
    task: str,
) -> list[Check]:
    if task == "classification":
        far = float(np.abs(_softmax(seen) - _softmax(wanted)).max())
        return [
            _check("probability differs by", far, allowed.probability, most=True),
            _check("same label", top1, allowed.top1),
        ]
    return [
        _check("least cosine", float(cosine.min()), allowed.cosine_min),
        _check("mean cosine", float(cosine.mean()), allowed.cosine_mean),
        _check("same nearest text", top1, allowed.top1),
    ]


def _check(name: str, seen: float, limit: float, *, most: bool = False) -> Check:
    passed = seen <= limit if most else seen >= limit  # NaN passes neither
    return Check(name=name, seen=f"{seen:.5g}", limit=f"{'≤' if most else '≥'} {limit:g}", passed=bool(passed))


def _moved(engine: Engine, rows: Sequence[NDArray[np.int64]], reference: Model) -> float:
    """How far numbers move when the same texts run alone, with extra padding, and in a reversed, mixed batch."""
    picked = sorted(rows, key=len)[:: max(1, len(rows) // 8)][:8]
    pad_id, width = reference.tokenizer.pad_id, engine.max_length
    alone = np.concatenate([engine.run(*pad([row], pad_id)) for row in picked])
    together = engine.run(*pad(picked[::-1], pad_id))[::-1]
    ids, mask = pad(picked, pad_id)
    extra = ((0, 0), (0, min(16, width - ids.shape[1])))
    wider = engine.run(np.pad(ids, extra, constant_values=pad_id), np.pad(mask, extra))
    if reference.task == "classification":
        alone, together, wider = (_softmax(logits).astype(np.float32) for logits in (alone, together, wider))
    with np.errstate(invalid="ignore"):
        return float(max(np.abs(alone - together).max(), np.abs(alone - wider).max()))


def _top1(seen: NDArray[np.float32], wanted: NDArray[np.float32], task: str) -> float:
    if task == "classification":
        return float(np.mean(seen.argmax(axis=1) == wanted.argmax(axis=1)))
    return float(np.mean(_nearest(seen) == _nearest(wanted)))


def _nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.int64] = similarity.argmax(axis=1)
    return nearest


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _words(check: Check) -> tuple[str, str, str]:
    return check.name, check.seen, check.limit


def _record(verdict: Verdict, texts: int) -> dict[str, Any]:
    return {
        "passed": verdict.passed,
        "texts": texts,
        "cosine_min": verdict.cosine_min,
        "cosine_mean": verdict.cosine_mean,
        "top1_agreement": verdict.top1_agreement,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
