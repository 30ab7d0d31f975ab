"""``accel load``: load on a model that a real Triton serves, or on a gateway: texts, or streams of tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from accel_lib.errors import AccelError

if TYPE_CHECKING:
    from accel_lib.load.generation_results import GenerationLoadRun
    from accel_lib.load.runner import LoadRun
    from accel_lib.triton.client import ServedModel

_TEXTS = "Of texts"
_TOKENS = "Of a model that generates"
_LENGTHS = 'A number, "32-96" (uniform), "exponential:64" (mean), "exponential:64:160" (and most).'


def load(
    model: Annotated[str, typer.Argument(help="A model of the repository, or of the gateway.")] = "embedding",
    rate: Annotated[float | None, typer.Option(help="Open loop: requests per second. Default: a closed loop.")] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "--clients", min=1, help="Closed loop: requests in flight.")
    ] = 8,
    seconds: Annotated[float, typer.Option(help="How long to send.")] = 5,
    version: Annotated[str, typer.Option(help="Version of the model. Default: the newest.")] = "",
    save: Annotated[Path | None, typer.Option(help="Keep the run: a .json or .parquet file.")] = None,
    repository: Annotated[Path | None, typer.Option(help="Model repository. Default: the course's own.")] = None,
    connections: Annotated[
        int | None, typer.Option(help="Open loop: most requests in flight.", rich_help_panel=_TEXTS)
    ] = None,
    rows: Annotated[int, typer.Option(help="Texts in a request.", rich_help_panel=_TEXTS)] = 1,
    texts: Annotated[str, typer.Option(help="mixed, short, or a file of texts.", rich_help_panel=_TEXTS)] = "mixed",
    column: Annotated[str | None, typer.Option(help="Column of the texts in a file.", rich_help_panel=_TEXTS)] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http.", rich_help_panel=_TEXTS)] = "grpc",
    target_ms: Annotated[
        float | None, typer.Option(help="Print the goodput within this latency too.", rich_help_panel=_TEXTS)
    ] = None,
    prompt_tokens: Annotated[str, typer.Option(help=_LENGTHS, rich_help_panel=_TOKENS)] = "128",
    output_tokens: Annotated[str, typer.Option(help=_LENGTHS, rich_help_panel=_TOKENS)] = "64",
    ttft_ms: Annotated[
        float | None, typer.Option(help="Target for the time to the first token.", rich_help_panel=_TOKENS)
    ] = None,
    itl_ms: Annotated[
        float | None, typer.Option(help="Target for the time between tokens.", rich_help_panel=_TOKENS)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask a gateway that runs there, and start nothing.", rich_help_panel=_TOKENS)
    ] = None,
    key: Annotated[str, typer.Option(envvar="ACCEL_KEY", help="The key that it takes.", rich_help_panel=_TOKENS)] = "",
) -> None:
    """Put load on a model, and print latency, throughput and where the time went.

    A real Triton is started for it, unless --url names a gateway. A model that generates gets chats, and what is
    measured are the time to the first token (TTFT), between tokens (ITL), tokens per second, and the requests per
    second that keep both targets.
    """
    from accel_lib.course_models import ensure
    from accel_lib.load.storage import check_target
    from accel_lib.triton.server import serve

    if protocol not in ("grpc", "http"):
        raise AccelError("There is no such protocol.", seen=protocol, fix="--protocol grpc, or --protocol http")
    if save:
        check_target(save)
    pace: dict[str, Any] = {"rate": rate, "seconds": seconds}
    streams = pace | {"clients": None if rate else concurrency}
    streams |= {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    streams |= {"ttft_ms": ttft_ms or math.inf, "itl_ms": itl_ms or math.inf}
    if url is not None:
        _show(_generation(url, model=model, key=key, **streams), save)
    with serve(repository or ensure(model), models=[model]) as server:
        served = server.model(model, version)
        if served.artifact.manifest.task == "generation":
            _show(_generation(served, **streams), save)
        how = pace | {"concurrency": concurrency, "connections": connections, "rows": rows, "protocol": protocol}
        run = _texts(served, texts, column, **how)
        within = "" if target_ms is None else f"{run.goodput(target_ms):,.0f} texts/s within {target_ms:g} ms"
        _show(run, save, within)


def _generation(target: ServedModel | str, **how: Any) -> GenerationLoadRun:
    from accel_lib.load.generation import generation_load_test

    return generation_load_test(target, **how)


def _texts(served: ServedModel, texts: str, column: str | None, **how: Any) -> LoadRun:
    from accel_lib.load.runner import load_test
    from accel_lib.texts import load_texts

    return load_test(served, load_texts(texts, column=column, limit=512), **how)


def _show(run: LoadRun | GenerationLoadRun, save: Path | None, within: str = "") -> NoReturn:
    """Print and keep a run, and end the command."""
    print(run)
    print(run.explanation)
    if within:
        print(within)
    if save:
        print(f"kept in {run.save(save).name}")
    raise typer.Exit(1 if run.stopped else 0)
