"""A Llama in llama.cpp's GGUF, dequantized once into a folder that transformers opens.

The folder holds float32 weights, `config.json`, the tokenizer and the chat template. llama.cpp's converter stores the
rows of the query and key projections in another order, for its kind of rotary embedding, which is undone here
(https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from accel_lib.atomic import atomic_directory
from accel_lib.errors import ModelError, require

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # of tokenizer.ggml.token_type: a token that text never spells
_PRE_TOKENIZER = "smollm"


def gguf_folder(file: Path, folder: Path) -> Path:
    """Write what `file` holds as `folder`, if it is not there yet, and return it.

    Raises
    ------
    ModelError
        It holds another network than a Llama, or another tokenizer than SmolLM's.
    """
    if (folder / "config.json").is_file():
        return folder
    reader = require("gguf", extra="generate").GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    kind = facts.get("general.architecture"), facts.get("tokenizer.ggml.pre")
    if kind != ("llama", _PRE_TOKENIZER):
        raise ModelError(
            "Only a Llama with SmolLM's tokenizer is read out of a GGUF file.",
            seen=", ".join(map(str, kind)),
            fix="pass the folder or hub id that it was made from",
        )
    weights = _weights(reader, facts)
    with atomic_directory(folder) as draft:
        _write(draft, weights, facts)
    return folder


def _weights(reader: Any, facts: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    quants = require("gguf.quants", extra="generate")
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    found = {}
    for tensor in reader.tensors:
        *layer, kind = tensor.name.removesuffix(".weight").removeprefix("blk.").split(".")
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if kind in heads:
            values = _reordered(values, heads[kind])
        prefix = f"model.layers.{layer[0]}." if layer else ""
        found[f"{prefix}{_NAMES[kind]}.weight"] = np.ascontiguousarray(values)
    return found


def _reordered(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a projection from pairs of neighbours to halves of a head, as transformers rotates them."""
    rows, width = values.shape
    return values.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _write(draft: Path, weights: dict[str, NDArray[np.float32]], facts: dict[str, Any]) -> None:
    require("safetensors.numpy", extra="models").save_file(weights, draft / "model.safetensors", {"format": "pt"})
    tokenizer = _tokenizer(facts)
    tokenizer.save(str(draft / "tokenizer.json"))
    ids = {name: facts[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    tokens = {f"{name}_token": tokenizer.id_to_token(index) for name, index in ids.items()}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    settings |= {"pad_token": tokens["eos_token"], "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = facts["llama.context_length"]
    settings["chat_template"] = facts["tokenizer.chat_template"]
    generation = {f"{name}_token_id": index for name, index in ids.items()}
    config = _config(facts, tied="lm_head.weight" not in weights) | generation
    for name, content in (("tokenizer_config", settings), ("generation_config", generation), ("config", config)):
        (draft / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _config(facts: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    heads, width = facts["llama.attention.head_count"], facts["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": width,
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "tie_word_embeddings": tied,
    }


def _tokenizer(facts: dict[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE that cuts digits one by one, as SmolLM's own `tokenizer.json` does."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = tokenizers.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in control])
    return backend
