"""The ``accel`` command; each subcommand imports what it needs, so that ``accel --help`` is fast."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import accel_lib
from accel_lib.cli import chat, load, report, tune
from accel_lib.errors import AccelError

if TYPE_CHECKING:
    from accel_lib.artifact import Artifact
    from accel_lib.models import Model
    from accel_lib.models.generation import GenerationModel
    from accel_lib.service.keys import Keys


class _Group(TyperGroup):
    """Shows an `AccelError` as its three lines, without a traceback, and exits with 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AccelError as error:
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Group,
    help="Convert a transformer encoder, serve it with a real Triton server, and measure it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="Make, list and revoke the gateway's API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"accel_lib {accel_lib.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the subcommand."""


@app.command()
def doctor() -> None:
    """Look at this machine and say what it can do, what it cannot, and the fix."""
    checkup = accel_lib.doctor()
    _table(str(checkup.machine), ("", "what", "seen", "what to do"), checkup.rows)
    raise typer.Exit(0 if checkup.ok else 1)


@app.command()
def models() -> None:
    """List the models this project is built around; any hub id or folder works as well."""
    from accel_lib.models import catalogue

    for entry in catalogue():
        print(f"{entry.name}\n    {entry.task}: {entry.what}")


@app.command()
def convert(
    model: Annotated[str, typer.Option(help="Catalogue name, hub id or folder.")],
    output: Annotated[
        Path, typer.Option(help="Folder to write: a new or empty one, or that of an artifact, which is replaced.")
    ],
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16, int8 or int8-qdq; of openvino fp32, bf16 or int8; onnx to generate: fp32 or fp16."
        ),
    ] = "fp32",
    form: Annotated[
        str | None,
        typer.Option("--format", help="onnx, or openvino, which runs on a CPU. Default: onnx; openvino to generate."),
    ] = None,
    packed: Annotated[bool, typer.Option("--packed", help="Compute without padding, for CPUs.")] = False,
    target: Annotated[str | None, typer.Option(help="GPU to build a TensorRT engine for: t4, a100, l4, auto.")] = None,
    texts: Annotated[str, typer.Option(help="File of texts like yours: validates, and shapes the engine.")] = "mixed",
    column: Annotated[str | None, typer.Option(help="Column of the texts in a .csv, .tsv, .jsonl or .parquet.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    token: Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Hub token for a private id.")] = None,
) -> None:
    """Convert a model to ONNX or OpenVINO, or to a TensorRT engine for a target, validated against PyTorch."""
    from accel_lib.artifact import foreign_files
    from accel_lib.atomic import atomic_directory
    from accel_lib.convert.onnx import to_onnx
    from accel_lib.convert.openvino import to_openvino
    from accel_lib.convert.validate import validate
    from accel_lib.models import load_model
    from accel_lib.texts import load_texts

    if form not in (None, "onnx", "openvino") or (target and form == "openvino"):
        seen = f"--format {form}" + (f" --target {target}" if target else "")
        raise AccelError(
            "There is no such format.", seen=seen, fix="--format onnx, alone or with --target, or --format openvino"
        )
    with atomic_directory(
        output, foreign=foreign_files
    ) as draft:  # what is there stays until the new artifact is validated
        sample = load_texts(texts, column=column, limit=256)
        loaded = load_model(model, revision=revision, token=token)
        generates = str(loaded.task) == "generation"
        if generates and packed:
            raise AccelError("A language model is not packed.", fix="leave out --packed")
        form = form or ("openvino" if generates and not target else "onnx")
        to_form = to_openvino if form == "openvino" else to_onnx
        onnx = to_form(loaded, precision=precision, packed=packed, texts=sample, output=None if target else draft)
        verdict = validate(onnx, reference=loaded, texts=sample)
        print(f"{onnx.name}: validated, {verdict.headline}")
        if target:
            _build_engine(onnx, loaded, sample, target, draft)
    for file in sorted(output.iterdir()):
        print(f"  {output.name}/{file.name}  {file.stat().st_size / 1e6:.1f} MB")


_ENGINE_ROWS = 8  # of a language model: each row takes its cache


