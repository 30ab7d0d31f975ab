"""Measure how long executions take, before any load is predicted: alone for their shape, under load for their level."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.batching import batch_tokens
from accel_lib.errors import AccelError
from accel_lib.load.cpu_time import processor_time
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.machine import inspect_machine
from accel_lib.measurement import to_frame
from accel_lib.progress import Progress
from accel_lib.simulation.service_time import Cost, ServiceTime, batches_of, features
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

_ROWS = (1, 4, 16, 64)
_QUANTILES = (0.05, 0.35, 0.65, 0.95)
_REPEATS = 5
_CONCURRENCY = (6, 24)  # requests an instance, beside one alone
_FEWEST = 3  # executions of a size, under which their mean says little
_POLLS = 1_000  # Triton counts an execution just after its answer

_Work = Callable[[Sequence[int]], list[float]]  # of an execution, from the tokens of its rows: `features`


@dataclasses.dataclass(frozen=True)
class _Point:
    """The mean time of some executions, and what they cost it for (`features`)."""

    rows: int
    tokens: float
    work: Sequence[float]
    ms: float
    executions: int

    def beside(self, costs: NDArray[np.float64]) -> dict[str, Any]:
        """The point as a row of the table, with what `costs` predict."""
        row = {name: value for name, value in dataclasses.asdict(self).items() if name != "work"}
        return row | {"predicted_ms": float(np.dot(self.work, costs))}


def fit_simulator(
    served: ServedModel, texts: Sequence[str], *, instance_counts: Sequence[int] = (), seconds: float = 2
) -> ServiceTime:
    """Measure how long executions take, alone and under load, as `simulate` needs it.

    First single requests of several rows and lengths, then short closed loops, whose executions also carry what
    clients and neighbours cost. The model's own configuration is put back at the end.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        The workload: its lengths are what a simulation sends.
    instance_counts
        Numbers of instances to calibrate; if left out, the one it has.
    seconds
        Length of each of the three closed loops.

    Returns
    -------
    ServiceTime

    Raises
    ------
    RequestError
        The model does not answer.
    ServerError
        Triton refused a number of instances.

    Examples
    --------
    >>> service = accel.fit_simulator(mine, accel.load_texts("short"))  # doctest: +SKIP
    """
    own, progress = served.config, Progress("Calibrating")
    lengths = served._tokenize(texts, None)[1].lengths
    packed = Artifact.load(served._artifact_folder).manifest.packed
    padded_attention = packed and not _on_gpu(own)
    budget = own.max_batch_tokens or batch_tokens("cuda" if _on_gpu(own) else "cpu")
    work = functools.partial(features, budget=budget, packed=packed, padded_attention=padded_attention)
    rows: list[dict[str, Any]] = []
    costs: dict[int, Cost] = {}
    noise: list[float] = []
    transport: list[float] = []
    client: list[float] = []
    try:
        for count in instance_counts or (own.instance_count,):
            name = f"{count} instance{'s' if count > 1 else ''}"
            progress.tick(f"{name}, single requests")
            served.configure(instance_count=count)
            alone, samples = _single(served, lengths, budget, work)
            progress.tick(f"{name}, under load")
            with processor_time(served) as processor:
                runs = [
                    load_test(served, texts, concurrency=many, seconds=seconds, warmup_s=0.3)
                    for many in (1, *(count * many for many in _CONCURRENCY))
                ]
            cost, found = _fit(alone, runs, count, work)
            costs[count] = dataclasses.replace(cost, **processor)
            rows += [{"instance_count": count} | row for row in found]
            noise += samples
            transport.append(_transport_ms(runs[0]))
            client.append(min(_client_ms(runs[-1]), transport[-1]))
    except BaseException:
        with contextlib.suppress(AccelError):  # the first error is the one to see
            served.configure(instance_count=own.instance_count)
        raise
    served.configure(instance_count=own.instance_count)
    progress.done(f"{len(rows)} points")
    return ServiceTime(
        frame=to_frame(rows),
        costs=costs,
        noise=tuple(noise),
        lengths=tuple(lengths.tolist()),
        transport_ms=min(transport),
        client_ms=min(client),
        config=own,
        budget=budget,
        packed=packed,
        padded_attention=padded_attention,
    )


def _on_gpu(config: ModelConfig) -> bool:
    if config.device:
        return config.device.startswith("cuda")
    return config.instance_kind in ("auto", "gpu") and bool(inspect_machine().gpus)


def _single(
    served: ServedModel, lengths: NDArray[np.int64], budget: int, work: _Work
) -> tuple[list[_Point], list[float]]:
    """What single requests keep an instance for, each of them one engine call; and each sample over its mean."""
    widths = sorted({int(np.quantile(lengths, q, method="nearest")) for q in _QUANTILES})
    most = max(1, served.config.max_batch_size)
    sizes = [(n, width) for n in _ROWS for width in widths if n <= most and (n == 1 or n * width <= budget)]
    taken: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    for turn in range(_REPEATS + 1):
        for rows, width in sizes:
            before = served.statistics()
            served.infer(np.full((rows, width), 100, dtype=np.int64))
            for _ in range(_POLLS):
                counted = served.statistics() - before
                if counted.executions:
                    break
            if turn:  # the first one warms up
                taken[rows, width].append(counted.busy_s * 1e3)
    points = [
        _Point(rows, width, work([width] * rows), float(np.median(ms)), len(ms)) for (rows, width), ms in taken.items()
    ]
    return points, [sample / float(np.mean(ms)) for ms in taken.values() for sample in ms]


def _under_load(run: LoadRun, work: _Work) -> list[_Point]:
    """The mean time of each batch size in a run, with the mean work of such batches of the texts that it sent."""
    if not run.statistics:
        return []
    sent = run.frame["tokens"].tolist()
    return [
        _Point(
            size,
            float("nan"),
            np.mean([work(batch) for batch in batches_of(sent, size)], axis=0).tolist(),
            run.statistics.batch_ns[size] / count / 1e6,
            count,
        )
        for size, count in run.statistics.batch_sizes.items()
        if count >= _FEWEST
    ]


def _fit(
    alone: Sequence[_Point], runs: Sequence[LoadRun], count: int, work: _Work
) -> tuple[Cost, list[dict[str, Any]]]:
    """The costs' ratios from single requests, their level from load; and the points beside what they were fitted to.

    With several instances the level is that of one request under way, and what more of them cost is `crowding`; with
    one it is that of several.
    """
    shape = _solve([point.work for point in alone], [point.ms for point in alone], [1.0] * len(alone))
    first, *rest = (_under_load(run, work) for run in runs)
    crowded = [point for points in rest for point in points]
    crowding = 1.0
    if count > 1:
        costs = shape * _ratio(first, shape)
        crowding = max(_ratio(crowded, costs), 1.0)
    else:
        loaded = crowded or first  # one request alone has the caches to itself: under load nothing is as fast
        level = [[float(np.dot(point.work, shape)), 1.0] for point in loaded]
        scale, base = _solve(level, [point.ms for point in loaded], [point.executions * point.rows for point in loaded])
        costs = shape * scale + np.array([base, 0, 0, 0, 0])
    names = ("execution", "call", "row", "token", "square")
    cost = Cost(
        **dict(zip(names, costs.tolist(), strict=True)),
        crowding=crowding,
        gap=min(_gap_ms(run, count) for run in runs[1:]),
    )
    rows = [point.beside(costs) for point in [*alone, *first]] + [point.beside(costs * crowding) for point in crowded]
    return cost, rows


def _solve(work: Sequence[Sequence[float]], ms: Sequence[float], weights: Sequence[float]) -> NDArray[np.float64]:
    """Least squares of relative errors with no coefficient below zero: one that would be is left out."""
    weight = np.sqrt(np.asarray(weights, dtype=float)) / np.asarray(ms)
    rows, wanted = np.asarray(work) * weight[:, None], np.asarray(ms) * weight
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    used = list(range(rows.shape[1]))
    while True:
        solved = np.linalg.lstsq(rows[:, used] / scale[used], wanted, rcond=None)[0]
        if len(used) == 1 or solved.min() >= 0:
            break
        used.pop(int(solved.argmin()))
    found = np.zeros(rows.shape[1])
    found[used] = np.maximum(solved, 0.0) / scale[used]
    return found


def _ratio(points: Sequence[_Point], costs: NDArray[np.float64]) -> float:
    """Measured over expected time of executions, 1 where there are none."""
    spent = sum(point.ms * point.executions for point in points)
    expected = sum(float(np.dot(point.work, costs)) * point.executions for point in points)
    return spent / expected if expected else 1.0


def _gap_ms(run: LoadRun, instance_count: int) -> float:
    """Idle time an execution: what the instances need in between, if they always have work."""
    if not run.statistics or not run.statistics.executions:
        return 0.0
    idle_s = run.seconds * instance_count - run.statistics.busy_s
    return max(idle_s / run.statistics.executions * 1e3, 0.0)


def _transport_ms(run: LoadRun) -> float:
    """What a request spends outside of the server."""
    return float(run.summary["client_ms"].iloc[0]) if "client_ms" in run.summary else 0.0


def _client_ms(run: LoadRun) -> float:
    """Processor time of the client's loop a request."""
    return run.generator_busy * run.seconds / max(len(run.frame), 1) * 1e3
