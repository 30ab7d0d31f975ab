"""A converted language model passes against its own reference, and no other one does."""

import dataclasses
import shutil

import numpy as np
import pytest
import rich
import torch
import transformers
from typer.testing import CliRunner

import accel_lib as accel
from accel_lib.artifact import Artifact, write_manifest
from accel_lib.cli import app
from accel_lib.convert.generation import generation_to_openvino
from accel_lib.convert.generation_agreement import kl_divergence
from accel_lib.convert.validate_generation import GenerationTolerance, validate_generation
from accel_lib.errors import ConversionError, EngineError, ModelError, ValidationError
from accel_lib.generate.openvino import OpenVINOEngine, compute_properties
from accel_lib.machine import inspect_machine
from accel_lib.models import load_model
from accel_lib.models.decoder import Decoder
from tests.causal import CAPS, FAMILIES, GEMMA, LAYERS, SHAPE, SHORT_TOKENS, TEXTS
from tests.generation import greedy, run
from tests.tiny import SPECIAL, WORDS, llama_folder

ov = pytest.importorskip("openvino")
T = transformers


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(llama_folder(tmp_path_factory.mktemp("llama") / "tiny", seed=4), task="generation")


@pytest.fixture(scope="module")
def whole(model):
    return generation_to_openvino(model, output=model.folder.parent / "fp32", progress=False)


@pytest.fixture(scope="module")
def mild(tmp_path_factory):
    """Weights small enough for rounding to stay small, as those of trained models are."""
    folder = llama_folder(tmp_path_factory.mktemp("llama") / "mild", seed=4, initializer_range=0.1)
    return load_model(folder, task="generation")


@pytest.fixture
def broken(whole, tmp_path):
    """Copies the artifact; `change` edits its folder or graph, and the manifest is written again."""

    def make(change=None, **facts):
        folder = tmp_path / "broken"
        shutil.copytree(whole.folder, folder)
        if change:
            graph = ov.Core().read_model(folder / "model.xml")
            change(graph)
            ov.save_model(graph, folder / "again.xml", compress_to_fp16=False)
            del graph
            for kind in ("xml", "bin"):
                (folder / f"again.{kind}").rename(folder / f"model.{kind}")
        write_manifest(folder, dataclasses.replace(whole.manifest, **facts))
        return Artifact.load(folder)

    return make


def constants(graph, *shape):
    return [n for n in graph.get_ordered_ops() if n.get_type_name() == "Constant" and list(n.shape) == list(shape)]


def replace(graph, old, values):
    new = ov.opset13.constant(np.ascontiguousarray(values, dtype=np.float32))
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(new.output(0))
    graph.validate_nodes_and_infer_types()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_is_transformers_own_network(family, tmp_path):
    """With padding in a batch, and with a cache that was filled before."""
    torch.manual_seed(0)
    theirs = FAMILIES[family]().eval()
    for name, weight in theirs.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(weight, 0.5, 0.2)
    own = Decoder(theirs, tmp_path, context_tokens=SHORT_TOKENS).eval()
    ids = torch.randint(0, WORDS, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    past = [(torch.zeros(2, own.key_value_heads, 0, own.head_size),) * 2] * 2
    with torch.inference_mode():
        wanted = theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        first, past = own(ids[:, :7], mask[:, :7], positions[:, :7], past)
        second, _ = own(ids[:, 7:], mask, positions[:, 7:], past)
    torch.testing.assert_close(torch.cat([first, second], 1)[mask.bool()], wanted[mask.bool()], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "family", ["llama 3's rope", "qwen3", "gemma", "gemma 3, wide windows", "phi3, half of a head turned"]
)
def test_each_family_is_converted_and_passes(family, tmp_path):
    torch.manual_seed(1)
    model = load_model(llama_folder(tmp_path / "own", network=FAMILIES[family]()), task="generation")
    artifact = generation_to_openvino(model, output=tmp_path / "made", progress=False)
    assert validate_generation(artifact, reference=model, texts=TEXTS, threads=1).passed


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda: T.GPT2LMHeadModel(T.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=WORDS)), "family gpt2"),
        (FAMILIES["mistral, windows"], "a window of 4 tokens"),
        (FAMILIES["gemma 3, windows and two ropes"], "a window of 4 tokens"),
        (lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**GEMMA, sliding_window=256, **CAPS)), "capped at 2.0"),
        (FAMILIES["phi3, longrope"], "change beyond 64 tokens"),
        (
            lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True, **LAYERS)),
            "what comes later",
        ),
        (
            lambda: T.LlamaForCausalLM(
                T.LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
            ),
            "change with the length",
        ),
    ],
)
def test_what_is_computed_otherwise_is_refused_by_name(network, said, tmp_path):
    model = load_model(llama_folder(tmp_path / "own", network=network()), task="generation")
    with pytest.raises(ModelError, match=said):
        generation_to_openvino(model, output=tmp_path / "made", progress=False)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("family", ["phi3, longrope", "mistral, windows of 64"])
