"""How long an execution takes, from the tokens in it: fitted by `fit_simulator`, drawn from by `simulate`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from accel_lib.engines.batching import plan_batches
from accel_lib.errors import AccelError
from accel_lib.formatting import listed, number, percent
from accel_lib.measurement import Result
from accel_lib.triton.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What executions cost with a number of instances, milliseconds; padding counts where the engine computes it."""

    execution: float  # an execution by itself
    call: float  # each engine call in it
    row: float
    token: float
    square: float  # each token times its row's width: attention
    crowding: float = 1.0  # times as long an execution takes while every instance computes: they share cores
    gap: float = 0.0  # from a response to the same instance's next execution
    cores: float = math.nan  # CPU cores that an execution keeps busy; NaN if not measured
    request_cpu: float = math.nan  # CPU time of a request outside of executions; NaN if not measured


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ServiceTime(Result):
    """What `fit_simulator` found: how long executions take, and what a client adds.

    `frame` has one row a point: ``instance_count``, ``rows``, ``tokens`` (of each row; NaN under load, where texts are
    mixed), ``ms``, ``predicted_ms``, ``executions`` measured.
    """

    costs: Mapping[int, Cost]  # by instance count
    noise: tuple[float, ...]  # measured over mean time of single executions, from which a simulation draws
    lengths: tuple[int, ...]  # tokens of the workload's texts, in their order
    transport_ms: float  # of a request outside of the server
    client_ms: float  # the part of it that requests take one after the other
    config: ModelConfig  # it was measured with
    budget: int  # tokens of an engine call where the configuration names none
    packed: bool = False  # the engine computes no padding
    padded_attention: bool = False  # but in attention

    @property
    def headline(self) -> str:
        """What the smallest and the largest execution cost, and how well the points fit."""
        parts = []
        for count, points in self.frame.groupby("instance_count"):
            mean = points.groupby("rows")["ms"].mean()
            ends = [f"{number(mean[rows])} ms for {counted(rows, 'text')}" for rows in (mean.index[0], mean.index[-1])]
            parts.append(f"{', '.join(ends)} with {counted(int(str(count)), 'instance')}")
        off = percent(float(np.median(np.abs(self.frame["predicted_ms"] / self.frame["ms"] - 1))))
        fit = f"the fitted time is off by {off} in the median of {len(self.frame)} points"
        return f"On an idle server an execution takes {listed(parts)}; {fit}"

    def cost(self, config: ModelConfig) -> Cost:
        """What executions cost under a configuration; `AccelError` for a number of instances that was not measured."""
        if config.instance_count in self.costs:
            return self.costs[config.instance_count]
        known = ", ".join(map(str, self.costs))
        raise AccelError(
            "The simulator was not fitted to that number of instances.",
            seen=f"{config.instance_count}; measured: {known}",
            fix=f"accel_lib.fit_simulator(served, texts, instance_counts=({known}, {config.instance_count}))",
        )

    def of(self, config: ModelConfig) -> Callable[[Sequence[int]], float]:
        """A function from the tokens of an execution's rows to the mean seconds that it takes alone."""
        cost, budget = self.cost(config), config.max_batch_tokens or self.budget
        cut = functools.partial(calls, budget=budget, packed=self.packed, padded_attention=self.padded_attention)

        def seconds(tokens: Sequence[int]) -> float:
            ms = cost.execution
            for rows, computed, squares in cut(tokens):
                ms += cost.call + rows * cost.row + computed * cost.token + squares * cost.square
            return ms / 1e3

        return seconds

    def slowdown(self, config: ModelConfig) -> Callable[[int], float]:
        """A function from how many instances compute to how many times as long each of them takes meanwhile."""
        others = config.instance_count - 1
        each = (self.cost(config).crowding - 1) / others if others else 0.0
        return lambda busy: 1 + each * (busy - 1)

    def scaled(self, config: ModelConfig, factor: float) -> ServiceTime:
        """The same with executions that take `factor` times as long at the number of instances of a configuration."""
        cost = self.cost(config)
        longer = {name: getattr(cost, name) * factor for name in ("execution", "call", "row", "token", "square")}
        costs = dict(self.costs) | {config.instance_count: dataclasses.replace(cost, **longer)}
        return dataclasses.replace(self, costs=costs)


def calls(
    tokens: Sequence[int], budget: int, *, packed: bool = False, padded_attention: bool = False
) -> list[tuple[int, int, int]]:
    """Rows, computed tokens and their squares by row of each engine call of an execution, cut as ``plan_batches`` cuts.

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


def counted(count: int, what: str) -> str:
    """``"1 instance"``, ``"2 instances"``."""
    return f"{count} {what}{'' if count == 1 else 's'}"
