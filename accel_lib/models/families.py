"""What a causal language model's configuration asks for, and what of it `accel_lib.models.decoder` computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from accel_lib.models.files import refused

FULL, WINDOW = "full_attention", "sliding_attention"  # transformers' names of what a layer sees
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How a family differs from Llama.

    Parameters
    ----------
    norm_offset
        Added to the weights of norms: Gemma stores them around 0.
    scaled_embedding
        Whether embeddings are multiplied by the root of their width.
    capped_scores
        Whether attention bends its scores below `attn_logit_softcapping`.
    """

    norm_offset: float = 0.0
    scaled_embedding: bool = False
    capped_scores: bool = False


FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), Family()),
    **dict.fromkeys(("gemma", "gemma3_text"), Family(norm_offset=1.0, scaled_embedding=True)),
    "gemma2": Family(norm_offset=1.0, scaled_embedding=True, capped_scores=True),
}


def check_family(config: Any, folder: Path, *, context_tokens: int | None = None, plain: bool = True) -> None:
    """Refuse by name what `Decoder` does not compute.

    Parameters
    ----------
    config
        transformers' configuration of the model.
    folder
        Where it came from, for messages.
    context_tokens
        Longest sequence that it will see, if shorter than what the model takes.
    plain
        Refuse what attention of an engine's own does not compute, too: windows, and scores that are capped.

    Raises
    ------
    ModelError
        With a way out.
    """
    known = f"families that convert: {', '.join(sorted(FAMILIES))}; or run it as it is: TransformersEngine(model)"
    if config.model_type not in FAMILIES:
        raise refused(folder, f"a network of the family {config.model_type}", fix=known)
    context = context_tokens or config.max_position_embeddings
    ropes = _ropes(config)
    ways = {str(rope.get("rope_type", "default")) for rope in ropes}
    first = min((int(rope.get("original_max_position_embeddings") or context) for rope in ropes), default=context)
    held = sorted({size for size in windows(config, context_tokens) if size})
    seen, cap, shape = {*kinds(config)}, score_cap(config), activation(config)
    within = "accel.load_model(..., max_length={}), within which it does not"
    what = {
        "rotary frequencies that change with the length (dynamic)": ("dynamic" in ways, known),
        f"rotary frequencies that change beyond {first} tokens": (
            "longrope" in ways and context > first,
            within.format(first),
        ),
        f"attention to a window of {', '.join(map(str, held))} tokens": (
            plain and bool(held),
            within.format(min(held, default=0)) + " matter; or accel.to_onnx(model), which computes it",
        ),
        f"attention scores that are capped at {cap}": (plain and bool(cap), "accel.to_onnx(model) computes them"),
        "attention to what comes later": (bool(getattr(config, "use_bidirectional_attention", False)), known),
        f"the activation {shape}": (shape not in ACTIVATIONS, known),
        f"layers of {', '.join(sorted(seen))}": (not seen <= {FULL, WINDOW}, known),
    }
    for name, (found, fix) in what.items():
        if found:
            raise refused(folder, name, fix=fix)


def windows(config: Any, context_tokens: int | None = None) -> list[int | None]:
    """How many tokens back each layer sees, itself included; None for all, as where no sequence is longer."""
    size = getattr(config, "sliding_window", None)
    if not size or size >= (context_tokens or config.max_position_embeddings):
        return [None] * config.num_hidden_layers
    listed = getattr(config, "layer_types", None) or [WINDOW] * config.num_hidden_layers
    return [size if kind == WINDOW else None for kind in listed]


def kinds(config: Any) -> list[str]:
    """What each layer sees, by transformers' names, in families that tell layers apart."""
    return list(getattr(config, "layer_types", None) or [FULL] * config.num_hidden_layers)


def score_cap(config: Any) -> float | None:
    """What attention's scores stay below; None where they are not capped."""
    found = getattr(config, "attn_logit_softcapping", None)
    return float(found) if found and FAMILIES[config.model_type].capped_scores else None


def activation(config: Any) -> str:
    """Name of the feed-forward's activation."""
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Settings of the rotary embeddings: one, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope[kind] for kind in (FULL, WINDOW) if rope.get(kind)] if {FULL, WINDOW} & {*rope} else [rope]
