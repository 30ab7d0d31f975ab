"""The shapes of OpenAI's answers: a chat or a text, whole or in chunks, with its usage and log probabilities."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from accel_lib.generate import TokenLogprob
from accel_lib.models.generation_text import GenerationText
from accel_lib.service.generation import Part

_Json = dict[str, Any]


@dataclasses.dataclass
class Tally:
    """Tokens of one request."""

    prompt: int
    generated: int = 0

    def usage(self) -> _Json:
        """As OpenAI gives it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
        }


class Shape(abc.ABC):
    """What both have in common; `head` is id, created and model."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, head: _Json, text: GenerationText, *, wants_logprobs: bool) -> None:
        self._whole_head = head | {"object": self.whole_object}
        self._chunk_head = head | {"object": self.chunk_object}
        self._text, self._wants_logprobs = text, wants_logprobs
        self._offsets: dict[int, int] = {}

    @abc.abstractmethod
    def opening(self, choice: int) -> _Json | None:
        """The first chunk of a choice; None where there is none."""

    def chunk(self, part: Part) -> _Json:
        """A piece of text."""
        return self._chunk(part, self._content(part.text), None)

    def closing(self, part: Part) -> _Json:
        """How a choice ended."""
        return self._chunk(dataclasses.replace(part, text="", logprobs=()), self._content(""), part.finish)

    def usage_chunk(self, tally: Tally) -> _Json:
        """The last chunk, for those who asked for it."""
        return self._chunk_head | {"choices": [], "usage": tally.usage()}

    def whole(
        self, texts: Sequence[str], logprobs: Sequence[list[TokenLogprob]], finishes: Sequence[str], tally: Tally
    ) -> _Json:
        """The answer that is no stream."""
        choices = [
            {"index": index, **self._message(text), "logprobs": self._logprobs(index, rows), "finish_reason": finish}
            for index, (text, rows, finish) in enumerate(zip(texts, logprobs, finishes, strict=True))
        ]
        return self._whole_head | {"choices": choices, "usage": tally.usage()}

    def _chunk(self, part: Part, content: _Json, finish: str | None) -> _Json:
        logprobs = self._logprobs(part.choice, part.logprobs) if part.logprobs else None
        choice = {"index": part.choice, **content, "logprobs": logprobs, "finish_reason": finish}
        return self._chunk_head | {"choices": [choice]}

    @abc.abstractmethod
    def _content(self, text: str) -> _Json:
        """A piece of text in a chunk."""

    @abc.abstractmethod
    def _message(self, text: str) -> _Json:
        """A text in a whole answer."""

    @abc.abstractmethod
    def _logprobs(self, choice: int, rows: Sequence[TokenLogprob]) -> _Json | None:
        """Those of some tokens; None unless asked for."""


class ChatShape(Shape):
    """``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, choice: int) -> _Json:
        """The chunk that says who speaks."""
        delta = {"role": "assistant", "content": ""}
        opened = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._chunk_head | {"choices": [opened]}

    def _content(self, text: str) -> _Json:
        return {"delta": {"content": text} if text else {}}

    def _message(self, text: str) -> _Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _logprobs(self, choice: int, rows: Sequence[TokenLogprob]) -> _Json | None:  # noqa: ARG002
        if not self._wants_logprobs:
            return None
        return {
            "content": [
                self._token(row.token_id, row.logprob) | {"top_logprobs": [self._token(*each) for each in row.top]}
                for row in rows
            ],
            "refusal": None,
        }

    def _token(self, token_id: int, logprob: float) -> _Json:
        token = self._text.spell(token_id)
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


class CompletionShape(Shape):
    """``/v1/completions``."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def opening(self, choice: int) -> None:
        """A text has no role."""

    def _content(self, text: str) -> _Json:
        return {"text": text}

    def _message(self, text: str) -> _Json:
        return {"text": text}

    def _logprobs(self, choice: int, rows: Sequence[TokenLogprob]) -> _Json | None:
        if not self._wants_logprobs:
            return None
        found: _Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for row in rows:
            token, at = self._text.spell(row.token_id), self._offsets.get(choice, 0)
            found["tokens"].append(token)
            found["token_logprobs"].append(row.logprob)
            found["top_logprobs"].append({self._text.spell(each): value for each, value in row.top})
            found["text_offset"].append(at)
            self._offsets[choice] = at + len(token)
        return found
