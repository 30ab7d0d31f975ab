"""What follows the transformer in a folder of sentence-transformers: pooling, linear layers and unit length."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from accel_lib.models.files import optional_json, read_json, refused

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")

_LEGACY_MODES = {  # in the order in which sentence-transformers joins the vectors
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SENTENCE = "sentence_embedding"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """A step: a linear layer with its activation, whose weights lie in `folder`."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


def pooling_modes(folder: Path, path: Path) -> tuple[str, ...]:
    """Names of the modes that a Pooling module at `path` joins, in order; `folder` is the model's."""
    settings = read_json(path / "config.json", dict)
    if not settings.get("include_prompt", True):
        raise refused(folder, "Pooling with include_prompt = false (prompt tokens left out of the average)")
    modes = settings.get("pooling_mode") or [m for key, m in _LEGACY_MODES.items() if settings.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    for mode in [*modes, *(key for key, value in settings.items() if key.startswith("pooling_mode_") and value)]:
        if mode not in POOLING_MODES and mode not in _LEGACY_MODES:
            raise refused(folder, f"Pooling with {mode!r}")
    return tuple(modes)


def read_step(folder: Path, kind: str, path: Path) -> Dense | Literal["normalize"]:
    """The step that a module of this kind at `path` asks for; `folder` is the model's."""
    if kind not in ("Dense", "Normalize"):
        raise refused(folder, f"a {kind} module")
    settings = read_json(path / "config.json", dict) if kind == "Dense" else optional_json(path / "config.json")
    for side in ("module_input_name", "module_output_name"):
        if (settings.get(side) or _SENTENCE) != _SENTENCE:
            raise refused(folder, f"a {kind} module with {side} = {settings[side]!r}")
    if kind == "Normalize":
        return "normalize"
    if settings.get("use_residual"):
        raise refused(folder, "a Dense module with use_residual = true")
    for needed in ("in_features", "out_features"):
        if needed not in settings:
            raise refused(folder, f"a Dense module without {needed}")
    origin, _, activation = str(settings.get("activation_function") or "torch.nn.Tanh").rpartition(".")
    if not origin.startswith("torch.nn") or activation not in ACTIVATIONS:
        raise refused(folder, f"a Dense module with the activation {settings['activation_function']}")
    return Dense(
        folder=path,
        in_features=int(settings["in_features"]),
        out_features=int(settings["out_features"]),
        bias=bool(settings.get("bias", True)),
        activation=activation,
    )
