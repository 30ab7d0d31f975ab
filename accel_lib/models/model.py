"""A loaded model: tokenizer, network and the reference it has to agree with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import ModelError
from accel_lib.formatting import Summarized
from accel_lib.models.tokenizer import Tokenizer, prompt_text
from accel_lib.ragged import IDS_AND_MASK, Ragged, by_name
from accel_lib.scores import Activation

if TYPE_CHECKING:
    import torch

Task = Literal["embedding", "classification"]
_BATCH_SIZE = 32


class Reference(Protocol):
    """Somebody else's forward pass over the same weights, loaded when it is first called."""

    def __call__(self, texts: list[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Texts to float32 ``[n, dimension]``, with the model's default prompt; of a classifier, its logits.

        That of a model that takes pairs takes ``seconds`` too, the second text of each.
        """

    @property
    def loaded(self) -> Any:
        """What computes it: a ``SentenceTransformer``, or a transformers classifier."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model(Summarized):
    """A transformer encoder with everything that follows it inside one network.

    Parameters
    ----------
    name, source
        What it is called, and where its weights came from (package and version, hub id and commit, folder and hash).
    task
        ``"embedding"`` (one vector a text) or ``"classification"`` (one row of logits a text).
    module
        ``module(*inputs)``, int64 ``[batch, sequence]`` each to float32 ``[batch, dimension]``; in evaluation mode,
        exportable with dynamic batch and sequence.
    tokenizer
        Makes the token ids; truncates at `max_length`.
    output_name, dimension
        ``"sentence_embedding"`` or ``"logits"``, and its width.
    max_length
        Longest sequence in tokens, special tokens included.
    labels
        Class names in the order of the logits; empty for embeddings.
    inputs
        Names of what `module` takes; a third, ``"token_type_ids"``, where a classifier tells the texts of a pair apart.
    activation
        What turns logits into scores: ``"softmax"``, ``"sigmoid"`` or ``"identity"`` (`accel_lib.scores`).
    pairs
        Whether a classifier takes two texts at once.
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
    inputs: tuple[str, ...] = IDS_AND_MASK
    activation: Activation = "softmax"
    pairs: bool = False
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    notes: tuple[str, ...] = ()
    reference: Reference

    def encode(
        self, texts: Sequence[str], seconds: Sequence[str] | None = None, *, prompt: str | None = None
    ) -> NDArray[np.float32]:
        """Run texts through the network with PyTorch, in batches of similar length.

        Parameters
        ----------
        texts
            Texts to encode; longer ones than `max_length` tokens are cut.
        seconds
            The second text of each pair, for a classifier.
        prompt
            Name of one of the model's prompts; None takes the default one, an empty string none.

        Returns
        -------
        float32 array ``[n, dimension]``
            In the order of the texts; of a classifier, its logits.

        Raises
        ------
        ModelError
            The model takes no pairs.
        """
        import torch

        rows = self.tokenize(texts, seconds, prompt=prompt)
        order = np.argsort(-rows.lengths, kind="stable")
        output = np.empty((len(rows), self.dimension), dtype=np.float32)
        device = next(self.module.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH_SIZE):
                batch = order[start : start + _BATCH_SIZE]
                tensors = by_name(self.inputs, rows.take(batch).padded(self.tokenizer.pad_id)).values()
                output[batch] = self.module(*(torch.from_numpy(a).to(device) for a in tensors)).cpu().numpy()
        return output

    def tokenize(
        self, texts: Sequence[str], seconds: Sequence[str] | None = None, *, prompt: str | None = None
    ) -> Ragged:
        """The rows that `encode` runs, for `accel_lib.engines.batching.run_batches`."""
        if seconds is not None and not self.pairs:
            raise ModelError(
                "The model takes single texts, not pairs.",
                seen=self.name,
                fix="leave out the second texts, or load a cross-encoder",
            )
        asked = prompt_text(self.prompts, self.default_prompt, prompt)
        return self.tokenizer.encode_with_lengths(texts, prompt=asked, seconds=seconds)[0]

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens a text, special tokens and default prompt included, after truncation; int64 ``[n]``."""
        return self.tokenize(texts).lengths

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
