"""A model as OpenVINO's own files, which name OpenVINO as their engine: FP32, BF16, or INT8 by NNCF."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_lib._logging import without_bars
from accel_lib.artifact import MODEL_FILES, TOKENIZER_FILE, Artifact, Manifest, foreign_files, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.convert.export import failing_as
from accel_lib.convert.int8 import calibration_rows
from accel_lib.convert.onnx import to_onnx
from accel_lib.convert.precision import nodes_to_keep
from accel_lib.convert.room import check_engine_room
from accel_lib.engines.batching import plan_batches
from accel_lib.engines.openvino import has_bf16
from accel_lib.errors import ArtifactError, ConversionError, OutputError, require
from accel_lib.machine import cache_dir, inspect_machine
from accel_lib.ragged import by_name
from accel_lib.texts import Texts, load_texts

if TYPE_CHECKING:
    from accel_lib.models import Model
    from accel_lib.models.generation import GenerationModel

PRECISIONS = ("fp32", "bf16", "int8")
_CALIBRATION_TEXTS = 300  # as many as NNCF looks at
# Activations get one scale for all texts: calibrated on documents alone, all-MiniLM-L6-v2 kept 91.7% of the ten nearest
# neighbours of shipped queries, reviews and sentences; calibrated on texts of each kind, 93.6%.
_CALIBRATION_CORPORA = ("mixed", "short", "sentiment-train")
_CALIBRATION_TOKENS = 1_024  # of one batch
_PACKAGES = ("openvino", "nncf")
# Whatever else is equal in two manifests, these are not for an artifact in the cache to be used again.
_NOT_COMPARED: dict[str, Any] = {
    "seconds": 0.0, "created": "", "files": {}, "validation": None, "notes": (), "recipe": ""
}  # fmt: skip


def to_openvino(
    candidate: Model | GenerationModel | Artifact,
    *,
    precision: str = "fp32",
    packed: bool = False,
    keep: Sequence[str] = (),
    texts: Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Artifact:
    """Convert a model, or an FP32 ONNX artifact of it, to an artifact that OpenVINO runs on a CPU.

    FP32 and BF16 are the same file: its manifest says which of them it is served in. Without serving,
    ``open_engine(onnx, runtime="openvino")`` runs the ONNX file as it is.

    Parameters
    ----------
    candidate
        A model, which is converted to ONNX first, or what `to_onnx` made of it in FP32; or a language model
        (`accel_lib.convert.generation`).
    precision
        ``"fp32"``; ``"bf16"`` (on CPUs with AVX-512 BF16 or AMX); ``"int8"``: NNCF's post-training quantization for
        transformers, with SmoothQuant, weights by channel and activations by tensor; of a language model, the weights
        alone, without calibration.
    packed
        Compute on real tokens only, as in `to_onnx`; an artifact that is given is what it is.
    keep
        For ``"int8"``: parts of node names, as in `to_onnx`, whose matrix products stay FP32. ``["output.dense"]`` are
        those with outliers: in all-MiniLM-L6-v2 they bring 93.6% of the ten nearest neighbours to 95.9%.
    texts
        For ``"int8"``: calibration texts of every kind that will come, at most 300 of which are looked at; None takes
        documents, queries and reviews that ship.
    output, progress
        As of `accel_lib.to_onnx`.

    Returns
    -------
    Artifact
        ``model.xml`` and ``model.bin``, tokenizer and manifest. It is not validated yet.

    Raises
    ------
    ConversionError
        The precision is unknown, or is not of this CPU, or NNCF failed; nothing is left behind.
    ArtifactError
        The artifact is not ONNX in FP32.
    MissingDependencyError
        OpenVINO, or for INT8 NNCF, is not installed.

    Examples
    --------
    >>> int8 = accel.to_openvino(model, precision="int8", packed=True)  # doctest: +SKIP
    """
    _check_precision(precision, keep)
    if not isinstance(candidate, Artifact) and candidate.task == "generation":
        from accel_lib.convert.generation import generation_to_openvino

        return generation_to_openvino(candidate, precision=precision, output=output, progress=progress)
    onnx = candidate if isinstance(candidate, Artifact) else to_onnx(candidate, packed=packed, progress=progress)
    source = onnx.manifest
    if (source.format, source.precision) != ("onnx", "fp32"):
        raise ArtifactError(
            "OpenVINO's files are made from ONNX in FP32.", seen=onnx.name, fix="accel.to_onnx(model), then this"
        )
    if output and Path(output).resolve() == onnx.folder.resolve():
        raise OutputError("The artifact would replace the one it is made from.", seen=onnx.name, fix="another folder")
    shown = _calibration_texts(texts) if precision == "int8" else None
    kept = nodes_to_keep(onnx.path, keep)
    wanted = dataclasses.replace(
        source,
        format="openvino",
        precision=precision,
        calibration=_described(shown, kept) if shown else {},
        versions=source.versions | _versions(),
    )
    label = "-".join(filter(None, ["openvino", precision, "packed" if source.packed else ""]))
    folder = Path(output) if output else cache_dir("artifacts", source.model.replace("/", "--"), label)
    found = None if output else _reusable(folder, wanted)
    if found is None:
        check_engine_room(onnx.size_bytes, folder)
        found = _write(onnx, wanted, folder, shown, kept, own=output is not None)
        how = f"in {found.manifest.seconds:.1f} s"
    else:
        how = "reused"
    if progress:
        print(f"{found.name}: {how}, {found.size_bytes / 1e6:.1f} MB", flush=True)
    return found


def _check_precision(precision: str, keep: Sequence[str]) -> None:
    if keep and precision != "int8":
        raise ConversionError("Only INT8 keeps nodes.", seen=f"keep={list(keep)!r}", fix='precision="int8"')
    if precision not in PRECISIONS:
        fix = f"one of: {', '.join(PRECISIONS)}"
        raise ConversionError("OpenVINO has no such precision here.", seen=repr(precision), fix=fix)
    if precision == "bf16" and not has_bf16():
        raise ConversionError(
            "This CPU has no BF16, so an artifact in it could not be validated here.",
            seen=f"this CPU has {', '.join(inspect_machine().isa) or 'no fast instructions'}",
            fix='precision="int8", which is faster on any CPU, or convert where it will be served',
        )


def _calibration_texts(texts: Sequence[str] | None) -> Texts:
    if texts is None:
        each = _CALIBRATION_TEXTS // len(_CALIBRATION_CORPORA)
        found = [text for name in _CALIBRATION_CORPORA for text in load_texts(name, limit=each, seed=1)]
        return Texts(found, name=" + ".join(_CALIBRATION_CORPORA), source="accel_lib")
    held = texts if isinstance(texts, Texts) else Texts(list(texts))
    return held[:_CALIBRATION_TEXTS]


def _described(texts: Texts, kept: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    source = f"{texts.name}, from {texts.source}"
    return {"texts": len(texts), "source": source, "sha256": digest, "kept": list(kept)}


def _reusable(folder: Path, wanted: Manifest) -> Artifact | None:
    with contextlib.suppress(ArtifactError):
        found = Artifact.load(folder)
        theirs, ours = (dataclasses.replace(m, **_NOT_COMPARED) for m in (found.manifest, wanted))
        if theirs == ours:
            return found
    return None


def _write(
    onnx: Artifact, wanted: Manifest, folder: Path, shown: Texts | None, kept: Sequence[str], *, own: bool
) -> Artifact:
    openvino = require("openvino", extra="openvino")
    started = time.monotonic()
    with atomic_directory(folder, foreign=foreign_files if own else None) as draft:
        with failing_as("conversion to OpenVINO" if shown is None else "quantization by NNCF"):
            model = openvino.Core().read_model(str(onnx.path))
            if shown is not None:
                model = _quantize(model, onnx, shown, kept)
            openvino.save_model(model, str(draft / MODEL_FILES["openvino"]), compress_to_fp16=False)
        shutil.copy2(onnx.folder / TOKENIZER_FILE, draft / TOKENIZER_FILE)
        notes = (*wanted.notes, *([_note(wanted)] if shown is not None else []))
        manifest = write_manifest(
            draft, dataclasses.replace(wanted, notes=notes, seconds=time.monotonic() - started, recipe="")
        )
    return Artifact(folder, manifest)


def _note(manifest: Manifest) -> str:
    known = manifest.calibration
    told = f"INT8 by NNCF with SmoothQuant, calibrated on {known['texts']} texts ({known['source']})"
    return f"{told}; {len(known['kept'])} matrix products kept in FP32"


def _quantize(model: Any, onnx: Artifact, texts: Texts, kept: Sequence[str]) -> Any:
    nncf = require("nncf", extra="openvino")
    rows, pad_id = calibration_rows(onnx, texts)
    batches = plan_batches(rows.lengths, max_batch_tokens=_CALIBRATION_TOKENS)
    feeds = [by_name(onnx.manifest.inputs, rows.take(batch).padded(pad_id)) for batch in batches]
    with without_bars():
        return nncf.quantize(
            model,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=list(kept)) if kept else None,
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
