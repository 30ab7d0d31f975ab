"""What a load does to a language model's engine, predicted: first tokens, tokens after it, goodput, and the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import number, percent
from accel_lib.load.generation_results import GenerationRun
from accel_lib.load.lengths import Lengths, draw
from accel_lib.measurement import Result, to_frame
from accel_lib.simulation.generation import EngineSettings, Policy, SimulatedEngine, Stretch
from accel_lib.simulation.step_cost import StepCost

_BUSY = 0.9  # share of the time from which the engine is the limit
_OFTEN = 0.2  # share of the time that somebody waited, from which on what he waited for is the limit
_READING = 0.5  # share of the steps' time with prompts in them, from which on reading them is what it does
_LIMITS = {"rows": "rows: requests wait for one", "cache": "the cache: requests wait for room in it"}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class GenerationPrediction(GenerationRun):
    """What `GenerationSimulator.predict` found; `frame` has ``queue_ms`` too, until a request had a row.

    Parameters
    ----------
    settings
        The engine's.
    stretches
        Equal steps, one stretch after the other; `timeline` is their table.
    """

    settings: EngineSettings
    stretches: tuple[Stretch, ...]

    @property
    def timeline(self) -> pd.DataFrame:
        """The engine over time, a row for each stretch of equal steps.

        ``start_s``, ``end_s``, ``steps``, ``rows`` that generate, ``prompt_tokens`` of a step, ``running`` requests,
        ``reserved_tokens`` of the cache, ``waiting_for``: what the first in line lacks, empty if nobody waits.
        """
        rows = [
            (s.start_s, s.start_s + s.seconds, s.step.count, s.step.rows, s.step.prompt_tokens, s.running, s.reserved,
             s.waiting_for) for s in self.stretches
        ]  # fmt: skip
        names = "start_s end_s steps rows prompt_tokens running reserved_tokens waiting_for"
        return pd.DataFrame(rows, columns=names.split())

    @property
    def longest_step_ms(self) -> float:
        """The longest that a row ever waited for its next token."""
        return 1e3 * max(each.seconds / each.step.count for each in self.stretches)

    @property
    def bottleneck(self) -> str:
        """What sets tokens per second and the time to the first one."""
        busy = self._share(self.stretches)
        waits = {why: self._share(each for each in self.stretches if each.waiting_for == why) for why in _LIMITS}
        most = max(waits, key=lambda why: waits[why])
        if waits[most] > _OFTEN:
            return _LIMITS[most]
        if busy < _BUSY:
            return f"the load: the engine is idle {percent(1 - busy)} of the time"
        reading = self._share(each for each in self.stretches if each.step.prompt_tokens) / busy
        return "reading prompts" if reading > _READING else "the steps themselves"

    def _share(self, stretches: Iterable[Stretch]) -> float:
        """Share of the whole time."""
        return min(sum(each.seconds for each in stretches) / self.seconds, 1.0)

    @property
    def headline(self) -> str:
        """Tokens per second, first token, time between tokens, goodput, and what sets them."""
        ttft, itl = (number(self.percentile(name, 95)) for name in ("ttft_ms", "itl_ms"))
        said = f"Predicted: {number(self.output_tokens_per_s)} tokens/s, TTFT p95 {ttft} ms, ITL p95 {itl} ms"
        if self.targets:
            said += f"; {number(self.goodput)} requests/s ({percent(float(self.kept.mean()))}) keep {self.targets}"
        return f"{said}. The limit is {self.bottleneck}"

    @property
    def explanation(self) -> str:
        """What the time to the first token goes into, and how full rows and cache were."""
        waited = float(self.frame["queue_ms"].sum() / max(self.frame["ttft_ms"].sum(), 1e-9))
        busy_s = max(sum(each.seconds for each in self.stretches), 1e-9)
        rows = sum(each.seconds * each.running for each in self.stretches) / busy_s
        cache = max(each.reserved for each in self.stretches) / self.settings.cache_tokens
        return (
            f"Waiting for a place is {percent(waited)} of the time to the first token; {number(rows)} of "
            f"{self.settings.rows} rows are taken on average while the engine works, and at most {percent(cache)} of "
            "the cache is promised"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class GenerationSimulator(Result):
    """An engine's fitted costs, and its limits: what `fit_generation_simulator` returns.

    `frame` has one row a kind of step that was timed: ``rows``, ``prompt_tokens``, ``cached_tokens`` (mean), ``ms``,
    ``predicted_ms``, ``steps``.
    """

    cost: StepCost
    settings: EngineSettings
    context_tokens: int
    known_tokens: int = 0  # with which all prompts begin, as a chat template makes them: read once

    @property
    def headline(self) -> str:
        """What steps take, and how well the cost fits what was timed."""
        alone, many = self._decode_ms(1), self._decode_ms(self.settings.rows)
        per_token = self.cost.tokens_ms(self._widest) / self._widest
        off = percent(float(np.median(np.abs(self.frame["predicted_ms"] / self.frame["ms"] - 1))))
        steps = f"{number(alone)} ms with one row, {number(many)} ms with {self.settings.rows}"
        fit = f"the fitted time is off by {off} in the median of {len(self.frame)} kinds of steps"
        return f"A step takes {steps}, a prompt token {number(float(per_token))} ms; {fit}"

    @property
    def _widest(self) -> int:
        return self.cost.knots[-1]

    def _decode_ms(self, rows: int) -> float:
        return float(self.cost.tokens_ms(rows)) + rows * self.cost.chosen

    def predict(
        self,
        *,
        rate: float | None = None,
        arrivals: ArrayLike | None = None,
        requests: int = 400,
        prompt_tokens: Lengths = 128,
        output_tokens: Lengths = 64,
        rows: int | None = None,
        cache_tokens: int | None = None,
        step_tokens: int | None = None,
        policy: Policy | None = None,
        shared_prefix_tokens: int = 0,
        ttft_ms: float = np.inf,
        itl_ms: float = np.inf,
        seed: int = 0,
    ) -> GenerationPrediction:
        """Predict what `generation_load_test` would measure; 10,000 requests take about a second.

        Parameters
        ----------
        rate, arrivals
            Requests/s on average, Poisson; or seconds from the start at which requests are due. Without either all
            come at once: what the engine does at its capacity.
        requests
            How many to simulate (`arrivals` say it themselves).
        prompt_tokens, output_tokens
            One number, a pair (uniform), ``"exponential:64"`` or ``"exponential:64:160"`` (mean, most), or a list.
        rows, cache_tokens, step_tokens, policy
            Of the engine, see `EngineSettings`; what is left out is as it was fitted. Rows and chunks larger than
            those that were timed follow the last line of the costs.
        shared_prefix_tokens
            With which all prompts begin, beside a chat template's: an engine that keeps prefixes reads them once.
        ttft_ms, itl_ms
            Targets of a request for the goodput.

        Raises
        ------
        AccelError
            No requests, a rate or setting without meaning, or a request larger than cache or context.

        Examples
        --------
        >>> simulator.predict(rate=2, output_tokens="exponential:64:160", rows=4).headline  # doctest: +SKIP
        """
        given = {"rows": rows, "cache_tokens": cache_tokens, "step_tokens": step_tokens, "policy": policy}
        settings = dataclasses.replace(self.settings, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        due = _due(rate, arrivals, requests, seed)
        prompts, outputs = (
            draw(lengths, len(due), np.random.default_rng((seed, stream)))
            for stream, lengths in enumerate((prompt_tokens, output_tokens))
        )
        self._check(settings, prompts, outputs)
        engine = SimulatedEngine(
            self.cost,
            settings,
            arrivals_s=due.tolist(),
            prompt_tokens=prompts.tolist(),
            output_tokens=outputs.tolist(),
            known_tokens=self.known_tokens + shared_prefix_tokens,
        ).run()
        frame = _frame(due, prompts, outputs, engine)
        frame.attrs["machine"] = self.machine
        seconds, offered_s = max(engine.end_s), float(due[-1])
        return GenerationPrediction(
            frame=frame,
            clients=0,
            offered=len(due) / offered_s if offered_s else np.nan,
            offered_s=offered_s or seconds,
            seconds=seconds,
            ttft_ms=ttft_ms,
            itl_ms=itl_ms,
            settings=settings,
            stretches=tuple(engine.stretches),
        )

    def _check(self, settings: EngineSettings, prompts: NDArray[np.int64], outputs: NDArray[np.int64]) -> None:
        if settings.rows < 1 or 0 < settings.step_tokens < settings.rows or settings.step_tokens < 0:
            raise AccelError(
                "These settings have no meaning.",
                seen=f"rows={settings.rows}, step_tokens={settings.step_tokens}",
                fix="one row or more, and chunks of at least as many tokens as rows; 0 cuts no prompt",
            )
        together = prompts + outputs
        largest = int(together.argmax())
        if settings.needed(int(prompts[largest]), int(outputs[largest])) > settings.cache_tokens:
            self._refuse(int(together.max()), settings.cache_tokens, "cache_tokens")
        if together.max() > self.context_tokens:
            self._refuse(int(together.max()), self.context_tokens, "the model's context")

    @staticmethod
    def _refuse(tokens: int, most: int, what: str) -> None:
        raise AccelError(
            "The engine could never finish such a request.",
            seen=f"{tokens} tokens of prompt and answer, {what} is {most}",
            fix="shorten prompts and answers, or predict a larger cache",
        )


def _due(rate: float | None, arrivals: ArrayLike | None, requests: int, seed: int) -> NDArray[np.float64]:
    if arrivals is not None:
        due = np.sort(np.asarray(arrivals, dtype=float))
    elif rate is None:
        due = np.zeros(requests)
    elif rate > 0:
        due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))
    else:
        raise AccelError("Requests need a rate above zero.", seen=rate, fix="simulator.predict(rate=2)")
    if not len(due):
        raise AccelError("A prediction needs requests.", seen=0, fix="simulator.predict(rate=2, requests=400)")
    return due


def _frame(
    due: NDArray[np.float64], prompts: NDArray[np.int64], outputs: NDArray[np.int64], engine: SimulatedEngine
) -> pd.DataFrame:
    first, end, admitted = (np.array(times) for times in (engine.first_token_s, engine.end_s, engine.admitted_s))
    gaps = np.where(outputs > 1, outputs - 1, np.nan)
    return pd.DataFrame(
        {
            "intended_s": due,
            "first_token_s": first,
            "end_s": end,
            "prompt_tokens": prompts,
            "output_tokens": outputs,
            "ttft_ms": (first - due) * 1e3,
            "itl_ms": (end - first) * 1e3 / gaps,
            "latency_ms": (end - due) * 1e3,
            "queue_ms": (admitted - due) * 1e3,
            "error": "",
        }
    )


def kinds(steps: pd.DataFrame) -> pd.DataFrame:
    """Timed steps, those of equal rows and prompt tokens as one row: their median time, beside what is predicted."""
    grouped = steps.groupby(["rows", "prompt_tokens"], as_index=False)
    table = grouped.agg(
        cached_tokens=("cached_tokens", "mean"), ms=("ms", "median"), predicted_ms=("predicted_ms", "median"),
        steps=("ms", "size"),
    )  # fmt: skip
    return to_frame([{str(k): v for k, v in row.items()} for row in table.to_dict("records")])
