"""A loaded model: tokenizer, network and the reference it has to agree with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from accel_lib.models.tokenizer import Tokenizer, pad, prompt_text

if TYPE_CHECKING:
    import torch

Task = Literal["embedding", "classification"]
_BATCH_SIZE = 32


class Reference(Protocol):
    """Somebody else's forward pass over the same weights, loaded when it is first called."""

    def __call__(self, texts: list[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Texts to float32 ``[n, dimension]``, with the model's default prompt."""

    @property
    def loaded(self) -> Any:
        """What computes it: a ``SentenceTransformer``, or a transformers classifier."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """A transformer encoder with everything that follows it inside one network.

    Parameters
    ----------
    name, source
        What it is called, and where its weights came from (package and version, hub id and commit, folder and hash).
    task
        ``"embedding"`` (one vector a text) or ``"classification"`` (one row of logits a text).
    module
        ``module(input_ids, attention_mask)``, int64 ``[batch, sequence]`` to float32 ``[batch, dimension]``; in
        evaluation mode, exportable with dynamic batch and sequence.
    tokenizer
        Makes the token ids; truncates at `max_length`.
    output_name, dimension
        ``"sentence_embedding"`` or ``"logits"``, and its width.
    max_length
        Longest sequence in tokens, special tokens included.
    labels
        Class names in the order of the logits; empty for embeddings.
    prompts, default_prompt
        Named text prefixes, and the name of the one used when none is asked for.
    notes
        Sentences a user should know before trusting the output.
    reference
        sentence-transformers' own ``encode``, or transformers' own forward pass.
    """

    name: str
    source: str
    task: Task
    module: torch.nn.Module
    tokenizer: Tokenizer
    output_name: str
    dimension: int
    max_length: int
    labels: tuple[str, ...] = ()
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    notes: tuple[str, ...] = ()
    reference: Reference

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> NDArray[np.float32]:
        """Run texts through the network with PyTorch, in batches of similar length.

        Parameters
        ----------
        texts
            Texts to encode; longer ones than `max_length` tokens are cut.
        prompt
            Name of one of the model's prompts; None takes the default one, an empty string none.

        Returns
        -------
        float32 array ``[n, dimension]``
            In the order of the texts.
        """
        import torch

        rows = self._rows(texts, prompt)
        order = np.argsort([-len(row) for row in rows], kind="stable")
        output = np.empty((len(rows), self.dimension), dtype=np.float32)
        device = next(self.module.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH_SIZE):
                batch = order[start : start + _BATCH_SIZE]
                ids, mask = (
                    torch.from_numpy(a).to(device) for a in pad([rows[i] for i in batch], self.tokenizer.pad_id)
                )
                output[batch] = self.module(ids, mask).cpu().numpy()
        return output

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens a text, special tokens and default prompt included, after truncation; int64 ``[n]``."""
        return np.array([len(row) for row in self._rows(texts, None)], dtype=np.int64)

    @property
    def size_bytes(self) -> int:
        """Size of the weights."""
        return sum(weight.nbytes for weight in self.module.parameters())

    def summary(self) -> dict[str, str]:
        """What a reader wants to know first."""
        tail = getattr(self.module, "tail", None)
        rows = {"model": self.name, "source": self.source} | ({"pooling": tail} if tail else {})
        rows |= {
            "output": f"{self.output_name} [batch, {self.dimension}]",
            "longest text": f"{self.max_length} tokens",
            "weights": f"{self.size_bytes / 1e6:.1f} MB",
        }
        rows |= {"labels": ", ".join(self.labels)} if self.labels else {}
        spoken = [name for name, text in self.prompts.items() if text]
        rows |= {"prompts": ", ".join(spoken)} if spoken else {}
        return rows | ({"note": "; ".join(self.notes)} if self.notes else {})

    def __repr__(self) -> str:
        return "\n".join(f"{key:>12}  {value}" for key, value in self.summary().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{key}</th><td style='text-align:left'>{value}</td></tr>"
            for key, value in self.summary().items()
        )
        return f"<table>{rows}</table>"

    def _rows(self, texts: Sequence[str], prompt: str | None) -> list[NDArray[np.int64]]:
        return self.tokenizer(texts, prompt=prompt_text(self.prompts, self.default_prompt, prompt))