def test_what_changes_with_the_length_is_plain_within_it(family, tmp_path):
    network = (
        T.MistralForCausalLM(T.MistralConfig(**SHAPE, sliding_window=64)) if "64" in family else FAMILIES[family]()
    )
    model = load_model(llama_folder(tmp_path / "own", network=network), task="generation", max_length=SHORT_TOKENS)
    artifact = generation_to_openvino(model, output=tmp_path / "made", progress=False)
    assert validate_generation(artifact, reference=model, texts=TEXTS, threads=1).passed
    assert artifact.manifest.max_length == SHORT_TOKENS


def test_an_exact_conversion_gives_the_references_tokens_and_is_recorded(model, whole):
    assert not whole.validated
    verdict = validate_generation(whole, reference=model, texts=TEXTS, threads=1)
    assert verdict.agreement.greedy == verdict.agreement.top1 == 1
    assert verdict.agreement.divergence < 1e-8
    again = Artifact.load(whole.folder)
    assert again.validated
    assert again.manifest.validation["texts"] == len(TEXTS)
    assert again.manifest.stop_ids == model.stop_ids
    assert again.manifest.chat_template == model.chat_template.text


def test_int8_weights_take_less_room_and_pass_by_divergence(mild, whole, tmp_path):
    small = generation_to_openvino(mild, precision="int8", output=tmp_path / "int8", progress=False)
    assert small.size_bytes < whole.size_bytes
    verdict = validate_generation(small, reference=mild, texts=TEXTS, threads=1)
    assert 1e-7 < verdict.agreement.divergence < 0.04
    with pytest.raises(ValidationError, match="divergence"):
        exact = GenerationTolerance(greedy=1.0, top1=1.0, divergence=1e-7)
        validate_generation(small, reference=mild, texts=TEXTS, threads=1, tolerance=exact)


def test_compression_leaves_no_empty_output_in_a_cell(mild, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: shown.extend(things))
    monkeypatch.setattr(rich.get_console(), "is_jupyter", True)
    generation_to_openvino(mild, precision="int8", output=tmp_path / "int8", progress=False)
    assert not shown
    assert rich.get_console().is_jupyter


def test_bf16_is_computed_in_bf16_or_refused_by_name(mild, tmp_path):
    artifact = generation_to_openvino(mild, precision="bf16", output=tmp_path / "bf16", progress=False)
    if "AVX-512 BF16" in inspect_machine().isa:
        assert compute_properties("bf16")["INFERENCE_PRECISION_HINT"] == "bf16"
        assert validate_generation(artifact, reference=mild, texts=TEXTS, threads=1).agreement.divergence > 1e-7
    else:
        with pytest.raises(EngineError, match="does not multiply BF16"):
            OpenVINOEngine(artifact)


def test_a_zeroed_head_is_refused(broken, model):
    def zero(graph):
        (head,) = [
            node
            for node in graph.get_ordered_ops()
            if node.get_type_name() == "MatMul" and node.output(0).partial_shape[-1] == WORDS
        ]
        weights = ov.opset13.constant(np.zeros((WORDS, 32), np.float32))
        head.input(1).replace_source_output(weights.output(0))
        graph.validate_nodes_and_infer_types()

    with pytest.raises(ValidationError, match="same likeliest token"):
        validate_generation(broken(zero), reference=model, texts=TEXTS, threads=1)


def test_swapped_layers_are_refused(broken, model):
    def swap(graph):
        first, second = constants(graph, 32, 64)
        values = first.get_data().copy(), second.get_data().copy()
        replace(graph, first, values[1])
        replace(graph, second, values[0])

    with pytest.raises(ValidationError, match="divergence"):
        validate_generation(broken(swap), reference=model, texts=TEXTS, threads=1)


def test_shuffled_rotary_frequencies_are_refused(broken, model):
    def shuffle(graph):
        wanted = model.network.model.rotary_emb.inv_freq.numpy()
        (rope,) = [
            node
            for node in graph.get_ordered_ops()
            if node.get_type_name() == "Constant"
            and node.get_data().size == wanted.size
            and np.allclose(node.get_data().ravel(), wanted)
        ]
        replace(graph, rope, rope.get_data()[..., ::-1])

    with pytest.raises(ValidationError, match="divergence"):
        validate_generation(broken(shuffle), reference=model, texts=TEXTS, threads=1)


