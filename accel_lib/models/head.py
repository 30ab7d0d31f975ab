"""What a classifier's folder says of its head: from logits to scores, and whether it was saved as a cross-encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel_lib.models.files import optional_json, refused
from accel_lib.scores import Activation

_NAMES: dict[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "identity", "Softmax": "softmax"}


def read_activation(folder: Path, config: Any) -> Activation:
    """What turns a classifier's logits into scores.

    A folder that sentence-transformers saved names an ``activation_fn``; with one label, or where it is more than
    ``Identity``, that counts, as in ``CrossEncoder.predict``. (With several labels ``Identity`` is what CrossEncoder
    writes for a folder that asks for nothing.) Everything else follows ``problem_type`` and the number of labels, as in
    transformers' pipeline: a regression keeps its numbers, several labels that may all be right get a sigmoid each, and
    so does one label; of several labels of which one is right, softmax.

    Parameters
    ----------
    folder
        The model's folder.
    config
        Its transformers configuration.

    Raises
    ------
    ModelError
        It names an activation that this library does not know.
    """
    asked = cross_encoder_settings(folder).get("activation_fn")
    if asked:
        name = str(asked).rpartition(".")[2]
        if name not in _NAMES or not str(asked).startswith("torch."):
            raise refused(
                folder, f"scores by {asked}", fix="set activation_fn to torch.nn.Sigmoid or Identity in its settings"
            )
        if config.num_labels == 1 or name != "Identity":
            return _NAMES[name]
    if config.problem_type == "regression":
        return "identity"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def read_labels(folder: Path, names: dict[int, Any]) -> tuple[str, ...]:
    """Names of a head's numbers, in their order; `names` is ``id2label`` of its configuration.

    Raises
    ------
    ModelError
        A number has no name: which one each of the others belongs to would be a guess.
    """
    if sorted(names) != list(range(len(names))):
        raise refused(
            folder,
            f"labels with the numbers {', '.join(map(str, sorted(names)))}, not 0 to {len(names) - 1}",
            fix="number id2label and label2id in its config.json from 0, as the head was trained",
        )
    return tuple(str(names[index]) for index in range(len(names)))


def cross_encoder_settings(folder: Path) -> dict[str, Any]:
    """What sentence-transformers' CrossEncoder wrote, in any of its three layouts; empty where it wrote nothing."""
    general = optional_json(folder / "config_sentence_transformers.json")
    if general.get("model_type") == "CrossEncoder" and (folder / "modules.json").is_file():
        return general
    config = optional_json(folder / "config.json")
    older = config.get("sbert_ce_default_activation_function")
    return config.get("sentence_transformers") or ({"activation_fn": older} if older else {})
