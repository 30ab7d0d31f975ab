"""How long one execution takes, from what is in it; fitted by `fit_simulator`, drawn from by `simulate`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from accel_lib.engines.batching import plan_batches
from accel_lib.errors import AccelError
from accel_lib.measurement import Result
from accel_lib.simulation import findings
from accel_lib.triton.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What executions cost with a number of instances, milliseconds.

    Parameters
    ----------
    execution, call, row, token, square
        An execution by itself, each call of the engine in it, each row, each token, and each token times its row's
        width (attention); padding counts where the engine computes it.
    crowding
        How many times as long an execution takes while every instance computes.
    gap
        From an answer to the same instance's next execution.
    cores
        That an execution keeps busy, whether it computes on them or waits for a GPU; NaN if not measured.
    request_cpu
        Processor time of a request outside of executions; NaN if not measured.
    """

    execution: float
    call: float
    row: float
    token: float
    square: float
    crowding: float = 1.0
    gap: float = 0.0
    cores: float = math.nan
    request_cpu: float = math.nan


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ServiceTime(Result):
    """What `fit_simulator` found: how long executions take, and what a client adds.

    Parameters
    ----------
    frame
        One row a point: ``instance_count``, ``rows``, ``tokens`` (of each row; NaN under load, where texts are mixed),
        ``ms``, ``predicted_ms``, ``executions`` measured.
    costs
        By instance count.
    noise
        Measured over mean time of single executions, from which a simulation draws.
    lengths
        Tokens of the workload's texts, in their order.
    transport_ms
        What a request spends outside of the server.
    client_ms
        The part of it that requests take one after the other: the client's own work.
    config
        The configuration it was measured with.
    budget
        Tokens of an engine call where the configuration names none.
    packed, padded_attention
        Whether the engine computes no padding, so that only real tokens count, or none but around attention.
    """

    costs: Mapping[int, Cost]
    noise: tuple[float, ...]
    lengths: tuple[int, ...]
    transport_ms: float
    client_ms: float
    config: ModelConfig
    budget: int
    packed: bool = False
    padded_attention: bool = False

    @property
    def headline(self) -> str:
        """What an execution costs, and how well the points fit."""
        return findings.service_time(self.frame)

    def cost(self, config: ModelConfig) -> Cost:
        """What executions cost under a configuration.

        Raises
        ------
        AccelError
            The number of instances was not calibrated.
        """
        if config.instance_count in self.costs:
            return self.costs[config.instance_count]
        known = ", ".join(map(str, self.costs))
        raise AccelError(
            "That number of instances was not calibrated.",
            seen=f"{config.instance_count}; calibrated: {known}",
            fix=f"accel_lib.fit_simulator(served, texts, instance_counts=({known}, {config.instance_count}))",
        )

    def of(self, config: ModelConfig) -> Callable[[Sequence[int], int], float]:
        """A function from the tokens of an execution's rows, and the executions under way, to its mean seconds."""
        cost, budget, others = self.cost(config), config.max_batch_tokens or self.budget, config.instance_count - 1
        slower = (cost.crowding - 1) / others if others else 0.0
        cut = functools.partial(calls, budget=budget, packed=self.packed, padded_attention=self.padded_attention)

        def seconds(tokens: Sequence[int], busy: int = 1) -> float:
            ms = cost.execution
            for rows, computed, squares in cut(tokens):
                ms += cost.call + rows * cost.row + computed * cost.token + squares * cost.square
            return ms * (1 + slower * (busy - 1)) / 1e3

        return seconds


def calls(
    tokens: Sequence[int], budget: int, *, packed: bool = False, padded_attention: bool = False
) -> list[tuple[int, int, int]]:
    """Rows, computed tokens and their squares by row of each engine call of an execution, cut as ``plan_batches`` cuts.

    Examples
    --------
    >>> calls([3, 5, 2], 9), calls([3, 5, 2], 9, packed=True)
    ([(2, 6, 18), (1, 5, 25)], [(2, 5, 13), (1, 5, 25)])
    >>> calls([3, 5, 2], 10, packed=True, padded_attention=True)
    [(3, 10, 75)]
    """
    if padded_attention:
        lengths = np.asarray(tokens, dtype=np.int64)
        parts = [lengths[part] for part in plan_batches(lengths, max_batch_tokens=budget, padded_attention=True)]
        return [(len(part), int(part.sum()), len(part) * int(part.max()) ** 2) for part in parts]
    groups: list[list[int]] = [[]]
    real = 0
    for width in sorted(tokens):
        real += width
        if groups[-1] and (real if packed else (len(groups[-1]) + 1) * width) > budget:
            groups.append([])
            real = width
        groups[-1].append(width)
    if not packed:
        groups = [[group[-1]] * len(group) for group in groups]
    return [(len(group), sum(group), sum(width * width for width in group)) for group in groups]


def features(
    tokens: Sequence[int], budget: int, *, packed: bool = False, padded_attention: bool = False
) -> list[float]:
    """What the costs of an execution are multiplied with, in the order of `Cost`."""
    cut = calls(tokens, budget, packed=packed, padded_attention=padded_attention)
    return [1.0, len(cut), *map(sum, zip(*cut, strict=True))]


def batches_of(lengths: Sequence[int], size: int, most: int = 200) -> list[list[int]]:
    """Batches of texts that arrive one after the other, at most so many, spread over the workload."""
    starts = np.unique(np.linspace(0, len(lengths) - 1, min(most, len(lengths))).astype(int))
    return [np.take(lengths, range(start, start + size), mode="wrap").tolist() for start in starts]