def test_numbers_that_are_none_are_refused(broken, model):
    def spoil(graph):
        (embedding, *_) = constants(graph, WORDS, 32)
        replace(graph, embedding, np.full((WORDS, 32), np.nan))

    with pytest.raises(ValidationError, match="finite logits no"):
        validate_generation(broken(spoil), reference=model, texts=TEXTS, threads=1)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"stop_ids": (2,)}, "stop ids"),
        ({"stop_ids": ()}, "stop ids"),
        ({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}, "chat's text"),
        ({"chat_template": ""}, "chat's text"),
        ({"special_tokens": {"bos_token": ""}}, "chat's text"),
        ({"max_length": 4096}, "context"),
        ({"dimension": WORDS - 1}, "token ids"),
    ],
)
def test_a_manifest_that_is_not_the_models_is_refused(broken, model, facts, said):
    with pytest.raises(ValidationError, match=said):
        validate_generation(broken(**facts), reference=model, texts=TEXTS, threads=1)


def test_another_models_weights_or_tokenizer_are_refused(model, whole, broken, tmp_path):
    other = load_model(llama_folder(tmp_path / "other", seed=9), task="generation")
    with pytest.raises(ValidationError, match="greedy tokens"):
        validate_generation(whole, reference=other, texts=TEXTS, threads=1)
    artifact = broken()
    path = artifact.folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w9": 9', '"w9": 10').replace('"w10": 10', '"w10": 9'))
    write_manifest(artifact.folder, whole.manifest)
    with pytest.raises(ValidationError, match="tokenizer"):
        validate_generation(Artifact.load(artifact.folder), reference=model, texts=TEXTS, threads=1)


def test_the_public_calls_and_the_command_know_a_language_model(model, tmp_path):
    artifact = accel.to_openvino(model, output=tmp_path / "called", progress=False)
    assert accel.validate(artifact, reference=model, texts=TEXTS).passed
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    command = ["convert", "--model", str(model.folder), "--output", str(tmp_path / "made"), "--texts", str(texts)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "100.0% of tokens alike, 100% of answers equal" in done.output
    assert Artifact.load(tmp_path / "made").validated
    refused = CliRunner().invoke(app, [*command, "--packed"])
    assert refused.exit_code
    assert Artifact.load(tmp_path / "made").manifest.format == "openvino"
    done = CliRunner().invoke(app, [*command, "--format", "onnx"])
    assert done.exit_code == 0, done.output
    assert Artifact.load(tmp_path / "made").manifest.format == "onnx"


def test_few_texts_and_unknown_precisions_are_refused(model, whole, tmp_path):
    with pytest.raises(ValidationError, match="Too few"):
        validate_generation(whole, reference=model, texts=TEXTS[:15])
    with pytest.raises(ConversionError, match="no such precision"):
        generation_to_openvino(model, precision="int4", output=tmp_path / "made")


def test_a_model_that_does_not_chat_is_validated_by_continuing(tmp_path):
    model = load_model(llama_folder(tmp_path / "own", template=None), task="generation")
    artifact = generation_to_openvino(model, output=tmp_path / "made", progress=False)
    assert validate_generation(artifact, reference=model, texts=TEXTS, threads=1).passed


def test_divergence_is_zero_for_equal_and_known_for_two_coins():
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])
    assert kl_divergence(fair, fair + 3) == pytest.approx(0, abs=1e-12)
    assert kl_divergence(fair, biased) == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))


def test_an_engine_refuses_an_artifact_of_another_kind(whole):
    other = dataclasses.replace(whole, manifest=dataclasses.replace(whole.manifest, task="embedding"))
    with pytest.raises(EngineError, match="runs language models"):
        OpenVINOEngine(other)
    engine = OpenVINOEngine(whole, threads=1)
    assert run(engine, {"a": ([SPECIAL.index("user"), 9, 10], greedy(4, ignore_eos=True))})["a"]
    engine.close()


def test_a_report_carries_what_a_language_model_does_here(whole):
    done = CliRunner().invoke(app, ["report", "--generation", str(whole.folder)])
    assert done.exit_code == 0, done.output
    rows = [line.split("|")[1:5] for line in done.output.splitlines() if line.startswith(("| 1 |", "| 8 |"))]
    assert [int(row[0]) for row in rows] == [1, 8]
    assert all(float(cell) > 0 for row in rows for cell in row)
    assert str(whole.folder) not in done.output
