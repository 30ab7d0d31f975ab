"""Without padding, and in INT8 by token: the same numbers, on real tokens only, whatever else is in the batch."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
import transformers

from accel_lib import load_texts, open_engine, to_onnx, to_torch, train_classifier, validate
from accel_lib.convert import sensitivity
from accel_lib.convert.onnx_ops import operators
from accel_lib.convert.sensitivity import sensitive
from accel_lib.engines.batching import run_batches
from accel_lib.engines.cuda_graphs import bucket, fill
from accel_lib.errors import ConversionError
from accel_lib.models.classifier import accuracy
from accel_lib.models.fusion import LinearGelu
from accel_lib.models.modules import Encoder, Normalize
from accel_lib.models.packed import pack
from accel_lib.models.tokenizer import pad
from accel_lib.models.varlen import FromOffsets, flatten, to_varlen
from accel_lib.ragged import Ragged
from accel_lib.stats import cosine as row_cosine
from accel_lib.stats import overlap

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS = {
    "bert": (transformers.BertModel, transformers.BertConfig),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig),
    "electra": (transformers.ElectraModel, transformers.ElectraConfig),
}


def encoder(kind, pooling=("mean",)):
    network, config = KINDS[kind]
    torch.manual_seed(0)
    transformer = network(config(**SHAPE, vocab_size=500, max_position_embeddings=80, pad_token_id=1)).eval()
    return Encoder(transformer, pooling=pooling, steps=[Normalize()], segments=kind == "bert").eval()


def ragged(lengths, low=5, high=500):
    random = np.random.default_rng(0)
    ids, mask = pad([random.integers(low, high, length) for length in lengths], 1)
    return torch.from_numpy(ids), torch.from_numpy(mask)


@pytest.fixture(scope="module")
def packed(tiny_model):
    return to_onnx(tiny_model, packed=True, progress=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[7], [1, 64, 2], [5, 5], [40, 3, 17, 9, 64]], ids=str)
def test_a_packed_network_gives_the_numbers_of_the_padded_one(kind, lengths):
    module = encoder(kind)
    with torch.inference_mode():
        assert pack(module, longest=64)(*ragged(lengths)).numpy() == pytest.approx(
            module(*ragged(lengths)).numpy(), abs=1e-5
        )


@pytest.mark.parametrize("pooling", [("cls",), ("max", "mean"), ("weightedmean",), ("lasttoken",)], ids=str)
def test_every_pooling_reads_the_same_tokens(pooling):
    module = encoder("bert", pooling)
    with torch.inference_mode():
        expected = module(*ragged([9, 2, 30])).numpy()
        assert pack(module, longest=64)(*ragged([9, 2, 30])).numpy() == pytest.approx(expected, abs=1e-5)


def test_linear_layers_norms_and_activations_see_real_tokens_only():
    module, seen = pack(encoder("bert"), longest=64), set()
    for part in module.transformer.transformer.encoder.modules():
        if isinstance(part, torch.nn.Linear | torch.nn.LayerNorm):
            part.register_forward_hook(lambda _, inputs, __: seen.add(inputs[0].shape[:-1].numel()))
    with torch.inference_mode():
        module(*ragged([3, 50, 11]))
    assert seen == {64}


def test_the_original_stays_as_it_was():
    module = encoder("bert")
    pack(module, longest=64)
    assert module.transformer.config._attn_implementation != "accel_packed"


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (7, 33)])
def test_the_packed_graph_takes_any_batch_and_gives_the_numbers_of_pytorch(tiny_model, packed, shape):
    lengths = np.random.default_rng(1).integers(1, shape[1] + 1, shape[0])
    ids, mask = ragged(lengths, 1000, 2000)
    with torch.inference_mode():
        expected = tiny_model.module(ids, mask).numpy()
    assert open_engine(packed).run(ids.numpy(), mask.numpy()) == pytest.approx(expected, abs=1e-5)


def test_a_packed_artifact_is_validated_like_any_other(tiny_model, packed, texts):
    assert packed.name == "onnx fp32 packed"
    assert validate(packed, reference=tiny_model, texts=texts).passed


def test_a_packed_classifier_keeps_its_head(tiny_model, texts):
    classifier = train_classifier(tiny_model, load_texts("sentiment-train", limit=60))
    artifact = to_onnx(classifier, packed=True, progress=False)
    rows = classifier.tokenizer(texts)
    with torch.inference_mode():
        expected = classifier.module(*map(torch.from_numpy, pad(rows, 0))).numpy()
    assert run_batches(open_engine(artifact, device="cpu"), rows) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("is_packed", [False, True])
def test_fusions_apply_before_and_after_packing(tiny_model, is_packed):
    counts = operators([to_onnx(tiny_model, packed=is_packed, progress=False)], executed=True).iloc[:, 0]
    assert counts["BiasGelu"] == SHAPE["num_hidden_layers"]
    assert counts["FusedMatMul"] == SHAPE["num_hidden_layers"]
    assert counts["LayerNormalization"] == 2 * SHAPE["num_hidden_layers"] + 1
    assert "Erf" not in counts
    assert not is_packed or counts["Transpose"] <= SHAPE["num_hidden_layers"]  # four a layer without gathering heads


def test_in_int8_every_weight_has_a_scale_a_channel_and_activations_one_a_token(tiny_model):
    int8 = to_onnx(tiny_model, precision="int8", packed=True, progress=False)
    graph = onnx.load(int8.path).graph
    products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 6 * SHAPE["num_hidden_layers"]
    sizes = {weight.name: list(weight.dims) for weight in graph.initializer}
    assert all(sizes[node.input[3]] == sizes[node.input[1]][1:] for node in products)
    assert {node.attribute[0].i for node in graph.node if node.op_type == "QuantizeLinear"} == {0}


@pytest.mark.parametrize("is_packed", [False, True])
def test_batch_mates_move_no_vector_in_int8(tiny_model, texts, is_packed):
    engine = open_engine(to_onnx(tiny_model, precision="int8", packed=is_packed, progress=False), device="cpu")
    rows = tiny_model.tokenizer(texts)
    together, alone = run_batches(engine, rows), run_batches(engine, rows, max_batch_size=1)
    assert together == pytest.approx(alone, abs=5e-3)


def test_int8_without_padding_holds_its_targets_on_texts_it_never_saw(model):
    artifact = to_onnx(model, precision="int8", packed=True, keep="auto", progress=False)
    texts = load_texts("mixed", limit=96, seed=5)
    seen = run_batches(open_engine(artifact, device="cpu"), model.tokenizer(texts))
    exact = model.reference(list(texts))
    assert (seen * exact).sum(axis=1).mean() >= sensitivity.LEAST_COSINE
    assert overlap(seen, exact) >= sensitivity.LEAST_OVERLAP


@pytest.fixture(scope="module")
def loud_model(tiny_model):
    """The same shape with weights so large that rounding them shows."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE, initializer_range=0.4)
    network = transformers.BertModel(config, add_pooling_layer=False).eval()
    module = Encoder(network, pooling=["mean"], steps=[Normalize()], segments=True)
    return dataclasses.replace(tiny_model, name="loud", module=module.eval().requires_grad_(False))


