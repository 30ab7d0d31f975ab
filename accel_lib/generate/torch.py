"""Our own decoder in PyTorch behind the protocol: the engine for GPUs, in CUDA graphs.

Each `step` starts the next passes (a chunk of prompts, then a token for each running row) before it reads what the last
ones chose, so the GPU never waits for the host. A text's end is therefore seen a pass late, and that pass's token is
dropped; its row harms no other, as whatever takes its pages is computed after it. It runs on a CPU too, without graphs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch

from accel_lib.engines.cuda_graphs import supported
from accel_lib.engines.oom import out_of_memory
from accel_lib.engines.torch import find_device
from accel_lib.errors import EngineError, RequestError
from accel_lib.generate import Event, Finish, Limits, Sampling, Stats, TokenLogprob
from accel_lib.generate.passes import BLOCK_TOKENS, Answer, Passes, Piece, in_blocks
from accel_lib.generate.requests import cache_tokens as tokens_of
from accel_lib.generate.requests import check_request
from accel_lib.generate.sampler import TOP_LOGPROBS, Chosen, Mode
from accel_lib.models import paged_operations
from accel_lib.models.decoder import Decoder
from accel_lib.models.files import refused
from accel_lib.models.paged_decoder import PAGE_TOKENS, Operations, PagedDecoder, cache_bytes_per_token

if TYPE_CHECKING:
    from accel_lib.models.generation import GenerationModel

_STEP_TOKENS = 2048
_SHARE = 0.5  # of the GPU's free memory, for the cache
_PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp16", "bf16", "fp32")}
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass(eq=False)
class _Row:
    key: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    stop_ids: frozenset[int]
    slot: int
    pages: list[int]
    mode: Mode
    computed: int = 0  # of the prompt
    started: int = 0  # passes that choose a token for it
    made: int = 0  # tokens that were read
    ended: bool = False


class TorchEngine:
    """Continuous batching in PyTorch.

    Parameters
    ----------
    model
        A causal language model of a family that `accel_lib.models.decoder` computes; its network stays as it is.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    precision
        ``"fp16"``, ``"bf16"`` or ``"fp32"`` on a GPU; None takes fp16 there, and fp32 on a CPU.
    rows
        Requests at once.
    cache_tokens
        Tokens in the cache, rounded down to pages of 32; None takes half of the GPU's free memory, at most what the
        rows can hold.
    step_tokens
        Most tokens of prompts between two tokens of those that run: a long prompt is cut.

    Raises
    ------
    EngineError
        The precision does not run there, or the GPU's memory is too small.
    ModelError
        The model's family, or a setting of it, is computed otherwise.
    """

    def __init__(
        self,
        model: GenerationModel,
        *,
        device: str = "cuda",
        precision: str | None = None,
        rows: int = 8,
        cache_tokens: int | None = None,
        step_tokens: int = _STEP_TOKENS,
    ) -> None:
        self.device = find_device(device)
        allowed = _PRECISIONS[self.device.partition(":")[0]]
        self.precision = precision or allowed[0]
        if self.precision not in allowed:
            raise EngineError(
                "PyTorch does not generate in this precision there.",
                seen=f"{self.precision} on {self.device}",
                fix=f"one of: {', '.join(allowed)}",
            )
        self.name = f"PyTorch {self.precision.upper()}"
        self.stop_ids = model.stop_ids
        try:
            pages = self._opened(model, rows, cache_tokens, step_tokens)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise EngineError(
                "The GPU's memory does not hold this model and its cache.",
                seen=str(error).splitlines()[0],
                fix="open it with fewer cache_tokens, or fewer rows",
            ) from error
        self.limits = Limits(
            rows=rows,
            cache_tokens=pages * PAGE_TOKENS,
            block_tokens=PAGE_TOKENS,
            context_tokens=model.context_tokens,
            vocabulary=model.vocabulary,
            unsupported=frozenset({"json_schema"}),
            top_logprobs=min(TOP_LOGPROBS, model.vocabulary),
            step_tokens=self._passes.step_tokens + rows,
        )
        self._pages = list(range(1, pages + 1))
        self._slots = list(range(rows))
        self._rows: dict[str, _Row] = {}
        self._new: list[_Row] = []
        self._events: list[Event] = []
        self._pending: list[tuple[list[_Row], Answer]] = []
        self._stats = Stats(
            running=0, waiting=0, cache_use=0.0, steps=0, prompt_tokens=0, cached_tokens=0, generated_tokens=0
        )

    def _opened(self, model: GenerationModel, rows: int, cache_tokens: int | None, step_tokens: int) -> int:
        """Weights and cache on the device; returns the pages of the cache."""
        decoder = Decoder(model.network, model.folder, context_tokens=model.context_tokens)
        if decoder.beyond_llama:
            fix = "run it as it is: TransformersEngine(model); or accel.to_onnx(model)"
            raise refused(model.folder, ", ".join(decoder.beyond_llama), fix=fix)
        dtype, context = _TYPES[self.precision], model.context_tokens
        most = rows * -(-context // PAGE_TOKENS)
        pages = most if cache_tokens is None else cache_tokens // PAGE_TOKENS
        if cache_tokens is None and self.device != "cpu":
            free = _SHARE * torch.cuda.mem_get_info(self.device)[0]
            pages = min(most, int(free / cache_bytes_per_token(decoder, dtype)) // PAGE_TOKENS)
        pages = max(1, pages)
        with torch.inference_mode():
            paged = PagedDecoder(
                decoder,
                pages=pages + 1,
                context_tokens=context,
                device=self.device,
                dtype=dtype,
                operations=_operations(self.device),
            )
            step_tokens = max(BLOCK_TOKENS, step_tokens // BLOCK_TOKENS * BLOCK_TOKENS)
            self._passes = Passes(paged, slots=rows, step_tokens=step_tokens, context_tokens=context)
        with self._passes.running():
            self._passes.warm_up()
        return pages

    def add(self, key: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take a request; raises `RequestError` for one that it does not hold or honour."""
        check_request(self.limits, prompt_ids, sampling)
        if key in self._rows:
            raise RequestError("A request of that key is live.", seen=key, fix="give each request a key of its own")
        needed = tokens_of(self.limits, len(prompt_ids), sampling.max_tokens) // self.limits.block_tokens
        if not self._slots or needed > len(self._pages):
            raise RequestError(
                "The engine is full.",
                seen=f"{len(self._slots)} rows and {len(self._pages)} pages are free, {needed} pages are needed",
                fix="put a Scheduler above it: Scheduler(engine)",
            )
        stops = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else frozenset(self.stop_ids))
        pages = self._pages[-needed:]
        del self._pages[-needed:]
        row = _Row(key, tuple(prompt_ids), sampling, stops, self._slots.pop(), pages, Mode.of(sampling))
        self._rows[key] = row
        self._new.append(row)

    def cancel(self, key: str) -> None:
        """End a request; its event comes with the next step."""
        if key in self._rows:
            self._end(self._rows[key])
            self._events.append(Event(key=key, finish="cancelled"))

    def _end(self, row: _Row) -> None:
        """Free a row; a pass that still computes it comes before any that its pages are given to."""
        row.ended = True
        del self._rows[row.key]
        self._slots.append(row.slot)
        self._pages += row.pages

    def step(self) -> list[Event]:
        """Start the next passes, and return what the last ones chose."""
        events, self._events = self._events, []
        try:
            with self._passes.running():
                started = self._started()
                read, self._pending = self._pending, started
                for rows, answer in read:
                    events += self._read(rows, answer.wait())
        except RuntimeError as error:
            raise EngineError(
                "PyTorch failed in a step.",
                seen=str(error).splitlines()[0],
                fix="close this engine and open another one",
            ) from error
        new = sum(len(event.token_ids) for event in events)
        self._stats = dataclasses.replace(
            self._stats, steps=self._stats.steps + 1, generated_tokens=self._stats.generated_tokens + new
        )
        return events

    def _started(self) -> list[tuple[list[_Row], Answer]]:
        new, self._new = [row for row in self._new if not row.ended], []
        if new:
            self._passes.start(
                [row.slot for row in new],
                [row.pages for row in new],
                [row.prompt_ids for row in new],
                [row.sampling for row in new],
                [row.stop_ids for row in new],
            )
        rows = list(self._rows.values())
        started = self._prompts([row for row in rows if row.computed < len(row.prompt_ids)])
        running = [row for row in rows if row.started and row.started < row.sampling.max_tokens]
        if running:
            context = max(len(row.prompt_ids) + row.started for row in running)
            answer = self._passes.decode([row.slot for row in running], context, _mode(running))
            started.append((running, answer))
        for row in running:
            row.started += 1
        return started

    def _prompts(self, rows: list[_Row]) -> list[tuple[list[_Row], Answer]]:
        """One pass over as many tokens of prompts as it takes, first come, first served."""
        room, pieces, ready = self._passes.step_tokens, [], []
        for row in rows:
            ids = row.prompt_ids[row.computed : row.computed + room]
            if not ids:
                break
            pieces.append(Piece(row.slot, ids, row.computed))
            row.computed += len(ids)
            room -= in_blocks(len(ids))
            ready.append(row if row.computed == len(row.prompt_ids) else None)
        if not pieces:
            return []
        ends = self._passes.prompt(pieces)
        whole = [(row, end) for row, end in zip(ready, ends, strict=True) if row is not None]
        if not whole:
            return []
        done = [row for row, _ in whole]
        answer = self._passes.choose([row.slot for row in done], [end for _, end in whole], _mode(done))
        for row in done:
            row.started = 1
        prompts = sum(len(row.prompt_ids) for row in done)
        self._stats = dataclasses.replace(self._stats, prompt_tokens=self._stats.prompt_tokens + prompts)
        return [(done, answer)]

    def _read(self, rows: list[_Row], chosen: Chosen) -> list[Event]:
        ids = chosen.ids.tolist()
        return [self._event(place, row, ids[place], chosen) for place, row in enumerate(rows) if not row.ended]

    def _event(self, place: int, row: _Row, token: int, chosen: Chosen) -> Event:
        if token < 0:
            self._end(row)
            return Event(
                key=row.key,
                error=f"The network's output is no number in {self.precision}; open the engine with another precision.",
            )
        row.made += 1
        finish: Finish | None = None
        if token in row.stop_ids:
            finish = "stop"
        elif row.made == row.sampling.max_tokens:
            finish = "length"
        if finish:
            self._end(row)
        logprobs = () if row.sampling.logprobs is None else (_logprob(place, token, row.sampling.logprobs, chosen),)
        return Event(key=row.key, token_ids=(token,), logprobs=logprobs, finish=finish)

    def stats(self) -> Stats:
        """Counts since the start; the cache is what the running requests have reserved."""
        used = 1 - len(self._pages) * self.limits.block_tokens / self.limits.cache_tokens
        return dataclasses.replace(self._stats, running=len(self._rows), cache_use=used)

    def close(self) -> None:
        """Give memory back."""
        self._rows.clear()
        self._new, self._pending = [], []
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        del self._passes
        if self.device != "cpu":
            torch.cuda.empty_cache()


def _operations(device: str) -> Operations:
    """Kernels where they run: on GPUs of compute capability 8.0 and up, with PyTorch's own compiler of them."""
    if not supported(device) or importlib.util.find_spec("triton") is None:
        return cast("Operations", paged_operations)
    from accel_lib.models import paged_kernels

    return cast("Operations", paged_kernels)


def _mode(rows: Sequence[_Row]) -> Mode:
    return max(row.mode for row in rows)


def _logprob(place: int, token: int, alternatives: int, chosen: Chosen) -> TokenLogprob:
    """Of the batch's rows, the one at `place`."""
    own, ids, values = (cast("torch.Tensor", each)[place] for each in chosen[1:])
    top = tuple(zip(ids[:alternatives].tolist(), values[:alternatives].tolist(), strict=True))
    return TokenLogprob(token_id=token, logprob=float(own), top=top)
