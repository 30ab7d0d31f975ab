"""The Chat tab: a language model's answer as it comes, with the time to its first token and its tokens per second."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from accel_lib.errors import AccelError
from accel_lib.formatting import number
from accel_lib.show.dashboard import html as page
from accel_lib.show.dashboard.api import Api

_SHOW_S = 0.1  # how often the browser is told at most


class Conversation:
    """One chat with a gateway's language model.

    Parameters
    ----------
    api
        The gateway.
    show
        Gets the page's HTML whenever something came, from the thread that reads the stream.
    """

    def __init__(self, api: Api, show: Callable[[str], None]) -> None:
        self._api, self._show = api, show
        self.messages: list[dict[str, str]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is coming."""
        return self._thread is not None and self._thread.is_alive()

    def send(self, text: str) -> None:
        """Ask something, in a thread of its own so that `stop` can be pressed; nothing happens while one is coming."""
        if self.busy or not text.strip():
            return
        self._stop.clear()
        self.messages.append({"role": "user", "content": text.strip()})
        self._thread = threading.Thread(target=self._ask, name="accel-chat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the answer that is coming: the gateway frees its place when the connection closes."""
        self._stop.set()

    def forget(self) -> None:
        """Start a new chat."""
        self.stop()
        self.wait()
        self.messages = []
        self._show(page.empty("Write something, and press Send."))

    def wait(self) -> None:
        """Return once the answer is there."""
        if self._thread is not None:
            self._thread.join()

    def _ask(self) -> None:
        answer = {"role": "assistant", "content": ""}
        asked = [*self.messages]
        self.messages.append(answer)
        self._show(self._html(page.loading("Waiting for the first token")))
        try:
            self._read(asked, answer)
        except AccelError as error:
            self._show(self._html(page.failure(error.cause, error.fix)))

    def _read(self, asked: list[dict[str, str]], answer: dict[str, str]) -> None:
        began, first, shown, tokens = time.monotonic(), 0.0, 0.0, 0
        body = {"messages": asked, "stream": True, "stream_options": {"continuous_usage_stats": True}}
        for chunk in self._api.stream("/v1/chat/completions", body):
            now = time.monotonic()
            tokens = chunk.get("usage", {}).get("completion_tokens", tokens)
            for choice in chunk["choices"]:
                answer["content"] += choice["delta"].get("content") or ""
            if tokens and not first:
                first = now
            if now - shown > _SHOW_S:
                shown = now
                self._show(self._html(_speed(first - began, tokens, now - first)))
            if self._stop.is_set():
                break
        self._show(self._html(_speed(first - began, tokens, time.monotonic() - first)))

    def _html(self, below: str) -> str:
        said = "".join(_bubble(message) for message in self.messages if message["content"])
        return f'<div class="chat">{said}</div>{below}'


def _bubble(message: Mapping[str, Any]) -> str:
    who = {"user": "You", "assistant": "Model"}[message["role"]]
    return f"<p><b>{who}</b><br>{html.escape(message['content']).replace(chr(10), '<br>')}</p>"


def _speed(first_s: float, tokens: int, since_s: float) -> str:
    if not tokens:
        return page.empty("No token came.")
    rate = number((tokens - 1) / since_s) if tokens > 1 and since_s > 0 else ""
    return page.cards(
        [("To the first token", first_s * 1e3, "ms"), ("Tokens", tokens, ""), ("Speed", rate, "tokens/s")]
    )