def test_int8_keeps_the_accuracy_of_a_sentiment_classifier_on_texts_it_never_saw(model):
    held_out = load_texts("sentiment-test")
    classifier = train_classifier(model, load_texts("sentiment-train"))
    artifact = to_onnx(classifier, precision="int8", packed=True, keep="auto", progress=False)
    logits = run_batches(open_engine(artifact, device="cpu"), classifier.tokenizer(held_out))
    exact, rounded = accuracy(classifier, held_out), accuracy(lambda _: logits, held_out)
    assert rounded.low <= exact.value <= rounded.high


def test_the_search_keeps_no_more_than_it_takes(loud_model, texts, monkeypatch):
    fp32 = to_onnx(loud_model, packed=True, progress=False)
    rows = loud_model.tokenizer(texts)
    exact = run_batches(open_engine(fp32, device="cpu"), rows)

    def cosine(keep):
        artifact = to_onnx(loud_model, precision="int8", packed=True, keep=keep, progress=False)
        return float(row_cosine(run_batches(open_engine(artifact, device="cpu"), rows), exact).mean())

    wanted = 1 - (1 - cosine([])) / 2  # half of the error has to go
    monkeypatch.setattr(sensitivity, "LEAST_COSINE", wanted)
    monkeypatch.setattr(sensitivity, "LEAST_OVERLAP", 0.5)
    kept = sensitive(fp32, texts)
    assert 0 < len(kept) < 6 * SHAPE["num_hidden_layers"]
    assert cosine(kept) >= wanted - 1e-6
    assert len(kept) == 1 or cosine(kept[:-1]) < wanted


