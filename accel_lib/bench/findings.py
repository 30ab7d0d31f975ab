"""What a measurement says, computed from its tidy table: the same words would be wrong on another machine.

Every function takes a table and returns one sentence; intervals decide between a difference and none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.artifact import Profile
from accel_lib.formatting import listed, number, percent, times

_CLOSE_COSINE = 0.95
_FLAT = 1.25  # times the least: still the same time
BASELINE = "sentence-transformers"


def comparison(frame: pd.DataFrame) -> str:
    """Which candidate is fastest, by how much over its baseline, and what of the reference it keeps."""
    best = _row(frame[frame["over"] != ""], "sentences_per_s")
    ratio = times(best["speedup"], best["speedup_low"], best["speedup_high"])
    if best["speedup_low"] > 1:
        said = f"{best['name']} answers {ratio} as many sentences a second as {best['over']}"
    elif best["speedup_high"] < 1:
        said = f"Nothing here is faster than {best['over']}: {best['name']} answers {ratio} as many sentences a second"
    else:
        said = f"No significant difference in speed between {best['name']} and {best['over']}: {ratio}"
    return f"{said}, and {_kept(best)}"


def agreement(frame: pd.DataFrame) -> str:
    """What the embedding candidate that agrees least loses."""
    if frame["top10_overlap"].isna().any():
        worst = _row(frame, "cosine_mean", least=True)
        return f"{worst['name']} agrees least: a mean cosine of {_cosine(worst['cosine_mean'])} to the reference"
    worst = _row(frame, "top10_overlap", least=True)
    loss = 1 - worst["top10_overlap"]
    if loss <= 0:
        return "Every candidate keeps all of the ten nearest neighbours"
    if worst["cosine_mean"] < _CLOSE_COSINE:
        start = f"{worst['name']} falls to a mean cosine of {worst['cosine_mean']:.2f} and"
    else:
        start = f"{worst['name']}, at a mean cosine of {_cosine(worst['cosine_mean'])}, still"
    return f"{start} loses {percent(loss)} of the ten nearest neighbours"


def batching(frame: pd.DataFrame) -> str:
    """What the second strategy does to the first one's throughput, why, and which one is best."""
    first, second = frame.iloc[0], frame.iloc[1]
    ratio = times(second["speedup"], second["speedup_low"], second["speedup_high"])
    waste = f"{percent(second['padding'])} of the tokens it computes are padding"
    start = f"{second['strategy']}: {ratio} the throughput of {first['strategy']}"
    if second["speedup_high"] < 1:
        said = f"{start}, a loss; {waste}"
    elif second["speedup_low"] > 1:
        said = f"{start}, a gain, though {waste}" if second["padding"] > 0.1 else f"{start}, a gain"
    else:
        said = f"{start}, no significant difference; {waste}"
    best = _row(frame.iloc[1:], "sentences_per_s")
    if best["speedup_low"] <= 1:
        return f"{said}. No strategy beats {first['strategy']}"
    if best["strategy"] == second["strategy"]:
        return said
    return f"{said}. Best: {best['strategy']}, {times(best['speedup'], best['speedup_low'], best['speedup_high'])}"


def speedup(frame: pd.DataFrame) -> str:
    """Where over batch and length the candidate gains most and least."""
    most, least = _row(frame, "speedup"), _row(frame, "speedup", least=True)
    faster, slower = int((frame["speedup_low"] > 1).sum()), int((frame["speedup_high"] < 1).sum())
    names = f"{most['candidate']} against {most['baseline']}"
    ends = f"{times(most['speedup'])} at {_size(most)}, {times(least['speedup'])} at {_size(least)}"
    if not faster and not slower:
        return f"{names}: no significant difference at any size"
    if most["speedup_low"] <= least["speedup_high"]:
        return f"{names}: about {times(float(frame['speedup'].median()))} at every size"
    if not slower:
        return f"{names}: {ends}"
    return f"{names}: {ends}; faster at {faster} and slower at {slower} of {len(frame)} sizes"


def floor(frame: pd.DataFrame) -> str:
    """Up to which size a batch takes the baseline the same time, and what the smallest takes both."""
    work = frame["batch_size"] * frame["tokens"]
    slow = frame["baseline_ms"] > _FLAT * frame["baseline_ms"].min()
    level = frame[work < work[slow].min()] if slow.any() else frame
    smallest = frame.iloc[int(work.argmin())]
    names = f"{smallest['baseline']}", f"{smallest['candidate']}"
    least = f"{number(smallest['baseline_ms'])} ms"
    if (work[level.index].max() if len(level) else 0) < 4 * work.min():
        return f"{names[0]} has no floor here: from {least} on, more tokens take longer"
    limit, typical = work[level.index].max(), number(float(level["baseline_ms"].median()))
    start = f"{names[0]} takes about {typical} ms for any batch of up to {limit:,} tokens"
    return f"{start}; {names[1]} takes {number(smallest['candidate_ms'])} ms for the smallest"


