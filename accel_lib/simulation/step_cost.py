"""How long a step of a language model's engine takes, from what is in it: fitted to timed steps, by least squares."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048)
_ROUNDS = 8  # of the fit, each trusting less what the one before was far from
_NEAR = 0.02  # relative error under which a step is trusted fully


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What one step computes, or the first of `count` that differ only in a token more in the cache of each row."""

    rows: int  # that generate a token each
    prompt_tokens: int
    ended_prompts: int  # whose last token is among them: each gives its first token
    cached: int  # tokens in the cache that the generating rows read
    pairs: int  # prompt tokens, each times the tokens that it attends to
    count: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that go through the network."""
        return self.rows + self.prompt_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost:
    """Milliseconds of a step, by what is in it.

    Parameters
    ----------
    knots, knot_ms
        Tokens of a step, and what the products with the weights take for that many; straight lines between. A first
        line of its own leads from one token to two: a matrix times a vector is another routine than one times two.
    chosen
        For each token that is chosen: probabilities and sampling.
    cached
        For each token in the cache that a generating row reads.
    pair
        For each prompt token and each token that it attends to.
    """

    knots: tuple[int, ...]
    knot_ms: tuple[float, ...]
    chosen: float
    cached: float
    pair: float

    def tokens_ms(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """What the products with the weights take; beyond the last knot its line goes on."""
        wanted = np.asarray(tokens, dtype=float)
        inside: NDArray[np.float64] = np.interp(wanted, self.knots, self.knot_ms)
        if len(self.knots) == 1:
            return inside
        slope = (self.knot_ms[-1] - self.knot_ms[-2]) / (self.knots[-1] - self.knots[-2])
        beyond: NDArray[np.float64] = inside + slope * np.maximum(wanted - self.knots[-1], 0)
        return beyond

    def ms(self, step: Step) -> float:
        """What one step takes."""
        chosen = (step.rows + step.ended_prompts) * self.chosen
        attention = step.cached * self.cached + step.pairs * self.pair
        return float(self.tokens_ms(step.tokens)) + chosen + attention

    def changed(self, *, factor: float = 1.0, more_ms: float = 0.0) -> StepCost:
        """All of it times a factor, and each step longer."""
        return StepCost(
            knots=self.knots,
            knot_ms=tuple(factor * ms + more_ms for ms in self.knot_ms),
            chosen=factor * self.chosen,
            cached=factor * self.cached,
            pair=factor * self.pair,
        )


def fit_step_cost(steps: Sequence[Step], ms: ArrayLike) -> StepCost:
    """Fit the costs to timed steps; relative errors count, and a step that something disturbed counts little.

    No cost is below zero (scipy's nnls), so more work never takes less time.
    """
    from scipy.optimize import nnls

    taken = np.asarray(ms, dtype=float)
    tokens = np.array([step.tokens for step in steps])
    knots = [knot for knot in _KNOTS if tokens.min() <= knot <= tokens.max()]
    knots = sorted({int(tokens.min()), *knots, int(tokens.max())})
    work = np.column_stack([np.ones(len(steps)), *_climbs(tokens, knots), *_attention(steps)])
    scale = np.maximum(np.abs(work).max(axis=0), 1e-12)
    weights = 1 / taken
    for _ in range(_ROUNDS):
        found = nnls(work / scale * weights[:, None], taken * weights)[0] / scale
        off = np.abs(work @ found / taken - 1)
        weights = 1 / (taken * np.sqrt(np.maximum(off, _NEAR)))
    chosen, cached, pair = map(float, found[len(knots) :])
    knot_ms = tuple(np.cumsum(found[: len(knots)] * np.array([1, *np.diff(knots)])).tolist())
    return StepCost(knots=tuple(knots), knot_ms=knot_ms, chosen=chosen, cached=cached, pair=pair)


def _climbs(tokens: NDArray[np.int64], knots: Sequence[int]) -> list[NDArray[np.int64]]:
    """Tokens between each two knots."""
    return [np.clip(tokens - low, 0, high - low) for low, high in itertools.pairwise(knots)]


def _attention(steps: Sequence[Step]) -> NDArray[np.float64]:
    facts = [(step.rows + step.ended_prompts, step.cached, step.pairs) for step in steps]
    return np.array(facts, dtype=float).T
