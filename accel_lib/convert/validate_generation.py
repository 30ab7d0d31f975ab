"""Before a language model is served: prompts through its reference and through what was converted, and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from accel_lib._logging import silenced
from accel_lib.artifact import TOKENIZER_FILE, Artifact, Check
from accel_lib.convert.generation_agreement import Agreement, measure_agreement
from accel_lib.errors import AccelError, ValidationError, require
from accel_lib.models.chat import ChatTemplate
from accel_lib.models.generation import GenerationModel

_FEWEST_TEXTS = 16
_MOST_TEXTS = 32
_WORST = 4  # times the mean that is allowed, for one text
_CHATS = (
    [{"role": "user", "content": "What is it?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Why? "}],
    [
        {"role": "user", "content": "One\ntwo"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "é <b> {{ x }}"},
    ],
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTolerance:
    """How far an artifact may be from its reference; see `GENERATION_TOLERANCES`.

    Parameters
    ----------
    greedy
        Least share of prompts whose greedy tokens are the reference's, all of them.
    top1
        Least share of places at which both have the same likeliest token, given the same text before it.
    divergence
        Most mean Kullback-Leibler divergence from the reference's distribution, in nats a token.
    """

    greedy: float
    top1: float
    divergence: float


# Likeliest token and divergence of SmolLM2-135M on 16 chats: FP32 1 and 4e-11, FP16 0.996 and 3e-5, BF16 0.984 and
# 0.002, INT8 0.953 and 0.012.
GENERATION_TOLERANCES = {
    "fp32": GenerationTolerance(greedy=1.0, top1=0.999, divergence=1e-5),
    "fp16": GenerationTolerance(greedy=0.0, top1=0.98, divergence=0.001),
    "bf16": GenerationTolerance(greedy=0.0, top1=0.93, divergence=0.02),
    "int8": GenerationTolerance(greedy=0.0, top1=0.90, divergence=0.04),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationVerdict:
    """The outcome of a validation: every check, and what was measured."""

    name: str
    checks: tuple[Check, ...]
    agreement: Agreement
    artifact: Artifact

    @property
    def headline(self) -> str:
        """How near it is, in one line."""
        near = self.agreement
        return f"{near.top1:.1%} of tokens alike, {near.greedy:.0%} of answers equal, divergence {near.divergence:.2g}"

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __repr__(self) -> str:
        lines = (f"{'✓' if check.passed else '✗'} {check.name}, {check.seen}, {check.limit}" for check in self.checks)
        return "\n".join([f"{self.name}: {sum(check.passed for check in self.checks)} of {len(self.checks)}", *lines])


def validate_generation(
    artifact: Artifact,
    *,
    reference: GenerationModel,
    texts: Sequence[str],
    tolerance: GenerationTolerance | None = None,
    threads: int | None = None,
) -> GenerationVerdict:
    """Compare a converted language model with its reference, and record the verdict.

    Parameters
    ----------
    artifact
        A language model, converted to OpenVINO or ONNX, or built for this machine's GPU by TensorRT.
    reference
        The model; transformers' own network and chat template are what counts as right.
    texts
        At least sixteen; the first 32 are each asked as a chat, or continued by a model that does not chat. Joined,
        they also make one long prompt.
    tolerance
        None takes the one in `GENERATION_TOLERANCES` that follows from the artifact's precision.
    threads
        CPU threads of the candidate.

    Returns
    -------
    GenerationVerdict
        All checks passed, and the artifact has the verdict in its manifest: it may be served.

    Raises
    ------
    ValidationError
        At least one check failed; the message lists which, with what was seen and what is allowed.
    """
    if len(set(texts)) < _FEWEST_TEXTS:
        raise ValidationError(
            "Too few texts to judge by.",
            seen=f"{len(set(texts))} different texts",
            fix=f"give {_FEWEST_TEXTS} or more",
        )
    texts = list(texts)[:_MOST_TEXTS]
    allowed = tolerance or GENERATION_TOLERANCES[artifact.manifest.precision]
    checks = _text_side(artifact, reference, texts)
    if not all(check.passed for check in checks):
        raise _disagreement(artifact, reference, checks)
    measured = measure_agreement(artifact, reference, texts, threads=threads)
    checks += _numbers(measured, allowed)
    verdict = GenerationVerdict(name=artifact.name, checks=tuple(checks), agreement=measured, artifact=artifact)
    if not verdict.passed:
        raise _disagreement(artifact, reference, checks)
    return dataclasses.replace(verdict, artifact=artifact.record_validation(_record(verdict, len(texts))))


def _numbers(measured: Agreement, allowed: GenerationTolerance) -> list[Check]:
    return [
        Check(name="one logit for each token id", seen=_yes(measured.fits), limit="yes", passed=measured.fits),
        Check(name="finite logits", seen=_yes(measured.finite), limit="yes", passed=measured.finite),
        _least("same likeliest token", measured.top1, allowed.top1),
        _most("mean divergence", measured.divergence, allowed.divergence),
        _most("mean divergence of the worst text", measured.worst, _WORST * allowed.divergence),
        _least("prompts with the reference's greedy tokens", measured.greedy, allowed.greedy),
    ]


def _least(name: str, seen: float, limit: float) -> Check:
    return Check(name=name, seen=f"{seen:.4g}", limit=f"≥ {limit:g}", passed=bool(seen >= limit))


def _most(name: str, seen: float, limit: float) -> Check:
    return Check(name=name, seen=f"{seen:.2g}", limit=f"≤ {limit:g}", passed=bool(seen <= limit))


def _yes(found: bool) -> str:
    return "yes" if found else "no"


def _text_side(artifact: Artifact, reference: GenerationModel, texts: Sequence[str]) -> list[Check]:
    """What the manifest and the tokenizer say, against the model's own."""
    manifest = artifact.manifest
    pairs = {
        "stop ids": (manifest.stop_ids, reference.stop_ids),
        "token ids": (manifest.dimension, reference.vocabulary),
        "context": (manifest.max_length, reference.context_tokens),
    }
    checks = [Check(name=n, seen=str(a), limit=str(b), passed=a == b) for n, (a, b) in pairs.items()]
    same = _same_tokenizer(artifact, reference, texts)
    checks.append(Check(name="the tokenizer's ids are transformers'", seen=_yes(same), limit="yes", passed=same))
    same = _same_template(artifact, reference)
    return [*checks, Check(name="the chat's text is transformers'", seen=_yes(same), limit="yes", passed=same)]


