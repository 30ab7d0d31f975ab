"""One language model as four models of a repository, which differ in how their requests are batched.

``static`` and ``continuous`` are one decoupled model with another policy of admission; of ``dynamic`` and ``iterative``
Triton makes the batches (`accel_lib.triton.generation_batching`). Beneath all four is the same engine.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from accel_lib.artifact import Artifact
from accel_lib.atomic import atomic_directory
from accel_lib.machine import cache_dir
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.repository import ARTIFACT_FOLDER, MODEL_FILE, default_config, foreign_version, write_config

BATCHING_MODES = ("static", "dynamic", "iterative", "continuous")
_MODELS = {
    "dynamic": "generation_batching import DynamicBatchingModel",
    "iterative": "generation_batching import IterativeModel",
}
# A sequence is the steps of one request. One that nothing is heard of for a second would lose its row by default, and
# a step with a long prompt may take longer. READY tells a row in use from a placeholder.
_SEQUENCES = """
sequence_batching {
  iterative_sequence: true
  max_sequence_idle_microseconds: 60000000
  control_input {
    name: "READY"
    control {
      kind: CONTROL_SEQUENCE_READY
      int32_false_true: [ 0, 1 ]
    }
  }
}
"""


def write_batching_modes(artifact: Artifact, *, rows: int = 8) -> Path:
    """Write a repository, in the cache, with a model for each of `BATCHING_MODES`.

    Parameters
    ----------
    artifact
        A language model, validated; it is linked, not copied.
    rows
        Most requests that are computed together.

    Returns
    -------
    Path
        The repository, for ``accel.serve``.
    """
    repository = cache_dir("scratch", "batching-modes")
    for mode in BATCHING_MODES:
        code = _MODELS.get(mode, "generation_backend import TritonPythonModel")
        with atomic_directory(repository / mode / "1", foreign=foreign_version) as draft:
            (draft / MODEL_FILE).write_text(f"from accel_lib.triton.{code} as TritonPythonModel\n", encoding="utf-8")
            (draft / ARTIFACT_FOLDER).symlink_to(artifact.folder.resolve())
        write_config(repository / mode, _config(mode, artifact, rows))
    return repository


def _config(mode: str, artifact: Artifact, rows: int) -> ModelConfig:
    plain = default_config(mode, artifact)
    if mode in ("static", "continuous"):
        return plain.replace(rows=rows, policy=mode)
    ragged = tuple(dataclasses.replace(tensor, ragged=True) for tensor in plain.inputs)
    batched = plain.replace(inputs=ragged, max_batch_size=rows)
    if mode == "dynamic":
        return batched.replace(dynamic_batching=True, decoupled=False)
    return ModelConfig.from_text(batched.to_text() + _SEQUENCES)
