"""Put load on what generates, and time every token: a model in Triton, a gateway, or an engine in this process.

Requests are serialized beforehand and sent from an event loop in a thread of its own; what came is parsed afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.artifact import Artifact
from accel_lib.errors import AccelError, RequestError
from accel_lib.generate import Sampling
from accel_lib.load.engine_streams import EngineTarget
from accel_lib.load.gateway_streams import GatewayTarget
from accel_lib.load.generation_results import GenerationLoadRun
from accel_lib.load.generator import Generator, Reply
from accel_lib.load.lengths import Lengths, draw
from accel_lib.load.prompts import LoadPrompt, make_prompts
from accel_lib.load.runner import due_times, watch_progress
from accel_lib.load.streams import Target, Tokens
from accel_lib.load.triton_streams import TritonTarget
from accel_lib.measurement import to_frame
from accel_lib.triton.client import ServedModel

_PROMPTS = 1_024  # of a closed loop that goes on for a time; they are sent again if they do not suffice
_SECONDS = 10.0
_CLIENTS = 8
_DRAIN_S = 60.0
_WARMUP_TOKENS = 2


def generation_load_test(
    target: Any,
    *,
    rate: float | None = None,
    clients: int | None = None,
    arrivals: ArrayLike | None = None,
    requests: int | None = None,
    seconds: float | None = None,
    prompt_tokens: Lengths = 128,
    output_tokens: Lengths = 64,
    shared_prefix_tokens: int = 0,
    forced: bool = True,
    ttft_ms: float = math.inf,
    itl_ms: float = math.inf,
    timeout_s: float | None = None,
    warmup: int = 1,
    model: str = "generation",
    key: str = "",
    artifact: Artifact | None = None,
    seed: int = 0,
) -> GenerationLoadRun:
    """Ask for tokens and measure how they come.

    With `clients` it is a closed loop: each waits for the end of its answer before it asks again, so a slow server gets
    fewer requests. With `rate` or `arrivals` it is an open loop: requests are due at given times, as from independent
    callers, and the time to the first token counts from then.

    Parameters
    ----------
    target
        A served model that generates; a running gateway, or the URL of one that speaks OpenAI's protocol; or an engine
        in this process (`accel_lib.generate`), which stays open.
    rate
        Open loop: requests/s on average, Poisson.
    clients
        Closed loop: requests in flight at any time; 8 where nothing else is asked for.
    arrivals
        Open loop: seconds from the start at which requests are due.
    requests, seconds
        How many requests, or for how long they are due: 10 s unless one is given. What has begun is waited for.
    prompt_tokens, output_tokens
        A number, a tuple of two (uniform), ``"exponential:64"`` or ``"exponential:64:160"`` (mean and most), or numbers
        to take in turn. A prompt's include the chat template's.
    shared_prefix_tokens
        Tokens, after the template's, with which all prompts begin; the rest differs, also from those of other runs.
    forced
        Generate exactly `output_tokens`; otherwise at most that many.
    ttft_ms, itl_ms
        Targets for the goodput: to a request's first token, and between its tokens on average.
    timeout_s
        How long a client waits for the end of an answer.
    warmup
        Short requests before the measurement, one after the other.
    model, key
        What a gateway calls the model, and the key that it takes; a gateway that runs here knows its key.
    artifact
        Whose tokenizer cuts the prompts, for an engine or a gateway. Without one an engine gets token ids by chance,
        and a gateway's prompts are cut by characters, to about the wanted length.
    seed
        Of the arrivals and the lengths: the same seed gives the same ones. The texts are new in each run.

    Returns
    -------
    GenerationLoadRun

    Raises
    ------
    RequestError
        Not one request succeeded: with the first one's cause.

    Examples
    --------
    >>> run = accel.generation_load_test(server.model("generation"), clients=8, requests=32)  # doctest: +SKIP
    >>> accel.generation_load_test(gateway, rate=2, seconds=20, output_tokens="exponential:64")  # doctest: +SKIP
    """
    _check(rate, clients, arrivals, requests, seconds, warmup)
    opened = _open(target, key=key, model=model, artifact=artifact)
    due = _due(rate, arrivals, requests, seconds, seed)
    count = len(due) if due is not None else requests or _PROMPTS
    random = [np.random.default_rng((seed, stream)) for stream in range(2)]
    lengths, outputs = draw(prompt_tokens, count, random[0]), draw(output_tokens, count, random[1])
    sizes = [(int(lengths.min()), _WARMUP_TOKENS)] * warmup + list(zip(lengths.tolist(), outputs.tolist(), strict=True))
    prompts, payloads = _requests(opened, sizes, shared_prefix_tokens, forced)
    if warmup:
        _warm_up(opened, payloads[:warmup])
    generator = Generator(
        opened.url,
        payloads[warmup:],
        concurrency=clients or _CLIENTS,
        schedule_s=None if due is None else due.tolist(),
        protocol=opened.connect,
        timeout_s=timeout_s,
        requests=requests,
        drain_s=_DRAIN_S,
    )
    sent_s = _run(generator, due, None if requests else seconds or _SECONDS)
    frame, pieces = _tables(opened, generator, prompts[warmup:])
    offered_s = sent_s
    if rate is not None:
        offered_s = requests / rate if requests else seconds or _SECONDS
    return GenerationLoadRun(
        frame=frame,
        tokens=pieces,
        clients=0 if due is not None else clients or _CLIENTS,
        offered=math.nan if due is None else len(due) / offered_s,
        offered_s=offered_s,
        seconds=max(float(frame["end_s"].max()), 1e-9),
        generator_busy=generator.busy_s / max(generator.ended_s - generator.began_s, 1e-9),
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        stopped=opened.read(None, generator.stopped).error if generator.stopped else "",
    )


def _open(target: Any, *, key: str, model: str, artifact: Artifact | None) -> Target:
    if isinstance(target, ServedModel):
        return TritonTarget(target)
    if isinstance(target, str):
        return GatewayTarget(target, key=key, model=model, artifact=artifact)
    if hasattr(target, "url") and hasattr(target, "key"):
        return GatewayTarget(target.url, key=target.key, model=model, artifact=artifact)
    if hasattr(target, "step") and hasattr(target, "limits"):
        return EngineTarget(target, artifact)
    raise AccelError(
        "Nothing that generates can be asked this way.",
        seen=type(target).__name__,
        fix='pass server.model("generation"), a gateway or its URL, or an engine of accel_lib.generate',
    )


def _check(
    rate: float | None,
    clients: int | None,
    arrivals: ArrayLike | None,
    requests: int | None,
    seconds: float | None,
    warmup: int,
) -> None:
    fix = "generation_load_test(target, clients=8, requests=32), or generation_load_test(target, rate=2, seconds=20)"
    if sum(each is not None for each in (rate, clients, arrivals)) > 1:
        raise AccelError("A load is a closed loop or an open one.", seen="rate, clients or arrivals together", fix=fix)
    if sum(each is not None for each in (arrivals, requests, seconds)) > 1:
        raise AccelError("A load has one end.", seen="arrivals, requests or seconds together", fix=fix)
    if not all(each is None or 0 < each < math.inf for each in (rate, clients, requests, seconds)) or warmup < 0:
        asked = f"rate={rate}, clients={clients}, requests={requests}, seconds={seconds}, warmup={warmup}"
        raise AccelError("A load needs requests and time.", seen=asked, fix=fix)


def _due(
    rate: float | None, arrivals: ArrayLike | None, requests: int | None, seconds: float | None, seed: int
) -> NDArray[np.float64] | None:
    if rate is None or requests is None:
        return due_times(rate, arrivals, seconds or _SECONDS, seed)
    # Given their number, the arrivals of a Poisson process are uniform: that many at exactly this rate.
    return np.sort(np.random.default_rng(seed).uniform(0, requests / rate, requests))


def _requests(
    target: Target, sizes: Sequence[tuple[int, int]], shared_prefix_tokens: int, forced: bool
) -> tuple[list[LoadPrompt], list[Any]]:
    """Prompts of these numbers of tokens, and what is sent for them; beside each the tokens to generate."""
    lengths = np.array([length for length, _ in sizes], dtype=np.int64)
    fresh = np.random.default_rng()  # texts that no earlier run had
    prompts = make_prompts(target.source(), lengths, shared_prefix_tokens=shared_prefix_tokens, random=fresh)
    payloads = [
        target.payload(prompt, Sampling(max_tokens=tokens, temperature=0, ignore_eos=forced))
        for prompt, (_, tokens) in zip(prompts, sizes, strict=True)
    ]
    return prompts, payloads


def _warm_up(target: Target, payloads: Sequence[Any]) -> None:
    generator = Generator(target.url, payloads, protocol=target.connect, requests=len(payloads), drain_s=_DRAIN_S)
    with generator:
        generator.finish()


def _run(generator: Generator, due: NDArray[np.float64] | None, seconds: float | None) -> float:
    """Let it run to its end; for how many seconds requests were sent."""
    with generator:
        if due is not None:
            watch_progress(generator, float(due[-1]))
            generator.finish()
            return max(float(due[-1]), 1e-9)
        watch_progress(generator, math.inf if seconds is None else seconds)
    return generator.ended_s - generator.began_s if seconds is None else seconds


def _tables(target: Target, generator: Generator, prompts: Sequence[LoadPrompt]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a request, and one row a piece of an answer; raises `RequestError` where nothing was answered."""
    rows: list[dict[str, Any]] = []
    pieces: list[tuple[int, float, int]] = []
    for reply in sorted(generator.replies, key=lambda reply: reply.due_s):
        got = target.read(reply.answer, reply.refusal)
        times = [at - generator.began_s for at in got.times_s]
        pieces += [(len(rows), at, count) for at, count in zip(times, got.counts, strict=True)]
        rows.append(_row(got, reply, generator.began_s, len(prompts[reply.index].token_ids)))
    if all(row["error"] for row in rows):
        cause = rows[0]["error"] if rows else f"nothing came from {target.name}"
        fix = "ask for what it takes: fewer tokens, a model that it serves; or measure for longer"
        raise RequestError("Not one request was answered.", seen=cause, fix=fix)
    return to_frame(rows), pd.DataFrame(pieces, columns=["request", "time_s", "tokens"])


def _row(got: Tokens, reply: Reply, began_s: float, prompt_tokens: int) -> dict[str, Any]:
    first = got.times_s[0] if got.times_s else math.nan
    end = reply.ended_s if math.isnan(got.end_s) else got.end_s
    tokens = sum(got.counts)
    return {
        "intended_s": reply.due_s - began_s,
        "sent_s": reply.sent_s - began_s,
        "first_token_s": first - began_s,
        "end_s": end - began_s,
        "prompt_tokens": got.prompt_tokens or prompt_tokens,
        "output_tokens": tokens,
        "ttft_ms": (first - reply.due_s) * 1e3,
        "itl_ms": (end - first) / (tokens - 1) * 1e3 if tokens > 1 else math.nan,
        "latency_ms": (end - reply.due_s) * 1e3,
        "error": got.error,
    }
