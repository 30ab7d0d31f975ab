"""The text side of a served model that generates: messages or text to token ids, and token ids back to text.

It reads an artifact's folder and needs neither torch nor transformers, so a gateway has it without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from accel_lib.artifact import TOKENIZER_FILE, Manifest
from accel_lib.errors import ArtifactError, ModelError, RequestError, TextError
from accel_lib.models.chat import ChatTemplate
from accel_lib.models.text_stream import StopStrings, TextStream
from accel_lib.texts import clean

_CHARACTERS_PER_TOKEN = 8  # about twice as many as in English
_CUT_TOKENS = 16  # by which a text that is cut may have more tokens than the same part of the whole


class GenerationText:
    """Tokenizer, chat template and limits of one artifact.

    Parameters
    ----------
    folder
        The artifact's folder.
    manifest
        What it says of itself; its task is generation.

    Raises
    ------
    ArtifactError
        The tokenizer cannot be read.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:  # the library raises plain exceptions
            fix = f"convert the model again: accel convert --model <name> --output {folder.name}"
            raise ArtifactError("The tokenizer cannot be read.", seen=error, fix=fix) from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.name = manifest.model
        self.context_tokens = manifest.max_length
        self.vocabulary = manifest.dimension
        self.stop_ids = manifest.stop_ids
        template, special = manifest.chat_template, manifest.special_tokens
        self.chat_template = ChatTemplate(template, special) if template else None

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt of a chat, ending where the assistant's answer begins.

        Raises
        ------
        ModelError
            The model has no chat template.
        TextError
            The template refuses the messages, or a text is not valid Unicode.
        """
        if self.chat_template is None:
            raise ModelError(
                "The model has no chat template: it continues text and does not chat.",
                seen=self.name,
                fix="send text to continue: /v1/completions, or .generate('Once upon')",
            )
        return self._ids(self.chat_template.render(messages), special=False)

    def text_ids(self, text: str) -> list[int]:
        """The prompt of a text to continue; raises `TextError` for a blank one."""
        (checked,) = clean([text])
        return self._ids(checked, special=True)

    def spell(self, token_id: int) -> str:
        """A token by itself, special ones too."""
        text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def answer(self, stops: Sequence[str] = ()) -> AnswerText:
        """Where the token ids of an answer become its text."""
        return AnswerText(TextStream(self.tokenizer), StopStrings(stops))

    def _ids(self, text: str, *, special: bool) -> list[int]:
        try:
            self._refuse_far_too_long(text)
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        except (TypeError, UnicodeError) as error:  # a lone surrogate cannot cross into Rust
            fix = "send valid Unicode: text.encode('utf-8', 'replace').decode()"
            raise TextError("The text is not valid Unicode.", seen="a lone surrogate", fix=fix) from error
        if not ids:
            raise TextError("The text has no token this tokenizer knows.", seen=repr(text[:40]), fix="leave it out")
        return ids

    def _refuse_far_too_long(self, text: str) -> None:
        """Look at the beginning of a long text first: megabytes take many seconds, to be refused after all."""
        size = _CHARACTERS_PER_TOKEN * self.context_tokens
        while size < len(text):
            if (
                len(self.tokenizer.encode(text[:size], add_special_tokens=False).ids)
                > self.context_tokens + _CUT_TOKENS
            ):
                cause = f"The context is {self.context_tokens:,} tokens; the prompt has far more."
                raise RequestError(cause, seen=f"{len(text):,} characters", fix="shorten the prompt")
            size *= 4


class AnswerText:
    """The text of one answer as its tokens come, up to a stop string."""

    def __init__(self, stream: TextStream, stops: StopStrings) -> None:
        self._stream, self._stops = stream, stops

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text, so that nothing more is wanted."""
        return self._stops.found is not None

    def push(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text that is certain after these tokens; all of it after the `last` ones."""
        text = self._stops.push(self._stream.push(ids) + (self._stream.flush() if last else ""))
        return text + self._stops.flush() if last else text
