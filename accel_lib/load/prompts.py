"""Prompts for a load test, cut from the shipped passages to wanted numbers of tokens.

No two begin alike, nor do those of two runs: a server that keeps the cache of ended requests would otherwise answer the
second run faster than the first one.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.models.generation_text import GenerationText
from accel_lib.texts import load_texts

_OPENING_TOKENS = 4  # from one place, the rest from another: two prompts hardly ever take both alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadPrompt:
    """A message of a user, and the token ids of the chat with it; `token_ids` is empty where no tokenizer is here."""

    text: str
    token_ids: tuple[int, ...]


class TokenSource(Protocol):
    """Where prompts are cut from."""

    tokens: int
    overhead_tokens: int

    def cut(self, places: list[tuple[int, int]]) -> LoadPrompt:
        """A prompt of pieces: where each starts, and how many tokens it has."""


def passages() -> str:
    """The text that prompts are cut from."""
    return " ".join(load_texts("passages"))


class TextSource:
    """The passages in a model's own tokens, in its chat template where it has one."""

    def __init__(self, text: GenerationText) -> None:
        self._text = text
        self._ids = text.tokenizer.encode(passages(), add_special_tokens=False).ids
        self.tokens = len(self._ids)
        self.overhead_tokens = len(self._prompt_ids("a")) - 1 if text.chat_template else 0

    def cut(self, places: list[tuple[int, int]]) -> LoadPrompt:
        """A prompt of pieces of the passages."""
        found = [self._ids[(start + each) % self.tokens] for start, length in places for each in range(length)]
        text = self._text.tokenizer.decode(found, skip_special_tokens=False).strip() or "a"
        return LoadPrompt(text=text, token_ids=tuple(self._prompt_ids(text)))

    def _prompt_ids(self, text: str) -> list[int]:
        if self._text.chat_template is None:
            return self._text.text_ids(text)
        return self._text.chat_ids([{"role": "user", "content": text}])


class RandomSource:
    """Token ids by chance, for an engine that comes without its tokenizer."""

    overhead_tokens = 0

    def __init__(self, vocabulary: int, random: np.random.Generator) -> None:
        self._ids = random.integers(0, vocabulary, 65_536)
        self.tokens = len(self._ids)

    def cut(self, places: list[tuple[int, int]]) -> LoadPrompt:
        """A prompt of pieces of the ids."""
        ids = [int(self._ids[(start + each) % self.tokens]) for start, length in places for each in range(length)]
        return LoadPrompt(text="", token_ids=tuple(ids))


class CharacterSource:
    """The passages by characters, for a server whose tokenizer is not here.

    Parameters
    ----------
    characters_per_token, overhead_tokens
        As the server's own counts of two texts give them.
    """

    def __init__(self, characters_per_token: float, overhead_tokens: int) -> None:
        self._text = passages()
        self._per_token = characters_per_token
        self.overhead_tokens = overhead_tokens
        self.tokens = int(len(self._text) / characters_per_token)

    def cut(self, places: list[tuple[int, int]]) -> LoadPrompt:
        """A prompt of about that many tokens."""
        pieces = []
        for start, length in places:
            begin = round(start * self._per_token)
            characters = max(1, round(length * self._per_token))
            pieces += [self._text[(begin + each) % len(self._text)] for each in range(characters)]
        return LoadPrompt(text="".join(pieces).strip() or "a", token_ids=())


def make_prompts(
    source: TokenSource, lengths: NDArray[np.int64], *, shared_prefix_tokens: int, random: np.random.Generator
) -> list[LoadPrompt]:
    """A prompt for each length, the tokens of a chat template included; all have at least one token beside them.

    Parameters
    ----------
    shared_prefix_tokens
        Tokens with which all begin alike, after the template's; the rest of each is its own.

    Raises
    ------
    AccelError
        The prefix is negative, or longer than the shortest prompt.
    """
    own = np.maximum(lengths - source.overhead_tokens, 1)
    if not 0 <= shared_prefix_tokens < own.min():
        raise AccelError(
            "The shared prefix leaves no room for a prompt's own tokens.",
            seen=f"shared_prefix_tokens={shared_prefix_tokens}, prompts from {own.min()} tokens on",
            fix=f"make it shorter, or prompt_tokens longer; {source.overhead_tokens} of them are the chat template's",
        )
    shared = (int(random.integers(source.tokens)), shared_prefix_tokens)
    prompts = []
    for length in own.tolist():
        opening, rest = random.integers(source.tokens, size=2).tolist()
        left = length - shared_prefix_tokens
        first = min(_OPENING_TOKENS, left)
        places = [shared, (opening, first), (rest, left - first)]
        prompts.append(source.cut([(start, count) for start, count in places if count]))
    return prompts
