"""Tiny folders by family: real architectures with random weights, each with a tokenizer of its kind.

``FAMILIES[name](folder)`` writes a bare checkpoint and returns the folder; `kind` and `changes` say what else::

    FAMILIES["modernbert"](folder)                                # AutoModel's class: a bare checkpoint
    FAMILIES["modernbert"](folder, kind="sentence")               # with Pooling and Normalize behind it
    FAMILIES["bert"](folder, kind="SequenceClassification", num_labels=1)   # any AutoModelFor… of transformers
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from accel_lib._logging import silenced

WORDS = 400
_TEXTS = [
    "a small cat sleeps on the warm mat while a dog runs and music plays in the town",
    "how many people live in berlin, and which of its museums are well known",
    "the quick brown fox jumps over a lazy dog; numbers such as 3,520,031 and 2019 occur as well",
]
_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
_GROUPED = _SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1}


@functools.cache
def _rust(kind: str) -> str:
    """A tokenizer of a family's kind, trained on a few sentences, as JSON; ids 0 to 4 are its special tokens."""
    special = SPECIAL[kind]
    begin, _, end, unknown, _ = special
    if kind == "wordpiece":
        rust = tokenizers.Tokenizer(models.WordPiece(unk_token=unknown))
        rust.normalizer = normalizers.BertNormalizer()
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=list(special))
        pair, template = f"{begin} $A {end} $B:1 {end}:1", f"{begin} $A {end}"
    elif kind == "unigram":
        rust = tokenizers.Tokenizer(models.Unigram())
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
        rust.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=WORDS, special_tokens=list(special), unk_token=unknown)
        pair, template = f"$A {end} $B {end}", f"$A {end}"
    else:
        rust = tokenizers.Tokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=list(special), initial_alphabet=alphabet)
        pair, template = f"{begin} $A {end} {end} $B {end}", f"{begin} $A {end}"
        if kind == "causal":
            pair, template = f"$A $B {end}", f"$A {end}"
    rust.train_from_iterator(_TEXTS, trainer)
    rust.post_processor = processors.TemplateProcessing(
        single=template, pair=pair, special_tokens=[(token, special.index(token)) for token in (begin, end)]
    )
    return rust.to_str()


SPECIAL = {
    "wordpiece": ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
    "bytes": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "unigram": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "causal": ("<s>", "<pad>", "<|end|>", "<unk>", "<mask>"),
}
_INPUTS = ["input_ids", "attention_mask"]


def tokenizer(kind: str, *, model_max_length: int = 512) -> Any:
    """A tokenizer of transformers: ``"wordpiece"`` (BERT's), ``"bytes"``, ``"unigram"`` (T5's) or ``"causal"``."""
    begin, pad, end, unknown, mask = SPECIAL[kind]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(_rust(kind)),
        model_max_length=model_max_length,
        model_input_names=_INPUTS + ["token_type_ids"] * (kind == "wordpiece"),
        cls_token=begin,
        pad_token=pad,
        sep_token=end,
        eos_token=end,
        unk_token=unknown,
        mask_token=mask,
    )