def test_where_int8_holds_nothing_the_search_says_so(packed, texts, monkeypatch):
    monkeypatch.setattr(sensitivity, "LEAST_COSINE", 1.1)
    with pytest.raises(ConversionError, match="does not hold its targets"):
        sensitive(packed, texts)


@pytest.mark.parametrize("pooling", [("mean",), ("cls",), ("max", "weightedmean"), ("lasttoken",)], ids=str)
@pytest.mark.parametrize("lengths", [[7], [1, 40, 2, 9]], ids=str)
def test_texts_behind_each_other_give_the_numbers_of_the_padded_network(lengths, pooling):
    module = encoder("roberta", pooling)
    ids, mask = ragged(lengths)
    batch = map(torch.from_numpy, flatten(Ragged.from_padded(ids.numpy(), mask.numpy()), tokens=64, texts=8))
    with torch.inference_mode():
        answer = to_varlen(module, longest=64)(*batch)[: len(lengths)]
        assert answer.numpy() == pytest.approx(module(ids, mask).numpy(), abs=1e-5)


def test_positions_and_text_numbers_computed_from_offsets_give_the_same_numbers():
    network = to_varlen(encoder("roberta", ("mean", "max")), longest=64)
    rows = Ragged.from_padded(*(each.numpy() for each in ragged([1, 40, 2, 9])))
    inputs = np.empty(64 + 9, dtype=np.int64)
    fill(np.split(inputs, [64]), rows)
    with torch.inference_mode():
        answer = FromOffsets(network)(*torch.tensor_split(torch.from_numpy(inputs), [64]))
        expected = network(*map(torch.from_numpy, flatten(rows, tokens=64, texts=8)))
    assert answer[:4].numpy() == pytest.approx(expected[:4].numpy(), abs=1e-6)


def test_layers_of_bert_s_kind_compute_queries_keys_and_values_by_one_product_and_gelu_in_another():
    parts = list(to_varlen(encoder("bert", ("mean",)), longest=64).modules())
    layers = [part for part in parts if hasattr(part, "accel_window")]
    assert layers
    assert all(layer.query.out_features == 3 * layer.query.in_features for layer in layers)
    assert sum(isinstance(part, LinearGelu) for part in parts) == len(layers)


def test_a_packed_program_runs_any_batch_without_the_code_of_the_model(tiny_model, texts):
    artifact = to_torch(tiny_model, packed=True, progress=False)
    engine = open_engine(artifact, device="cpu")
    rows = tiny_model.tokenizer(texts)
    expected = run_batches(open_engine(tiny_model, device="cpu"), rows)
    for size in (1, 5, None):
        assert run_batches(engine, rows, max_batch_size=size) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("texts_in_batch", [1, 3, 64, 1000])
def test_a_graph_s_size_holds_the_batch_and_wastes_little(texts_in_batch):
    for tokens in [1, 63, 64, 65, 1000, 4097, 10_000, 32_768]:
        held, texts = bucket(tokens, texts_in_batch)
        assert held >= tokens
        assert texts >= texts_in_batch
        assert held - tokens < max(64, tokens / 15)


def test_there_are_few_sizes_of_graphs():
    assert len({bucket(tokens, 2)[0] for tokens in range(1, 32_769)}) < 100
