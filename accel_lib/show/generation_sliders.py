"""Sliders over the simulator of continuous batching: load, rows, cache and chunks, and what tokens wait for."""

from __future__ import annotations

from typing import Any

from accel_lib.errors import AccelError
from accel_lib.formatting import number, percent
from accel_lib.load.generation import generation_load_test
from accel_lib.load.generation_results import GenerationLoadRun, GenerationRun
from accel_lib.show.plots.answer import Answer, Latencies
from accel_lib.show.slider_panel import Knob, SliderPanel
from accel_lib.simulation.generation_prediction import GenerationPrediction, GenerationSimulator
from accel_lib.triton.client import ServedModel

_REQUESTS = 300
_PROMPT, _ANSWER = 64, 48  # tokens to begin with
_LONGEST = 4  # times the mean: the longest answer of an exponential distribution
_SHARE = 0.6  # of capacity: the load to begin with
_SECONDS = 20.0


class GenerationSliders(SliderPanel):
    """Sliders over an engine that generates; made by `sliders`.

    Parameters
    ----------
    simulator
        What `fit_generation_simulator` returned.
    ttft_ms, itl_ms
        Targets: to a request's first token, and between its tokens.
    rate
        Requests/s to begin with; None takes six tenths of what the engine can do.
    served
        The model that "Measure" asks; without one there is nothing to measure.
    """

    measured: GenerationLoadRun | None

    def __init__(
        self,
        simulator: GenerationSimulator,
        *,
        ttft_ms: float,
        itl_ms: float,
        rate: float | None = None,
        served: ServedModel | None = None,
    ) -> None:
        if not (ttft_ms > 0 and itl_ms > 0):
            fix = "sliders(simulator, ttft_ms=1_000, itl_ms=100)"
            raise AccelError("Sliders need targets above zero.", seen=f"{ttft_ms} and {itl_ms} ms", fix=fix)
        self.simulator, self.served = simulator, served
        self._targets = {"ttft_ms": ttft_ms, "itl_ms": itl_ms}
        self._answer = Answer(Latencies("first token within, ms", ttft_ms), Latencies("between tokens, ms", itl_ms))
        capacity = simulator.predict(prompt_tokens=_PROMPT, output_tokens=_ANSWER).requests_per_s
        per_minute = max(1, round(60 * (_SHARE * capacity if rate is None else rate)))
        super().__init__(
            self._knobs(per_minute),
            {"measure": ("Measure", lambda: self.measure())} if served else {},
            {"answers": ["exponential", "equal"]},
        )
        self.refresh()

    @property
    def load(self) -> dict[str, Any]:
        """The load that the sliders describe, as `generation_load_test` takes it."""
        setting = self.setting
        mean = setting["output_tokens"]
        exponential = self.chosen["answers"].value == "exponential"
        return {
            "rate": setting["rate"] / 60,
            "prompt_tokens": setting["prompt_tokens"],
            "output_tokens": f"exponential:{mean}:{_LONGEST * mean}" if exponential else mean,
            **self._targets,
        }

    @property
    def engine(self) -> dict[str, Any]:
        """The engine's settings that the sliders describe."""
        setting = self.setting
        return {name: setting[name] for name in ("rows", "cache_tokens")} | {
            "step_tokens": max(setting["step_tokens"], setting["rows"])
        }

    def simulate(self) -> GenerationPrediction:
        """The simulator's answer, from 300 requests; an `AccelError` where the cache could hold no request."""
        return self.simulator.predict(**self.load, **self.engine, requests=_REQUESTS)

    def draw(self, run: GenerationPrediction) -> bytes:
        """First tokens and the ones after, of the answer, the pins and what was measured."""
        seen: dict[str, GenerationRun] = {"now": run, **self.pins}
        if self.measured:
            seen["measured"] = self.measured
        data = {
            name: (each.frame["ttft_ms"].dropna().to_numpy(), each.frame["itl_ms"].dropna().to_numpy())
            for name, each in seen.items()
        }
        return self._answer.show(self.title(run), data)

    def title(self, run: GenerationPrediction) -> str:
        """The answer in a sentence, and what was measured in another."""
        said = f"Predicted: {_speed(run)} keep both targets. The limit is {run.bottleneck}"
        return f"{said}. Measured: {_speed(self.measured)}" if self.measured else said

    def measure(self, *, seconds: float = _SECONDS) -> None:
        """Set the served model as the sliders are, and measure the same load."""
        if self.served is None:
            raise AccelError("Nothing is served here.", seen=None, fix="sliders(simulator, served=model, …)")
        with self.served.own_config():
            self.served.configure(**self.engine)
            self.measured = generation_load_test(self.served, seconds=seconds, **self.load)

    def _knobs(self, per_minute: int) -> dict[str, Knob]:
        engine, context = self.simulator.settings, self.simulator.context_tokens
        block, longest = engine.block_tokens, max(2, context // 4)
        return {
            "rate": Knob(words="requests/min", value=per_minute, low=1, high=3 * per_minute),
            "prompt_tokens": Knob(words="prompt tokens", value=min(_PROMPT, longest), low=1, high=longest),
            "output_tokens": Knob(words="answer, mean", value=min(_ANSWER, longest // 2), low=1, high=longest // 2),
            "rows": Knob(words="rows", value=engine.rows, low=1, high=engine.rows),
            "cache_tokens": Knob(
                words="cache, tokens", value=engine.cache_tokens, low=block, high=engine.cache_tokens, step=block
            ),
            "step_tokens": Knob(
                words="tokens of a step", value=engine.step_tokens or context, low=8,
                high=max(512, engine.step_tokens), step=8,
            ),
        }  # fmt: skip


def _speed(run: GenerationRun) -> str:
    kept = f"{percent(float(run.kept.mean()))} of {len(run.frame)} requests"
    return f"{number(run.output_tokens_per_s)} tokens/s; {kept}"
