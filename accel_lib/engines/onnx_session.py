"""One part of a model that was cut: tensors in by name, one tensor out, through ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.onnxruntime import open_session
from accel_lib.errors import EngineError


class Part:
    """Run an ONNX artifact whose inputs are not only token ids.

    Parameters
    ----------
    artifact
        A whole model, or a part that `accel_lib.convert.partition.cut` made.
    threads
        For one operator; they do not spin while they wait, since parts share the cores.
    """

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        self._session, _ = open_session(artifact, device="cpu", threads=threads, allow_spinning=False)
        self.inputs: tuple[str, ...] = tuple(tensor.name for tensor in self._session.get_inputs())
        self.output: str = artifact.manifest.output_name

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Tensors ``[batch, tokens, …]`` to ``[batch, …]``; those that this part does not take are left aside.

        Raises
        ------
        EngineError
            A tensor is missing, or ONNX Runtime refused them.
        """
        try:
            (output,) = self._session.run(None, {name: tensors[name] for name in self.inputs})
        except Exception as error:  # ONNX Runtime's exceptions share no base class below this one
            seen = f"{', '.join(f'{name} {list(array.shape)}' for name, array in tensors.items())}: {error}"
            raise EngineError(
                "ONNX Runtime refused the batch.",
                seen=seen.splitlines()[0],
                fix=f"pass {', '.join(self.inputs)} of one batch and one length",
            ) from error
        result: NDArray[np.float32] = output
        return result

    def close(self) -> None:
        """Drop the session and its arenas."""
        self._session = None
