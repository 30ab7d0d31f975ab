"""The sentence-transformers model of a peer's service, as its environment variables ask for it."""

import json
import os
from typing import Any

from sentence_transformers import SentenceTransformer


def load() -> SentenceTransformer:
    """MODEL_FOLDER with the arguments of MODEL_OPTIONS, in MODEL_THREADS threads where that is set."""
    options: dict[str, Any] = json.loads(os.environ["MODEL_OPTIONS"])
    threads = int(os.environ.get("MODEL_THREADS", "0"))
    if threads:
        _limit(options, threads)
    return SentenceTransformer(os.environ["MODEL_FOLDER"], device="cpu", **options)


def _limit(options: dict[str, Any], threads: int) -> None:
    if options["backend"] == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        options["model_kwargs"]["session_options"] = session
    elif options["backend"] == "openvino":
        options["model_kwargs"]["ov_config"]["INFERENCE_NUM_THREADS"] = str(threads)
    else:
        import torch

        torch.set_num_threads(threads)
