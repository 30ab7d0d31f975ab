"""Streams of tokens under load: what a target of a load test has to do, and what is read from its responses."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from accel_lib.artifact import Artifact
from accel_lib.generate import Event, Sampling
from accel_lib.load.generator import Send
from accel_lib.load.prompts import LoadPrompt, TextSource, TokenSource
from accel_lib.models.generation_text import GenerationText
from accel_lib.triton.error_messages import request_error

TIMED_OUT = "DEADLINE_EXCEEDED"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """What came for one request: when (``time.perf_counter``) how many tokens, when it ended, and what failed."""

    times_s: Sequence[float] = ()
    counts: Sequence[int] = ()
    end_s: float = float("nan")
    prompt_tokens: int | None = None
    error: str = ""


class Target(Protocol):
    """Something that streams tokens."""

    name: str
    url: str

    def source(self) -> TokenSource:
        """Where prompts for it are cut from."""

    def payload(self, prompt: LoadPrompt, sampling: Sampling) -> Any:
        """A request, ready to be sent."""

    def connect(self, url: str, timeout_s: float | None) -> contextlib.AbstractAsyncContextManager[Send]:
        """Connect as the `Generator` wants it; a response is a list of what came and when."""

    def read(self, answer: Any, refusal: str) -> Tokens:
        """Parse a response, as far as it came, and the error that ended it; None is no response."""


def of_events(name: str, events: Iterable[tuple[float, Event]], refusal: str) -> Tokens:
    """What the events of an engine say about one request, or what ended it."""
    times_s: list[float] = []
    counts: list[int] = []
    end_s = float("nan")
    error = request_error(name, refusal).cause if refusal else ""
    for time_s, event in events:
        if event.token_ids:
            times_s.append(time_s)
            counts.append(len(event.token_ids))
        end_s = time_s
        if event.error:
            error = request_error(name, event.error).cause
        elif event.finish == "cancelled" and not error:
            error = "It was cancelled."
    return Tokens(times_s=times_s, counts=counts, end_s=end_s, error=error)


def text_source(artifact: Artifact) -> TokenSource:
    """The passages in the tokens of an artifact."""
    return TextSource(GenerationText(artifact.folder, artifact.manifest))
