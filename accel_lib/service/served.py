"""What the gateway knows of the models behind it: tokenizers, manifests, and which versions answer now."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from accel_lib.artifact import MANIFEST_FILE, MODEL_FILES, TOKENIZER_FILE, Manifest, Task
from accel_lib.errors import AccelError, RequestError, ServerError
from accel_lib.models.tokenizer import Tokenizer, prompt_text
from accel_lib.ragged import SEGMENTS, Ragged
from accel_lib.service.problems import Problem
from accel_lib.service.supervisor import Supervisor
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.repository import ARTIFACT_FOLDER
from accel_lib.triton.statistics import Statistics

Truncate = Literal["NONE", "START", "END"]
InputType = Literal["query", "passage"]

_STARTING_S = 2.0  # what a client is told to wait for Triton
_ASK_S = 2.0
_CHARS_PER_TOKEN = 32  # no text has longer tokens on average: what lies beyond is not tokenized
_CHUNK_CHARS = 65_536  # tokenized in one go, so that nobody's request fills the memory with what is cut anyway
_PASSAGE_PROMPTS = ("passage", "document")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Texts as a client sent them.

    Parameters
    ----------
    texts, seconds
        The texts; of pairs, the first and the second halves.
    truncate
        Where one that is too long is cut; NONE refuses it.
    input_type
        What they are for, if the client said so.
    """

    texts: Sequence[str]
    seconds: Sequence[str] | None = None
    truncate: Truncate = "NONE"
    input_type: InputType | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedVersion:
    """One version of a model that answers: everything that is needed before and after Triton.

    Parameters
    ----------
    name, version
        As Triton knows it.
    manifest, config
        Of its artifact, and what it is served with.
    tokenizers
        By the side at which they cut.
    created_s
        Of the artifact, seconds since 1970.
    """

    name: str
    version: str
    manifest: Manifest
    config: ModelConfig
    tokenizers: dict[str, Tokenizer]
    created_s: int

    @property
    def vector_space_id(self) -> str:
        """Vectors with the same id may be compared; other weights or another precision give another one."""
        digest = self.manifest.files[MODEL_FILES[self.manifest.format]]["sha256"]
        return f"{self.manifest.model}:{hashlib.sha256(str(digest).encode()).hexdigest()[:12]}"

    @property
    def asymmetric(self) -> bool:
        """Whether queries and passages are embedded differently."""
        return self._prompt("query") != self._prompt("passage")

    def tokenize(self, inputs: Inputs, *, max_tokens: int) -> Ragged:
        """Rows of ids, shortened or refused as asked; burns CPU, so not for an event loop.

        Raises
        ------
        Problem
            400: a text is too long, blank or no text, the model takes no pairs, or there are too many tokens.
        """
        if inputs.seconds is not None and not self.manifest.pairs:
            message = f"{self.name} takes single texts, not pairs; if it is a cross-encoder, convert it again."
            raise Problem(400, message, param="inputs", code="no_pairs")
        if self.asymmetric and inputs.input_type is None:
            message = f"{self.name} embeds queries and passages differently: say which these are."
            raise Problem(400, message, param="input_type", code="missing")
        parts: list[Ragged] = []
        done, tokens = 0, 0
        while done < len(inputs.texts):
            parts.append(self._rows(inputs, done))
            done += len(parts[-1])
            tokens += len(parts[-1].ids)
            if tokens > max_tokens:
                message = f"The input has more than {max_tokens:,} tokens; send it in several requests."
                raise Problem(400, message, param="input", code="too_many_tokens")
        return Ragged.together(parts)

    def _rows(self, inputs: Inputs, start: int) -> Ragged:
        """The rows of the next texts that are tokenized together."""
        kind = inputs.input_type
        prompt = self._prompt(kind) if kind else prompt_text(self.manifest.prompts, self.manifest.default_prompt)
        texts = self._chunk(inputs, start)
        seconds = None if inputs.seconds is None else inputs.seconds[start : start + len(texts)]
        tokenizer = self.tokenizers["left" if inputs.truncate == "START" else "right"]
        try:
            rows, lengths = tokenizer.counted(texts, prompt=prompt, seconds=seconds)
        except AccelError as error:
            raise Problem(400, f"{error.cause} Fix: {error.fix}.", param="input", code="invalid_text") from error
        if inputs.truncate == "NONE":
            for index in np.flatnonzero(lengths > rows.lengths):
                raise self._too_long(start + int(index), f"{lengths[index]:,} tokens")
        return rows

    def _chunk(self, inputs: Inputs, start: int) -> list[str]:
        """The next texts, without the ends that no token limit could keep."""
        most = self.manifest.max_length * _CHARS_PER_TOKEN
        chunk: list[str] = []
        chars = 0
        for index in range(start, len(inputs.texts)):
            text = inputs.texts[index]
            if len(text) > most:
                if inputs.truncate == "NONE":
                    raise self._too_long(index, f"{len(text):,} characters")
                text = text[-most:] if inputs.truncate == "START" else text[:most]
            if chunk and chars + len(text) > _CHUNK_CHARS:
                break
            chunk.append(text)
            chars += len(text)
        return chunk

    def _too_long(self, index: int, size: str) -> Problem:
        return Problem(
            400,
            f"Input {index} has {size}; {self.name} takes {self.manifest.max_length} tokens. "
            'Shorten it, or send "truncate": "END".',
            param="input",
            code="context_length_exceeded",
        )

    def _prompt(self, input_type: InputType) -> str:
        names = ("query",) if input_type == "query" else _PASSAGE_PROMPTS
        return next((self.manifest.prompts[name] for name in names if name in self.manifest.prompts), "")


