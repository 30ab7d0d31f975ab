"""Text out of token ids that come a few at a time: no character cut in two, and stop strings across tokens."""

import random

import pytest
import tokenizers

from accel_lib.artifact import Manifest
from accel_lib.errors import RequestError
from accel_lib.models.generation_text import GenerationText
from accel_lib.models.text_stream import StopStrings, TextStream

TEXTS = [
    "plain words, and more",
    "naïve café",
    "日本語のテキスト",
    "a 😀 b 👩‍👩‍👧‍👦 c",
    " leading and  double",
    "\n\ttabs\n",
]


def byte_level():
    """Every byte is a token, so most characters take several."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "<end>"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


def byte_fallback():
    """As SentencePiece's: words with a mark for the space in front, and bytes for every other character."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁plain", "▁words", ",", "▁and", "▁more", "▁", "a"]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return made


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_make_the_decoded_text_and_hold_whole_characters(text, size):
    backend = byte_level()
    ids = backend.encode(text).ids
    stream = TextStream(backend)
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_space_that_belongs_to_the_next_word_is_kept_and_the_first_one_is_not():
    backend = byte_fallback()
    ids = [backend.token_to_id(word) for word in ("▁plain", "▁words", ",", "▁and", "▁more")]
    euro = [backend.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    stream = TextStream(backend)
    assert [stream.push([token]) for token in [*ids, *euro]] == ["plain", " words", ",", " and", " more", "", "", "€"]


def test_any_bytes_give_what_decoding_them_at_once_gives():
    backend, chance = byte_level(), random.Random(0)
    for _ in range(200):
        ids = [chance.randrange(257) for _ in range(chance.randrange(1, 40))]
        stream = TextStream(backend)
        pieces = "".join(stream.push([token]) for token in ids)
        assert pieces + stream.flush() == backend.decode(ids)


def test_half_a_character_at_the_end_comes_with_the_flush():
    backend = byte_level()
    stream = TextStream(backend)
    assert stream.push(backend.encode("a€").ids[:-1]) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def shown(stops, pieces):
    stop = StopStrings(stops)
    text = "".join(stop.push(piece) for piece in pieces)
    return (text if stop.found else text + stop.flush()), stop.found


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["STOP"], "before STOP after", ("before ", "STOP")),
        (["STOP"], "before STO", ("before STO", None)),
        (["\n\n"], "one\ntwo\n\nthree", ("one\ntwo", "\n\n")),
        (["aab"], "aaab", ("a", "aab")),
        (["bcd", "c"], "abcd", ("ab", "c")),
        (["xyz", "z"], "wxyz", ("w", "xyz")),
        ([], "all of it", ("all of it", None)),
    ],
)
def test_a_text_ends_before_the_first_stop_string_however_it_is_cut(stops, text, expected):
    assert shown(stops, [text]) == expected
    assert shown(stops, list(text)) == expected
    assert shown(stops, [text[i : i + 3] for i in range(0, len(text), 3)]) == expected


def test_nothing_is_shown_that_may_begin_a_stop_string():
    stop = StopStrings(["<end>"])
    assert [stop.push(piece) for piece in ("a <", "en", "x <end", ">b")] == ["a ", "", "<enx ", ""]
    assert stop.found == "<end>"


@pytest.fixture
def counted(tmp_path):
    """The text side of a model with 100 tokens of context, and how many characters its tokenizer was given."""
    given: list[int] = []
    byte_level().save(str(tmp_path / "tokenizer.json"))
    facts = {"model": "m", "source": "s", "task": "generation", "format": "openvino", "precision": "fp32"}
    text = GenerationText(tmp_path, Manifest(**facts, output_name="token_ids", dimension=257, max_length=100))
    backend = text.tokenizer

    class Counting:
        def encode(self, part, **options):
            given.append(len(part))
            return backend.encode(part, **options)

    text.tokenizer = Counting()  # type: ignore[assignment]
    return text, given


def test_a_text_of_megabytes_is_refused_by_its_beginning(counted):
    text, given = counted
    with pytest.raises(RequestError, match="context is 100 tokens"):
        text.text_ids("word " * 1_000_000)
    assert sum(given) < 5_000


def test_a_text_that_may_fit_is_tokenized_whole(counted):
    text, given = counted
    assert len(text.text_ids("a" * 500)) == 500  # more than the context, as the caller finds
    assert len(text.text_ids("a" * 90)) == 90
    assert given[-1] == 90
