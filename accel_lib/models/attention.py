"""Which tokens of its text each attention layer lets a token see, learned from the network's own code.

transformers hands the attention of nearly every family to one exchangeable function, with a mask that a function of
the family describes. A trial run with functions of ours learns both: a window, causal attention, or what cannot be
computed without padding. Nothing is guessed from a config.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from accel_lib.errors import ModelError, require
from accel_lib.machine import inspect_machine
from accel_lib.models.modules import Classifier, Encoder, Head

Window = tuple[int, int]  # tokens that may be seen before a token and behind it, as FlashAttention counts; -1: all
EVERYTHING: Window = (-1, -1)
_TRIAL = "accel_trial"
_HORIZON = 2**17  # tokens; no window is wider
# What attention functions are given beside queries, keys, values and mask, and what of it changes nothing here.
_UNDERSTOOD = {
    "cache_position", "deterministic", "dropout", "is_causal", "layer_idx", "packing", "position_ids", "scaling",
    "sliding_window", "use_cache",
}  # fmt: skip
CLOSE = 1e-4  # of the largest number
_FEW = (3, 17, 1, 8)
_SHORTEST = 32
_OPERATIONS = 12e12  # for the longest text that is tried
_WITH_MATE = 1024  # tokens; longer texts are tried alone, as a padded batch of two costs twice as much


def base_of(module: nn.Module) -> tuple[nn.Module, str]:
    """What holds the transformer inside an `Encoder`, a `Head` or a `Classifier`, and the name it has there."""
    if isinstance(module, Head):
        return base_of(module.encoder)
    if isinstance(module, Encoder):
        return module, "transformer"
    if isinstance(module, Classifier):
        return module.transformer, str(getattr(module.transformer, "base_model_prefix", ""))
    raise refused(f"{type(module).__name__} holds no transformer")


def learn_windows(transformer: nn.Module, *, longest: int) -> None:
    """Run four tokens through a transformer, and write the `Window` of each attention layer to its ``accel_window``.

    Parameters
    ----------
    transformer
        Of transformers' library; its attention function is exchanged for good.
    longest
        Most tokens of a text; a window that hides nothing of it is `EVERYTHING`.

    Raises
    ------
    ModelError
        Its attention is not exchangeable, or asks for more than a window.
    """
    use_attention(transformer, _TRIAL, _learn)
    require("transformers", extra="models").AttentionMaskInterface.register(_TRIAL, _describe)
    ids = torch.full((1, 4), 3)
    takes = inspect.signature(transformer.forward).parameters
    extra = {"position_ids": torch.arange(4)[None]} if "position_ids" in takes else {}
    failed: Exception | None = None
    try:
        with torch.inference_mode():
            transformer(input_ids=ids, attention_mask=torch.ones_like(ids), packing=None, **extra)
    except ModelError:
        raise
    except Exception as error:  # code of some hundred families, each with errors of its own
        failed = error
    layers: list[Any] = [part for part in transformer.modules() if hasattr(part, "accel_window")]
    if failed or not layers or not extra:
        cause = _said(failed) if failed else "it takes no position ids"
        raise refused(cause if layers else _own_attention(transformer)) from failed
    for layer in layers:
        layer.accel_window = tuple(-1 if side >= longest - 1 else side for side in layer.accel_window)


def use_attention(transformer: Any, name: str, function: Callable[..., Any]) -> None:
    """Let a transformer attend by a function, which gets the arguments that transformers' own ones get."""
    require("transformers", extra="models").AttentionInterface.register(name, function)
    if not hasattr(getattr(transformer, "config", None), "_attn_implementation"):
        raise refused(_own_attention(transformer))
    transformer.config._attn_implementation = name


def check_same(module: nn.Module, other: Callable[..., Tensor], *, longest: int) -> None:
    """Run texts of up to `longest` tokens through both; raises `ModelError` where their numbers differ.

    Fewer where `probe_lengths` says so.
    """
    for lengths in (_FEW, *((n, 5) if n <= _WITH_MATE else (n,) for n in probe_lengths(module, longest))):
        moved = difference(module, other, tuple(min(length, longest) for length in lengths))
        if not moved < CLOSE:
            seen = f"numbers move by {moved:.2g} of the largest, allowed {CLOSE:g}, on {max(lengths)} tokens"
            raise refused(f"{seen}: more than its attention looks at other tokens, or counts positions its own way")


