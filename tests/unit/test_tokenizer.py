"""The tokenizer agrees with transformers on any text, keeps its settings on disk, and refuses what it cannot read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer

from accel_lib.errors import ArtifactError, ModelError, TextError
from accel_lib.models.hub import resolve
from accel_lib.models.tokenizer import Tokenizer, pad, prompt_text

FOLDER = resolve("all-MiniLM-L6-v2").folder
HARD = {
    "a plain sentence": "The quick brown fox jumps over the lazy dog.",
    "a hundred thousand characters": "length " * 14_286,
    "one word of a hundred thousand characters": "a" * 100_000,
    "emoji": "🚀🔥👩‍👩‍👧‍👦 🇩🇪",
    "other scripts": "日本語 Ελληνικά हिन्दी العربية 한국어",
    "combining marks": "Ae\u0301 \u0928\u093f",
    "control characters": "a\u0000b\u200bc\ufeffd",
    "special tokens in the text": "[CLS] [SEP] [PAD] [MASK]",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json")), max_length=256, pad_id=0)


@pytest.mark.parametrize("name", HARD)
def test_the_ids_are_those_of_transformers(tokenizer: Tokenizer, name: str) -> None:
    theirs = AutoTokenizer.from_pretrained(FOLDER)(HARD[name], truncation=True, max_length=256)["input_ids"]
    (row,) = tokenizer([HARD[name]])
    assert row.tolist() == theirs
    assert row.dtype == np.int64


def processor(kind: str) -> tokenizers.processors.PostProcessor:
    if kind == "bert":
        return tokenizers.processors.BertProcessing(("</s>", 2), ("<s>", 1))
    if kind == "roberta":
        return tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    if kind == "only an end":
        both = "$A </s> $B </s>"
        return tokenizers.processors.TemplateProcessing(single="$A </s>", pair=both, special_tokens=[("</s>", 2)])
    others = {"single": "<s> $A", "pair": "<s> $B:1 </s>:1 $A:0", "special_tokens": [("<s>", 1), ("</s>", 2)]}
    return tokenizers.processors.TemplateProcessing(**others)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "only an end", "the second half first", ""])
def test_texts_and_pairs_are_cut_as_the_library_itself_cuts_them(kind: str, side: str) -> None:
    words = ["[UNK]", "<s>", "</s>", *(f"w{number}" for number in range(50))]
    theirs = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if kind:
        theirs.post_processor = processor(kind)
    random = np.random.default_rng(0)
    for limit in range(4, 24):
        ours = Tokenizer(theirs, max_length=limit, pad_id=0).cutting(side)
        theirs.enable_truncation(limit, direction=side)
        for lengths in random.integers(1, 30, (20, 2)):
            first, second = (" ".join(f"w{word}" for word in random.integers(0, 50, length)) for length in lengths)
            for row, cut in (
                (next(ours.rows([first])), theirs.encode(first)),
                (next(ours.rows([first], seconds=[second])), theirs.encode(first, second)),
            ):
                assert (row.ids.tolist(), row.segments.tolist()) == (cut.ids, cut.type_ids)


LONG = {
    "words": "the cat sat on " * 9_000,
    "spaces between": "the cat" + " " * 150_000 + "sat on the mat",
    "one word": "QUJDREVG" * 20_000 + " the cat sat",
    "without spaces": "中文。字" * 30_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", LONG)
def test_a_long_text_has_the_tokens_of_the_whole_and_is_counted_whole(
    tokenizer: Tokenizer, name: str, side: str
) -> None:
    whole = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    count = len(whole.encode(LONG[name]).ids)
    whole.enable_truncation(256, direction=side)
    ours = tokenizer.cutting(side)
    assert next(ours.rows([LONG[name]])).length == count
    assert next(ours.rows([LONG[name]], count_to=0)).ids.tolist() == whole.encode(LONG[name]).ids


def test_a_text_that_no_memory_holds_is_refused_with_the_cause(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match=r"Text 1: .* no word ends within 524,288 characters"):
        tokenizer(["a cat", "QUJD" * 150_000])


MEMORY = """
import resource, sys
from accel_lib.models.tokenizer import Tokenizer
tokenizer = Tokenizer.load(sys.argv[1], 256)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
tokenizer(["a cat"])
before = peak()
tokenizer.encode_with_lengths(["a " * 2_000], seconds=["b " * 50_000])
tokenizer.encode_with_lengths(["a " * 20] * 2_048, seconds=["b " * 2_000] * 2_048)
tokenizer.encode_with_lengths(["a " * 2_000_000])
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_grows_neither_with_the_product_of_a_pair_nor_with_the_number_of_texts(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-c", MEMORY, tmp_path / "tokenizer.json"]
    grown_mb = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown_mb < 100


def test_rows_are_ragged_whatever_padding_the_file_asks_for(tokenizer: Tokenizer) -> None:
    assert [len(row) for row in tokenizer(["one", "one two three", "one " * 300])] == [3, 5, 256]


def test_the_callers_tokenizer_is_left_as_it_is() -> None:
    backend = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    Tokenizer(backend, max_length=8, pad_id=0)
    assert backend.truncation["max_length"] == 128
    assert backend.padding["length"] == 128


@pytest.mark.parametrize("text", ["", "  \n\t", "\ud800 broken", None])
def test_a_text_that_is_none_is_refused_with_its_place(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(TextError, match="Text 1"):
        tokenizer(["fine", text])


def test_a_text_without_any_token_is_refused() -> None:
    letters = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    with pytest.raises(TextError, match="Text 1 has no token"):
        Tokenizer(letters, max_length=8, pad_id=0)(["a", "Ω"])


def test_the_prompt_stands_in_front_of_each_text(tokenizer: Tokenizer) -> None:
    assert np.array_equal(tokenizer(["a cat"], prompt="query: ")[0], tokenizer(["query: a cat"])[0])


def test_saved_and_loaded_it_keeps_padding_id_limit_side_and_lower_casing(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "<fill>": 3}, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.enable_truncation(99, direction="left")
    Tokenizer(backend, max_length=2, pad_id=3).save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.max_length, loaded.pad_id) == (2, 3)
    assert loaded(["A A B"])[0].tolist() == [1, 2]
    assert Tokenizer.load(tmp_path / "tokenizer.json", 1)(["A A B"])[0].tolist() == [2]
    assert Tokenizer.load(tmp_path / "tokenizer.json", 50).max_length == 2


def test_a_loaded_tokenizer_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = list(HARD.values())
    for before, after in zip(tokenizer(texts), Tokenizer.load(tmp_path / "tokenizer.json")(texts), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', None])
def test_a_broken_file_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read") as caught:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("part", ["truncation", "padding"])
def test_a_file_that_does_not_say_where_to_cut_or_what_to_pad_with_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, part: str
) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizer.save(file)
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {part: None}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=part):
        Tokenizer.load(file)


