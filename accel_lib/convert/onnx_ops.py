"""A look into ONNX graphs: the operators a file holds, and those a runtime makes of it."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel_lib.artifact import Artifact
from accel_lib.engines.onnxruntime import SLOW_FUSIONS
from accel_lib.errors import require

if TYPE_CHECKING:
    import pandas as pd


def operators(artifacts: Sequence[Artifact], *, executed: bool = False) -> pd.DataFrame:
    """Count the operators of ONNX artifacts.

    Parameters
    ----------
    artifacts
        ONNX artifacts, one column each.
    executed
        Count what ONNX Runtime runs on this machine's CPU, after its own fusions, instead of what the file holds.

    Returns
    -------
    DataFrame
        Nodes by operator, the most frequent first.
    """
    import pandas as pd

    onnx = require("onnx", extra="convert")
    counts: dict[str, collections.Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for artifact in artifacts:
            path = _optimized(artifact.path, Path(folder)) if executed else artifact.path
            nodes = onnx.load(path, load_external_data=False).graph.node
            counts[artifact.name] = collections.Counter(node.op_type for node in nodes)
    frame = pd.DataFrame(counts).fillna(0).astype(int)
    frame.index.name = "operator"
    return frame.sort_values(list(counts), ascending=False, kind="stable")


def _optimized(path: Path, folder: Path) -> Path:
    ort = require("onnxruntime", extra="convert")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.onnx.data")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(SLOW_FUSIONS))
    return folder / "optimized.onnx"