def difference(module: nn.Module, other: Callable[..., Tensor], lengths: tuple[int, ...]) -> float:
    """How far the answers of two networks to random tokens are apart, as a share of the largest number.

    A classifier that takes segment ids is given random ones.
    """
    config = config_of(module)
    pad_id = getattr(config, "pad_token_id", None) or 0
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    random = torch.Generator().manual_seed(0)
    words = torch.randint(3, config.vocab_size, mask.shape, generator=random)
    ids = torch.where(mask == 1, words - (words == pad_id).long(), pad_id)  # some heads tell padding by its id
    inputs = [ids, mask]
    if isinstance(module, Classifier) and module.segments:
        inputs.append(torch.randint(0, max(1, config.type_vocab_size), mask.shape, generator=random) * mask)
    with torch.inference_mode():
        expected = module(*inputs)
        try:
            return float((expected - other(*inputs)).abs().max() / expected.abs().max().clamp(min=1))
        except Exception as error:  # as in `learn_windows`
            raise refused(_said(error)) from error


def probe_lengths(module: nn.Module, longest: int) -> list[int]:
    """Lengths in tokens to try a network on: the longest, a quarter of it, and so on, down to 32 and more.

    The first is shorter than `longest` where a row of it would take more than a quarter of this machine's memory for
    the logits and the shares of attention, or more than 12 TFLOP: some two minutes on two cores, and what a network of
    24 layers of 1,024 takes for 8,192 tokens.
    """
    config = config_of(module)
    layers, width, heads = (
        getattr(config, name, 0) or 1 for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    tables = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Embedding))
    linear = 2 * max(1, sum(weight.numel() for weight in module.parameters()) - tables)  # operations per token
    pairs = 4 * layers * width  # operations per pair of tokens
    in_memory = (inspect_machine().memory_bytes / 4 / (2 * 4 * heads)) ** 0.5
    in_time = ((linear**2 + 4 * pairs * _OPERATIONS) ** 0.5 - linear) / (2 * pairs)
    lengths = [min(longest, int(in_memory), int(in_time))]
    while lengths[-1] >= 4 * _SHORTEST:
        lengths.append(lengths[-1] // 4)
    return lengths


def config_of(module: nn.Module) -> Any:
    """The config of the transformer somewhere inside a network; None where there is none."""
    parts: Any = module.modules()
    return next((part.config.get_text_config() for part in parts if hasattr(part, "config")), None)


def refused(cause: str) -> ModelError:
    """The error for a network that cannot be computed without padding."""
    return ModelError("This network cannot be packed.", seen=cause, fix="leave out packed=True")


def _learn(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **asked: Any  # noqa: ARG001
) -> tuple[Tensor, None]:  # fmt: skip
    """An attention function that notes what a layer asks for, and answers zeros."""
    more = [name for name, what in asked.items() if name not in _UNDERSTOOD and what is not None and what is not False]
    if more or "packing" not in asked:
        raise refused(f"attention with {more[0].replace('_', ' ')}" if more else "attention is handed no arguments")
    causal, window = asked.get("is_causal"), getattr(attention_mask, "accel_window", None)
    if attention_mask is None:
        window = (-1, 0) if (getattr(module, "is_causal", True) if causal is None else causal) else EVERYTHING
    if window is None or getattr(module, "accel_window", window) != window:
        raise refused("a layer changes its attention mask")
    module.accel_window = window
    return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def _describe(*, q_length: int, kv_length: int, mask_function: Callable[..., Tensor], **_: Any) -> Tensor:
    """A mask function for the trial: a mask that says which window it stands for."""
    mask: Any = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)
    mask.accel_window = _window(mask_function)
    described: Tensor = mask
    return described


def _window(mask_function: Callable[..., Tensor]) -> Window:
    """The window that ``mask_function(batch, head, query, key)`` lets through."""
    last, none = _HORIZON - 1, torch.zeros(1, 1, dtype=torch.int64)
    queries = torch.tensor([0, 1, 7, last // 3, last // 2 + 1, last - 1, last])[:, None]
    ahead = torch.arange(_HORIZON)[None] - queries
    seen = mask_function(none, none, queries, queries + ahead).expand(ahead.shape)
    left, right = int(-ahead[seen].min()), int(ahead[seen].max())
    if not torch.equal(seen, (ahead >= -left) & (ahead <= right)):
        raise refused("a mask that is no window, such as attention in chunks")
    return (-1 if left == last else left, -1 if right == last else right)


def _own_attention(transformer: nn.Module) -> str:
    """The cause where a network does not use the exchangeable attention function, with its window if it has one."""
    kinds = (type(part).__name__ for part in transformer.modules())
    kind = next((name for name in kinds if name.endswith("Attention")), type(transformer).__name__)
    config = getattr(transformer, "config", None)
    window = next((held for name in ("sliding_window", "attention_window") if (held := getattr(config, name, 0))), 0)
    widest = max(window) if isinstance(window, list) else window
    return f"attention by code of its own ({kind})" + (f", with a window of {widest}" if widest else "")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
