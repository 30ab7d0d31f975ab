"""The same requests to one language model in each way of batching that a repository holds, one after the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from accel_lib.formatting import listed, times
from accel_lib.load.generation import generation_load_test
from accel_lib.load.generation_results import GenerationLoadRun
from accel_lib.load.lengths import Lengths
from accel_lib.measurement import Result, to_frame
from accel_lib.triton.batching_modes import BATCHING_MODES
from accel_lib.triton.server import Server

_TIE = 0.1  # one run each: differences below that are not told


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ModeComparison(Result):
    """What `compare_modes` measured; `frame` has a row a mode, `runs` the run of each.

    Its columns: ``setting``, ``tokens_per_s`` and ``speedup``, in units of the first mode; p50 and p95 of
    ``ttft_ms``; p50 of ``itl_ms``, which an answer that comes whole does not have.
    """

    runs: Mapping[str, GenerationLoadRun]

    @property
    def headline(self) -> str:
        """Tokens per second of each mode in units of the first; or that they are all the same."""
        gains: dict[str, float] = dict(zip(self.frame["setting"], self.frame["speedup"], strict=True))
        first, *others = gains
        if all(abs(gains[mode] - 1) <= _TIE for mode in others):
            return f"A tie: nothing differs from {first} batching by more than {_TIE:.0%} in tokens per second"
        said = listed([f"{mode} {times(gains[mode])}" for mode in others])
        return f"Tokens per second in units of {first} batching: {said}"

    @property
    def by_first_token(self) -> dict[str, GenerationLoadRun]:
        """The runs with their requests in the order in which they began to generate, for a figure."""
        order = ["first_token_s", "end_s"]
        return {mode: dataclasses.replace(run, frame=run.frame.sort_values(order)) for mode, run in self.runs.items()}

    def gain(self, mode: str = "continuous", over: str = "static") -> float:
        """Tokens per second of one mode over those of another."""
        return self.runs[mode].output_tokens_per_s / self.runs[over].output_tokens_per_s


def compare_modes(
    server: Server,
    *,
    output_tokens: Lengths,
    prompt_tokens: Lengths = 32,
    requests: int = 33,
    modes: tuple[str, ...] = BATCHING_MODES,
    seed: int = 0,
) -> ModeComparison:
    """Send requests all at once to each mode, with the same lengths, and time every token.

    Parameters
    ----------
    server
        Serves what `accel_lib.triton.write_batching_modes` wrote.
    output_tokens, prompt_tokens
        As for `accel_lib.generation_load_test`.
    requests
        How many. The first finds an idle server and starts alone or with few, so one more than fills whole batches.
    modes
        Which; the others are idle anyway.
    """
    runs = {
        mode: generation_load_test(
            server.model(mode),
            clients=requests,
            requests=requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            seed=seed,
        )
        for mode in modes
    }
    base = runs[modes[0]].output_tokens_per_s
    rows = [
        {
            "setting": mode,
            "tokens_per_s": run.output_tokens_per_s,
            "speedup": run.output_tokens_per_s / base,
            "ttft_p50_ms": run.percentile("ttft_ms", 50),
            "ttft_p95_ms": run.percentile("ttft_ms", 95),
            "itl_p50_ms": run.percentile("itl_ms", 50) or math.nan,  # 0 where an answer comes whole
        }
        for mode, run in runs.items()
    ]
    return ModeComparison(frame=to_frame(rows), runs=runs)
