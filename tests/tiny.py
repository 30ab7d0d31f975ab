"""A model of one embedding table, in PyTorch and in a real ONNX file: small enough to be measured in a blink."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import onnx
import tokenizers
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper

from accel_lib.artifact import Artifact, Manifest, Profile, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.models import Model
from accel_lib.models.hub import DEFAULT, resolve
from accel_lib.models.tokenizer import Tokenizer

WORDS, WIDTH, LONGEST = 200, 16, 64
TABLE = np.random.default_rng(0).normal(size=(WORDS, WIDTH)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(WORDS, WIDTH)).astype(np.float32)


class Mean(torch.nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.from_numpy(table))

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((self.table[input_ids] * mask).sum(1), dim=-1)


class Reference:
    """Somebody else's forward pass: NumPy, a text at a time."""

    loaded = None

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts, *, batch_size=32):  # noqa: ARG002
        sums = np.stack([TABLE[row].sum(axis=0) for row in self.tokenizer(texts)])
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def tokenizer():
    vocabulary = {f"w{i}": i for i in range(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend, max_length=LONGEST, pad_id=0)


def tiny_model():
    own = tokenizer()
    facts = {"name": "tiny", "source": "made here", "task": "embedding", "output_name": "sentence_embedding"}
    return Model(
        **facts, module=Mean(TABLE).eval(), tokenizer=own, dimension=WIDTH, max_length=LONGEST, reference=Reference(own)
    )


def tiny_texts(count):
    random = np.random.default_rng(2)
    lengths = random.integers(3, 40, count)
    return [" ".join(f"w{word}" for word in random.integers(1, WORDS, length)) for length in lengths]


def end_at_once(server):
    """Kill a Triton that is not needed any more: its own end takes seconds, and is tested elsewhere."""
    if server.pid:
        os.kill(server.pid, signal.SIGKILL)


def tiny_artifact(
    folder, table, *, precision="fp32", validated=True, target="any", form="onnx", task="embedding", labels=(),
    packed=False, unit=True, **facts,
):  # fmt: skip
    """A real ONNX file of the same network, with the manifest that a converter would write.

    Without `unit` its vectors are the sums, of any length; `facts` are further fields of the manifest.
    """
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("MatMul", ["found", "same"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["words", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "sequence"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["sentence_embedding"], axis=-1, p=2)
        if unit
        else helper.make_node("Identity", ["sum"], ["sentence_embedding"]),
    ]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq"]) for n in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", table.shape[1]])
    constants = {
        "table": table,
        "same": np.eye(table.shape[1], dtype=np.float32),
        "last": np.array([-1]),
        "sequence": np.array([1]),
    }
    graph = helper.make_graph(
        nodes, "tiny", inputs, [output], [numpy_helper.from_array(v, name=k) for k, v in constants.items()]
    )
    facts |= {"model": "tiny", "source": "made here", "task": task, "output_name": "sentence_embedding"}
    manifest = Manifest(
        **facts, format=form, precision=precision, dimension=table.shape[1], max_length=LONGEST, target=target,
        labels=labels, packed=packed,
        profiles=(Profile(min=(1, 2), opt=(8, 16), max=(8, LONGEST)),) if form == "tensorrt" else (),
    )  # fmt: skip
    with atomic_directory(folder) as draft:
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), draft / "model.onnx"
        )
        if form == "tensorrt":
            (draft / "model.plan").write_bytes(b"not for this machine")
        tokenizer().save(draft / "tokenizer.json")
        write_manifest(draft, manifest)
    made = Artifact.load(folder)
    return made.record_validation({"passed": True}) if validated else made


def classifier_folder(folder, *, labels=2, seed=0, network=None, **config):
    """Save a tiny BERT classifier with random weights, or another network, beside the default model's tokenizer."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    facts = {**shape, "initializer_range": 0.3, "num_labels": labels, **config}
    torch.manual_seed(seed)
    network = network or transformers.BertForSequenceClassification(transformers.BertConfig(**facts))
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(resolve(DEFAULT).folder / name, folder)
    return folder


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}{{ message['role'] + ' ' + message['content'] + ' <end> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
SPECIAL = ("<s>", "<end>", "system", "user", "assistant")


def llama_folder(folder, *, seed=0, template=TEMPLATE, network=None, **config):
    """Save a Llama of 2 layers with random weights, another causal network, beside a tokenizer of 200 words."""
    shape = {
        "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512, "initializer_range": 0.4,
        "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(seed)
    network = network or transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape | config))
    network.generation_config = transformers.GenerationConfig(bos_token_id=0, eos_token_id=1)
    network.save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), WORDS))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w5"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL[:2]))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<end>", pad_token="<end>", unk_token="w5"
    )
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    return folder


def letters_folder(folder):
    """Save the same network beside a tokenizer of single characters, with which any ASCII text can be written."""
    llama_folder(folder)
    letters = [
        *SPECIAL[:2],
        *map(chr, range(33, 127)),
        "\u0120",
        "\u010a",
    ]  # a space and a line feed, as ByteLevel has them
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL[:2]))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<end>")
    theirs.chat_template = TEMPLATE
    theirs.save_pretrained(folder)
    return folder


def tiny_prompts(count, *, shortest=3, longest=40, seed=3):
    """Token ids of prompts of different lengths, none of them special."""
    random = np.random.default_rng(seed)
    lengths = random.integers(shortest, longest, count)
    return [random.integers(len(SPECIAL), WORDS, length).tolist() for length in lengths]
