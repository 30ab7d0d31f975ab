"""``accel simulate``: predict latency under load, or hold the predictions to a real Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel_lib.errors import require


def simulate(
    texts: Annotated[str, typer.Option(help="Workload: short, mixed, or a file.")] = "short",
    model: Annotated[str, typer.Option(help="Model in the repository: embedding or sentiment.")] = "embedding",
    version: Annotated[int, typer.Option(help="Its version.")] = 1,
    share: Annotated[list[float] | None, typer.Option(help="Shares of capacity to predict.")] = None,
    delay_us: Annotated[int, typer.Option(help="Queue delay, microseconds.")] = 0,
    max_batch_size: Annotated[int, typer.Option(help="Most requests of a batch.")] = 64,
    instances: Annotated[int, typer.Option(help="Instances of the model.")] = 1,
    check: Annotated[
        bool, typer.Option("--check", help="Measure settings too; exit 1 if the median errors are over the limits.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="With --check: how long to measure a setting.")] = 6,
    figure: Annotated[Path | None, typer.Option(help="With --check: PNG of the errors to write.")] = None,
) -> None:
    """Predict latency under load from a short calibration, or hold the predictions to a real Triton."""
    from accel_lib.course_models import ensure
    from accel_lib.show.plots.simulator import fidelity
    from accel_lib.simulation.calibrate import fit_simulator
    from accel_lib.simulation.curve import SHARES, latency_curve
    from accel_lib.simulation.fidelity import check_fidelity, verdict_line
    from accel_lib.texts import load_texts
    from accel_lib.triton.server import serve as serve_models

    with serve_models(ensure(model), models=[model]) as server:
        served = server.model(model, version)
        if check:
            names = ("short", "mixed") if texts == "short" else (texts,)
            result = check_fidelity(served, {name: load_texts(name) for name in names}, seconds=seconds)
            if figure:
                fidelity(result.frame, result.throughput_spread, result.p95_spread)
                require("matplotlib.pyplot", extra="notebook").savefig(figure)
            print(f"{result.table()}\n{result.headline} ({result.pinned})\n{verdict_line(result)}")
            raise typer.Exit(0 if result.passed else 1)
        service = fit_simulator(served, load_texts(texts), instance_counts=(instances,))
        settings = {"max_queue_delay_us": delay_us, "max_batch_size": max_batch_size, "instance_count": instances}
        curve = latency_curve(service, service.config.replace(**settings), shares=share or SHARES)
    print(f"{service.headline}\n{curve.table()}\n{curve.headline}")
