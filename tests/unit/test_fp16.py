"""FP16 that a GPU computes too: norms and positions in FP32, numbers looked at as their types say."""

import dataclasses
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import accel_lib as accel
from accel_lib.artifact import Artifact, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.convert.fp16_range import check_fp16_range
from accel_lib.errors import ConversionError, ValidationError
from accel_lib.models.tokenizer import pad
from tests.families import FAMILIES

WORDS = ["a small cat sleeps", "music plays in the town while a dog runs", "how many people live in berlin", "a cat"]


def loud(name, folder, by=400):
    """A model of a family, whose token vectors are so large that their squares are beyond FP16."""
    model = accel.load_model(str(FAMILIES[name](folder / name)))
    with torch.no_grad():
        table = next(weight for name, weight in model.module.named_parameters() if weight.shape[0] == 400)
        table.mul_(by / table.abs().mean())
    return dataclasses.replace(model, reference=lambda texts, batch_size=32: model.encode(texts))  # noqa: ARG005


@pytest.fixture(scope="module", params=["t5", "qwen3"])
def converted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loud")
    model = loud(request.param, folder)
    return model, accel.to_onnx(model, precision="fp16", output=folder / "fp16", progress=False)


def types(path):
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    held = [*graph.value_info, *graph.input, *graph.output]
    return graph, {value.name: value.type.tensor_type.elem_type for value in held}


def test_squares_means_and_roots_of_a_norm_are_fp32_in_an_fp16_graph(converted):
    graph, kinds = types(converted[1].path)
    for node in graph.node:
        if node.op_type in ("Pow", "ReduceMean", "Sqrt", "Reciprocal"):
            assert {kinds[name] for name in (node.input[0], node.output[0])} == {TensorProto.FLOAT}, node.name
        if node.op_type == "MatMul":
            assert kinds[node.output[0]] == TensorProto.FLOAT16


def test_the_graph_is_finite_and_right_when_computed_in_its_declared_types(converted):
    model, artifact = converted
    ids, mask = pad(model.tokenizer(WORDS), model.tokenizer.pad_id)
    with np.errstate(divide="ignore", invalid="ignore"):  # T5 takes logarithms of 0, and does not use them
        (output,) = ReferenceEvaluator(str(artifact.path)).run(None, {"input_ids": ids, "attention_mask": mask})
    assert (output * model.encode(WORDS)).sum(axis=1) == pytest.approx(1, abs=1e-3)


def test_validation_passes_it_and_refuses_one_that_only_a_cpu_computes(converted, tmp_path):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model, artifact = converted
    assert accel.validate(artifact, reference=model, texts=WORDS).passed
    fp32 = accel.to_onnx(model, output=tmp_path / "fp32", progress=False)
    everywhere = convert_float_to_float16(onnx.load(fp32.path), keep_io_types=True, op_block_list=["Softmax"])
    with atomic_directory(tmp_path / "careless") as draft:
        onnx.save(everywhere, draft / "model.onnx")
        shutil.copy(fp32.folder / "tokenizer.json", draft)
        manifest = write_manifest(draft, dataclasses.replace(fp32.manifest, precision="fp16"))
    careless = Artifact(tmp_path / "careless", manifest)
    assert np.isfinite(accel.open_engine(careless, device="cpu").run(*pad(model.tokenizer(WORDS), 1))).all()
    with pytest.raises(ValidationError, match="must not be served"):
        accel.validate(careless, reference=model, texts=WORDS)


def test_a_residual_stream_beyond_fp16_is_refused_with_the_node_that_makes_it(tmp_path):
    model = loud("qwen3", tmp_path, by=60_000)
    with pytest.raises(ConversionError, match=r"do not fit into FP16"):
        accel.to_onnx(model, precision="fp16", output=tmp_path / "fp16", progress=False)
    with pytest.raises(ConversionError, match=r"do not fit into FP16"):
        check_fp16_range(model)


def test_angles_of_rotary_positions_are_exact_far_into_a_text(tmp_path):
    model = accel.load_model(str(FAMILIES["gte"](tmp_path / "gte", model_max_length=4096)), max_length=4096)
    artifact = accel.to_onnx(model, precision="fp16", output=tmp_path / "fp16", progress=False)
    graph, kinds = types(artifact.path)
    assert {kinds[node.input[0]] for node in graph.node if node.op_type in ("Cos", "Sin")} == {TensorProto.FLOAT}
    from accel_lib.engines.torch import halve

    halve(model.module)
    held = {kind.dtype for name, kind in model.module.named_buffers() if "freq" in name}
    assert held == {torch.float32}
