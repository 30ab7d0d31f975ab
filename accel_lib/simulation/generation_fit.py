"""Fit the simulator of continuous batching to an engine: time its steps by rows, tokens in the cache and prompts."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from accel_lib.artifact import Artifact
from accel_lib.errors import AccelError, EngineError
from accel_lib.generate import Event, GenerationEngine, Limits, Sampling
from accel_lib.generate.open import open_generation
from accel_lib.generate.scheduler import Scheduler
from accel_lib.load.generation import generation_load_test
from accel_lib.models.generation_text import GenerationText
from accel_lib.progress import Progress
from accel_lib.simulation.generation import EngineSettings, SimulatedEngine
from accel_lib.simulation.generation_prediction import GenerationSimulator, kinds
from accel_lib.simulation.step_cost import Step, StepCost, fit_step_cost
from accel_lib.triton.client import ServedModel

_SHORT_PROMPT = 8
_ANSWER = 9  # of a short request: eight steps after its first token
_LONG_TOKENS = 1_024  # prompts in the cache together, where attention is to be timed
_MIXED = 2  # times as many requests as rows, of many lengths: what sets the level
_LONGEST_PROMPT, _LONGEST_ANSWER = 96, 64  # among them
_FREE = StepCost(knots=(1,), knot_ms=(1.0,), chosen=0.0, cached=0.0, pair=0.0)  # only to know what is in each step
_MANY = 1.5  # times the seconds that were asked for, after which even a first round ends

Requests = Sequence[tuple[int, int]]  # tokens of prompt and answer


def fit_generation_simulator(target: GenerationEngine | ServedModel, *, seconds: float = 15) -> GenerationSimulator:
    """Time an engine's steps, and fit what they cost: half a minute at most, in which nothing else should run.

    Parameters
    ----------
    target
        An engine in this process, open with as many rows as are to be predicted; or a served model: its artifact is
        opened in this process with the settings that it is served with, and what Triton adds to a step is measured.
    seconds
        How long to time; every kind of step is timed at least once, and for no longer than half as long again.

    Raises
    ------
    AccelError
        An engine whose steps are not what the simulator takes them for, as that of transformers, whose thread steps
        by itself; or a cache of less than 64 tokens.

    Examples
    --------
    >>> simulator = accel.fit_generation_simulator(server.model("generation"))  # doctest: +SKIP
    >>> simulator.predict(rate=2, output_tokens="exponential:64:160")  # doctest: +SKIP
    """
    if not isinstance(target, ServedModel):
        engine = target if isinstance(target, Scheduler) else Scheduler(target)
        return _under_its_threads(engine, _fit(engine, seconds))
    opened = open_generation(target.artifact, **_served_settings(target))
    try:
        simulator = _fit(opened, seconds)
    finally:
        opened.close()
    return _under_its_threads(target, dataclasses.replace(simulator, known_tokens=_template_tokens(target.artifact)))


def _fit(engine: Scheduler, seconds: float) -> GenerationSimulator:
    progress = Progress("Fitting the simulator")
    settings = _settings(engine.limits)
    context = engine.limits.context_tokens
    plan, mixed = _plan(settings, context), _mixed(settings, context)
    timed: list[tuple[Step, float]] = []
    _time(engine, plan[0], settings)  # warms up
    began = time.perf_counter()
    for number, requests in enumerate(itertools.cycle(plan)):
        spent = time.perf_counter() - began
        if spent > seconds and (number >= len(plan) or spent > _MANY * seconds):
            break
        progress.tick(f"{len(timed)} steps")
        timed += _time(engine, requests, settings)
    cost = fit_step_cost([step for step, _ in timed], [ms for _, ms in timed])
    level = _time(engine, mixed, settings)
    cost = cost.changed(factor=sum(ms for _, ms in level) / sum(cost.ms(step) for step, _ in level))
    progress.done(f"{len(timed)} steps")
    rows = [(s.rows, s.prompt_tokens, s.cached, ms, cost.ms(s)) for s, ms in timed]
    frame = pd.DataFrame(rows, columns=["rows", "prompt_tokens", "cached_tokens", "ms", "predicted_ms"])
    return GenerationSimulator(frame=kinds(frame), cost=cost, settings=settings, context_tokens=context)


def _under_its_threads(target: Scheduler | ServedModel, simulator: GenerationSimulator) -> GenerationSimulator:
    """What a step takes beside the engine: handing out tokens, and all that Triton does."""
    prompts, answers = zip(*_mixed(simulator.settings, simulator.context_tokens), strict=True)
    lengths: dict[str, Any] = {"prompt_tokens": prompts, "output_tokens": answers}
    run = generation_load_test(target, arrivals=np.zeros(len(prompts)), **lengths)
    sent: dict[str, Any] = {name: run.frame[name].tolist() for name in lengths}
    guess = simulator.predict(arrivals=run.frame["intended_s"].to_numpy(), **sent)
    more_s = float(run.frame["end_s"].max() - guess.frame["end_s"].max())
    cost = simulator.cost.changed(more_ms=max(0.0, 1e3 * more_s / float(guess.timeline["steps"].sum())))
    return dataclasses.replace(simulator, cost=cost)


def _template_tokens(artifact: Artifact) -> int:
    """Tokens with which all chats begin, and which OpenVINO reads once."""
    text = GenerationText(artifact.folder, artifact.manifest)
    if artifact.manifest.format != "openvino" or text.chat_template is None:
        return 0
    chats = [text.chat_ids([{"role": "user", "content": words}]) for words in ("a", "9")]
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*chats, strict=False)))


def _served_settings(served: ServedModel) -> dict[str, Any]:
    """The engine's settings in the model's configuration, where it has some."""
    values = {name: getattr(served.config, name) for name in ("rows", "cache_tokens", "step_tokens", "threads")}
    return {name: value for name, value in values.items() if value is not None}


def _settings(limits: Limits) -> EngineSettings:
    return EngineSettings(
        rows=limits.rows,
        cache_tokens=limits.cache_tokens,
        block_tokens=limits.block_tokens,
        step_tokens=limits.step_tokens,
    )


def _plan(settings: EngineSettings, context_tokens: int) -> list[Requests]:
    """Requests that come at once: by rows, by what is in the cache, by prompts, and prompts beside rows."""
    counts = [rows for rows in _doubling(settings.rows) if _fits(rows, _SHORT_PROMPT + _ANSWER, settings)]
    longest = min(_LONG_TOKENS, context_tokens - _ANSWER)
    plan: list[Requests] = [[(_SHORT_PROMPT, _ANSWER)] * rows for rows in counts]
    for rows in {1, *counts[-1:]}:
        prompt = longest // rows
        if prompt > _SHORT_PROMPT and _fits(rows, prompt + _ANSWER, settings):
            plan.append([(prompt, _ANSWER)] * rows)
    chunk = settings.step_tokens or longest
    plan += [[(prompt, 1)] for prompt in _doubling(min(chunk, longest)) if _fits(1, prompt + 1, settings)]
    for rows in counts[1:]:  # a prompt that is read while the others generate
        others, long = [(_SHORT_PROMPT, _ANSWER)] * (rows - 1), (min(2 * chunk, longest), 1)
        if _fits(rows, _SHORT_PROMPT + _ANSWER, settings) and sum(map(sum, [*others, long])) <= settings.cache_tokens:
            plan.append([*others, long])
    if not plan:
        raise AccelError(
            "The cache is too small to time anything.", seen=f"{settings.cache_tokens} tokens", fix="64 or more"
        )
    return plan


def _mixed(settings: EngineSettings, context_tokens: int) -> Requests:
    """More requests than rows, of many lengths."""
    rng = np.random.default_rng(0)
    most = min(context_tokens, settings.cache_tokens) // 3
    count = _MIXED * settings.rows
    prompts = rng.integers(4, max(5, min(_LONGEST_PROMPT, most)), count).tolist()
    answers = np.clip(rng.exponential(24, count), 2, max(2, min(_LONGEST_ANSWER, most))).astype(int).tolist()
    return list(zip(prompts, answers, strict=True))


def _doubling(most: int) -> list[int]:
    return sorted({*itertools.takewhile(lambda n: n < most, (1 << i for i in range(most.bit_length()))), most})


def _fits(rows: int, tokens: int, settings: EngineSettings) -> bool:
    return rows * settings.needed(tokens, 0) <= settings.cache_tokens


def _time(engine: Scheduler, requests: Requests, settings: EngineSettings) -> list[tuple[Step, float]]:
    """Let requests run that come at once, and time each step, beside what the simulation says is in it."""
    planned = SimulatedEngine(
        _FREE,
        settings,
        arrivals_s=[0.0] * len(requests),
        prompt_tokens=[prompt for prompt, _ in requests],
        output_tokens=[answer for _, answer in requests],
    ).run()
    steps = list(_single(stretch.step for stretch in planned.stretches))
    rng = np.random.default_rng(time.perf_counter_ns())  # other tokens each time, so that no prefix is known
    for index, (prompt, answer) in enumerate(requests):
        ids = rng.integers(engine.limits.vocabulary // 2, engine.limits.vocabulary, prompt).tolist()
        engine.add(f"timed {index}", ids, Sampling(max_tokens=answer, temperature=0, ignore_eos=True))
    taken: list[float] = []
    try:
        while not engine.idle:
            began = time.perf_counter()
            events = engine.step()
            taken.append(1e3 * (time.perf_counter() - began))
            _check(events, len(taken), steps)
    finally:
        for index in range(len(requests)):
            engine.cancel(f"timed {index}")
        while not engine.idle:
            engine.step()
    return list(zip(steps, taken, strict=True))


def _single(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        for more in range(step.count):
            yield Step(step.rows, step.prompt_tokens, step.ended_prompts, step.cached + more * step.rows, step.pairs)


def _check(events: Sequence[Event], number: int, steps: Sequence[Step]) -> None:
    """Whether a step gave as many tokens as were expected of it."""
    errors = [event.error for event in events if event.error]
    if errors:
        raise EngineError("The engine failed while it was timed.", seen=errors[0], fix="open it again")
    given = [len(event.token_ids) for event in events]
    expected = steps[number - 1].rows + steps[number - 1].ended_prompts if number <= len(steps) else 0
    if given != [1] * expected or number > len(steps):
        raise AccelError(
            "This engine does not step as the simulator does.",
            seen=f"step {number} gave {sum(given)} tokens to {len(given)} requests, expected {expected} to as many",
            fix="fit it to an engine that computes a token of each row in a step, as OpenVINOEngine does",
        )
