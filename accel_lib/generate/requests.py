"""Refuses a request that an engine could never finish, before the engine sees it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from accel_lib.errors import RequestError
from accel_lib.generate import PRIORITIES, Limits, Sampling

MOST_SEED = 2**63 - 1
_MOST_PENALTY = 2.0
_MOST_SEEN = 80
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Sampling) if field.name != "max_tokens"}


def cache_tokens(limits: Limits, prompt_tokens: int, max_tokens: int) -> int:
    """Tokens of the cache that a request takes at most, whole blocks."""
    return math.ceil((prompt_tokens + max_tokens) / limits.block_tokens) * limits.block_tokens


def check_request(limits: Limits, prompt_ids: Sequence[int], sampling: Sampling) -> None:
    """Raise `RequestError` for what the engine does not hold, does not honour, or has no meaning."""
    _check_size(limits, len(prompt_ids), sampling)
    _check_ids(limits, prompt_ids, "The prompt holds a token id that the model does not have.")
    _check_ids(limits, sampling.stop_ids, "A stop id is no token of the model.")
    _check_sampling(sampling)
    if sampling.json_schema and sampling.ignore_eos:
        raise RequestError(
            "JSON ends, and this request goes on after every end.", seen="ignore_eos=True", fix="leave ignore_eos out"
        )
    for name in sorted(limits.unsupported):
        if getattr(sampling, name) != _DEFAULTS[name] and not (name == "seed" and sampling.temperature == 0):
            raise RequestError(
                f"This engine does not honour {name}.",
                seen=f"{name}={getattr(sampling, name)!r}"[:_MOST_SEEN],
                fix="leave it out, or serve the model with another engine: OpenVINO on a CPU",
            )
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= limits.top_logprobs:
        raise RequestError(
            "This engine does not report that many likeliest tokens.",
            seen=f"logprobs={sampling.logprobs}",
            fix=f"ask for at most {limits.top_logprobs}; 0 gives the chosen token's alone",
        )


def _check_size(limits: Limits, prompt: int, sampling: Sampling) -> None:
    if not prompt:
        raise RequestError("The prompt is empty.", fix="send at least one token")
    if not 0 <= sampling.min_tokens <= sampling.max_tokens or sampling.max_tokens < 1:
        raise RequestError(
            "The numbers of tokens to generate have no meaning.",
            seen=f"min_tokens={sampling.min_tokens}, max_tokens={sampling.max_tokens}",
            fix="0 ≤ min_tokens ≤ max_tokens, and at least one token",
        )
    together = prompt + sampling.max_tokens
    if together > limits.context_tokens:
        raise RequestError(
            f"The model's context is {limits.context_tokens} tokens.",
            seen=f"{prompt} tokens of prompt and max_tokens={sampling.max_tokens}",
            fix="shorten the prompt, or lower max_tokens",
        )
    if cache_tokens(limits, prompt, sampling.max_tokens) > limits.cache_tokens:
        raise RequestError(
            f"The engine's cache holds {limits.cache_tokens} tokens.",
            seen=f"{together} tokens of prompt and answer",
            fix="shorten the prompt, lower max_tokens, or open the engine with more cache_tokens",
        )


def _check_ids(limits: Limits, ids: Sequence[int], cause: str) -> None:
    bad = next((token for token in ids if not 0 <= token < limits.vocabulary), None)
    if bad is not None:
        raise RequestError(cause, seen=bad, fix=f"ids are from 0 to {limits.vocabulary - 1}")


def _check_sampling(sampling: Sampling) -> None:
    """Comparisons are written so that NaN fails them."""
    rules = {
        "temperature": (0 <= sampling.temperature < math.inf, "0 or more"),
        "top_p": (0 < sampling.top_p <= 1, "more than 0, at most 1"),
        "top_k": (sampling.top_k >= 0, "0 (all) or more"),
        "repetition_penalty": (0 < sampling.repetition_penalty < math.inf, "more than 0"),
        "presence_penalty": (abs(sampling.presence_penalty) <= _MOST_PENALTY, "from -2 to 2"),
        "frequency_penalty": (abs(sampling.frequency_penalty) <= _MOST_PENALTY, "from -2 to 2"),
        "priority": (1 <= sampling.priority <= PRIORITIES, f"1 (first) to {PRIORITIES}"),
        "seed": (sampling.seed is None or 0 <= sampling.seed <= MOST_SEED, f"from 0 to {MOST_SEED}"),
    }
    for name, (good, allowed) in rules.items():
        if not good:
            raise RequestError(
                f"{name} has no meaning.", seen=f"{name}={getattr(sampling, name)!r}", fix=f"{name}: {allowed}"
            )
