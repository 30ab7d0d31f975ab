"""Before an artifact is served: the same texts through the reference and through it, and a verdict."""

from __future__ import annotations

import dataclasses
import html
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import ONNX_FILES, Artifact, Check
from accel_lib.convert.declared import open_as_declared
from accel_lib.convert.lengths import texts_up_to
from accel_lib.convert.precision import graph_precision
from accel_lib.engines import Engine
from accel_lib.engines.batching import run_batches
from accel_lib.engines.openvino import OpenVINOEngine
from accel_lib.errors import ValidationError
from accel_lib.ragged import Ragged
from accel_lib.scores import logit_errors, spread
from accel_lib.stats import cosine

if TYPE_CHECKING:
    import pandas as pd

    from accel_lib.convert.validate_generation import GenerationTolerance, GenerationVerdict
    from accel_lib.models import Model
    from accel_lib.models.generation import GenerationModel

_FEWEST_TEXTS = 4
_MOST_PAIRS = 32
_BATCH_SIZES = (1, 8, 32)
_MOST_REMEMBERED = 4  # of a reference's answers: texts, long ones, and of pairs both again
_ANSWERS: weakref.WeakKeyDictionary[Model, dict[Any, NDArray[np.float32]]] = weakref.WeakKeyDictionary()


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
        Most that a number of a vector may move when padding or batch mates change.
    logits, logits_worst
        For classifiers: most that logits may differ from the reference's, typically and at worst, in shares of how far
        the reference's lie apart from text to text (`accel_lib.scores.logit_errors`). Shares of that spread mean the
        same for one label as for 28 and for any head, where probabilities do not: the softmax of one logit is always 1.
        The first also bounds what padding and batch mates may move.
    scale
        Most that the logits' factor may be away from 1: rounding scatters both ways, and a scaled head does not.
    """

    cosine_min: float
    cosine_mean: float
    top1: float
    padding: float
    logits: float
    logits_worst: float
    scale: float


# Rounding of the element type through a dozen layers: FP32 has 24 bits, FP16 11, BF16 and INT8 8, where a last bit of
# FP32 can decide to which whole number a number is rounded. Of logits: three times what heads of 1, 2 and 28 labels on
# random networks lose, which lose more than trained ones; one that is zeroed or of another model is off by 1 or more.
_INT8 = {"cosine_min": 0.95, "cosine_mean": 0.99, "top1": 0.85, "padding": 2e-2}
TOLERANCES = {
    "fp32": Tolerance(
        cosine_min=0.9999, cosine_mean=0.99999, top1=0.98, padding=1e-4, logits=1e-3, logits_worst=1e-2, scale=1e-3
    ),
    "fp16": Tolerance(
        cosine_min=0.999, cosine_mean=0.9995, top1=0.95, padding=5e-3, logits=0.03, logits_worst=0.15, scale=0.02
    ),
    "bf16": Tolerance(
        cosine_min=0.995, cosine_mean=0.999, top1=0.9, padding=2e-2, logits=0.1, logits_worst=0.5, scale=0.05
    ),
    "int8": Tolerance(**_INT8, logits=0.35, logits_worst=1.5, scale=0.1),
    "int8-qdq": Tolerance(**_INT8, logits=0.6, logits_worst=3, scale=0.15),
}


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
    def headline(self) -> str:
        """How near it is, in one line."""
        return f"smallest cosine {self.cosine_min:.5f}"

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


@overload
def validate(
    candidate: Artifact | Engine,
    *,
    reference: Model,
    texts: Sequence[str],
    tolerance: Tolerance | None = None,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
    device: str = "auto",
) -> Verdict: ...


@overload
def validate(
    candidate: Artifact,
    *,
    reference: GenerationModel,
    texts: Sequence[str],
    tolerance: GenerationTolerance | None = None,
) -> GenerationVerdict: ...


def validate(
    candidate: Artifact | Engine,
    *,
    reference: Model | GenerationModel,
    texts: Sequence[str],
    tolerance: Any = None,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
    device: str = "auto",
) -> Verdict | GenerationVerdict:
    """Run texts through a model's own reference and through a candidate, and compare.

    Parameters
    ----------
    candidate
        An artifact, or any open engine.
    reference
        The model; its `reference` (sentence-transformers' own ``encode``) is what counts as right. Of a language model,
        transformers' own network and chat template: see `accel_lib.convert.validate_generation`.
    texts
        At least four; better some dozens of different lengths. Their words also make texts of 32 tokens up to the
        longest that the model takes, which are compared too.
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
    if reference.task == "generation":
        from accel_lib.convert.validate_generation import validate_generation

        return validate_generation(_artifact(candidate), reference=reference, texts=texts, tolerance=tolerance)
    if len(set(texts)) < _FEWEST_TEXTS:
        raise ValidationError(
            "Too few texts to judge by.", seen=f"{len(set(texts))} different texts", fix="give dozens, short and long"
        )
    engine = open_as_declared(candidate, device=device) if isinstance(candidate, Artifact) else candidate
    rows, wanted = _asked(reference, list(texts))
    allowed = tolerance or TOLERANCES[engine.precision]
    try:
        answers = {
            size: run_batches(engine, rows, reference.tokenizer.pad_id, max_batch_size=size) for size in batch_sizes
        }
        moved = _moved(engine, rows, reference.tokenizer.pad_id)
        longer = _longer(engine, reference, texts, wanted, allowed)
        held = _holds(candidate, engine, reference)
    finally:
        if isinstance(candidate, Artifact):
            engine.close()
    seen = np.concatenate(list(answers.values()))
    checks = [*_sanity(seen, wanted, len(answers), reference.task), *held]
    if seen.shape[1] != wanted.shape[1]:
        raise _disagreement(candidate.name, reference.name, checks)
    with np.errstate(all="ignore"):  # of what is not finite; it passes no check
        near = cosine(seen, np.tile(wanted, (len(answers), 1)))
        top1 = float(np.mean([_top1(answer, wanted, reference.task) for answer in answers.values()]))
        if reference.task == "classification":
            checks += _heads(list(answers.values()), wanted, len(texts), top1, allowed)
            moved, most = moved / spread(wanted), allowed.logits
        else:
            checks += _directions(near, top1, allowed)
            most = allowed.padding
    checks.append(longer)
    checks.append(_check("padding and batch mates move a number by", moved, most, most=True))
    verdict = Verdict(
        name=candidate.name,
        checks=tuple(checks),
        cosine_min=float(near.min()),
        cosine_mean=float(near.mean()),
        top1_agreement=top1,
    )
    if not verdict.passed:
        raise _disagreement(candidate.name, reference.name, checks)
    if isinstance(candidate, Artifact):
        verdict = dataclasses.replace(verdict, artifact=candidate.record_validation(_record(verdict, len(texts))))
    return verdict


def _artifact(candidate: Artifact | Engine) -> Artifact:
    if isinstance(candidate, Artifact):
        return candidate
    raise ValidationError(
        "A language model is validated as an artifact.", seen=candidate.name, fix="accel.to_openvino(model)"
    )


def _longer(
    engine: Engine, reference: Model, texts: Sequence[str], others: NDArray[np.float32], allowed: Tolerance
) -> Check:
    """How far answers are from the reference's on texts of each length that the model takes."""
    longest = min(reference.max_length, engine.max_length)
    made = texts_up_to(reference, texts, longest=longest)
    pairs: dict[str, Any] = {"seconds": made[::-1]} if reference.pairs else {}
    rows = reference.tokenize(made, **pairs)
    wanted = _answers(reference, made, batch_size=1, **pairs)
    seen = run_batches(engine, rows, reference.tokenizer.pad_id, max_batch_size=1)
    tokens = int(rows.lengths.max())
    reached = f"on texts of up to {tokens:,}" + (f" of {longest:,}" if tokens < longest else "") + " tokens"
    if seen.shape != wanted.shape:
        return _check(f"numbers in a vector {reached}", seen.shape[1], wanted.shape[1])
    with np.errstate(all="ignore"):  # of what is not finite; it passes no check
        if reference.task == "classification":
            far = float(np.abs(seen - wanted).max() / spread(np.concatenate([others, wanted])))
            return _check(f"logits differ {reached} by", far, allowed.logits_worst, most=True)
        return _check(f"least cosine {reached}", float(cosine(seen, wanted).min()), allowed.cosine_min)


def _disagreement(candidate: str, reference: str, checks: Sequence[Check]) -> ValidationError:
    return ValidationError(
        f"{candidate} does not agree with {reference}, and must not be served.",
        seen="; ".join(f"{check.name} {check.seen}, allowed {check.limit}" for check in checks if not check.passed),
        fix="convert it again, or in another precision: accel.to_onnx(model)",
    )


def _asked(reference: Model, texts: list[str]) -> tuple[Ragged, NDArray[np.float32]]:
    """Rows of the texts, and for a model that takes pairs of each with the next one too; what they have to give."""
    rows, wanted = reference.tokenize(texts), _answers(reference, texts)
    if not reference.pairs:
        return rows, wanted
    firsts, seconds = texts[:_MOST_PAIRS], [*texts[1 : _MOST_PAIRS + 1], texts[0]][: len(texts[:_MOST_PAIRS])]
    together = Ragged.concat([rows, reference.tokenize(firsts, seconds)])
    return together, np.concatenate([wanted, _answers(reference, firsts, seconds=seconds)])


def _answers(model: Model, texts: list[str], *, batch_size: int = 32, **pairs: list[str]) -> NDArray[np.float32]:
    """What a model's reference answers, computed once for all candidates that are validated on the same texts."""
    known = _ANSWERS.setdefault(model, {})
    asked = (batch_size, tuple(texts), tuple(pairs.get("seconds", ())))
    if asked not in known:
        reference: Any = model.reference
        while len(known) >= _MOST_REMEMBERED:
            del known[next(iter(known))]
        known[asked] = reference(texts, batch_size=batch_size, **pairs)
    return known[asked]


def _sanity(seen: NDArray[np.float32], wanted: NDArray[np.float32], batches: int, task: str) -> list[Check]:
    right = seen.shape == (batches * len(wanted), wanted.shape[1])
    finite = bool(np.isfinite(seen).all())
    size = float(np.linalg.norm(seen, axis=1).min()) if finite else 0.0
    apart = float(np.ptp(seen[: len(wanted)], axis=0).max()) if finite else 0.0
    checks = [
        Check(name="numbers in a vector", seen=str(seen.shape[1]), limit=str(wanted.shape[1]), passed=right),
        Check(name="finite", seen="yes" if finite else "NaN or infinity", limit="yes", passed=finite),
        Check(name="least length (norm) of a vector", seen=f"{size:.2g}", limit="> 0", passed=size > 1e-6),
        Check(name="texts give different rows", seen=f"spread {apart:.2g}", limit="> 0", passed=apart > 1e-6),
    ]
    return [check for check in checks if task == "embedding" or "length" not in check.name]  # one logit may be 0


def _held_precision(candidate: Artifact, engine: Engine) -> str:
    """The precision that a graph holds; of OpenVINO's, that in which the engine computes, which decides by itself."""
    if isinstance(engine, OpenVINOEngine):
        return engine.computed_precision()
    return graph_precision(candidate.folder / ONNX_FILES[0])


def _holds(candidate: Artifact | Engine, engine: Engine, reference: Model) -> list[Check]:
    """What the manifest says, against what the file holds and the model is."""
    if not isinstance(candidate, Artifact):
        return []
    manifest = candidate.manifest
    labels = manifest.labels == reference.labels
    checks = [Check(name="labels", seen=str(manifest.labels), limit=str(reference.labels), passed=labels)]
    if manifest.format != "torch":
        held = _held_precision(candidate, engine)
        same = held == manifest.precision
        checks.append(Check(name="precision of the graph", seen=held, limit=manifest.precision, passed=same))
    return checks if reference.labels else checks[1:]


def _heads(
    answers: Sequence[NDArray[np.float32]], wanted: NDArray[np.float32], singles: int, top1: float, allowed: Tolerance
) -> list[Check]:
    """Logits of the single texts, and behind them of pairs, against the reference's."""
    kinds = [kind for kind in (slice(None, singles), slice(singles, None)) if len(wanted[kind])]
    errors = [logit_errors(answer[kind], wanted[kind]) for answer in answers for kind in kinds]
    typical, worst = (np.max([getattr(error, name) for error in errors]) for name in ("typical", "worst"))
    scale = max((error.scale for error in errors), key=lambda factor: abs(factor - 1))
    return [
        _check("logits differ, in shares of their spread, by", typical, allowed.logits, most=True),
        _check("and at worst by", worst, allowed.logits_worst, most=True),
        Check(
            name="factor of the logits",
            seen=f"{scale:.5g}",
            limit=f"1 ± {allowed.scale:g}",
            passed=all(abs(error.scale - 1) <= allowed.scale for error in errors),
        ),
        _check("same label", top1, allowed.top1),
    ]


def _directions(cosine: NDArray[np.float64], top1: float, allowed: Tolerance) -> list[Check]:
    return [
        _check("least cosine", float(cosine.min()), allowed.cosine_min),
        _check("mean cosine", float(cosine.mean()), allowed.cosine_mean),
        _check("same nearest text", top1, allowed.top1),
    ]


def _check(name: str, seen: float, limit: float, *, most: bool = False) -> Check:
    passed = seen <= limit if most else seen >= limit  # NaN passes neither
    return Check(name=name, seen=f"{seen:.5g}", limit=f"{'≤' if most else '≥'} {limit:g}", passed=bool(passed))


def _moved(engine: Engine, rows: Ragged, pad_id: int) -> float:
    """How far numbers move when the same texts run alone, with extra padding, and in a reversed, mixed batch."""
    picked = np.argsort(rows.lengths, kind="stable")[:: max(1, len(rows) // 8)][:8]
    alone = np.concatenate([engine.run(*rows.take(picked[i : i + 1]).padded(pad_id)) for i in range(len(picked))])
    together = engine.run(*rows.take(picked[::-1]).padded(pad_id))[::-1]
    ids, *others = rows.take(picked).padded(pad_id)
    extra = ((0, 0), (0, min(16, engine.max_length - ids.shape[1])))
    wider = engine.run(np.pad(ids, extra, constant_values=pad_id), *(np.pad(other, extra) for other in others))
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
