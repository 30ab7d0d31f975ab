"""The files of sentence-transformers' backends, as its documentation makes them: run as ``FOLDER EXPORTED TEXTS``.

EXPORTED becomes a model folder with ONNX and OpenVINO files, each in FP32 and in INT8; TEXTS is a folder with a
``train.csv`` of one column, ``sentence``, that INT8 for OpenVINO is calibrated with (by default it would be a data set
of the hub).

Source: https://sbert.net/docs/sentence_transformer/usage/efficiency.html
"""

import sys
from pathlib import Path

from sentence_transformers import (
    SentenceTransformer,
    export_dynamic_quantized_onnx_model,
    export_static_quantized_openvino_model,
)

if __name__ == "__main__":
    folder, exported, texts = sys.argv[1:4]
    onnx = SentenceTransformer(folder, device="cpu", backend="onnx", model_kwargs={"export": True})
    onnx.save_pretrained(exported)
    export_dynamic_quantized_onnx_model(onnx, "avx512_vnni", exported)
    openvino = SentenceTransformer(folder, device="cpu", backend="openvino", model_kwargs={"export": True})
    openvino.save_pretrained(exported)
    calibration = {"dataset_config_name": "default", "dataset_split": "train", "column_name": "sentence"}
    export_static_quantized_openvino_model(openvino, None, exported, dataset_name=texts, **calibration)
    print(*sorted(path.name for path in Path(exported).rglob("*") if path.suffix in (".onnx", ".xml")))
