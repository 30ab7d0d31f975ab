"""Logits of whole sequences out of a converted language model, for comparing it with its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.errors import EngineError, require
from accel_lib.generate.openvino import compute_properties
from accel_lib.machine import cores


class OpenVINOLogits:
    """The graph of an artifact, compiled as its engine computes it, without batching.

    Parameters
    ----------
    artifact
        Of task generation and format openvino.
    threads
        CPU threads; None takes the cores that this process may use.
    """

    def __init__(self, artifact: Artifact, *, threads: int | None = None) -> None:
        ov = require("openvino", extra="openvino")
        properties = compute_properties(artifact.manifest.precision) | {"INFERENCE_NUM_THREADS": threads or cores()}
        try:
            compiled = ov.Core().compile_model(str(artifact.path), "CPU", properties)
        except RuntimeError as error:
            raise EngineError(
                "OpenVINO cannot open this language model.",
                seen=str(error).strip().splitlines()[-1][:300],
                fix="convert it again: generation_to_openvino(model)",
            ) from error
        self._request: Any = compiled.create_infer_request()

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of the tokens, float32 ``[tokens, vocabulary]``."""
        tokens = np.array([ids], dtype=np.int64)
        self._request.reset_state()
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(tokens.size, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        found = self._request.infer(inputs)["logits"]
        return np.array(found[0], dtype=np.float32)