def test_padding_goes_to_the_right_and_is_masked() -> None:
    ids, mask = pad([np.array([5, 6, 7]), np.array([8])], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)


def test_no_rows_make_an_empty_batch() -> None:
    ids, mask = pad([], 0)
    assert ids.shape == mask.shape == (0, 0)


def test_a_prompt_is_the_one_asked_for_then_the_default_then_none() -> None:
    prompts = {"query": "q: ", "passage": "p: "}
    assert prompt_text(prompts, "query") == "q: "
    assert prompt_text(prompts, "query", "passage") == "p: "
    assert prompt_text(prompts, "query", "") == ""
    assert prompt_text({}, None) == ""
    with pytest.raises(ModelError, match="it has none"):
        prompt_text({}, None, "query")


def test_tokens_are_spelled_with_their_bytes_and_read_back(tokenizer: Tokenizer) -> None:
    text = "Zürich 🚀 cat"
    spelled = tokenizer.spell(text)
    assert [each["special"] for each in spelled] == [True, *[False] * (len(spelled) - 2), True]
    for each in spelled[1:-1]:
        assert text.encode()[each["start"] : each["stop"]].decode() == each["text"]
    ids = [each["id"] for each in spelled]
    assert ids == tokenizer([text])[0].tolist()
    assert [each["id"] for each in tokenizer.spell(text, special=False)] == ids[1:-1]
    assert tokenizer.read([ids[-2:], [10**6]]) == ["cat", ""]
    assert tokenizer.read([ids[-2:]], special=True) == ["cat [SEP]"]


def test_tokens_are_spelled_beyond_the_models_limit(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.spell("one " * 300)) == 302
