"""A language model as one ONNX graph with its cache in and out: right, checked, in half precision, and for a T4."""

import dataclasses
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, numpy_helper

import accel_lib as accel
from accel_lib.artifact import Artifact, Profile, write_manifest
from accel_lib.convert.generation_onnx import generation_profiles
from accel_lib.convert.precision import graph_precision
from accel_lib.convert.storage import write_proto
from accel_lib.convert.tensorrt import inspect_engine
from accel_lib.engines.tensorrt import profile_for
from accel_lib.engines.tensorrt_runtime import installed
from accel_lib.errors import ArtifactError, ConversionError, EngineError, RequestError, ValidationError
from accel_lib.generate.onnxruntime import OnnxEngine, OnnxNetwork
from accel_lib.generate.open import open_generation
from accel_lib.generate.tensorrt import TensorRTEngine, TensorRTNetwork
from accel_lib.machine import inspect_machine
from accel_lib.models import load_model
from tests.causal import FAMILIES, TEXTS
from tests.generation import greedy, reference, run
from tests.tiny import WORDS, llama_folder, tiny_prompts

CONTEXT = 512


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights small enough for rounding to stay small, as those of trained models are."""
    folder = llama_folder(tmp_path_factory.mktemp("llama") / "tiny", seed=4, initializer_range=0.1)
    return load_model(folder, task="generation")


@pytest.fixture(scope="module")
def whole(model):
    return accel.to_onnx(model, output=model.folder.parent / "fp32", progress=False)


@pytest.fixture(scope="module")
def half(model):
    return accel.to_onnx(model, precision="fp16", output=model.folder.parent / "fp16", progress=False)


def ports(artifact):
    graph = onnx.load(artifact.path, load_external_data=False).graph
    return {
        port.name: (
            port.type.tensor_type.elem_type,
            [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim],
        )
        for port in (*graph.input, *graph.output)
    }


def test_its_ports_are_named_as_everywhere_and_free_where_they_must_be(whole):
    found = ports(whole)
    assert found["input_ids"] == (TensorProto.INT64, ["batch", "sequence"])
    assert found["attention_mask"] == (TensorProto.INT64, ["batch", "total"])
    assert found["past_key_values.1.value"] == (TensorProto.FLOAT, ["batch", 2, "past", 8])
    assert found["present.1.value"] == (TensorProto.FLOAT, ["batch", 2, "total", 8])
    assert found["logits"] == (TensorProto.FLOAT, ["batch", "sequence", WORDS])


def test_it_is_validated_and_recorded_like_any_artifact(model, whole):
    assert not whole.validated
    verdict = accel.validate(whole, reference=model, texts=TEXTS)
    assert verdict.agreement.greedy == verdict.agreement.top1 == 1
    assert verdict.agreement.divergence < 1e-8
    again = Artifact.load(whole.folder)
    assert again.validated
    assert (again.manifest.task, again.manifest.format) == ("generation", "onnx")
    assert (again.manifest.stop_ids, again.manifest.dimension) == (model.stop_ids, WORDS)


def test_a_prompt_in_pieces_and_a_token_at_a_time_give_the_same_logits(whole):
    network = OnnxNetwork(whole, device="cpu", threads=1)
    ids = torch.tensor([tiny_prompts(1, shortest=20)[0]])
    wanted, cache, found, start = network.logits(ids[0].tolist()), None, [], 0
    for end in (7, 12, *range(13, ids.shape[1] + 1)):
        step = network(
            input_ids=ids[:, start:end],
            attention_mask=torch.ones((1, end), dtype=torch.int64),
            position_ids=torch.arange(start, end)[None],
            cache=cache,
        )
        cache, start = step.past_key_values, end
        found.append(step.logits[0])
    np.testing.assert_allclose(torch.cat(found), wanted, atol=1e-4)


def test_an_artifact_opens_as_an_engine_that_gives_transformers_own_tokens(model, whole):
    engine = open_generation(whole, threads=1, rows=2)
    prompts = tiny_prompts(3)
    found = run(engine, {str(index): (prompt, greedy(9)) for index, prompt in enumerate(prompts)})
    engine.close()
    assert list(found.values()) == [reference(model, prompt, 9) for prompt in prompts]


@pytest.mark.parametrize("family", ["gemma 2, windows and caps", "gemma 3, windows and two ropes", "mistral, windows"])
def test_windows_and_caps_that_no_engine_of_its_own_computes_are_in_the_graph(family, tmp_path):
    torch.manual_seed(1)
    own = load_model(llama_folder(tmp_path / "own", network=FAMILIES[family]()), task="generation")
    artifact = accel.to_onnx(own, output=tmp_path / "made", progress=False)
    assert accel.validate(artifact, reference=own, texts=TEXTS).agreement.greedy == 1


def test_half_precision_is_in_the_products_and_the_cache_and_passes_as_its_types_say(model, whole, half):
    found = ports(half)
    assert {found[name][0] for name in found if "key" in name or "value" in name} == {TensorProto.FLOAT16}
    assert found["logits"][0] == TensorProto.FLOAT
    assert half.size_bytes < 0.7 * whole.size_bytes
    assert "16" in graph_precision(half.path)
    agreement = accel.validate(half, reference=model, texts=TEXTS).agreement
    assert 1e-10 < agreement.divergence < 1e-3


@pytest.mark.parametrize("what", ["norm", "embedding"])
def test_a_graph_with_other_numbers_is_refused(model, whole, tmp_path, what):
    folder = tmp_path / "broken"
    shutil.copytree(whole.folder, folder)
    proto = onnx.load(folder / "model.onnx")
    shape = (32,) if what == "norm" else (WORDS, 32)
    weight = next(each for each in proto.graph.initializer if tuple(each.dims) == shape)
    values = numpy_helper.to_array(weight)
    wrong = values * 0.5 if what == "norm" else values[::-1].copy()
    weight.CopyFrom(numpy_helper.from_array(wrong, weight.name))
    write_proto(proto, whole.path, folder / "model.onnx")
    write_manifest(folder, dataclasses.replace(whole.manifest))
    with pytest.raises(ValidationError, match="divergence"):
        accel.validate(Artifact.load(folder), reference=model, texts=TEXTS)


def test_what_it_cannot_be_is_refused_by_name(model, whole, tmp_path):
    for options, said in (({"precision": "int8"}, "no such precision"), ({"packed": True}, "not packed")):
        with pytest.raises(ConversionError, match=said):
            accel.to_onnx(model, output=tmp_path / "made", **options)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=WORDS))
    other = load_model(llama_folder(tmp_path / "gpt2", network=gpt2), task="generation")
    with pytest.raises(accel.AccelError, match="family gpt2"):
        accel.to_onnx(other, output=tmp_path / "made")
    embedding = dataclasses.replace(whole, manifest=dataclasses.replace(whole.manifest, task="embedding"))
    with pytest.raises(EngineError, match="language models"):
        OnnxEngine(embedding)
    shutil.copytree(whole.folder, tmp_path / "cut")
    (tmp_path / "cut" / "model.onnx").write_bytes(whole.path.read_bytes()[:-1000])
    write_manifest(tmp_path / "cut", whole.manifest)
    with pytest.raises(ArtifactError, match="cannot load"):
        OnnxEngine(Artifact.load(tmp_path / "cut"))


def test_profiles_cover_every_step_within_the_context():
    decode, prompts = generation_profiles(rows=4, prompt_tokens=64, context_tokens=256)
    assert (decode.max, prompts.max) == ((4, 1, 255), (1, 64, 192))
    assert prompts.min == (1, 1, 0)


class Computed(TensorRTNetwork):
    """A TensorRT engine whose steps ONNX Runtime computes, from the file that it was built of."""

    def __init__(self, artifact):
        self.profiles, self.device, self.shapes = artifact.manifest.profiles, "cpu", []
        self._session = onnxruntime.InferenceSession(artifact.folder / "model.onnx")
        self._ports = self._session.get_inputs()

    def empty(self):
        return [torch.zeros((1, port.shape[1], 0, port.shape[3])) for port in self._ports[3:]]

    def step(self, ids, mask, positions, cache):
        self.shapes.append((*ids.shape, mask.shape[1] - ids.shape[1]))
        profile_for(self.profiles, self.shapes[-1])
        fed = {port.name: each.numpy() for port, each in zip(self._ports, (ids, mask, positions, *cache), strict=True)}
        logits, *present = map(torch.from_numpy, self._session.run(None, fed))
        return logits, present


def test_a_tensorrt_engine_gets_prompts_in_pieces_and_decode_steps_within_its_profiles(model, whole):
    profiles = generation_profiles(rows=3, prompt_tokens=64, context_tokens=256)
    plan = dataclasses.replace(whole, manifest=dataclasses.replace(whole.manifest, profiles=profiles))
    network = Computed(plan)
    engine = TensorRTEngine(plan, rows=8, network=network)
    assert (engine.limits.rows, engine.limits.context_tokens) == (3, 256)
    requests = {str(index): (prompt, greedy(4 + 3 * index)) for index, prompt in enumerate(tiny_prompts(7))}
    requests["long"] = ([9 + index % 90 for index in range(200)], greedy(56))
    requests["longer than the context with its padding"] = ([9, 10, 11], greedy(100))
    found = run(engine, requests)
    assert all(found[key] == reference(model, prompt, each.max_tokens) for key, (prompt, each) in requests.items())
    assert {(1, 64, 0), (1, 64, 128), (1, 8, 192)} < set(network.shapes)
    assert max(past for _, _, past in network.shapes) == 254  # the last token is not read any more
    with pytest.raises(RequestError, match="context is 256"):
        engine.add("beyond", [9] * 250, greedy(7))
    prompt = requests["long"][0]
    np.testing.assert_allclose(network.logits(prompt), OnnxNetwork(whole).logits(prompt), atol=1e-3)


@pytest.mark.skipif("tensorrt_rtx" not in installed(), reason="TensorRT-RTX is not installed")
class TestForATeslaT4:
    def test_the_decode_step_and_the_prompts_are_built_without_a_gpu(self, half, tmp_path):
        plan = accel.to_tensorrt(half, target="t4", max_batch_size=4, output=tmp_path / "t4", progress=False)
        assert plan.manifest.target == "sm75"
        assert [profile.max for profile in plan.manifest.profiles] == [(4, 1, 511), (1, 256, 256)]
        assert Artifact.load(plan.folder).manifest.profiles == plan.manifest.profiles
        layers = inspect_engine(plan).layers
        assert set(layers.query("layer == 'MATRIX_MULTIPLY'")["type"]) == {"HALF"}
        assert set(layers.query("layer == 'SOFTMAX'")["type"]) == {"FLOAT"}
        if not inspect_machine().gpus:
            with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
                open_generation(plan)

    def test_what_it_cannot_build_is_refused_before_building(self, whole, half, tmp_path):
        with pytest.raises(ConversionError, match="FP32"):
            accel.to_tensorrt(whole, target="t4", output=tmp_path / "plan", progress=False)
        beyond = Profile(min=(1, 1, 0), opt=(1, 1, 8), max=(1, 1, CONTEXT))
        with pytest.raises(ConversionError, match="optimization profile"):
            accel.to_tensorrt(half, target="t4", profiles=[beyond], output=tmp_path / "plan", progress=False)
        assert not (tmp_path / "plan").exists()
