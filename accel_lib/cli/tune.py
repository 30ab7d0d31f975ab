"""``accel sweep``, ``tune``, ``control`` and ``memory``: find a setting, hold a target, know what fits."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accel_lib.errors import AccelError

if TYPE_CHECKING:
    from accel_lib.artifact import Artifact
    from accel_lib.triton.client import ServedModel
    from accel_lib.tuning.step_response import StepTest

_TEXTS = typer.Option(help="short, mixed, or a file of texts like yours.")
_VERSION = typer.Option("--model-version", help="Version of the course's embedding model: 1 is FP32, 2 optimized.")
_P95 = typer.Option(help="Latency target: the p95, ms.")
_LEAST_WINDOW_S = 5.0
_LEAST_TARGET_MS, _TIMES_ALONE = 50.0, 5.0


def sweep(
    p95_ms: Annotated[float, _P95] = 50,
    texts: Annotated[str, _TEXTS] = "short",
    setting: Annotated[
        list[str] | None, typer.Option("--setting", "-s", help="NAME=VALUE,VALUE,… to try; as often as needed.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at any time.")] = 16,
    seconds: Annotated[float, typer.Option(help="How long to measure a setting in one round.")] = 2,
    repeats: Annotated[int, typer.Option(help="Rounds at most, for those that may be the best.")] = 5,
    file: Annotated[Path | None, typer.Option(help="Journal to keep, and to go on from.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the best config.pbtxt.")] = None,
    model_version: Annotated[int, _VERSION] = 1,
) -> None:
    """Measure settings of the course's model on a real Triton, and say which one to take and why."""
    from accel_lib.texts import load_texts
    from accel_lib.tuning.grid import GRID
    from accel_lib.tuning.grid import sweep as run

    grid = dict(map(_values, setting)) if setting else GRID
    with _served(*grid.get("version", (model_version,))) as served:
        found = run(
            served, load_texts(texts, limit=256), p95_ms=p95_ms, grid=grid, concurrency=concurrency, seconds=seconds,
            repeats=repeats, file=file,
        )  # fmt: skip
        print(found)
        print(f"\nNo setting beats these in both p95 and throughput:\n{found.front_table()}")
        print(f"\nWhy:\n{found.explanation or 'there was nothing to compare with'}\n")
        print(found.config)
        if output:
            found.write(output)
    raise typer.Exit(1 if found.stopped or float(found.frame["p95_ms"].min()) > p95_ms else 0)


def tune(
    ttft_ms: Annotated[float, typer.Option(help="Target to a request's first token, ms.")] = 1_000,
    itl_ms: Annotated[float, typer.Option(help="Target between its tokens, ms.")] = 100,
    prompt_tokens: Annotated[str, typer.Option(help="Lengths: 64, 32-96, or exponential:64:160.")] = "32-96",
    output_tokens: Annotated[str, typer.Option(help="Lengths of the answers, likewise.")] = "exponential:48:192",
    rate: Annotated[float | None, typer.Option(help="Requests per second; default: the most that keep both.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure a setting in one round.")] = 15,
    rounds: Annotated[int, typer.Option(help="How often to measure each.")] = 3,
    repository: Annotated[Path | None, typer.Option(help="Model repository. Default: the course's own.")] = None,
) -> None:
    """Simulate settings of the model that generates, measure the best on a real Triton, and say which to take."""
    from accel_lib.course_models import ensure
    from accel_lib.triton.server import serve
    from accel_lib.tuning.generation import tune_generation

    with serve(repository or ensure("generation"), models=["generation"]) as server:
        found = tune_generation(
            server.model("generation"), ttft_ms=ttft_ms, itl_ms=itl_ms, prompt_tokens=prompt_tokens,
            output_tokens=output_tokens, rate=rate, seconds=seconds, rounds=rounds,
        )  # fmt: skip
    print(f"{found}\n\n{found.explanation}")
    raise typer.Exit(0 if found.frame["goodput"].max() > 0 else 1)


