"""Models: the catalogue, any hub id, any folder, loaded with their own pooling, prompts and length limit."""

from __future__ import annotations

from pathlib import Path

from accel_lib.errors import ModelError, require
from accel_lib.models.hub import CATALOGUE, DEFAULT, Entry, resolve
from accel_lib.models.model import Model, Task

__all__ = ["Entry", "Model", "Task", "catalogue", "load_model"]


def load_model(
    name: str | Path = DEFAULT,
    *,
    revision: str | None = None,
    token: str | None = None,
    task: Task | None = None,
    max_length: int | None = None,
) -> Model:
    """Load a transformer encoder with everything that follows it.

    Parameters
    ----------
    name
        A name of the catalogue, a hub id (``"owner/model"``), or a folder: local, on a mounted Drive, a Kaggle input.
    revision
        Branch, tag or commit of a hub id.
    token
        Hub access token for a private or gated id.
    task
        ``"embedding"`` or ``"classification"``; None reads it from the folder.
    max_length
        Cut texts at fewer tokens than the model's own limit.

    Returns
    -------
    Model
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
    if task not in (None, "embedding", "classification"):
        raise ModelError(
            "There is no such task.",
            seen=repr(task),
            fix="pass task='embedding' or task='classification', or leave it out",
        )
    place = resolve(name, revision=revision, token=token)
    require("torch", extra="models")
    from accel_lib.models.loader import build_model

    return build_model(place, task=task, max_length=max_length)


def catalogue() -> list[Entry]:
    """The models this project is built around, the embedded default first."""
    return list(CATALOGUE)
