"""``accel chat``: a chat in the terminal with a model that a real Triton serves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from accel_lib.triton.client import ServedModel


def chat(
    message: Annotated[str | None, typer.Argument(help="Ask this and end; without it, a conversation.")] = None,
    model: Annotated[str, typer.Option(help="A model of the repository that generates.")] = "generation",
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer at most; default: the context's.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    repository: Annotated[Path | None, typer.Option(help="Model repository. Default: the course's own.")] = None,
) -> None:
    """Chat with a language model in the terminal; Ctrl-C stops an answer, Ctrl-D ends."""
    from accel_lib.course_models import ensure
    from accel_lib.triton.server import serve

    options = {"temperature": temperature, "max_tokens": max_tokens}
    with serve(repository or ensure(model), models=[model]) as server:
        messages = [{"role": "system", "content": system}] if system else []
        for asked in [message] if message else _typed():
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": _answer(server.model(model), messages, options)})


def _typed() -> Iterator[str]:
    """What is typed, line by line, until the end of the input."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(served: ServedModel, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    """Print an answer as it comes, and return it; an interrupt ends it, and not the conversation."""
    told = ""
    pieces = served.generate(messages, stream=True, **options)
    try:
        for piece in pieces:
            told += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    print()
    return told
