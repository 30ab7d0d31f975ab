"""Batches cut by padded tokens: texts of similar length together, and never more work than a budget allows."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.engines.oom import out_of_memory, remember_safe_tokens, safe_tokens
from accel_lib.errors import EngineError
from accel_lib.ragged import SEGMENTS, Ragged

if TYPE_CHECKING:
    from accel_lib.engines import Engine

CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 16_384

# What an engine call costs beside its real tokens, in the time of a token's products: by itself, for each place in the
# rectangle of its rows around attention, and for each pair of places in a row. Fitted to 52 batches of all-MiniLM-L6-v2
# on one core with AVX-512: 35, 0.27 and 0.0029 in FP32 (7% mean error), 51, 0.92 and 0.0063 in INT8 (11%).
_CALL, _PLACE, _PAIR = 40.0, 0.5, 0.004


def plan_batches(
    lengths: NDArray[np.int64],
    *,
    max_batch_tokens: int,
    max_batch_size: int | None = None,
    sort: bool = True,
    packed: bool = False,
    padded_attention: bool = False,
) -> list[NDArray[np.int64]]:
    """Cut texts into batches of at most `max_batch_tokens` tokens, padding counted.

    Parameters
    ----------
    lengths
        Tokens a text, int64 ``[n]``.
    max_batch_tokens
        Budget for rows times longest row. A text that alone exceeds it gets a batch of its own.
    max_batch_size
        Most rows in one batch.
    sort
        Put texts of similar length together; otherwise they stay in the order they came.
    packed
        Count real tokens only, for graphs that compute no padding.
    padded_attention
        For packed graphs whose attention pads rows to the longest: where texts are sorted, also cut before one that is
        so much longer than those before it that their attention would cost more than another call.

    Returns
    -------
    list of int64 arrays
        Indices into `lengths`; every index stands in exactly one batch.
    """
    order = np.argsort(lengths, kind="stable") if sort else np.arange(len(lengths))
    most = max_batch_size or len(lengths)
    if padded_attention and sort:
        ends = _cheapest(lengths[order], max_batch_tokens, most)
        return np.split(order, ends[:-1]) if ends else []
    batches: list[NDArray[np.int64]] = []
    start, widest, real = 0, 0, 0
    for position, length in enumerate(lengths[order].tolist()):
        widest, real, rows = max(widest, length), real + length, position - start + 1
        if rows > 1 and ((real if packed else rows * widest) > max_batch_tokens or rows > most):
            batches.append(order[start:position])
            start, widest, real = position, length, length
    return [*batches, order[start:]] if len(order) else []


def _cheapest(lengths: NDArray[np.int64], max_batch_tokens: int, most: int) -> list[int]:
    """Where to end the batches of ascending lengths so that all calls together cost least, the last end included."""
    until = np.concatenate([[0], np.cumsum(lengths)])
    cost, start = np.zeros(len(lengths) + 1), np.zeros(len(lengths) + 1, dtype=np.int64)
    for end, longest in enumerate(lengths.tolist(), start=1):
        fits = int(np.searchsorted(until, until[end] - max_batch_tokens))
        first = min(max(fits, end - most), end - 1)
        rows = end - np.arange(first, end)
        costs = cost[first:end] + rows * (longest * (_PLACE + _PAIR * longest))
        best = int(costs.argmin())
        cost[end], start[end] = costs[best] + _CALL, first + best
    ends = [len(lengths)] if len(lengths) else []
    while ends and start[ends[0]]:
        ends.insert(0, int(start[ends[0]]))
    return ends


def batch_tokens(device: str) -> int:
    """Tokens of one batch that suit a device: on a CPU as many as its caches hold, on a GPU enough to fill it.

    Packed, more than 512 make no difference, as attention decides where to cut: ``make bench`` tries 256 to 4,096.
    """
    return CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS


def padding_share(lengths: NDArray[np.int64], batches: Sequence[NDArray[np.int64]]) -> float:
    """Share of the computed tokens that are padding, 0 to 1."""
    computed = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    real = sum(int(lengths[batch].sum()) for batch in batches)
    return 1 - real / computed if computed else 0.0


def check_batch(
    input_ids: NDArray[np.int64],
    attention_mask: NDArray[np.int64],
    max_length: int,
    token_type_ids: NDArray[np.int64] | None = None,
) -> None:
    """Refuse a batch whose shapes differ, that is not ``[batch, sequence]`` of int64, or that is too wide.

    Raises
    ------
    EngineError
        With the shapes and types that were seen.
    """
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    given |= {} if token_type_ids is None else {SEGMENTS: token_type_ids}
    shape = input_ids.shape
    fits = len(shape) == 2 and 0 < shape[1] <= max_length
    if not fits or any(array.shape != shape or array.dtype != np.int64 for array in given.values()):
        raise EngineError(
            "The batch does not fit the model.",
            seen=", ".join(f"{name} {array.dtype} {array.shape}" for name, array in given.items()),
            fix=f"give each as int64 [batch, sequence], 1 to {max_length} tokens wide",
        )


def run_batches(
    engine: Engine,
    rows: Sequence[NDArray[np.int64]] | Ragged,
    pad_id: int | None = None,
    *,
    max_batch_tokens: int | None = None,
    max_batch_size: int | None = None,
    sort: bool = True,
    side_by_side: bool = True,
) -> NDArray[np.float32]:
    """Run ragged rows of token ids through an engine, in batches that its memory holds.

    A batch that runs out of memory is cut in halves, and the engine gets none as large again: `safe_tokens` tells.

    Parameters
    ----------
    engine
        One that has a `max_batch_size` of its own (TensorRT, from its profiles) is never given more rows; for one that
        is `packed`, tokens are counted without padding; one that has `run_ragged` is given none, another one on a CPU,
        which pads around attention, gets long texts apart from short ones.
    rows
        One int64 array of token ids per text, or all of them concatenated; only those carry segment ids.
    pad_id
        Token that fills the shorter rows; None takes the engine's own. It is masked, but some heads look for it.
    max_batch_tokens, max_batch_size, sort
        As `plan_batches` takes them; None takes 512 tokens on a CPU, 16,384 on a GPU.
    side_by_side
        Let an engine that can (`run_on_one_core`) compute several batches of sorted texts at a time, each on one of its
        cores, which answers more than one after the other on all of them. Memory for its weights is needed twice.

    Returns
    -------
    float32 array ``[n, dimension]``
        In the order of `rows`.
    """
    held = rows if isinstance(rows, Ragged) else Ragged.from_rows(rows)
    filler = getattr(engine, "pad_id", 0) if pad_id is None else pad_id
    packed = getattr(engine, "packed", False)
    budget = max_batch_tokens or batch_tokens(engine.device)
    limits = [limit for limit in (max_batch_size, getattr(engine, "max_batch_size", None)) if limit]
    output = np.empty((len(rows), engine.dimension), dtype=np.float32)
    cut: dict[str, Any] = {"max_batch_size": min(limits, default=None), "sort": sort, "packed": packed}
    cut["padded_attention"] = packed and engine.device == "cpu" and not getattr(engine, "run_ragged", None)
    left = np.arange(len(rows))
    while len(left):
        tokens = min(budget, safe_tokens(engine) or budget)
        parts = plan_batches(held.lengths[left], max_batch_tokens=tokens, **cut)
        batches = [left[part] for part in parts]
        with _runs(engine, held, filler, batches, side_by_side=side_by_side and sort) as runs:
            left = _run_while_it_fits(engine, held, batches, runs, output)
    return output


@contextlib.contextmanager
def _runs(
    engine: Engine, rows: Ragged, pad_id: int, batches: Sequence[NDArray[np.int64]], *, side_by_side: bool
) -> Iterator[list[Callable[[], NDArray[np.float32]]]]:
    """A call for the answers of each batch: it computes them, or waits for those that a lane of the engine computes."""
    run = functools.partial(_run, engine, rows, pad_id)
    lanes = min(getattr(engine, "lanes", 1), len(batches)) if side_by_side else 1
    if lanes < 2:
        yield [functools.partial(run, batch) for batch in batches]
        return
    with ThreadPoolExecutor(lanes) as pool:
        # From the last, which is the longest where texts are sorted: what is left for the end is then soon done.
        futures = [pool.submit(run, batch, on_one_core=True) for batch in reversed(batches)][::-1]
        try:
            yield [future.result for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _run_while_it_fits(
    engine: Engine,
    rows: Ragged,
    batches: Sequence[NDArray[np.int64]],
    runs: Sequence[Callable[[], NDArray[np.float32]]],
    output: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Fill `output` batch by batch; rows that are left when one ran out of memory, with half of it remembered."""
    for number, (batch, run) in enumerate(zip(batches, runs, strict=True)):
        try:
            if len(batch) == len(rows):
                output[:] = run()
            else:
                output[batch] = run()
        except (EngineError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise EngineError(
                    "A single text does not fit into memory.",
                    seen=f"{rows.lengths[batch[0]]} tokens on {engine.device}",
                    fix="shorter texts, fewer instances of the model, or a smaller model",
                ) from error
        else:
            continue
        lengths = rows.lengths[batch]  # out of the handler, which held on to the failed run's memory
        tokens = lengths.sum() if getattr(engine, "packed", False) else len(batch) * lengths.max()
        remember_safe_tokens(engine, int(tokens) // 2)
        return np.concatenate(batches[number:])
    return np.empty(0, dtype=np.int64)


def _run(
    engine: Any, rows: Ragged, pad_id: int, batch: NDArray[np.int64], *, on_one_core: bool = False
) -> NDArray[np.float32]:
    part = rows if len(batch) == len(rows) else rows.take(batch)  # all of them: their order makes no difference
    if getattr(engine, "run_ragged", None):
        answers = engine.run_ragged(part)
    else:
        answers = (engine.run_on_one_core if on_one_core else engine.run)(*part.padded(pad_id))
    return np.asarray(answers, dtype=np.float32)
