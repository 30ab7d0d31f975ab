"""Models: the catalogue, any hub id, any folder, loaded with their own pooling, prompts, chat template and limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from accel_lib.errors import ModelError, require
from accel_lib.models.hub import CATALOGUE, DEFAULT, Entry, resolve
from accel_lib.models.model import Model, Task
from accel_lib.models.spec import is_generator

if TYPE_CHECKING:
    from accel_lib.models.generation import GenerationModel

__all__ = ["Entry", "Model", "Task", "catalogue", "load_model"]


@overload
def load_model(  # type: ignore[overload-overlap]  # a name that mypy knows only as a string is an encoder's
    name: Literal["SmolLM2-135M-Instruct", "SmolLM2-135M-random"],
    *,
    revision: None = None,
    token: None = None,
    task: Literal["generation"] | None = None,
    max_length: int | None = None,
) -> GenerationModel: ...


@overload
def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    task: Literal["generation"],
    max_length: int | None = None,
) -> GenerationModel: ...


@overload
def load_model(
    name: str | Path = DEFAULT,
    *,
    revision: str | None = None,
    token: str | None = None,
    task: Task | None = None,
    max_length: int | None = None,
) -> Model: ...


def load_model(
    name: str | Path = DEFAULT,
    *,
    revision: str | None = None,
    token: str | None = None,
    task: Task | Literal["generation"] | None = None,
    max_length: int | None = None,
) -> Model | GenerationModel:
    """Load a transformer encoder with everything that follows it, or a causal language model.

    Parameters
    ----------
    name
        A name of the catalogue, a hub id (``"owner/model"``), or a folder: local, on a mounted Drive, a Kaggle input.
    revision
        Branch, tag or commit of a hub id.
    token
        Hub access token for a private or gated id.
    task
        ``"embedding"``, ``"classification"`` or ``"generation"``; None reads it from the folder.
    max_length
        Cut texts at fewer tokens than the model's own limit; of a language model, a shorter context.

    Returns
    -------
    Model, or GenerationModel for a causal language model
        In float32, in evaluation mode, on the CPU.

    Raises
    ------
    ModelError
        The model cannot be found, or holds something that cannot be honoured exactly: the message names it.

    Examples
    --------
    >>> model = load_model("all-MiniLM-L6-v2")
    >>> model.encode(["a cat on a mat"]).shape
    (1, 384)
    """
    if task not in (None, "embedding", "classification", "generation"):
        raise ModelError(
            "There is no such task.",
            seen=repr(task),
            fix="pass task='embedding', 'classification' or 'generation', or leave it out",
        )
    place = resolve(name, revision=revision, token=token)
    require("torch", extra="models")
    if task == "generation" or (task is None and is_generator(place.folder)):
        from accel_lib.models.generation import build_generation_model

        return build_generation_model(place, max_length=max_length)
    from accel_lib.models.loader import build_model

    return build_model(place, task=task, max_length=max_length)


def catalogue() -> list[Entry]:
    """The models this project is built around, the embedded default first."""
    return list(CATALOGUE)
