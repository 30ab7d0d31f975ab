"""Folders of many families: loaded as their own library loads them, cut where it cuts, or refused by what they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder

from accel_lib._logging import silenced
from accel_lib.errors import ModelError
from accel_lib.models import load_model
from tests.families import FAMILIES
from tests.model_table import refusals, works

TEXTS = ["a small cat sleeps on the warm mat", "dog", "the quick brown fox jumps over a lazy dog and " * 9]
LONG = "music " * 600
UNLIMITED = 10**30  # what transformers writes for "no limit"
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "factor": 4.0,
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    },
    "max_position_embeddings": 256,
}


def _edit(file: Path, **changes: Any) -> None:
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(before | changes), encoding="utf-8")


def _far(folder: Path, texts: list[str], **asked: Any) -> float:
    model = load_model(folder, **asked)
    return float(np.abs(model.encode(texts) - model.reference(texts)).max())


@pytest.mark.parametrize("family", works("Embeds"))
def test_a_family_equals_sentence_transformers_and_is_cut_where_that_cuts(tmp_path: Path, family: str) -> None:
    model = load_model(FAMILIES[family](tmp_path / family, kind="sentence", model_max_length=UNLIMITED))
    theirs = model.reference.loaded.max_seq_length
    assert model.max_length == theirs or ("our choice" in model.notes[0] and theirs == UNLIMITED)
    assert np.abs(model.encode(TEXTS) - model.reference(TEXTS)).max() < 1e-5


@pytest.mark.parametrize(("family", "words"), refusals("Embeds").items())
def test_a_network_that_is_no_encoder_of_single_texts_is_refused_by_what_it_is(
    tmp_path: Path, family: str, words: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        load_model(FAMILIES[family](tmp_path / family))


def test_a_folder_may_ask_for_more_tokens_than_its_rotary_network_was_configured_for(tmp_path: Path) -> None:
    folder = FAMILIES["nomic-bert"](tmp_path / "nomic", kind="sentence", max_position_embeddings=64)
    _edit(folder / "sentence_bert_config.json", max_seq_length=640)
    model = load_model(folder)
    assert (model.max_length, model.notes) == (640, ())
    assert _far(folder, [*TEXTS, LONG]) < 1e-5
    assert load_model(folder, max_length=600).max_length == 600
    with pytest.raises(ModelError, match="3 to 640"):
        load_model(folder, max_length=641)


def test_where_the_original_fails_beyond_its_positions_both_are_cut_at_the_last_one(tmp_path: Path) -> None:
    folder = FAMILIES["roberta"](tmp_path / "roberta", kind="sentence", model_max_length=UNLIMITED)
    assert load_model(folder).notes == ("the folder asks for 514 tokens, its network has 512 positions",)
    assert _far(folder, [*TEXTS, LONG]) < 1e-5


def test_a_limit_of_our_own_is_said_and_seen_against_the_original(tmp_path: Path) -> None:
    folder = FAMILIES["t5"](tmp_path / "t5", kind="sentence", model_max_length=UNLIMITED)
    assert "512 tokens are our choice" in load_model(folder).notes[0]
    assert _far(folder, [LONG]) > 1e-4
    assert _far(folder, [LONG], max_length=1000) < 1e-5
    assert load_model(folder, max_length=1000).notes == ()


def test_the_reference_of_a_classifier_cuts_where_its_tokenizer_does(tmp_path: Path) -> None:
    folder = FAMILIES["bert"](tmp_path / "classifier", kind="SequenceClassification", model_max_length=100)
    assert load_model(folder).max_length == 100
    assert _far(folder, [LONG]) < 1e-5
    assert load_model(folder).reference._max_length is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering", "MultipleChoice"])
def test_a_head_for_another_task_is_refused_by_name_unless_its_encoder_is_asked_for(tmp_path: Path, head: str) -> None:
    folder = FAMILIES["roberta"](tmp_path / "headed", kind=head)
    with pytest.raises(ModelError, match=f"RobertaFor{head}.*\n.*task='embedding'"):
        load_model(folder)
    assert _far(folder, TEXTS, task="embedding") < 1e-5


def test_a_causal_head_is_loaded_to_generate_unless_its_encoder_is_asked_for(tmp_path: Path) -> None:
    folder = FAMILIES["roberta"](tmp_path / "headed", kind="CausalLM", is_decoder=True)
    assert load_model(folder).task == "generation"
    assert _far(folder, TEXTS, task="embedding") < 1e-5


@pytest.mark.parametrize("head", ["MaskedLM", "PreTraining"])
def test_a_head_of_pretraining_is_a_bare_checkpoint(tmp_path: Path, head: str) -> None:
    assert "bare checkpoint" in load_model(FAMILIES["bert"](tmp_path / "bare", kind=head)).notes[0]


REMOTE: dict[str, Callable[[Path], None]] = {
    "jina-v2": lambda folder: _edit(
        folder / "config.json", auto_map={"AutoModel": "jinaai/implementation--modeling_bert.JinaBertModel"}
    ),
    "the network's own name": lambda folder: _edit(
        folder / "config.json", auto_map={"AutoModel": "modeling_bert.BertModel"}
    ),
    "unknown to transformers": lambda folder: _edit(
        folder / "config.json", model_type="new", auto_map={"AutoConfig": "modeling.NewConfig"}
    ),
    "tokenizer": lambda folder: _edit(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization.Own"]}
    ),
}


@pytest.mark.parametrize("where", REMOTE)
def test_code_of_the_folders_own_is_named_as_remote_code(tmp_path: Path, where: str) -> None:
    folder = FAMILIES["bert"](tmp_path / "remote")
    REMOTE[where](folder)
    with pytest.raises(ModelError, match=r"code of its own[\s\S]*remote code is never run"):
        load_model(folder)


def test_code_that_transformers_took_over_is_passed_over_with_a_note_if_the_weights_are_its(tmp_path: Path) -> None:
    folder = FAMILIES["nomic-bert"](tmp_path / "nomic")
    _edit(folder / "config.json", auto_map={"AutoModel": "nomic-ai/own--modeling_hf_nomic_bert.NomicBertModel"})
    assert any("remote code" in note and "was not run" in note for note in load_model(folder).notes)
    assert _far(folder, TEXTS) < 1e-5
    _edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match="code of its own for weights"):
        load_model(folder)


def test_a_cross_encoder_of_modules_loads_as_a_classifier_with_its_prompt(tmp_path: Path) -> None:
    plain = FAMILIES["bert"](tmp_path / "plain", kind="SequenceClassification", num_labels=1)
    prompts = {"prompts": {"find": "find: "}, "default_prompt_name": "find"}
    with silenced():
        theirs = CrossEncoder(str(plain), device="cpu", max_length=80, **prompts)
        theirs.save_pretrained(str(tmp_path / "saved"))
    model = load_model(tmp_path / "saved")
    assert (model.task, model.max_length, model.default_prompt) == ("classification", 80, "find")
    assert _far(tmp_path / "saved", [*TEXTS, LONG]) < 1e-5
    assert load_model(tmp_path / "saved", task="embedding").task == "embedding"
    entries = json.loads((tmp_path / "saved" / "modules.json").read_text(encoding="utf-8"))
    entries.append({"idx": 1, "name": "1", "path": "", "type": "sentence_transformers.models.LogitScore"})
    (tmp_path / "saved" / "modules.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(ModelError, match="a CrossEncoder of the modules Transformer → LogitScore"):
        load_model(tmp_path / "saved")


@pytest.mark.parametrize(("family", "rope", "most"), [("gte", DYNAMIC, 90), ("llama", LONGROPE, 64)])
def test_dynamic_rope_is_fixed_within_its_first_length_and_refused_beyond(
    tmp_path: Path, family: str, rope: dict[str, Any], most: int
) -> None:
    folder = FAMILIES[family](tmp_path / family, **{"max_position_embeddings": 90} | rope)
    _edit(folder / "tokenizer_config.json", model_max_length=256)
    if family == "gte":
        assert load_model(folder).max_length == most
    else:
        with pytest.raises(ModelError, match=rf"dynamic rope scaling[\s\S]*max_length={most}"):
            load_model(folder)
    model = load_model(folder, max_length=most)
    assert _far(folder, [*TEXTS, LONG], max_length=most) < 1e-5
    rows = torch.arange(5, 5 + most)[None], torch.ones(1, most, dtype=torch.long)
    torch.export.export(model.module, rows)


def test_a_tokenizer_without_a_padding_token_is_refused(tmp_path: Path) -> None:
    folder = FAMILIES["gpt2"](tmp_path / "gpt2")
    _edit(folder / "tokenizer_config.json", pad_token=None)
    with pytest.raises(ModelError, match=r"without a padding token[\s\S]*tokenizer.pad_token = "):
        load_model(folder)


def test_a_tokenizer_that_fails_on_unknown_words_is_refused(tmp_path: Path) -> None:
    folder = FAMILIES["bert"](tmp_path / "bert")
    layout = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    _edit(folder / "tokenizer.json", model=layout["model"] | {"unk_token": "[NONE]"})
    with pytest.raises(ModelError, match=r"fails on unknown words .*\n.*give its vocabulary a token"):
        load_model(folder)


@pytest.mark.parametrize("names", [{"1": "bad", "2": "good"}, {"0": "bad", "5": "good"}])
def test_labels_that_are_not_numbered_from_zero_are_refused(tmp_path: Path, names: dict[str, str]) -> None:
    folder = FAMILIES["bert"](tmp_path / "bert", kind="SequenceClassification", num_labels=2)
    _edit(folder / "config.json", id2label=names, label2id={label: int(index) for index, label in names.items()})
    with pytest.raises(ModelError, match="not 0 to 1"):
        load_model(folder)


def test_a_token_without_a_row_in_the_table_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = FAMILIES["bert"](tmp_path / "bert", vocab_size=1000)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{index}" for index in range(2000)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"gives 'word\d+' the id 1000, where .* 1000 rows"):
        load_model(folder)


def test_a_special_token_of_another_kind_of_network_is_read_as_plain_characters(tmp_path: Path) -> None:
    folder = FAMILIES["gemma3"](tmp_path / "gemma")
    rows = len(transformers.AutoTokenizer.from_pretrained(folder))
    layout = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    image = layout["added_tokens"][0] | {"id": rows, "content": "<image>"}
    _edit(folder / "tokenizer.json", added_tokens=[*layout["added_tokens"], image])
    with silenced():
        network = transformers.AutoModel.from_pretrained(folder)
        network.resize_token_embeddings(rows)
        network.save_pretrained(folder)
    model = load_model(folder)
    assert "'<image>' has no row" in model.notes[-1]
    assert np.isfinite(model.encode(["an <image> here"])).all()
    _edit(folder / "tokenizer_config.json", pad_token="<image>")
    with pytest.raises(ModelError, match="gives '<image>' the id"):
        load_model(folder)


def test_a_chat_template_that_the_original_would_put_around_texts_is_refused(tmp_path: Path) -> None:
    folder = FAMILIES["qwen3"](tmp_path / "qwen3")
    _edit(folder / "tokenizer_config.json", chat_template="{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    with pytest.raises(ModelError, match="a chat template"):
        load_model(folder)


def test_a_network_that_fails_on_texts_is_refused_with_its_own_words(tmp_path: Path) -> None:
    folder = FAMILIES["nystromformer"](tmp_path / "odd", num_landmarks=8, segment_means_seq_len=64)
    with pytest.raises(ModelError, match=r"does not run on two texts[\s\S]*RuntimeError: shape"):
        load_model(folder)


def test_a_type_that_transformers_does_not_know_asks_for_a_newer_one(tmp_path: Path) -> None:
    folder = FAMILIES["bert"](tmp_path / "bert")
    _edit(folder / "config.json", model_type="not-yet")
    with pytest.raises(ModelError, match=r"not-yet[\s\S]*update transformers"):
        load_model(folder)