def control(
    check: Annotated[bool, typer.Option("--check", help="Both workloads, every seed; fail under the limits.")] = False,
    texts: Annotated[list[str] | None, typer.Option(help="Workloads; default: short, and mixed with --check.")] = None,
    p95_ms: Annotated[float | None, _P95] = None,
    seeds: Annotated[int, typer.Option(help="Comparisons a workload.")] = 1,
    windows: Annotated[str, typer.Option(help="Windows before, during and after the step.")] = "4,8,5",
    window_s: Annotated[float | None, typer.Option(help="Length of a window; default: 5, or twice a reload.")] = None,
    model_version: Annotated[int, _VERSION] = 1,
) -> None:
    """Step the load from 20% to 80% of the capacity and back, with a controller and with static settings."""
    from accel_lib.load.runner import load_test
    from accel_lib.texts import load_texts
    from accel_lib.tuning.step_response import step_test

    counts = _whole(windows)
    tests: list[StepTest] = []
    with _served(model_version) as served:
        length_s = window_s or max(_LEAST_WINDOW_S, 2 * _reload_s(served))
        for name in texts or (["short", "mixed"] if check else ["short"]):
            sent = load_texts(name, limit=256)
            alone = load_test(served, sent, concurrency=1, seconds=2).p95_ms
            target = p95_ms or round(max(_LEAST_TARGET_MS, _TIMES_ALONE * alone), -1)
            print(f"\n{name}: target {target:g} ms, a request alone has a p95 of {alone:.1f} ms")
            test = step_test(served, sent, p95_ms=target, windows=counts, window_s=length_s, seeds=range(seeds))
            print(f"\n{test}\n\n{test.runs['controller'].decisions}")
            tests.append(test)
    met, total, lost = (sum(int(test.frame[name].sum()) for test in tests) for name in ("met", "windows", "lost"))
    passed = all(test.passed for test in tests)
    print(f"\n{'passed' if passed else 'not passed'}: {'; '.join(test.headline for test in tests)}")
    print(f"windows under the target: {met} of {total}; accepted requests lost: {lost}")
    raise typer.Exit(0 if passed or not check else 1)


def cores(
    texts: Annotated[str, _TEXTS] = "mixed",
    concurrency: Annotated[int, typer.Option(help="Requests in flight at any time.")] = 16,
    seconds: Annotated[float, typer.Option(help="How long to measure a setting in one round.")] = 2,
    repeats: Annotated[int, typer.Option(help="Rounds at most, for those that may be the best.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Folder to write config.pbtxt to: model_repository/mine.")] = None,
    model_version: Annotated[int, _VERSION] = 2,
) -> None:
    """Measure which number of instances, with which threads each, gives most throughput on this machine's CPU."""
    from accel_lib.texts import load_texts
    from accel_lib.tuning.grid import share_cores

    with _served(model_version) as served:
        given = load_texts(texts, limit=256)
        found = share_cores(served, given, concurrency=concurrency, seconds=seconds, repeats=repeats)
        print(f"{found}\n\n{found.explanation}")
        if output:
            found.write(output)


def memory(
    length: Annotated[int, typer.Option(help="Tokens per text: the longest that is to be safe.")] = 128,
    model_version: Annotated[int, _VERSION] = 1,
) -> None:
    """Measure what batches of the course's model need, check the fit, and say how many texts fit."""
    from accel_lib.bench.memory import fit_memory

    print(fit_memory(_artifact(model_version), length=length))


def _reload_s(served: ServedModel) -> float:
    """How long Triton takes to load a second copy and put it in the place of the first."""
    size, started = served.config.max_batch_size, time.perf_counter()
    served.configure(max_batch_size=size + 1)
    served.configure(max_batch_size=size)
    taken = (time.perf_counter() - started) / 2
    print(f"a reload takes {taken:.1f} s")
    return taken


@contextlib.contextmanager
def _served(*versions: int) -> Iterator[ServedModel]:
    """The course's model in these versions alone, in a Triton of its own, so that a reload loads nothing else."""
    from accel_lib.triton.server import serve

    with tempfile.TemporaryDirectory(prefix="accel-") as folder:
        repository = Path(folder, "model_repository")
        repository.mkdir()
        artifacts = {version: _artifact(version) for version in versions}
        with serve(repository, models=()) as server:
            for version, artifact in artifacts.items():
                server.add("embedding", artifact, version=version)
            yield server.model("embedding")


def _artifact(version: int) -> Artifact:
    from accel_lib.artifact import Artifact
    from accel_lib.course_models import ensure

    return Artifact.load(ensure("embedding") / "embedding" / str(version) / "artifact")


def _values(text: str) -> tuple[str, Sequence[int]]:
    name, _, values = text.partition("=")
    return name, _whole(values)


def _whole(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError as error:
        raise AccelError("These are no whole numbers.", seen=text, fix="-s max_batch_size=1,8,64") from error
