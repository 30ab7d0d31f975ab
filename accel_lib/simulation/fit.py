"""Fit the simulator to a served model: time single requests for the costs' ratios, closed loops for their level."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.engines.batching import batch_tokens
from accel_lib.load.cpu_time import processor_time
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.machine import inspect_machine
from accel_lib.measurement import to_frame
from accel_lib.progress import Progress
from accel_lib.simulation.service_time import Cost, ServiceTime, calls, counted
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

_ROWS = (1, 4, 16, 64)
_QUANTILES = (0.05, 0.35, 0.65, 0.95)
_REPEATS = 5
_CONCURRENCY = (6, 24)  # requests in flight per instance, beside one alone
_FEWEST = 3  # executions of a size, under which their mean says little
_POLLS = 1_000  # Triton counts an execution just after its response
_BATCHES = 200  # of the workload, whose mean work represents a batch size

_Work = Callable[[Sequence[int]], list[float]]  # what each cost in `Cost` is multiplied by, from the rows' tokens


@dataclasses.dataclass(frozen=True)
class _Point:
    """Executions of one kind: rows, tokens of each, what they do (`_Work`), their mean time and their number."""

    rows: int
    tokens: float
    work: Sequence[float]
    ms: float
    executions: int

    def row(self, costs: NDArray[np.float64]) -> dict[str, Any]:
        """The point as a row of the table, with what `costs` predict."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name != "work"}
        return values | {"predicted_ms": float(np.dot(self.work, costs))}


def fit_simulator(
    served: ServedModel, texts: Sequence[str], *, instance_counts: Sequence[int] = (), seconds: float = 2
) -> ServiceTime:
    """Measure how long executions take, alone and under load, as `simulate` needs it.

    The model's own configuration is restored at the end.

    Parameters
    ----------
    texts
        The workload: its lengths are what a simulation sends.
    instance_counts
        Numbers of instances to measure; if left out, the one it has.
    seconds
        Length of each of the three closed loops.

    Examples
    --------
    >>> service = accel.fit_simulator(mine, accel.load_texts("short"))  # doctest: +SKIP
    """
    own, progress = served.config, Progress("Fitting the simulator")
    lengths, packed, gpu = served.tokenize(texts).lengths, served.artifact.manifest.packed, _on_gpu(own)
    padded_attention = packed and not gpu
    budget = own.max_batch_tokens or batch_tokens("cuda" if gpu else "cpu")

    def work(tokens: Sequence[int]) -> list[float]:
        cut = calls(tokens, budget, packed=packed, padded_attention=padded_attention)
        return [1.0, len(cut), *map(sum, zip(*cut, strict=True))]

    rows: list[dict[str, Any]] = []
    costs: dict[int, Cost] = {}
    noise: list[float] = []
    transport: list[float] = []
    client: list[float] = []
    with served.own_config():
        for count in instance_counts or (own.instance_count,):
            progress.tick(f"{counted(count, 'instance')}, single requests")
            served.configure(instance_count=count)
            alone, samples = _single(served, lengths, budget, work)
            progress.tick(f"{counted(count, 'instance')}, under load")
            with processor_time(served) as processor:
                runs = [
                    load_test(served, texts, concurrency=many, seconds=seconds, warmup_s=0.3)
                    for many in (1, *(count * many for many in _CONCURRENCY))
                ]
            cost, found = _fit(alone, runs, count, work)
            costs[count] = dataclasses.replace(cost, **processor)
            rows += [{"instance_count": count} | row for row in found]
            noise += samples
            transport.append(float(runs[0].summary.get("client_ms", [0.0])[0]))
            loop_ms = 1e3 * runs[-1].generator_busy * runs[-1].seconds / max(len(runs[-1].frame), 1)
            client.append(min(loop_ms, transport[-1]))
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
    """Median times of single requests, each of them one engine call; and each sample over its mean."""
    widths = sorted({int(np.quantile(lengths, q, method="nearest")) for q in _QUANTILES})
    most = max(1, served.config.max_batch_size)
    sizes = [(n, width) for n in _ROWS for width in widths if n <= most and (n == 1 or n * width <= budget)]
    taken: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    for turn in range(_REPEATS + 1):
        for rows, width in sizes:
            before = served.statistics()
            served.infer(np.full((rows, width), 100, dtype=np.int64))
            for _ in range(_POLLS):
                done = served.statistics() - before
                if done.executions:
                    break
            if turn:  # the first one warms up
                taken[rows, width].append(done.busy_s * 1e3)
    points = [
        _Point(rows, width, work([width] * rows), float(np.median(ms)), len(ms)) for (rows, width), ms in taken.items()
    ]
    return points, [sample / float(np.mean(ms)) for ms in taken.values() for sample in ms]


def _under_load(run: LoadRun, work: _Work) -> list[_Point]:
    """The mean time of each batch size in a run, with the mean work of such batches of the texts that it sent."""
    if not run.statistics:
        return []
    sent = run.frame["tokens"].tolist()
    starts = np.unique(np.linspace(0, len(sent) - 1, min(_BATCHES, len(sent))).astype(int))
    points = []
    for size, count in run.statistics.batch_sizes.items():
        if count >= _FEWEST:
            batches = [np.take(sent, range(start, start + size), mode="wrap").tolist() for start in starts]
            mean = np.mean([work(batch) for batch in batches], axis=0).tolist()
            points.append(_Point(size, float("nan"), mean, run.statistics.batch_ns[size] / count / 1e6, count))
    return points


def _fit(
    alone: Sequence[_Point], runs: Sequence[LoadRun], count: int, work: _Work
) -> tuple[Cost, list[dict[str, Any]]]:
    """The costs, and the points beside what they predict.

    With several instances the level is that of one request in flight, and what more of them cost is `crowding`; with
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
    gap = min(_gap_ms(run, count) for run in runs[1:])
    cost = Cost(**dict(zip(names, costs.tolist(), strict=True)), crowding=crowding, gap=gap)
    rows = [point.row(costs) for point in [*alone, *first]] + [point.row(costs * crowding) for point in crowded]
    return cost, rows


def _solve(work: Sequence[Sequence[float]], ms: Sequence[float], weights: Sequence[float]) -> NDArray[np.float64]:
    """Least squares of relative errors with no coefficient below zero."""
    from scipy.optimize import nnls

    weight = np.sqrt(np.asarray(weights, dtype=float)) / np.asarray(ms)
    rows = np.asarray(work) * weight[:, None]
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    found: NDArray[np.float64] = nnls(rows / scale, np.asarray(ms) * weight)[0] / scale
    return found


def _ratio(points: Sequence[_Point], costs: NDArray[np.float64]) -> float:
    """Measured over expected time of executions, 1 where there are none."""
    spent = sum(point.ms * point.executions for point in points)
    expected = sum(float(np.dot(point.work, costs)) * point.executions for point in points)
    return spent / expected if expected else 1.0


def _gap_ms(run: LoadRun, instance_count: int) -> float:
    """Idle time of an instance per execution, if they always have work."""
    if not run.statistics or not run.statistics.executions:
        return 0.0
    idle_s = run.seconds * instance_count - run.statistics.busy_s
    return max(idle_s / run.statistics.executions * 1e3, 0.0)
