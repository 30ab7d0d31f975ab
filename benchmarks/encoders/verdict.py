"""The targets, by quality class: each reached, or missed by how much."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.encoders.classes import CLASSES, Row, fastest, ratio, reaches, split

STARTUP_S = {"import accel_lib": 0.3, "accel --help": 0.5, "PyTorch → ONNX → INT8 → T4 engine": 60.0}
IN_PROCESS = {"exact": 1.15, "near": 1.15, "small": 1.25}
OVER_BF16 = 1.5  # of ours in the class "small" over OpenVINO in BF16
SERVED, SERVED_AT = 1.5, (8, 32, 64, 256)
GATEWAY, GATEWAY_AT = 0.85, 32  # of Triton's own rate


def verdict(results: dict[str, Any]) -> list[str]:
    """A line for each target of the parts that were measured."""
    lines = [
        judged(f"{what}: {seconds:.2f} s, at most {STARTUP_S[what]:g}", STARTUP_S[what] / seconds)
        for what, seconds in results.get("startup", {}).items()
        if seconds is not None
    ]
    lines += in_process(results["inprocess"]) if "inprocess" in results else []
    return lines + (served(results["served"]) if "served" in results else [])


def in_process(rows: Sequence[Row]) -> list[str]:
    """The fastest of ours in each class over the fastest peer in it."""
    ours, theirs = split(rows)
    lines = []
    for wanted, target in IN_PROCESS.items():
        mine, best = fastest(ours, wanted), fastest(theirs, wanted)
        if mine and best:
            words = f"{wanted}, in one process: {mine['name']} over {best['name']} {ratio(mine, best):.2f}×"
            lines.append(judged(f"{words}, at least {target:g}", ratio(mine, best) / target))
        elif best:
            lines.append(judged(f"{wanted}, in one process: none of ours is in this class", 0))
    mine, bf16 = fastest(ours, "small"), next((row for row in theirs if row["name"] == "OpenVINO BF16"), None)
    if mine and bf16:
        words = f"small, in one process: {mine['name']} over OpenVINO BF16 {ratio(mine, bf16):.2f}×"
        lines.append(judged(f"{words}, at least {OVER_BF16:g}", ratio(mine, bf16) / OVER_BF16))
    return lines


def served(rows: Sequence[Row]) -> list[str]:
    """The fastest of ours through Triton in each class over the fastest peer in it, by number of clients."""
    lines = []
    for wanted, clients in itertools.product(CLASSES, (1, *SERVED_AT)):
        here = [row for row in summaries(rows, clients) if reaches(row, wanted)]
        ours = [row for row in here if row["ours"] and "gateway" not in row["name"]]
        theirs = [row for row in here if not row["ours"]]
        if ours and theirs:
            lines.append((alone if clients == 1 else busy)(wanted, clients, ours, theirs))
    return lines + through_gateway(rows)


def busy(wanted: str, clients: int, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """Requests a second over the fastest peer's, with a lower p95."""
    mine, best = fastest(ours, wanted), fastest(theirs, wanted)
    gained = ratio(mine, best)
    lower = mine["p95_ms"] < best["p95_ms"]
    words = f"{wanted}, {clients} clients: {mine['name']} over {best['name']} {gained:.2f}×, at least {SERVED:g}"
    words += f"; p95 {mine['p95_ms']:,.0f} ms beside {best['p95_ms']:,.0f}"
    return judged(words, min(gained / SERVED, np.inf if lower else best["p95_ms"] / mine["p95_ms"]))


def alone(wanted: str, clients: int, ours: Sequence[Row], theirs: Sequence[Row]) -> str:  # noqa: ARG001
    """The latency that a lone client sees beside the best peer's."""
    mine, best = (min(rows, key=lambda row: row["p50_ms"]) for rows in (ours, theirs))
    words = f"{wanted}, one client: {mine['name']} p50 {mine['p50_ms']:.1f} ms, {best['name']} {best['p50_ms']:.1f} ms"
    return judged(words, best["p50_ms"] / mine["p50_ms"])


def through_gateway(rows: Sequence[Row]) -> list[str]:
    """The gateway's rate beside that of the Triton behind it."""
    here = {row["name"]: row for row in summaries(rows, GATEWAY_AT)}
    lines = []
    for name, row in here.items():
        behind = here.get(f"Triton + {name.removeprefix('our gateway + ')}")
        if name.startswith("our gateway") and behind:
            share = ratio(row, behind)
            words = f"our gateway, {GATEWAY_AT} clients: {share:.0%} of the rate of Triton behind it"
            lines.append(judged(f"{words}, at least {GATEWAY:.0%}", share / GATEWAY))
    return lines


def summaries(rows: Sequence[Row], clients: int) -> list[Row]:
    """One row a service at a number of clients: rates by round, medians of the latencies."""
    here = [row for row in rows if row["concurrency"] == clients]
    found = []
    for name in dict.fromkeys(row["name"] for row in here):
        own = sorted((row for row in here if row["name"] == name), key=lambda row: row["round"])
        middle = {column: float(np.median([row[column] for row in own])) for column in ("p50_ms", "p95_ms")}
        found.append(own[0] | middle | {"rates": [row["rate"] for row in own]})
    return found


def judged(words: str, share: float) -> str:
    """The words with whether the target is reached."""
    return f"{words}: {'reached' if share >= 1 else f'missed by {1 - share:.1%}'}"


def summary(lines: Sequence[str]) -> str:
    """How many targets are reached."""
    reached = sum(line.endswith(": reached") for line in lines)
    return f"{reached} of {len(lines)} targets reached, {len(lines) - reached} missed"