def profiles(lengths: NDArray[np.int64], chosen: Sequence[Profile]) -> str:
    """Which share of the texts each optimization profile takes."""
    limits = sorted(profile.max[1] for profile in chosen)
    within = [float(np.mean(lengths <= limit)) for limit in limits]
    shares = np.diff([0.0, *within])
    parts = [f"{percent(float(share))} up to {limit} tokens" for limit, share in zip(limits, shares, strict=True)]
    over = f"; {percent(1 - within[-1])} of the texts are longer than any" if within[-1] < 1 else ""
    if len(limits) == 1:
        return f"One profile takes {percent(within[0])} of the texts, up to {limits[0]} tokens{over}"
    return f"{len(limits)} profiles share the texts: {listed(parts)}{over}"


def lengths(tokens: NDArray[np.int64], max_length: int) -> str:
    """How long half and nearly all of the texts are, and how many reach the model's limit."""
    half, most = (f"{np.percentile(tokens, q, method='higher'):.0f}" for q in (50, 99))
    reaching = float(np.mean(tokens >= max_length))
    end = f"{percent(reaching)} fill the model's {max_length}" if reaching else f"none fills the model's {max_length}"
    return f"Half of the texts have at most {half} tokens, 99% at most {most}; {end}"


def load(summary: pd.DataFrame, errors: Mapping[str, int], stopped: str = "", *, generator_bound: bool = False) -> str:
    """Throughput and latency of a run, what the time inside Triton went into, and what went wrong."""
    run = summary.iloc[0]
    fast = f"half are answered within {number(run['p50_ms'])} ms, 95% within {number(run['p95_ms'])} ms"
    said = f"{number(run['sentences_per_s'])} sentences/s {_asked(run)}: {fast}"
    if "queue_ms" in run:
        spent = {words: float(run[column]) for column, words in _SPENT.items()}
        most = max(spent, key=lambda words: spent[words])
        said += f"; {percent(spent[most] / sum(spent.values()))} of the time goes into {most}"
    if errors:
        kinds = listed([f"{count} × {cause.rstrip('.').lower()}" for cause, count in errors.items()])
        said += f". Failed: {kinds}"
    if generator_bound:
        said += ". The generator was the bottleneck, so this says nothing about the server's limit"
    return f"{said}. It ended early: {stopped}" if stopped else said


def _asked(run: pd.Series[Any]) -> str:
    if "offered_per_s" in run:
        return f"of {number(run['offered_per_s'])} sentences/s offered"
    return (
        f"with {'1 request' if run['concurrency'] == 1 else format(run['concurrency'], '.0f') + ' requests'} under way"
    )


_SPENT = {"queue_ms": "waiting in the queue", "compute_infer_ms": "the model", "client_ms": "client and transport"}


def batch_sizes(executions: pd.Series[Any]) -> str:
    """How many requests Triton ran at a time."""
    sizes = executions.index.to_numpy(dtype=float)
    requests = sizes * executions.to_numpy(dtype=float)
    mean = float(requests.sum() / executions.sum())
    if sizes.max() <= 1:
        return "Triton ran every request alone"
    alone = float(requests[sizes == 1].sum() / requests.sum())
    return f"Triton ran {number(mean)} requests at a time on average; {percent(alone)} of them ran alone"


def timeline(frame: pd.DataFrame) -> str:
    """What one request pays for being served, beside tokenizing and the model's own computing."""
    spent = frame.set_index("span")["ms"]
    total, computing, tokenizing = float(spent.sum()), float(spent["compute"]), float(spent["tokenize"])
    rest = spent.drop(["compute", "tokenize"])
    served = float(rest.sum())
    work = f"{number(computing)} ms in the model, {number(tokenizing)} ms tokenizing"
    cost = f"{number(served)} ms ({percent(served / total)}) for being served, most of it {rest.idxmax()}"
    return f"One request takes {number(total)} ms: {work}, and {cost}"


def agreement_column(frame: pd.DataFrame) -> str:
    """``"same_label"`` for classifiers, ``"top10_overlap"`` for embeddings."""
    return "same_label" if "same_label" in frame else "top10_overlap"


def _kept(row: pd.Series[Any]) -> str:
    if "same_label" in row:
        return f"gives the reference's label to {percent(row['same_label'])} of the texts"
    if np.isnan(row["top10_overlap"]):
        return f"keeps a mean cosine of {_cosine(row['cosine_mean'])} to the reference"
    return f"keeps {percent(row['top10_overlap'])} of the ten nearest neighbours"


def _cosine(value: float) -> str:
    """Three decimals, more where they would round to a false 1."""
    digits = next((d for d in (3, 4, 5, 6) if round(value, d) < 1), 3)
    return f"{value:.{digits}f}"


def _size(row: pd.Series[Any]) -> str:
    return f"{row['batch_size']:.0f} × {row['tokens']:.0f} tokens"


def _row(frame: pd.DataFrame, column: str, *, least: bool = False) -> pd.Series[Any]:
    values = frame[column].to_numpy(dtype=float)
    row: pd.Series[Any] = frame.iloc[int(values.argmin() if least else values.argmax())]
    return row
