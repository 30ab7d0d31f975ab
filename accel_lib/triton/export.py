"""Exports a served model as one zip file: its repository, and a README on serving, rebuilding and measurements."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from accel_lib.artifact import Artifact
from accel_lib.atomic import atomic_file
from accel_lib.errors import ServerError
from accel_lib.machine import repository_url
from accel_lib.ragged import SEGMENTS
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.install import TRITON_VERSION
from accel_lib.triton.repository import write_model

_REPOSITORY = "model_repository"
_IMAGE = "nvcr.io/nvidia/tritonserver:24.11-py3"  # the first with Python 3.12
_ENGINES = {"onnx": "convert", "openvino": "openvino", "torch": "models", "tensorrt": "tensorrt"}
_README = """\
# {name}

{model} as {holds}, ready for Triton. Exported on {date}.

```
{repository}/{name}/config.pbtxt      how it is batched and served, as it ran when it was exported
{repository}/{name}/{version}/model.py        one import: accel_lib's Python backend
{repository}/{name}/{version}/artifact/       {files}
```

| | |
|---|---|
{facts}

## Serve it

On Linux with Python 3.11 to 3.13, without a container:

```
python -m pip install "{package}"
python -i -c "import accel_lib as accel; server = accel.serve('{repository}')"
>>> server.model("{name}", {version}).encode(["your text"])
```

In NVIDIA's container, 24.11 or newer:

```
docker run --rm {gpus}--shm-size 1g -p 8000:8000 -p 8001:8001 -v "$PWD/{repository}:/models" {image} \\
  sh -c 'pip install "{package}" && tritonserver --model-repository /models --disable-auto-complete-config'
```

A request carries token ids, as `artifact/tokenizer.json` makes them: {inputs}, INT64 `[rows, tokens]`{segments}.
The answer is `{output}`, FP32 `[rows, {dimension}]`.

## Rebuild it

```
{rebuild}
```

Built with {versions}.

## Measured

{measured}
"""


def write_export(
    path: str | Path, artifact: Artifact, config: ModelConfig, measured: Iterable[object] = (), *, version: int = 1
) -> Path:
    """Write one version of a model as a zip, as `ServedModel.export` does; a file that is no export is not replaced."""
    path = Path(path)
    if path.is_dir():
        raise ServerError("An export is one file.", seen=f"{path.name} is a folder", fix='.export("export.zip")')
    with atomic_file(path, ours=_is_export) as aside:
        root = aside.with_name("root")
        write_model(root / _REPOSITORY, config.name, artifact, version=version, config=config)
        (root / "README.md").write_text(_readme(artifact, config, version, measured), encoding="utf-8")
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in sorted(file for file in root.rglob("*") if file.is_file()):
                archive.write(file, file.relative_to(root))
    print(f"{path.name}: {artifact.name} as {config.name} version {version}, {path.stat().st_size / 1e6:.1f} MB")
    return path


def _is_export(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {Path(name).parts[0] for name in archive.namelist()} == {"README.md", _REPOSITORY}
    except (OSError, zipfile.BadZipFile):
        return False


def _readme(artifact: Artifact, config: ModelConfig, version: int, measured: Iterable[object]) -> str:
    m = artifact.manifest
    blocks = [f"```\n{str(result).rstrip()}\n```" for result in measured]
    return _README.format(
        name=config.name,
        version=version,
        repository=_REPOSITORY,
        model=m.model,
        holds=artifact.name,
        date=datetime.now(UTC).date().isoformat(),
        files=", ".join(sorted([*m.files, "manifest.json"])),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(artifact).items()),
        package=_package(artifact),
        gpus="--gpus all " if m.format == "tensorrt" or m.precision == "fp16" else "",
        image=_IMAGE,
        inputs=", ".join(f"`{name}`" for name in m.inputs),
        segments="; the last is 1 on the second text of a pair, else 0" if SEGMENTS in m.inputs else "",
        output=m.output_name,
        dimension=m.dimension,
        rebuild=_rebuild(artifact),
        versions=", ".join(f"{name} {number}" for name, number in (m.versions | {"Triton": TRITON_VERSION}).items()),
        measured="\n\n".join(blocks) or "Nothing was handed to the export.",
    )


def _facts(artifact: Artifact) -> dict[str, str]:
    m, record = artifact.manifest, artifact.manifest.validation or {}
    facts = {
        "weights from": m.source,
        "longest text": f"{m.max_length} tokens; longer ones are cut",
        "size": f"{artifact.size_bytes / 1e6:.1f} MB",
        "validated": f"{record.get('date', '')}: {record.get('texts', '?')} texts, "
        f"smallest cosine to the reference {record.get('cosine_min', float('nan')):.4f}",
    }
    facts |= {"labels": ", ".join(m.labels), "scores by": m.activation} if m.labels else {}
    facts |= {"runs on": f"GPUs of compute capability {m.target}"} if m.target != "any" else {}
    return facts | ({"note": "; ".join(m.notes)} if m.notes else {})


def _package(artifact: Artifact) -> str:
    """What pip installs on a machine that has nothing yet: the client, and the engine that runs this artifact."""
    engine = "rtx" if "tensorrt_rtx" in artifact.manifest.versions else _ENGINES[artifact.manifest.format]
    return f"accel_lib[{engine},triton] @ git+{repository_url()}"


def _rebuild(artifact: Artifact) -> str:
    """The command that makes the artifact again; lines of Python for what no command makes."""
    m = artifact.manifest
    hub = re.match(r"hub:[^@]+@(\w+)", m.source)
    trained = " + head sha256:" in m.source
    if trained or m.format == "torch":
        at = f', revision="{hub[1]}"' if hub else ""
        loaded = f'accel.load_model("{m.model.removesuffix("-classifier") if trained else m.model}"{at})'
        model = f"accel.train_classifier({loaded}, labelled_texts)" if trained else loaded
        convert = {"torch": "to_torch", "openvino": "to_openvino"}.get(m.format, "to_onnx")
        made = f'accel.{convert}({model}, precision="{m.precision}")'
        return f'accel.to_tensorrt({made}, target="{m.target}")' if m.format == "tensorrt" else made
    parts = ["accel convert", f"--model {m.model}", f"--precision {m.precision}", "--output artifact"]
    parts += [f"--revision {hub[1]}"] if hub else []
    parts += [f"--target {m.target}"] if m.format == "tensorrt" else []
    parts += ["--format openvino"] if m.format == "openvino" else []
    parts += ["--packed"] if m.packed else []
    return " ".join(parts)
