"""A converted model on disk: its files, and the manifest that says what they are.

One folder holds one artifact: the model file (``model.onnx``, ``model.xml``, ``model.plan`` or ``model.pt2``),
``tokenizer.json`` and ``manifest.json``; an ONNX file of 1 GiB or more has its weights beside it, in
``model.onnx.data``, and OpenVINO's graph always, in ``model.bin``. A TensorRT artifact also keeps the ONNX file it was
built from, so that it can be rebuilt elsewhere. A folder is whole or not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from accel_lib.atomic import atomic_directory, is_draft, recover, write_text
from accel_lib.errors import ArtifactError
from accel_lib.formatting import Summarized
from accel_lib.ragged import IDS_AND_MASK
from accel_lib.scores import Activation

Format = Literal["onnx", "openvino", "tensorrt", "torch", "transformers"]
Task = Literal["embedding", "classification", "generation"]

MODEL_FILES: dict[Format, str] = {
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "tensorrt": "model.plan",
    "torch": "model.pt2",
    "transformers": "model.safetensors",
}
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
ONNX_FILES = (MODEL_FILES["onnx"], f"{MODEL_FILES['onnx']}.data")  # the second holds the weights of a large model
OPENVINO_FILES = (MODEL_FILES["openvino"], "model.bin")  # the graph, and its weights
GRAMMAR_FILES = tuple(
    f"openvino_{name}.{kind}" for name in ("tokenizer", "detokenizer") for kind in ("xml", "bin")
)  # of a language model: which texts its tokens are, so that OpenVINO can keep an answer to a JSON schema
_SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a validation looks at: what was seen, what is allowed, and whether it passed."""

    name: str
    seen: str
    limit: str
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """One TensorRT optimization profile at its minimum, optimum and maximum.

    Each is ``(batch, sequence)``, and of a language model ``(batch, new tokens, tokens in the cache)``.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is, where it came from, and what it may run on.

    Parameters
    ----------
    model
        Name of the model it was converted from.
    source
        Where the weights came from: package and version, hub id and revision, or folder hash.
    task
        ``"embedding"`` (one unit vector per text), ``"classification"`` (one row of logits per text) or
        ``"generation"`` (token ids that continue a prompt).
    format, precision
        What the model file holds, which names the engine that runs it; ``precision`` is ``"fp32"``, ``"fp16"``,
        ``"bf16"`` (of OpenVINO, which rounds FP32 weights as it compiles them), ``"int8"`` or ``"int8-qdq"``.
    output_name, dimension
        Name and width of the single output, shape ``[batch, dimension]``, float32; of a model that generates, its
        token ids, and how many there are.
    max_length
        Longest sequence in tokens, special tokens included; of a model that generates, prompt and answer together.
    labels
        Class names in the order of the logits; empty for embeddings.
    inputs
        Names of the graph's inputs, int64 ``[batch, sequence]`` each; a third, ``"token_type_ids"``, where a classifier
        tells the texts of a pair apart.
    activation
        What turns logits into scores: ``"softmax"``, ``"sigmoid"`` or ``"identity"`` (`accel_lib.scores`).
    pairs
        Whether a classifier takes two texts at once. A file that does not say so was converted without segment ids.
    prompts, default_prompt
        Named text prefixes of the model, and the one used when none is asked for.
    packed
        Whether the graph computes on real tokens only; it takes and gives the same tensors as any other.
    weight_bits
        For INT8 on a CPU: 8 bits for processors with VNNI or the like, 7 for those whose sums of two products would
        overflow; 0 for every other precision.
    stop_ids
        Token ids with which a generated text ends.
    chat_template, special_tokens
        Jinja template that makes a prompt of messages, empty where there is none, and the tokens it may name.
    target
        ``"any"`` for portable files, else the compute capability an engine was built for (``"sm75"``).
    profiles
        TensorRT optimization profiles, in engine order.
    versions
        Package versions at the time of conversion.
    machine
        For an engine: ``gpu`` and ``driver`` that it was built on; empty where it was built without a GPU.
    calibration
        For INT8 of OpenVINO: what showed how large activations become, as ``texts`` (how many), ``source`` (where they
        are from) and ``sha256`` of them; the texts themselves, which may be private, are not. ``kept`` names the matrix
        products that stayed FP32.
    seconds
        Duration of the conversion step that wrote this artifact.
    notes
        Sentences a user should know, such as "bare checkpoint: for speed, not trained for similarity".
    validation
        Record of the last validation, or None: an artifact without a passed one is not served.
    files
        SHA-256 and size of every file beside the manifest.
    recipe
        What `accel.ensure` built it by; only what it built is ever built again. Empty for every other artifact.
    """

    model: str
    source: str
    task: Task
    format: Format
    precision: str
    output_name: str
    dimension: int
    max_length: int
    labels: tuple[str, ...] = ()
    inputs: tuple[str, ...] = IDS_AND_MASK
    activation: Activation = "softmax"
    pairs: bool = True
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    packed: bool = False
    weight_bits: int = 0
    stop_ids: tuple[int, ...] = ()
    chat_template: str = ""
    special_tokens: dict[str, str] = dataclasses.field(default_factory=dict)
    target: str = "any"
    profiles: tuple[Profile, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    machine: dict[str, str] = dataclasses.field(default_factory=dict)
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    created: str = ""
    validation: dict[str, Any] | None = None
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    recipe: str = ""

    def to_json(self) -> str:
        """The manifest as indented JSON, with the schema number first."""
        return json.dumps({"schema": _SCHEMA, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote; raises `ArtifactError` for anything else."""
        rebuild = "convert the model again: accel convert --model <name> --output <folder>"
        try:
            data = json.loads(text)
            schema = data.pop("schema")
            if schema != _SCHEMA:
                raise ArtifactError(
                    "The manifest has a schema this version does not read.", seen=f"schema {schema}", fix=rebuild
                )
            data["profiles"] = tuple(Profile(**{k: tuple(v) for k, v in p.items()}) for p in data["profiles"])
            data["labels"] = tuple(data["labels"])
            data["notes"] = tuple(data["notes"])
            data["stop_ids"] = tuple(data.get("stop_ids", ()))
            data["inputs"] = tuple(data.get("inputs", IDS_AND_MASK))
            data.setdefault("activation", "sigmoid" if len(data["labels"]) == 1 else "softmax")
            data.setdefault("pairs", False)
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError("The manifest cannot be read.", seen=repr(error), fix=rebuild) from error


@dataclasses.dataclass(frozen=True, repr=False)
class Artifact(Summarized):
    """A converted model in a folder. Made by `load` or by a converter, never by hand."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read an artifact and check every file against its manifest.

        Raises
        ------
        ArtifactError
            The folder or manifest is missing, or a file is missing, truncated or changed.
        """
        folder = Path(folder)
        if not folder.exists():
            recover(folder)
        rebuild = f"convert the model again: accel convert --model <name> --output {folder.name}"
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise ArtifactError(f"There is no artifact in {folder.name}.", seen=f"no {MANIFEST_FILE}", fix=rebuild)
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
        for name, record in manifest.files.items():
            damage = _damage(folder, name, record)
            if damage:
                raise ArtifactError(f"{name} is not the file the manifest describes.", seen=damage, fix=rebuild)
        return cls(folder, manifest)

    @property
    def path(self) -> Path:
        """The model file."""
        return self.folder / MODEL_FILES[self.manifest.format]

    @property
    def name(self) -> str:
        """Short name for tables: format and precision, with the target of an engine."""
        target = "" if self.manifest.target == "any" else f" {self.manifest.target}"
        return f"{self.manifest.format} {self.manifest.precision}{' packed' if self.manifest.packed else ''}{target}"

    @property
    def pad_id(self) -> int:
        """Token id that fills shorter rows, as its tokenizer says."""
        tokenizer = json.loads((self.folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        return int((tokenizer.get("padding") or {}).get("pad_id", 0))

    @property
    def size_bytes(self) -> int:
        """Size of the model file, with its weights where they lie beside it."""
        beside = {"onnx": ONNX_FILES, "openvino": OPENVINO_FILES}
        names = beside.get(self.manifest.format, (self.path.name,))
        return sum(file.stat().st_size for name in names if (file := self.folder / name).is_file())

    @property
    def validated(self) -> bool:
        """Whether a validation has been passed and recorded."""
        return bool(self.manifest.validation and self.manifest.validation.get("passed"))

    def record_validation(self, verdict: dict[str, Any]) -> Artifact:
        """Write a validation's verdict into the manifest and return the updated artifact."""
        manifest = dataclasses.replace(self.manifest, validation=verdict)
        write_text(self.folder / MANIFEST_FILE, manifest.to_json())
        return Artifact(self.folder, manifest)

    def with_note(self, sentence: str) -> Artifact:
        """Write one more sentence that a user should know into the manifest and return the updated artifact."""
        manifest = dataclasses.replace(self.manifest, notes=(*self.manifest.notes, sentence))
        write_text(self.folder / MANIFEST_FILE, manifest.to_json())
        return Artifact(self.folder, manifest)

    def copy_to(self, folder: str | Path, *, recipe: str = "") -> Artifact:
        """Copy the artifact into another folder, whole or not at all; `recipe` is the copy's.

        Raises
        ------
        OutputError
            The folder holds anything but an artifact, or the disk is full.
        """
        manifest = dataclasses.replace(self.manifest, recipe=recipe)
        with atomic_directory(folder, foreign=foreign_files) as draft:
            for name in self.manifest.files:
                shutil.copy2(self.folder / name, draft / name)
            (draft / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        return Artifact(Path(folder), manifest)

    def summary(self) -> dict[str, str]:
        """What a reader wants to know first."""
        m = self.manifest
        checked = "passed" if self.validated else "not yet: accel.validate(...)"
        return {
            "model": m.model,
            "holds": self.name,
            "output": f"{m.output_name} [batch, {m.dimension}]",
            "size": f"{self.size_bytes / 1e6:.1f} MB",
            "built in": f"{m.seconds:.1f} s",
            "validated": checked,
        } | ({"note": "; ".join(m.notes)} if m.notes else {})


def foreign_files(folder: Path) -> list[str]:
    """What in a folder no conversion wrote: everything but the manifest and the files that it names."""
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        own = {MANIFEST_FILE, *manifest.files}
    except (OSError, ValueError, ArtifactError):
        own = set()
    others = (each for each in folder.iterdir() if each.name not in own or not each.is_file())
    return sorted(each.name for each in others if not is_draft(each.name))


def write_manifest(draft: Path, manifest: Manifest) -> Manifest:
    """Hash the files in a draft folder, write the manifest beside them, and return it completed."""
    files = {
        file.name: {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in sorted(draft.iterdir())
        if file.name != MANIFEST_FILE
    }
    manifest = dataclasses.replace(
        manifest, files=files, created=datetime.now(UTC).isoformat(timespec="seconds"), validation=None
    )
    (draft / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(folder: Path, name: str, record: dict[str, Any]) -> str | None:
    file = folder / name
    if Path(name).name != name or not file.is_file():
        return "no such file"
    if file.stat().st_size != record["bytes"]:
        return f"{file.stat().st_size} bytes where the manifest says {record['bytes']}"
    return None if sha256(file) == record["sha256"] else "its SHA-256 differs"
