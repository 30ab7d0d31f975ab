"""Chats with a tiny language model behind a `Rig`, streamed, and each held to what transformers' ``generate`` gives."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import torch

from accel_lib.convert.generation import generation_to_openvino
from accel_lib.models import load_model
from accel_lib.triton.repository import default_config, write_model
from tests.generation import reference
from tests.rig import Load, check_error
from tests.tiny import llama_folder

CONTEXT = 65_536  # tokens; a text of that length takes the tiny model a minute
CACHE = 2 * CONTEXT  # so two texts without an end, and hardly more
ENDLESS = CONTEXT - 64
LONGEST = 60  # tokens of the texts that are compared
PATH = "/v1/chat/completions"
_COUNT = 12


def add_generation(folder, repository, *, context=CONTEXT, cache=CACHE):
    """Write a tiny model ``generation`` into a repository; returns it, as transformers' own."""
    model = load_model(str(llama_folder(Path(folder) / "llama", max_position_embeddings=context)))
    artifact = generation_to_openvino(model, output=Path(folder) / "generation", progress=False)
    artifact = artifact.record_validation({"passed": True})
    config = default_config("generation", artifact).replace(cache_tokens=cache, threads=1)
    write_model(repository, "generation", artifact, config=config)
    return model


def expected_texts(model):
    """Questions, and the greedy answer to each, `LONGEST` tokens."""
    questions = [f"w{10 + number} w{40 + 3 * number} w{100 + 5 * number}" for number in range(_COUNT)]
    return {text: model.decode(_continued(model, text)) for text in questions}


def _continued(model, text):
    ids = model.encode_chat([{"role": "user", "content": text}])
    mask = torch.ones(1, len(ids), dtype=torch.int64)  # id 0 is a token, not padding
    return reference(model, ids, LONGEST, eos_token_id=None, attention_mask=mask)


def asked(text, tokens=LONGEST, **fields):
    """The body of a greedy chat of so many tokens."""
    messages = [{"role": "user", "content": text}]
    own = {"model": "generation", "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return own | {"stream": True} | fields


def pieces(lines):
    """Yield the pieces of a stream's text, then ``None``, or an error's code inside; raises if it ends silently."""
    ended = False
    for line in lines:
        if line == "data: [DONE]":
            if not ended:
                yield None
            return
        if not line.startswith("data: "):
            continue
        value = json.loads(line.removeprefix("data: "))
        if "error" in value:
            ended = True
            yield {"code": value["error"]["code"]}
        else:
            yield "".join(choice["delta"].get("content") or "" for choice in value["choices"])
    raise EOFError("the stream ended without a word")


def rest(stream):
    """The text to the end of `pieces`, and the code of an error inside, or None."""
    text = ""
    for piece in stream:
        if piece is None or isinstance(piece, dict):
            return text, piece and piece["code"]
        text += piece
    raise EOFError("the stream ended without a word")


def opened(rig, stack, text, tokens=ENDLESS, **fields):
    """Open a stream on a connection of its own and read its first piece; returns that and the `pieces` to come."""
    client = stack.enter_context(rig.client())
    answer = stack.enter_context(client.stream("POST", PATH, json=asked(text, tokens, **fields)))
    assert answer.status_code == 200, answer.read()
    stream = pieces(answer.iter_lines())
    first = next(piece for piece in stream if piece != "")
    assert isinstance(first, str), first
    return first, stream


class Chats(Load):
    """Clients that stream chats; a text that is not its question's is wrong, a stream without an end is lost."""

    def __init__(self, rig, texts, workers=4):
        super().__init__(rig, workers=workers)
        self._texts = list(texts.items())

    def _one(self, client, turn):
        question, expected = self._texts[turn % len(self._texts)]
        try:
            with client.stream("POST", PATH, json=asked(question)) as answer:
                if answer.status_code != 200:
                    answer.read()
                    check_error(answer)
                    self._refused(answer.status_code)
                    return
                text, code = rest(pieces(answer.iter_lines()))
        except httpx.ConnectError:
            with self._lock:
                self.tally.unreached += 1
            return
        except (httpx.TransportError, EOFError, AssertionError) as error:
            with self._lock:
                self.tally.lost[type(error).__name__] += 1
            return
        if code is not None:
            self._refused(code)
        with self._lock:
            right = expected.startswith(text) if code else text == expected
            self.tally.answered += right and code is None
            self.tally.wrong += not right

    def _refused(self, what):
        with self._lock:
            self.tally.refused[what, "generation"] += 1
