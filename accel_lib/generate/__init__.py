"""Continuous batching of a causal language model, behind one protocol: add requests, step, read the new tokens.

An engine knows token ids only: text, templates and stop strings are its caller's. It is synchronous and has one owner
thread, which calls `step` for as long as requests run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

Finish = Literal["stop", "length", "cancelled"]
PRIORITIES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of one request are chosen, and when its turn is.

    Parameters
    ----------
    max_tokens
        Tokens to generate at most.
    min_tokens
        Tokens before which no stop id ends the text.
    temperature
        0 takes the likeliest token.
    top_p, top_k
        Sample among the likeliest tokens that together have probability `top_p`, and among `top_k`; 1 and 0: among all.
    repetition_penalty, presence_penalty, frequency_penalty
        As transformers and OpenAI define them; 1, 0 and 0 change nothing.
    seed
        The same seed gives the same tokens, alone or in a batch; 0 or more, below 2⁶³. None takes a new one.
    stop_ids
        Token ids that end the text; the model's own end-of-text ids unless `ignore_eos`.
    ignore_eos
        Go on after the model's end-of-text ids.
    logprobs
        How many of the likeliest tokens to report with each token; None reports none, 0 the chosen one alone.
    json_schema
        The text is JSON that this schema allows, itself given as JSON; empty asks for nothing.
    priority
        Of those that wait for a place, 1 goes before 2 and 2 before 3; what runs is not interrupted.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    json_schema: str = ""
    priority: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """Natural logarithm of the probability of a generated token, and of the likeliest ones in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """What a step gave one request: its new token ids, and whether and how it ended; or why it failed.

    With finish ``"stop"`` the last of `token_ids` is the stop id, which belongs to no text; with ``"length"`` all do.
    """

    key: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether no more events come for this request."""
        return self.finish is not None or bool(self.error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine holds, and which fields of `Sampling` it honours.

    Parameters
    ----------
    rows
        Requests that run at once.
    cache_tokens, block_tokens
        Tokens in its key-value cache, which is handed out in blocks of that many tokens.
    context_tokens
        Prompt and answer of a request together.
    vocabulary
        Every token id is smaller.
    unsupported
        Fields of `Sampling` that must keep their defaults.
    top_logprobs
        Most that `Sampling.logprobs` may be; 0 for the chosen token's alone.
    step_tokens
        Most tokens of a step, prompts and answers together; 0: no prompt is cut.
    """

    rows: int
    cache_tokens: int
    context_tokens: int
    vocabulary: int
    block_tokens: int = 1
    unsupported: frozenset[str] = frozenset()
    top_logprobs: int = 0
    step_tokens: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """An engine at this moment; ``cache_use`` is from 0 to 1; of prompts, ``cached_tokens`` were not computed again."""

    running: int
    waiting: int
    cache_use: float
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class GenerationEngine(Protocol):
    """Something that generates tokens for several requests at a time."""

    name: str
    device: str
    precision: str
    limits: Limits
    stop_ids: tuple[int, ...]

    def add(self, key: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take a request under a key that no live one has.

        Raises `RequestError` for one that it could never finish (`accel_lib.generate.requests.check_request`), and
        nothing else is disturbed. More than `Limits` at a time are the caller's fault: put a `Scheduler` above it.
        """

    def cancel(self, key: str) -> None:
        """End a request; its last event, with finish ``"cancelled"``, comes with the next step.

        A key that is not live, because it ended or never was, is passed over.
        """

    def step(self) -> list[Event]:
        """One forward pass for the running requests; an empty list where there are none, or no token is ready.

        Raises `EngineError` when the engine is dead: close it, and open another one.
        """

    def stats(self) -> Stats:
        """Counts since the start, and what runs now."""

    def close(self) -> None:
        """Give memory and threads back; what still ran gets no further event."""