def _build_engine(
    onnx: Artifact, model: Model | GenerationModel, texts: Sequence[str], target: str, output: Path
) -> None:
    from accel_lib.convert.tensorrt import to_tensorrt
    from accel_lib.convert.validate import validate
    from accel_lib.machine import inspect_machine

    if model.task == "generation":
        plan = to_tensorrt(onnx, target=target, max_batch_size=_ENGINE_ROWS, output=output)
        print(f"{plan.name}: built; no engine of this library runs it yet, so it is not served.")
        return
    plan = to_tensorrt(onnx, target=target, lengths=model.lengths(texts), output=output)
    capabilities = {f"sm{gpu.compute_capability.replace('.', '')}" for gpu in inspect_machine().gpus}
    if plan.manifest.target in capabilities:
        verdict = validate(plan, reference=model, texts=texts)
        print(f"{plan.name}: validated, {verdict.headline}")
    else:
        print(f"{plan.name}: built; not validated, as this machine has no such GPU. Validate it there before serving.")


@app.command()
def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="Models of the repository to serve; default: all that are built.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gateway; 0 takes a free one.")] = None,
) -> None:
    """Start Triton and the gateway in front of it; ACCEL_* variables set everything else.

    ACCEL_REPOSITORY, or the nearest model_repository folder, is served as it is; in the course's, embedding is built.
    """
    from accel_lib.machine import thread_environment

    os.environ |= thread_environment()  # before NumPy is imported
    from accel_lib.course_models import repository_to_serve
    from accel_lib.service.__main__ import run_gateway
    from accel_lib.service.settings import Settings

    asked: dict[str, Any] = {"models": tuple(model) if model else None, "port": port}
    settings = Settings(**{name: value for name, value in asked.items() if value is not None})
    if not settings.triton_host:
        settings = settings.model_copy(update={"repository": repository_to_serve(settings.models)})
    run_gateway(settings)


@app.command()
def build(
    names: Annotated[list[str], typer.Argument(help="Models of the course: embedding, sentiment, rerank, generation.")],
    target: Annotated[str | None, typer.Option(help="Also a TensorRT engine for this GPU: auto, t4, l4, a100.")] = None,
    wait: Annotated[int | None, typer.Option(help="Build nothing; wait this many seconds for another process.")] = None,
) -> None:
    """Build models into the model repository, validated, or wait until another process has."""
    from accel_lib import course_models

    if wait is None:
        course_models.build(names, target=target)
    else:
        course_models.wait_until_built(names, engine=target is not None, timeout_s=wait)


@app.command()
def ui(
    gateway: Annotated[str, typer.Option(envvar="ACCEL_UI_GATEWAY", help="Its address.")] = "http://127.0.0.1:8000",
    host: Annotated[str, typer.Option(envvar="ACCEL_UI_HOST", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="ACCEL_UI_PORT", help="Port to listen on; 0 takes a free one.")] = 3000,
) -> None:
    """Show the dashboard in a browser. $ACCEL_UI_KEY is the gateway's key it works with, $ACCEL_UI_TOKEN opens it."""
    from accel_lib.show.dashboard.server import run_ui

    run_ui(gateway, host=host, port=port)


app.command()(load.load)
app.command()(report.report)
app.command()(chat.chat)
app.command()(tune.sweep)
app.command()(tune.tune)
app.command()(tune.control)
app.command()(tune.cores)
app.command()(tune.memory)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[
        list[str] | None, typer.Option("--role", help="viewer, inference, operator or admin; may be repeated.")
    ] = None,
) -> None:
    """Make a key and show it, once."""
    with _keys() as held:
        print(held.create(name, role or ["inference"]))


@keys.command("list")
def list_keys() -> None:
    """List the keys, without their secrets."""
    import datetime

    def day(seconds: float | None) -> str:
        return "" if seconds is None else f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"

    with _keys() as held:
        rows = [
            (key.id, key.name, ", ".join(sorted(key.roles)), day(key.created_s), day(key.revoked_s))
            for key in held.all()
        ]
    _table(f"{len(rows)} keys", ("id", "name", "roles", "created", "revoked"), rows)


@keys.command("revoke")
def revoke_key(identity: Annotated[str, typer.Argument(metavar="ID", help="As accel keys list shows it.")]) -> None:
    """End a key; a running gateway refuses it from the next request on."""
    with _keys() as held:
        held.revoke(identity)
    print(f"revoked: {identity}")


@contextlib.contextmanager
def _keys() -> Iterator[Keys]:
    """The keys of the gateway that ACCEL_STATE_FILE, or the default, names."""
    from accel_lib.service.database import Database
    from accel_lib.service.keys import Keys
    from accel_lib.service.settings import Settings

    with Database(Settings().state_file) as database:
        yield Keys(database)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number < 2)
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)