def _their_tokenizer(reference: GenerationModel) -> Any:
    with silenced():
        return require("transformers", extra="models").AutoTokenizer.from_pretrained(
            reference.folder, trust_remote_code=False
        )


def _same_tokenizer(artifact: Artifact, reference: GenerationModel, texts: Sequence[str]) -> bool:
    tokenizers = require("tokenizers", extra="models")
    own = tokenizers.Tokenizer.from_file(str(artifact.folder / TOKENIZER_FILE))
    theirs = _their_tokenizer(reference)
    probes = [*texts, *(message["content"] for chat in _CHATS for message in chat)]
    return all(own.encode(probe).ids == theirs(probe)["input_ids"] for probe in probes)


def _same_template(artifact: Artifact, reference: GenerationModel) -> bool:
    theirs = _their_tokenizer(reference)
    text = artifact.manifest.chat_template
    if bool(text) != bool(theirs.chat_template):
        return False
    return not text or all(
        _outcome(ChatTemplate(text, artifact.manifest.special_tokens).render, chat)
        == _outcome(lambda each: theirs.apply_chat_template(each, tokenize=False, add_generation_prompt=True), chat)
        for chat in _CHATS
    )


def _outcome(render: Callable[[Any], str], chat: Any) -> str | None:
    """The text of a chat; None where the template refuses it, as some refuse a system message."""
    errors = (AccelError, require("jinja2", extra="generate").TemplateError)
    try:
        return render(chat)
    except errors:
        return None


def _disagreement(artifact: Artifact, reference: GenerationModel, checks: Sequence[Check]) -> ValidationError:
    return ValidationError(
        f"{artifact.name} does not agree with {reference.name}, and must not be served.",
        seen="; ".join(f"{check.name} {check.seen}, allowed {check.limit}" for check in checks if not check.passed),
        fix="convert it again, or in another precision: accel.to_openvino(model), accel.to_onnx(model)",
    )


def _record(verdict: GenerationVerdict, texts: int) -> dict[str, Any]:
    return {
        "passed": verdict.passed,
        "texts": texts,
        **dataclasses.asdict(verdict.agreement),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
