"""What a conversion writes: graphs for any shape, in the precision that was asked for, whole or not at all."""

import collections
import copy
import dataclasses
import errno
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from accel_lib import load_texts, open_engine, to_onnx, to_torch, train_classifier
from accel_lib.artifact import Artifact
from accel_lib.convert import onnx_ops, room, storage
from accel_lib.convert.precision import PRECISIONS, graph_precision
from accel_lib.engines import onnxruntime as ort_engine
from accel_lib.errors import AccelError, ArtifactError, ConversionError, EngineError
from accel_lib.models import load_model
from accel_lib.models.tokenizer import pad
from tests.families import FAMILIES

SHAPES = [(1, 3), (5, 2), (3, 128)]


@pytest.fixture(scope="module")
def fp32(tiny_model):
    return to_onnx(tiny_model, progress=False)


@pytest.fixture(scope="module", params=PRECISIONS)
def converted(request, tiny_model):
    return to_onnx(tiny_model, precision=request.param, progress=False)


def batch(rows, tokens, seed=0):
    ids = np.random.default_rng(seed).integers(1000, 2000, (rows, tokens), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[-1, (tokens + 1) // 2 :] = 0
    return ids, mask


def operators(artifact):
    return [node.op_type for node in onnx.load(artifact.path).graph.node]


@pytest.mark.parametrize("shape", SHAPES)
def test_one_graph_takes_any_batch_and_length_and_gives_the_numbers_of_pytorch(tiny_model, fp32, shape):
    ids, mask = batch(*shape)
    with torch.inference_mode():
        expected = tiny_model.module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    assert open_engine(fp32).run(ids, mask) == pytest.approx(expected, abs=1e-5)


def test_its_tensors_carry_the_names_that_triton_serves(fp32):
    graph = onnx.load(fp32.path).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.output] == ["sentence_embedding"]
    for value in graph.input:
        assert all(dim.dim_param for dim in value.type.tensor_type.shape.dim)


def test_pooling_is_inside_so_padding_changes_nothing(tiny_model, fp32):
    rows = tiny_model.tokenizer(["a short text", "a much longer text, which makes the short one end in padding"])
    engine = open_engine(fp32)
    alone, together = engine.run(*pad(rows[:1], 0)), engine.run(*pad(rows, 0))
    assert alone[0] == pytest.approx(together[0], abs=1e-5)


def test_the_graph_holds_the_precision_that_was_asked_for(converted):
    assert graph_precision(converted.path) == converted.manifest.precision


def test_any_precision_answers_in_fp32_close_to_pytorch(tiny_model, converted):
    ids, mask = batch(4, 16)
    with torch.inference_mode():
        expected = tiny_model.module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    output = open_engine(converted).run(ids, mask)
    assert output.dtype == np.float32
    assert (output * expected).sum(axis=1).min() > 0.98


def test_every_file_passes_the_checker_of_onnx_in_full(converted):
    onnx.checker.check_model(str(converted.path), full_check=True)


def test_sums_and_exponentials_stay_fp32_in_a_half_precision_graph(tiny_model):
    graph = onnx.load(to_onnx(tiny_model, precision="fp16", progress=False).path).graph
    casts = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    guarded = [node for node in graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert len(guarded) == 7
    assert {casts[node.input[0]] for node in guarded} == {onnx.TensorProto.FLOAT}
    weights = [
        weight for weight in graph.initializer if len(weight.dims) == 2 and weight.data_type != onnx.TensorProto.INT64
    ]
    assert {weight.data_type for weight in weights} == {onnx.TensorProto.FLOAT16}


def test_kept_layers_stay_fp32_and_get_a_folder_of_their_own(tiny_model):
    plain = to_onnx(tiny_model, precision="int8", progress=False)
    kept = to_onnx(tiny_model, precision="int8", keep=["layer.0."], progress=False)
    assert kept.folder != plain.folder
    assert operators(kept).count("MatMulIntegerToFloat") == operators(plain).count("MatMulIntegerToFloat") / 2
    assert "6 matrix products kept in FP32" in kept.manifest.notes[-1]


def test_a_part_of_no_name_is_refused_with_one_that_exists(tiny_model):
    with pytest.raises(ConversionError, match=r"layer\.0\."):
        to_onnx(tiny_model, precision="int8", keep=["layer.99."], progress=False)


def test_only_int8_keeps_nodes(tiny_model):
    with pytest.raises(ConversionError, match="Only INT8"):
        to_onnx(tiny_model, precision="fp16", keep=["layer.0."], progress=False)


def test_an_unknown_precision_is_refused_with_the_known_ones(tiny_model):
    with pytest.raises(ConversionError, match="int8-qdq"):
        to_onnx(tiny_model, precision="fp4")


def test_a_classifier_is_exported_with_its_head_and_labels(tiny_model):
    classifier = train_classifier(tiny_model, load_texts("sentiment-train", limit=60))
    artifact = to_onnx(classifier, progress=False)
    rows = classifier.tokenizer(["what a fine day", "it broke at once"])
    with torch.inference_mode():
        expected = classifier.module(*map(torch.from_numpy, pad(rows, 0))).numpy()
    assert artifact.manifest.output_name == "logits"
    assert artifact.manifest.labels == classifier.labels
    assert open_engine(artifact).run(*pad(rows, 0)) == pytest.approx(expected, abs=1e-5)


def test_the_torch_program_runs_without_the_code_of_the_model(tiny_model):
    artifact = to_torch(tiny_model, progress=False)
    ids, mask = batch(3, 11)
    with torch.inference_mode():
        expected = tiny_model.module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    assert open_engine(artifact, device="cpu").run(ids, mask) == pytest.approx(expected, abs=1e-5)


def test_a_half_precision_program_is_smaller_and_never_runs_on_a_cpu(tiny_model):
    full, half = (to_torch(tiny_model, precision=precision, progress=False) for precision in ("fp32", "fp16"))
    assert half.size_bytes < 0.6 * full.size_bytes
    with pytest.raises(EngineError, match=r"in fp16 .* on a GPU"):
        open_engine(half, device="cpu")


def test_the_dynamic_sizes_are_called_batch_and_sequence(tiny_model, fp32):
    values = [*onnx.load(fp32.path).graph.input, *onnx.load(fp32.path).graph.output]
    sizes = {v.name: [size.dim_param or size.dim_value for size in v.type.tensor_type.shape.dim] for v in values}
    assert sizes["input_ids"] == sizes["attention_mask"] == ["batch", "sequence"]
    assert sizes["sentence_embedding"] == ["batch", tiny_model.dimension]


def test_operators_are_counted_in_the_file_and_as_they_are_run(fp32):
    held, run = onnx_ops.operators([fp32]), onnx_ops.operators([fp32], executed=True)
    assert held["onnx fp32"].to_dict() == dict(collections.Counter(operators(fp32)))
    assert run["onnx fp32"].sum() < held["onnx fp32"].sum()


def test_half_precision_runs_with_more_casts_on_a_cpu(tiny_model, fp32):
    half = to_onnx(tiny_model, precision="fp16", progress=False)
    casts = onnx_ops.operators([fp32, half], executed=True).loc["Cast"]
    assert casts["onnx fp16"] > casts["onnx fp32"]


def test_the_same_weights_with_another_pooling_are_not_reused(tiny_model, fp32):
    module = copy.copy(tiny_model.module)
    module.pooling = ("cls",)
    other = dataclasses.replace(tiny_model, module=module, name="tiny-other")
    assert to_onnx(other, progress=False).manifest.source != fp32.manifest.source


def test_what_nothing_has_changed_for_is_reused(tiny_model, fp32, capsys):
    again = to_onnx(tiny_model)
    assert "reused" in capsys.readouterr().out
    assert again.manifest.created == fp32.manifest.created


def changed_weights(model):
    module = type(model.module)(
        model.module.transformer, pooling=["cls"], steps=[torch.nn.Linear(32, 32)], segments=model.module.segments
    )
    return dataclasses.replace(model, module=module.eval())


@pytest.mark.parametrize(
    "change", [changed_weights, lambda model: dataclasses.replace(model, max_length=64)], ids=["weights", "max_length"]
)
def test_what_something_has_changed_for_is_converted_again(tiny_model, fp32, change):
    other = to_onnx(change(tiny_model), progress=False)
    assert other.manifest.created != fp32.manifest.created
    to_onnx(tiny_model, progress=False)


def test_a_damaged_artifact_is_converted_again(tiny_model):
    first = to_onnx(tiny_model, precision="fp16", progress=False)
    first.path.write_bytes(first.path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file"):
        Artifact.load(first.folder)
    again = to_onnx(tiny_model, precision="fp16", progress=False)
    assert graph_precision(Artifact.load(again.folder).path) == "fp16"


class Unexportable(torch.nn.Module):
    """A branch on the values of a tensor: no graph holds that."""

    def forward(self, input_ids, attention_mask):
        return input_ids.float() if input_ids.sum() > attention_mask.sum() else attention_mask.float()


@pytest.mark.parametrize("convert", [to_onnx, to_torch])
def test_a_failed_export_is_one_error_and_leaves_nothing(tiny_model, tmp_path, convert):
    odd = dataclasses.replace(tiny_model, module=Unexportable())
    with pytest.raises(ConversionError, match="The export failed"):
        convert(odd, output=tmp_path / "odd", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_file_has_no_precision(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"this is not a graph")
    with pytest.raises(ArtifactError, match="cannot be read as ONNX"):
        graph_precision(tmp_path / "model.onnx")


@pytest.fixture(scope="module", params=[*PRECISIONS, "packed"])
def beside(request, tiny_model, tmp_path_factory):
    """Each precision of a model that is said to be large, as its weights lie beside the graph."""
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "EXTERNAL_FROM_BYTES", 1)
        patch.setenv("ACCEL_HOME", str(folder))
        kind = {"packed": True} if request.param == "packed" else {"precision": request.param}
        return to_onnx(tiny_model, output=folder / request.param, progress=False, **kind)


def test_weights_of_a_large_model_lie_beside_its_graph_and_every_reader_finds_them(tiny_model, beside, tmp_path):
    assert {"model.onnx", "model.onnx.data"} < set(beside.manifest.files)
    assert beside.path.stat().st_size < 0.3 * beside.size_bytes
    onnx.checker.check_model(str(beside.path), full_check=True)
    assert graph_precision(beside.path) == beside.manifest.precision
    assert onnx_ops.operators([beside], executed=True).sum().item() > 10
    ids, mask = batch(4, 16)
    moved = Artifact.load(beside.copy_to(tmp_path / "copy").folder)
    with torch.inference_mode():
        expected = tiny_model.module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    assert (open_engine(moved, device="cpu").run(ids, mask) * expected).sum(axis=1).min() > 0.98


def test_a_small_model_stays_one_file(fp32):
    assert set(fp32.manifest.files) == {"model.onnx", "tokenizer.json"}


def test_int8_for_a_cpu_with_vnni_is_refused_by_one_without_and_converted_again(tiny_model, monkeypatch):
    monkeypatch.setattr(ort_engine, "weight_bits", lambda: 8)
    monkeypatch.setattr("accel_lib.convert.onnx.weight_bits", lambda: 8)
    made = to_onnx(tiny_model, precision="int8", progress=False)
    assert made.manifest.weight_bits == 8
    for module in ("accel_lib.engines.onnxruntime", "accel_lib.convert.onnx", "accel_lib.convert.int8"):
        monkeypatch.setattr(f"{module}.weight_bits", lambda: 7)
    with pytest.raises(EngineError, match="overflow without VNNI"):
        open_engine(made, device="cpu")
    assert to_onnx(tiny_model, precision="int8", progress=False).manifest.weight_bits == 7


@pytest.mark.parametrize("target", ["accel_lib.convert.onnx.write_graph", "accel_lib.models.tokenizer.Tokenizer.save"])
def test_a_full_disk_is_called_a_full_disk_and_leaves_no_empty_folder(tiny_model, tmp_path, monkeypatch, target):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target, full)
    with pytest.raises(AccelError, match="disk is full"):
        to_onnx(tiny_model, output=tmp_path / "new" / "folder", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "said"), [("memory", "more memory than is free"), ("disk", "disk has no room")])
def test_too_little_memory_or_disk_is_refused_with_numbers_before_the_work(
    tiny_model, tmp_path, monkeypatch, name, said
):
    free = {"memory": 2**20, "disk": 1000}[name]
    if name == "memory":
        monkeypatch.setattr(room, "free_memory_bytes", lambda: free)
    else:
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr("accel_lib.convert.onnx.export_graph", None)
    with pytest.raises(ConversionError, match=rf"(?s){said}.*GiB"):
        to_onnx(tiny_model, output=tmp_path / "new", progress=False)


def test_a_program_with_mapped_functions_is_saved_and_gives_the_same(tmp_path):
    model = load_model(str(FAMILIES["gemma3"](tmp_path / "gemma3")))
    ids, mask = batch(3, 11)
    ids %= 300
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    artifact = to_torch(model, output=tmp_path / "torch", progress=False)
    assert open_engine(artifact, device="cpu").run(ids, mask) == pytest.approx(expected, abs=1e-5)


def test_an_export_that_fails_prints_nothing_and_says_what_does_run(tiny_model, tmp_path, capfd):
    odd = dataclasses.replace(tiny_model, module=Unexportable())
    capfd.readouterr()
    with pytest.raises(ConversionError, match="export failed") as refusal:
        to_onnx(odd, output=tmp_path / "odd", progress=False)
    assert "open_engine" in refusal.value.fix
    assert capfd.readouterr() == ("", "")