class Catalogue:
    """The versions that answer, read anew from Triton and the repository by `refresh`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._versions: dict[tuple[str, str], ServedVersion] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._statistics: dict[str, Statistics] = {}
        self._queue_share: dict[str, float] = {}
        self._asked = False

    def refresh(self) -> None:
        """Ask Triton what is ready, and read what is new; blocks for some milliseconds."""
        if not self._supervisor.running:
            return
        try:
            ready = [each for each in self._supervisor.versions() if each.state == "READY"]
        except RequestError:  # a busy Triton: what answered a second ago answers still
            return
        self._asked = True
        found = {}
        for each in ready:
            name, version = each.model, each.version
            with contextlib.suppress(AccelError, OSError):  # no artifact: a model that takes no texts
                found[name, version] = self._read(name, version)
        self._versions = found
        for name in {name for name, _ in found}:
            self._observe(name)

    @property
    def versions(self) -> list[ServedVersion]:
        """Every version that answers, by name and number."""
        return sorted(self._versions.values(), key=lambda each: (each.name, int(each.version)))

    def find(self, name: str, version: str = "") -> ServedVersion:
        """A version that answers; without a version, the newest.

        Raises
        ------
        Problem
            404, or 503 while Triton is away.
        """
        if not self._supervisor.running or not self._asked:
            raise Problem(503, "Triton is starting; try again soon.", code="not_ready", retry_after_s=_STARTING_S)
        known = [each for each in self.versions if each.name == name]
        fitting = [each for each in known if version in ("", each.version)]
        if fitting:
            return fitting[-1]
        if known:
            numbers = ", ".join(each.version for each in known)
            raise Problem(
                404,
                f"{name} has no version {version!r}; {numbers} answer.",
                param="x-model-version",
                code="version_not_found",
            )
        names = ", ".join(sorted({each.name for each in self.versions})) or "none"
        raise Problem(404, f"There is no model {name!r}; loaded: {names}.", param="model", code="model_not_found")

    def first(self, task: Task) -> ServedVersion:
        """The newest version of the first model for a task, for clients that name none.

        Raises
        ------
        Problem
            404, or 503 while Triton is away.
        """
        names = [each.name for each in self.versions if each.manifest.task == task]
        return self.find(names[0] if names else task)

    def queue_share(self, name: str) -> float:
        """Share of the time in Triton that requests last spent queueing, 0 to 1, from Triton's own counters."""
        return self._queue_share.get(name, 0.0)

    def _read(self, name: str, version: str) -> ServedVersion:
        server = self._supervisor.server
        folder = server.repository / name / version / ARTIFACT_FOLDER
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        known = self._versions.get((name, version))
        config = server.config(name)
        if known and self._texts.get((name, version)) == text:
            return dataclasses.replace(known, config=config)
        manifest = Manifest.from_json(text)
        segments = SEGMENTS in manifest.inputs
        tokenizer = Tokenizer.load(folder / TOKENIZER_FILE, manifest.max_length, segments=segments)
        self._texts[name, version] = text
        return ServedVersion(
            name=name,
            version=version,
            manifest=manifest,
            config=config,
            tokenizers={"right": tokenizer.cutting("right"), "left": tokenizer.cutting("left")},
            created_s=int((folder / MANIFEST_FILE).stat().st_mtime),
        )

    def _observe(self, name: str) -> None:
        before = self._statistics.get(name)
        with contextlib.suppress(RequestError):
            now = self._statistics[name] = ServedModel(self._supervisor.server, name).statistics()
            with contextlib.suppress(ServerError):  # loaded anew meanwhile: nothing to subtract from
                change = now - before if before else now
                spent = change.queue_ns + change.compute_input_ns + change.compute_infer_ns + change.compute_output_ns
                if spent:
                    self._queue_share[name] = change.queue_ns / spent
