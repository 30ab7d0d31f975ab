"""The choice of an artifact for this machine: the fastest of those that keep a quality class."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.bench.candidates import SORTED, Candidate, open_candidate
from accel_lib.bench.quality import judged_texts
from accel_lib.bench.timing import Timing, time_candidates
from accel_lib.errors import AccelError, EngineError
from accel_lib.formatting import listed, number, times
from accel_lib.measurement import columns
from accel_lib.models import Model, load_model
from accel_lib.stats import Quality, QualityClass, measure_quality
from accel_lib.texts import load_texts

_TIMED_TEXTS = 48
_PRECISIONS = ("fp32", "fp16", "bf16", "int8-qdq", "int8")  # the most precise first


def choose(
    candidates: Sequence[Artifact],
    texts: Sequence[str] | None = None,
    *,
    quality: QualityClass = "small",
    reference: Model | None = None,
    seconds: float = 10,
) -> Artifact:
    """Pick the fastest artifact of a quality class that was validated and runs here, and print why.

    Of several that are equally fast within the measurement's interval, the most precise one is taken.

    Parameters
    ----------
    candidates
        Artifacts of one model; what was not validated or cannot run on this machine is skipped, and named, and so is
        what is below the class.
    texts
        What to measure speed and quality with; None takes texts that ship, over 1,000 for quality.
    quality
        The least class that the choice must be in (`accel_lib.stats.QUALITY_CLASSES`). The default admits INT8 that
        keeps 93% of the ten nearest neighbours; ``"near"`` is what BF16 keeps, and ``"exact"`` other arithmetic in
        FP32.
    reference
        The model that quality is judged against. None takes the first candidate in FP32, which its validation held
        against the model's own library; without one the model is loaded by name.
    seconds
        About how long to measure speed.

    Raises
    ------
    EngineError
        No candidate was validated and runs here, or none is in the class; with what each keeps.

    Examples
    --------
    >>> accel.choose([fp32, bf16, int8], quality="near")  # doctest: +SKIP
    """
    timed = list(load_texts("mixed", limit=_TIMED_TEXTS) if texts is None else texts)
    judged = list(judged_texts() if texts is None else texts)
    with contextlib.ExitStack() as stack:
        admitted, field, skipped = _admit_all(candidates, stack)
        qualities = _qualities(admitted, field, judged, reference)
        kept = [index for index, found in enumerate(qualities) if found.reaches(quality)]
        below = [f"{field[i].name} ({qualities[i]})" for i in range(len(field)) if i not in kept]
        if not kept:
            raise EngineError(
                f"No candidate is in the quality class {quality!r}.",
                seen=listed(below),
                fix='a more precise one: accel.to_onnx(model), or a wider class: quality="small"',
            )
        in_class = [field[i] for i in kept]
        index, why = decide(in_class, time_candidates(in_class, timed, seconds=seconds))
    print(f"Chose {why}; {qualities[kept[index]]}")
    for what, names in (("Skipped", skipped), (f"Below the class {quality!r}", below)):
        if names:
            print(f"{what}: {listed(names)}")
    return admitted[kept[index]]


def decide(field: Sequence[Candidate], timings: Sequence[Timing]) -> tuple[int, str]:
    """Position of the fastest, or of the most precise of those that no interval tells from it; and why."""
    medians = [float(np.median(timing.rates)) for timing in timings]
    first = int(np.argmax(medians))
    ratios = [columns("x", timings[first].rates / timing.rates) for timing in timings]
    alike = [i for i, x in enumerate(ratios) if not x["x_low"] > 1]
    taken = min(alike, key=lambda i: (_PRECISIONS.index(field[i].precision), i))
    why = f"{field[taken].name}: {number(medians[taken])} texts/s here"
    if len(alike) > 1:
        others = listed([field[i].name for i in alike if i != taken])
        return taken, f"{why}, no significant difference to {others}, and none of them is more precise"
    behind = sorted((i for i in range(len(field)) if i != first), key=lambda i: -medians[i])
    if behind:
        why += f", {times(*ratios[behind[0]].values())} as many as {field[behind[0]].name}"
    return taken, why


def _admit_all(
    candidates: Sequence[Artifact], stack: contextlib.ExitStack
) -> tuple[list[Artifact], list[Candidate], list[str]]:
    """Artifacts that were validated and run here, opened; and the names of the others, with why not."""
    admitted: list[Artifact] = []
    field: list[Candidate] = []
    skipped: list[str] = []
    for artifact in candidates:
        try:
            current = Artifact.load(artifact.folder)  # a validation may have been recorded since
            field.append(stack.enter_context(contextlib.closing(_admit(current))))
            admitted.append(current)
        except AccelError as error:
            skipped.append(f"{artifact.name} ({error.cause.rstrip('.')})")
    if not admitted:
        raise EngineError(
            "No candidate was validated and runs here.",
            seen=listed(skipped) if skipped else "no candidates",
            fix="accel_lib.validate(artifact, reference=model, texts=texts), or convert for this machine",
        )
    return admitted, field, skipped


def _admit(artifact: Artifact) -> Candidate:
    if not artifact.validated:
        raise EngineError("not validated", fix="accel_lib.validate(artifact, reference=model, texts=texts)")
    return open_candidate(artifact)


def _qualities(
    admitted: Sequence[Artifact], field: Sequence[Candidate], texts: list[str], reference: Model | None
) -> list[Quality]:
    """How close each candidate is to the reference on the same texts."""
    outputs: dict[int, NDArray[np.float32]] = {}
    exact = next((i for i, artifact in enumerate(admitted) if artifact.manifest.precision == "fp32"), None)
    if reference is None and exact is not None:
        wanted = outputs[exact] = field[exact].encode(texts, SORTED)
    else:
        wanted = (reference or load_model(admitted[0].manifest.model)).reference(texts)
    manifest = admitted[0].manifest
    classifier = manifest.activation if manifest.task == "classification" else None
    found = []
    for index, candidate in enumerate(field):
        seen = outputs[index] if index in outputs else candidate.encode(texts, SORTED)
        found.append(measure_quality(seen, wanted, activation=classifier))
    return found
