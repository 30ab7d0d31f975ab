"""``accel simulate``: predict latency under load from a short measurement of single requests."""

from __future__ import annotations

from typing import Annotated

import typer


def simulate(
    texts: Annotated[str, typer.Option(help="Workload: short, mixed, or a file.")] = "short",
    model: Annotated[str, typer.Option(help="Model in the repository: embedding or sentiment.")] = "embedding",
    version: Annotated[int, typer.Option(help="Its version.")] = 1,
    share: Annotated[list[float] | None, typer.Option(help="Shares of capacity to predict.")] = None,
    delay_us: Annotated[int, typer.Option(help="Queue delay, microseconds.")] = 0,
    max_batch_size: Annotated[int, typer.Option(help="Most requests of a batch.")] = 64,
    instances: Annotated[int, typer.Option(help="Instances of the model.")] = 1,
) -> None:
    """Fit the simulator to a model of the course, and predict its latency under load."""
    from accel_lib.course_models import ensure
    from accel_lib.simulation.curve import SHARES, latency_curve
    from accel_lib.simulation.fit import fit_simulator
    from accel_lib.texts import load_texts
    from accel_lib.triton.server import serve

    with serve(ensure(model), models=[model]) as server:
        service = fit_simulator(server.model(model, version), load_texts(texts), instance_counts=(instances,))
    settings = {"max_queue_delay_us": delay_us, "max_batch_size": max_batch_size, "instance_count": instances}
    curve = latency_curve(service, service.config.replace(**settings), shares=share or SHARES)
    print(f"{service.headline}\n{curve}")
