"""How many tokens a model takes: what its own library would cut at, and what its network has positions for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from accel_lib.errors import ModelError
from accel_lib.models.files import refused
from accel_lib.models.spec import ModelSpec

_CHOSEN_TOKENS = 512  # where nothing limits a text: what T5, the commonest such network, was trained with
_ENDLESS = 1_000_000  # transformers stands for "no limit" by 1e30
_OUR_CHOICE = (
    f"the folder sets no length limit and its own library cuts nothing: {_CHOSEN_TOKENS} tokens are our choice, "
    "max_length=... sets another"
)
_POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe", "distance_embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """Where texts are cut.

    Parameters
    ----------
    tokens
        Longest row, special tokens included.
    reference
        Where the reference has to cut too, because we were asked to, or because it fails beyond; None leaves it its own
        limit.
    notes
        Where ours is not the original's, in words.
    """

    tokens: int
    reference: int | None = None
    notes: tuple[str, ...] = ()


def length_limit(recipe: ModelSpec, network: Any, tokenizer: Any, asked: int | None) -> Limit:
    """The original's own limit, or `asked`, as far as the network has positions.

    sentence-transformers cuts at ``max_seq_length`` of its folder, else at the tokenizer's ``model_max_length`` or the
    config's ``max_position_embeddings``, whichever is less.

    Raises
    ------
    ModelError
        The network cannot take `asked` tokens.
    """
    stated = getattr(network.config, "max_position_embeddings", None) or -1
    stated = stated if stated > 0 else _ENDLESS
    own = min(recipe.max_length or min(tokenizer.model_max_length, stated), _ENDLESS)
    table = _positions(network)
    if asked is not None:
        least, most = tokenizer.num_special_tokens_to_add() + 1, table or max(own, stated)
        if not least <= asked <= most:
            raise ModelError(
                "The model cannot take texts of that length.",
                seen=f"max_length={asked}",
                fix=f"pass {least} to {most} tokens",
            )
        return Limit(tokens=asked, reference=asked)
    if table and table < own:
        asks = "sets no length limit" if own == _ENDLESS else f"asks for {own} tokens"
        return Limit(tokens=table, reference=table, notes=(f"the folder {asks}, its network has {table} positions",))
    if own == _ENDLESS:
        return Limit(tokens=_CHOSEN_TOKENS, notes=(_OUR_CHOICE,))
    return Limit(tokens=own)


def _positions(network: Any) -> int | None:
    """Rows of the network's table of positions; None where they are computed (rotary, relative, none at all)."""
    for name, part in network.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and (weight := getattr(part, "weight", None)) is not None:
            if getattr(part, "padding_idx", None) is not None:
                return len(weight) - int(part.padding_idx) - 1  # RoBERTa's kind count from the padding id on
            return int(getattr(network.config, "max_position_embeddings", len(weight)))
    return None


def settle_rope(folder: Path, network: Any, tokens: int) -> None:
    """Take rotary frequencies that change with the longest text of a batch as they are for texts up to `tokens`.

    Raises
    ------
    ModelError
        They change within that length: then an answer depends on its batch mates, which no fixed graph does.
    """
    for part in network.modules():
        kinds = getattr(part, "rope_type", None)
        layers = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer, kind in layers.items():
            if kind is None or not ("dynamic" in kind or kind == "longrope"):
                continue
            asked = part.config.rope_parameters if layer is None else part.config.rope_parameters[layer]
            most = asked["original_max_position_embeddings"] if kind == "longrope" else part.original_max_seq_len
            if tokens > most:
                raise refused(
                    folder,
                    f"dynamic rope scaling ({kind}) with texts up to {tokens} tokens",
                    fix=f"pass max_length={most}: for texts up to there its rope never changes",
                )
            part.rope_type = "default" if layer is None else {**part.rope_type, layer: "default"}
