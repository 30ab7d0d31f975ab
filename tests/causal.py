"""Causal language models of each family with random weights, and texts to judge them by."""

import numpy as np
import transformers

from tests.tiny import WORDS

T = transformers
RANDOM = np.random.default_rng(5)
TEXTS = [" ".join(f"w{word}" for word in RANDOM.integers(6, WORDS, 3 + index)) for index in range(16)]
SHAPE = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.4, "head_dim": 8, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
QWEN2 = {name: value for name, value in SHAPE.items() if name != "head_dim"}
GEMMA = SHAPE | {"head_dim": 16, "query_pre_attn_scalar": 8}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
LONGROPE = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip
SHORT_TOKENS = 64  # within which longrope does not change

FAMILIES = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SHAPE)),
    "llama, untied, biases": lambda: T.LlamaForCausalLM(
        T.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    ),
    "llama 3's rope": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SHAPE, rope_parameters=LLAMA3)),
    "yarn": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SHAPE, rope_parameters=YARN)),
    "one key-value head": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SHAPE | {"num_key_value_heads": 1})),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**QWEN2)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SHAPE | {"head_dim": 16})),
    "gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**SHAPE | {"head_dim": 16})),
    "gemma 2, windows and caps": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**GEMMA, sliding_window=4, **CAPS)),
    "gemma 3, windows and two ropes": lambda: T.Gemma3ForCausalLM(
        T.Gemma3TextConfig(**GEMMA, sliding_window=4, **LAYERS)
    ),
    "gemma 3, wide windows": lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**GEMMA, sliding_window=256, **LAYERS)),
    "mistral, windows": lambda: T.MistralForCausalLM(T.MistralConfig(**SHAPE, sliding_window=4)),
    "qwen2, a layer of windows": lambda: T.Qwen2ForCausalLM(
        T.Qwen2Config(**QWEN2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**SHAPE)),
    "phi3, half of a head turned": lambda: T.Phi3ForCausalLM(
        T.Phi3Config(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
    ),
    "phi3, longrope": lambda: T.Phi3ForCausalLM(T.Phi3Config(**SHAPE, **LONGROPE)),
}
