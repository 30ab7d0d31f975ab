"""What a model has to agree with: sentence-transformers' own encode, or transformers' own forward pass."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from accel_lib._logging import silenced
from accel_lib.errors import require
from accel_lib.models.head import cross_encoder_settings
from accel_lib.models.model import Reference


class SentenceReference:
    """``SentenceTransformer(folder).encode``, in float32 on the CPU; `normalize` for bare checkpoints only.

    It cuts where sentence-transformers does, unless `max_length` says otherwise.
    """

    def __init__(self, folder: Path, *, max_length: int | None, normalize: bool) -> None:
        self._folder = folder
        self._max_length = max_length
        self._normalize = normalize

    @functools.cached_property
    def loaded(self) -> Any:
        """The ``SentenceTransformer``."""
        library = require("sentence_transformers", extra="models")
        with silenced():
            encoder = library.SentenceTransformer(str(self._folder), device="cpu", trust_remote_code=False)
        if self._max_length is not None:
            encoder.max_seq_length = self._max_length
        return encoder.float().eval()

    def __call__(self, texts: list[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Texts to float32 ``[n, dimension]``."""
        vectors = self.loaded.encode(
            list(texts), batch_size=batch_size, normalize_embeddings=self._normalize, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)


class ClassifierReference:
    """transformers' own sequence classifier in float32 on the CPU; for pairs CrossEncoder, where it saved it.

    It cuts where its tokenizer does, unless `max_length` says otherwise.
    """

    def __init__(self, folder: Path, *, max_length: int | None, prompt: str) -> None:
        self._folder = folder
        self._max_length = max_length
        self._prompt = prompt

    @functools.cached_property
    def loaded(self) -> Any:
        """The classifier; its tokenizer is ``loaded.tokenizer``."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with silenced():
            classifier = AutoModelForSequenceClassification.from_pretrained(self._folder, trust_remote_code=False)
            classifier.tokenizer = AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)
        return classifier.float().eval()

    @functools.cached_property
    def _cross_encoder(self) -> Any:
        """sentence-transformers' CrossEncoder, where the folder is one of its own; else None."""
        if not cross_encoder_settings(self._folder):
            return None
        library = require("sentence_transformers", extra="models")
        with silenced():
            encoder = library.CrossEncoder(str(self._folder), device="cpu", trust_remote_code=False)
        if self._max_length is not None:
            encoder.max_seq_length = self._max_length
        return encoder.float().eval()

    def __call__(
        self, texts: list[str], *, seconds: list[str] | None = None, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Texts, or pairs of them, to float32 ``[n, labels]``: logits."""
        import torch

        if seconds is not None and self._cross_encoder:
            pairs = list(zip(texts, seconds, strict=True))
            raw = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
            logits = self._cross_encoder.predict(pairs, batch_size=batch_size, **raw)
            return np.asarray(logits, dtype=np.float32).reshape(len(pairs), -1)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                batch = slice(start, start + batch_size)
                inputs = self.loaded.tokenizer(
                    [self._prompt + text for text in texts[batch]],
                    None if seconds is None else list(seconds[batch]),
                    padding=True,
                    truncation=True,
                    max_length=self._max_length,
                    return_tensors="pt",
                )
                rows.append(self.loaded(**inputs).logits.numpy())
        return np.concatenate(rows)


class LateInteractionReference:
    """A late interaction in NumPy, on what transformers gives for each text alone.

    Parameters
    ----------
    encoder
        Reference of the encoder.
    max_length
        Tokens of a pair.
    weight, bias
        Of the cosine and one MaxSim a layer.
    """

    def __init__(
        self, encoder: Reference, *, max_length: int, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> None:
        self._encoder = encoder
        self._max_length = max_length
        self._weight = weight
        self._bias = bias

    @property
    def loaded(self) -> Any:
        """The ``SentenceTransformer``."""
        return self._encoder.loaded

    def __call__(
        self,
        texts: list[str],
        *,
        seconds: list[str] | None = None,
        batch_size: int = 32,  # noqa: ARG002  (one text at a time is what nothing else can move)
    ) -> NDArray[np.float32]:
        """Texts, or pairs of them, to float32 ``[n, 1]``: logits."""
        others = [None] * len(texts) if seconds is None else seconds
        once = functools.lru_cache(64)(lambda ids: encoded(self.loaded, np.array(ids)))  # texts come again in pairs
        found = [compared(*map(once, self._halves(text, other))) for text, other in zip(texts, others, strict=True)]
        return (np.stack(found) @ self._weight.T + self._bias).astype(np.float32)

    def _halves(self, text: str, other: str | None) -> list[tuple[int, ...]]:
        pair = self.loaded.tokenizer(text, other, truncation=True, max_length=self._max_length)
        ids, segments = np.array(pair["input_ids"]), np.array(pair["token_type_ids"])
        return [tuple(row.tolist()) for row in (ids[segments == 0], np.append(ids[0], ids[segments == 1]))]


class Encoded(NamedTuple):
    """One text in an encoder, all of unit length: its vector, and each layer's tokens, the embeddings first."""

    vector: NDArray[np.float32]
    layers: list[NDArray[np.float32]]


def encoded(encoder: Any, ids: NDArray[np.int64]) -> Encoded:
    """A row of ids through a ``SentenceTransformer``."""
    import torch

    with torch.inference_mode():
        row = {"input_ids": torch.from_numpy(ids[None]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        output = encoder[0].auto_model(**row, output_hidden_states=True)
        read = row | {"token_embeddings": output.last_hidden_state}
        vector = functools.reduce(lambda given, module: module(given), list(encoder)[1:], read)["sentence_embedding"]
    return Encoded(_unit(vector[0].numpy()), [_unit(layer[0].numpy()) for layer in output.hidden_states])


def compared(first: Encoded, second: Encoded) -> NDArray[np.float64]:
    """What a late interaction weighs: the cosine of two texts, and each layer's MaxSim of the first with the second."""
    layers = zip(first.layers, second.layers, strict=True)
    found = [(own @ other.T).max(axis=1).mean(dtype=np.float64) for own, other in layers]
    return np.array([first.vector @ second.vector, *found])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


class HeadReference:
    """A linear head, in NumPy, on another reference's vectors."""

    def __init__(self, encoder: Reference, *, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        self._encoder = encoder
        self._weight = weight
        self._bias = bias

    @property
    def loaded(self) -> Any:
        """What computes the vectors."""
        return self._encoder.loaded

    def __call__(self, texts: list[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Texts to float32 ``[n, labels]``."""
        vectors = self._encoder(texts, batch_size=batch_size)
        return (vectors @ self._weight.T + self._bias).astype(np.float32)
