"""Without padding, family by family: the padded numbers up to the longest text, or a refusal that names the cause."""

import pytest
import transformers

from accel_lib import load_model, load_texts, open_engine, to_onnx, to_torch, validate
from accel_lib.engines.batching import run_batches
from accel_lib.errors import ModelError, ValidationError
from accel_lib.models import packed
from accel_lib.models.attention import EVERYTHING, difference
from accel_lib.models.modules import Encoder
from accel_lib.models.packed import pack
from accel_lib.models.varlen import to_varlen
from tests.families import FAMILIES
from tests.model_table import FORMS, LONGEST, refusals, without_padding, works

ALL, CAUSAL = {EVERYTHING}, {(-1, 0)}
WINDOWS = {
    "modernbert": {EVERYTHING, (8, 8)}, "gemma3": {EVERYTHING, (8, 8)},
    "mistral": {(15, 0)}, "qwen2": CAUSAL, "qwen3": CAUSAL, "llama": CAUSAL, "gemma": CAUSAL, "gpt2": CAUSAL,
}  # fmt: skip


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A model of a family, `LONGEST` tokens long."""

    def loaded(family, **changes):
        return load_model(
            str(FAMILIES[family](tmp_path_factory.mktemp("models") / family, **changes)), max_length=LONGEST
        )

    return loaded


def windows(module):
    return {part.accel_window for part in module.modules() if hasattr(part, "accel_window")}


@pytest.mark.parametrize("family", works("Packed"))
def test_a_packed_family_gives_the_padded_numbers_up_to_its_longest_text(load, family):
    module = load(family, kind="sentence").module
    for form in FORMS:
        packed_module = without_padding(form, module)
        assert windows(packed_module) == WINDOWS.get(family, ALL)
        assert difference(module, packed_module, (LONGEST, 3, 17, 2 * LONGEST // 3)) < 1e-5


@pytest.mark.parametrize(("family", "words"), refusals("Packed").items())
def test_a_family_that_cannot_be_packed_is_refused_by_its_cause(load, family, words):
    model = load(family, kind="sentence")
    for convert in (to_onnx, to_torch):
        with pytest.raises(ModelError, match=rf"(?s)cannot be packed.*{words}.*leave out packed=True"):
            convert(model, packed=True, progress=False)


@pytest.mark.parametrize("family", works("Packed classifier"))
def test_a_packed_classifier_gives_the_padded_logits(load, family):
    module = load(family, kind="SequenceClassification", num_labels=3).module
    for form in FORMS:
        assert difference(module, without_padding(form, module), (LONGEST, 3, 17, 1)) < 1e-5


def test_a_head_that_reads_the_mean_of_all_tokens_is_packed(load):
    module = load("modernbert", kind="SequenceClassification", num_labels=2, classifier_pooling="mean").module
    for form in FORMS:
        assert difference(module, without_padding(form, module), (LONGEST, 3, 17, 1)) < 1e-5


def test_a_head_that_works_on_each_token_is_packed_for_a_cpu_and_refused_for_a_gpu(load):
    module = load("eurobert", kind="SequenceClassification", num_labels=2, clf_pooling="late").module
    assert difference(module, pack(module, longest=LONGEST), (LONGEST, 3)) < 1e-5
    with pytest.raises(ModelError, match="gives the numbers of its head"):
        to_varlen(module, longest=LONGEST)


@pytest.mark.parametrize("family", ["modernbert", "gemma3", "mistral"])
@pytest.mark.parametrize("form", FORMS)
def test_a_window_that_is_forgotten_is_noticed(load, family, form, monkeypatch):
    module = load(family, kind="sentence").module
    learn = packed.learn_windows

    def forgetful(transformer, *, longest):
        learn(transformer, longest=longest)
        for part in transformer.modules():
            if hasattr(part, "accel_window"):
                part.accel_window = (-1, part.accel_window[1] if part.accel_window[1] == 0 else -1)

    monkeypatch.setattr(packed, "learn_windows", forgetful)
    with pytest.raises(ModelError, match="numbers move by"):
        form(module, longest=LONGEST)


@pytest.mark.parametrize(
    ("config", "changes", "cause"),
    [
        ("Gemma2Config", {}, "attention with softcap"),
        ("GptOssConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}, "attention with s aux"),
        ("Llama4TextConfig", {"attention_chunk_size": 8, "num_local_experts": 2}, "no window, such as .* chunks"),
    ],
)
def test_attention_with_more_than_a_window_is_refused_by_its_name(config, changes, cause):
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    made = getattr(transformers, config)(**shape, vocab_size=90, intermediate_size=32, pad_token_id=1, **changes)
    made._attn_implementation, made.use_cache = "eager", False
    network = transformers.AutoModel.from_config(made).eval()
    with pytest.raises(ModelError, match=rf"(?s)cannot be packed.*{cause}"):
        pack(Encoder(network, pooling=["mean"], steps=[], segments=False), longest=LONGEST)


def test_a_window_that_hides_nothing_costs_nothing(load):
    module = load("gemma3", kind="sentence", sliding_window=200).module
    assert windows(without_padding(pack, module)) == ALL


@pytest.mark.parametrize(
    ("family", "kind", "convert"),
    [
        ("gemma3", "sentence", to_onnx),
        ("modernbert", "sentence", to_torch),
        ("bert", "SequenceClassification", to_onnx),
        ("electra", "SequenceClassification", to_torch),
    ],
)
def test_packed_files_are_right_beyond_the_window_after_validation_on_short_texts(
    load, family, kind, convert, tmp_path
):
    model = load(family, kind=kind)
    artifact = convert(model, packed=True, output=tmp_path / "packed", progress=False)
    assert validate(artifact, reference=model, texts=load_texts("short", limit=8), device="cpu").passed
    longer = list(load_texts("mixed", limit=16))
    pairs = {"seconds": longer[::-1]} if model.pairs else {}
    rows = model.tokenize(longer, **pairs)
    assert rows.lengths.max() == LONGEST
    assert model.pairs == (rows.segments is not None and rows.segments.any())
    seen = run_batches(open_engine(artifact, device="cpu"), rows, model.tokenizer.pad_id)
    assert seen == pytest.approx(model.reference(longer, **pairs), abs=1e-4)


def test_validation_goes_beyond_the_window_whatever_the_texts(load, tmp_path):
    model = load("modernbert", kind="sentence")
    artifact = to_torch(model, output=tmp_path / "full", progress=False)
    narrow = load("modernbert", kind="sentence", local_attention=80)
    texts = ["a cat", "a dog", "the town", "music plays"]
    assert validate(artifact, reference=model, texts=texts, device="cpu").passed
    with pytest.raises(ValidationError, match="least cosine on texts of up to 96 tokens"):
        validate(artifact, reference=narrow, texts=texts, device="cpu")
