"""``accel report``: this machine as Markdown, how fast TensorRT is on it, and what a language model does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import accel_lib

_CLIENTS = (1, 8)
_PROMPT_TOKENS, _OUTPUT_TOKENS = 64, 32


def report(
    generation: Annotated[
        Path | None,
        typer.Option(help="Measure a converted language model as well: the folder that accel convert wrote."),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Time TensorRT against PyTorch on this GPU as well, as notebook 02 does.")
    ] = False,
) -> None:
    """Print this machine and its versions as Markdown, for an issue; no paths, no names."""
    checkup = accel_lib.doctor()
    lines = [f"**accel_lib {accel_lib.__version__}** on {checkup.machine}", "", "| | what | seen |", "|---|---|---|"]
    lines += [f"| {mark} | {what} | {seen} |" for mark, what, seen, _ in checkup.rows]
    if speed:
        lines += ["", *_speed()]
    if generation is not None:
        lines += ["", *_generation(generation)]
    lines += ["", ", ".join(f"{package} {version}" for package, version in checkup.machine.versions.items())]
    print("\n".join(lines))


def _speed() -> list[str]:
    """A table of batch sizes and lengths; without a GPU, of the one that ships, which says where it was recorded."""
    from accel_lib.bench import speedup_over_eager

    gains = speedup_over_eager(accel_lib.load_model("all-MiniLM-L6-v2"))
    names = ["batch_size", "tokens", "baseline_ms", "candidate_ms", "speedup"]
    return [
        f"{gains.headline} ({gains.machine})",
        "",
        f"| {' | '.join(name.replace('_ms', ', ms').replace('_', ' ') for name in names)} |",
        "|---" * len(names) + "|",
        *(f"| {' | '.join(f'{value:g}' for value in row)} |" for row in gains.frame[names].round(3).to_numpy()),
    ]


def _generation(folder: Path) -> list[str]:
    """A table of one caller and of several, on the engine in this process: tokens/s, first token, between tokens."""
    from accel_lib.artifact import Artifact
    from accel_lib.generate.open import open_generation
    from accel_lib.load.generation import generation_load_test

    artifact = Artifact.load(folder)
    engine = open_generation(artifact, rows=max(_CLIENTS))
    lengths = f"prompts of {_PROMPT_TOKENS} tokens, answers of {_OUTPUT_TOKENS}"
    rows = [
        f"{artifact.manifest.model}, {artifact.name} on {engine.device}: {lengths}",
        "",
        "| callers | tokens/s | TTFT p50, ms | ITL p50, ms |",
        "|---|---|---|---|",
    ]
    try:
        for clients in _CLIENTS:
            run = generation_load_test(
                engine,
                clients=clients,
                requests=2 * clients,
                prompt_tokens=_PROMPT_TOKENS,
                output_tokens=_OUTPUT_TOKENS,
                artifact=artifact,
            )
            ttft, itl = (run.percentile(measure, 50) for measure in ("ttft_ms", "itl_ms"))
            rows.append(f"| {clients} | {run.output_tokens_per_s:.1f} | {ttft:.0f} | {itl:.1f} |")
    finally:
        engine.close()
    return rows