def write(
    folder: Path,
    *,
    config: str,
    words: str = "wordpiece",
    model: str = "",
    kind: str = "bare",
    seed: int = 0,
    model_max_length: int = 512,
    pooling: str = "mean",
    **shape: Any,
) -> Path:
    """Write a folder; FAMILIES has one of these for each family.

    Parameters
    ----------
    folder
        Where; it is made.
    config, model
        Names of classes of transformers; without `model`, the one that `kind` takes for the config.
    words
        Kind of the tokenizer.
    kind
        ``"bare"``, ``"sentence"`` (modules.json with Pooling and Normalize) or the end of an ``AutoModelFor…``.
    seed, model_max_length, pooling
        Of the weights; of the tokenizer; of a ``"sentence"``.
    shape
        Settings of the config.
    """
    ids = {"vocab_size": WORDS, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    made = getattr(transformers, config)(**ids | shape)
    own_class = kind in ("bare", "sentence")
    folder.mkdir(parents=True, exist_ok=True)
    with silenced(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if own_class and model:
            network = getattr(transformers, model)(made)
        else:
            loader = getattr(transformers, "AutoModel" if own_class else f"AutoModelFor{kind}")
            network = loader.from_config(made)
        network.eval().save_pretrained(folder)
    tokenizer(words, model_max_length=model_max_length).save_pretrained(folder)
    if kind == "sentence":
        write_modules(folder, pooling=pooling)
    return folder


def write_modules(folder: Path, *, pooling: str = "mean") -> None:
    """Put Pooling and Normalize behind the checkpoint of a folder, in sentence-transformers' layout."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    for path, _ in kinds[1:]:
        (folder / path).mkdir()
    width = transformers.AutoConfig.from_pretrained(folder).get_text_config().hidden_size
    pooled = {"word_embedding_dimension": width, "pooling_mode": pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooled), encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def _family(config: str, words: str = "wordpiece", **shape: Any) -> Callable[..., Path]:
    return functools.partial(write, config=config, words=words, **(_SHAPE | shape))


def _grouped(config: str, **shape: Any) -> Callable[..., Path]:
    return functools.partial(write, config=config, words="causal", **(_GROUPED | shape))


_ROBERTA = {"type_vocab_size": 1, "max_position_embeddings": 514}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}

_TWO_SIDES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
}

FAMILIES: dict[str, Callable[..., Path]] = {
    "bert": _family("BertConfig"),
    "roberta": _family("RobertaConfig", "bytes", **_ROBERTA),
    "xlm-roberta": _family("XLMRobertaConfig", "bytes", **_ROBERTA),
    "camembert": _family("CamembertConfig", "bytes", **_ROBERTA),
    "distilbert": functools.partial(
        write, config="DistilBertConfig", dim=32, n_layers=2, n_heads=2, hidden_dim=64, initializer_range=0.2
    ),
    "mpnet": _family("MPNetConfig", "bytes", max_position_embeddings=514),
    "albert": _family("AlbertConfig", embedding_size=16),
    "electra": _family("ElectraConfig", embedding_size=16),
    "deberta": _family("DebertaConfig", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": _family(
        "DebertaV2Config", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=32, type_vocab_size=0
    ),
    "modernbert": _family(
        "ModernBertConfig", num_hidden_layers=3, local_attention=16, cls_token_id=0, sep_token_id=2, pad_token_id=1
    ),
    "nomic-bert": _family("NomicBertConfig", max_position_embeddings=2048, model_max_length=8192),
    "gte": _family("GteConfig", "bytes", max_position_embeddings=8192),
    "jina-v3": _family("JinaEmbeddingsV3Config", "bytes", max_position_embeddings=8194),
    "eurobert": functools.partial(write, config="EuroBertConfig", words="bytes", **_GROUPED),
    "t5": functools.partial(write, config="T5Config", words="unigram", model="T5EncoderModel", **_T5),
    "mt5": functools.partial(write, config="MT5Config", words="unigram", model="MT5EncoderModel", **_T5),
    "umt5": functools.partial(write, config="UMT5Config", words="unigram", model="UMT5EncoderModel", **_T5),
    "qwen2": _grouped("Qwen2Config"),
    "qwen3": _grouped("Qwen3Config"),
    "llama": _grouped("LlamaConfig"),
    "mistral": _grouped("MistralConfig", sliding_window=16),
    "gemma": _grouped("GemmaConfig"),
    "gemma3": _grouped("Gemma3TextConfig", use_bidirectional_attention=True, query_pre_attn_scalar=8, **_LAYERS),
    "longformer": _family("LongformerConfig", "bytes", attention_window=16, **_ROBERTA),
    "big-bird": _family("BigBirdConfig", attention_type="block_sparse", block_size=4, num_random_blocks=1),
    "funnel": functools.partial(
        write,
        config="FunnelConfig",
        model="FunnelModel",
        d_model=32,
        n_head=2,
        d_head=16,
        d_inner=64,
        block_sizes=[1, 1],
        block_repeats=[1, 1],
    ),
    "ibert": _family("IBertConfig", "bytes", **_ROBERTA),
    "nystromformer": _family("NystromformerConfig"),
    "rembert": _family("RemBertConfig", input_embedding_size=16, output_embedding_size=16),
    "xlnet": functools.partial(
        write, config="XLNetConfig", words="unigram", d_model=32, n_layer=2, n_head=2, d_inner=64
    ),
    "bert-relative": _family("BertConfig", position_embedding_type="relative_key"),
    "roformer": _family("RoFormerConfig", embedding_size=32),
    "mobilebert": _family("MobileBertConfig", embedding_size=16, intra_bottleneck_size=16, num_feedforward_networks=1),
    "squeezebert": _family("SqueezeBertConfig", embedding_size=32),
    "convbert": _family("ConvBertConfig", embedding_size=16),
    "megatron-bert": _family("MegatronBertConfig"),
    "ernie": _family("ErnieConfig"),
    "data2vec-text": _family("Data2VecTextConfig", "bytes", **_ROBERTA),
    "roberta-prelayernorm": _family("RobertaPreLayerNormConfig", "bytes", **_ROBERTA),
    "xlm-roberta-xl": _family("XLMRobertaXLConfig", "bytes", **_ROBERTA),
    "xmod": _family("XmodConfig", "bytes", languages=["en_XX"], default_language="en_XX", **_ROBERTA),
    "fnet": _family("FNetConfig", tpu_short_seq_length=64),
    "esm": _family("EsmConfig", mask_token_id=4, position_embedding_type="rotary"),
    "bart": functools.partial(write, config="BartConfig", words="bytes", **_TWO_SIDES),
    "m2m-100": functools.partial(write, config="M2M100Config", words="bytes", **_TWO_SIDES),
    "pegasus": functools.partial(write, config="PegasusConfig", words="unigram", **_TWO_SIDES),
    "whisper": functools.partial(
        write, config="WhisperConfig", words="bytes", max_source_positions=128, **_TWO_SIDES | {"encoder_layers": 1}
    ),
    "longt5": functools.partial(write, config="LongT5Config", words="unigram", local_radius=16, **_T5),
    "dpr": _family("DPRConfig"),
    "canine": _family("CanineConfig", num_hash_buckets=64, local_transformer_stride=16, max_position_embeddings=512),
    "yoso": _family("YosoConfig"),
    "lilt": _family("LiltConfig", "bytes", channel_shrink_ratio=2, **_ROBERTA | {"hidden_size": 48}),
    "gemma3-vision": functools.partial(
        write,
        config="Gemma3Config",
        words="causal",
        text_config=_GROUPED | {"vocab_size": WORDS},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "clip": functools.partial(
        write,
        config="CLIPConfig",
        text_config=_SHAPE | {"vocab_size": WORDS},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "gpt2": functools.partial(write, config="GPT2Config", words="causal", n_embd=32, n_layer=2, n_head=2),
}
