"""The table, the figure and the verdict of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encoders.figure import draw

BATCHED_32 = (("ONNX Runtime", 2.0), ("sentence-transformers, ONNX", 2.0))
AT_BEST = 1.15
SERVED = {"FP32": {8: 2.2, 32: 2.8, 64: 2.8, 256: 2.8}, "INT8": {8: 2.8, 32: 3.5, 64: 3.5, 256: 3.5}}
STARTUP_S = {"import accel_lib": 0.3, "accel --help": 0.5, "PyTorch → ONNX → INT8 → T4 engine": 60.0}
COSINE, OVERLAP = {"FP32": 0.9999, "INT8": 0.99}, 0.95
FALLS = 0.97  # of the rate at 8 clients: less at 256 is a fall


def write(results: dict[str, Any], folder: Path) -> None:
    """Write ``bench.md`` and ``bench.png``, and print the table and the verdict last."""
    facts = results["facts"]
    lines = [f"Measured on {facts['date']} on {facts['machine']}; {facts['texts']}.", ""]
    if "inprocess" in results:
        lines += [*inprocess_table(results), "", *budgets(results["inprocess"]), *spent(results["profile"]), ""]
    if "served" in results:
        lines += [*served_table(results["served"]), "", *chosen(results["served"]), ""]
    judged_lines = verdict(results)
    lines += ["Verdict:", "", *(f"- {line}" for line in judged_lines)]
    lines += ["", summary(judged_lines)]
    (folder / "bench.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if "inprocess" in results and "served" in results:
        draw(results, folder / "bench.png")
    print("\n".join(lines))


def inprocess_table(results: dict[str, Any]) -> list[str]:
    """Rows by contender, the limit last."""
    flop, limit = results["facts"]["flop_per_sentence"], results["limits"]["FP32"] * 1e9
    rows = [
        "| in one process | best batching | texts/s | in sorted 32s | of FP32 limit | cosine | 10 nearest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["inprocess"]:
        rate = float(np.median(row["rates"]))
        rows.append(
            f"| {row['name']} | {ways(row['batching'])} | {rate:.0f} | {np.median(row['rates_32']):.0f} | "
            f"{rate * flop / limit:.0%} | {row['cosine_mean']:.4f} | {row['top10_overlap']:.1%} |"
        )
    for name, billions in results["limits"].items():
        share = billions * 1e9 / limit
        rows.append(
            f"| limit: {billions:,.0f} billion operations/s in {name} products | | {billions * 1e9 / flop:,.0f} | | "
            f"{share:.0%} | | |"
        )
    return rows


def budgets(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences a second by the tokens that one batch of ours may hold."""
    return [
        f"- {row['name']} by tokens a batch: "
        + ", ".join(f"{int(how[1:]):,}: {rate:.0f}/s" for how, rate in row["tried"].items())
        for row in rows
        if row["name"].startswith("ours")
    ]


def spent(profile: dict[str, dict[str, float]]) -> list[str]:
    """Where our engine's time goes."""
    return [
        f"- {name} spends its time on: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        for name, shares in profile.items()
    ]


def chosen(rows: list[dict[str, Any]]) -> list[str]:
    """How each peer ran, and the least cosine of its answers to the reference."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        how = f" ({own[0]['how']})" if own[0]["how"] else ""
        lines.append(f"- {name}{how}: cosine to the reference at least {min(row['cosine'] for row in own):.4f}")
    return lines


def ways(how: str) -> str:
    """A way to batch in words."""
    if how.startswith("t"):
        return f"≤ {int(how[1:]):,} tokens"
    return "one by one" if how == "1" else f"{how}, sorted"


def served_table(rows: list[dict[str, Any]]) -> list[str]:
    """Requests a second and p95 by service and concurrency, medians over the rounds."""
    levels = sorted({row["concurrency"] for row in rows})
    head = "| served, one text a request: requests/s (p95, ms) | " + " | ".join(map(str, levels)) + " |"
    table = [head, "|---" * (len(levels) + 1) + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [f"{median(rows, name, c, 'rate'):.0f} ({median(rows, name, c, 'p95_ms'):.0f})" for c in levels]
        table.append(f"| {name} | " + " | ".join(cells) + " |")
    return table


def median(rows: list[dict[str, Any]], name: str, concurrency: int, column: str) -> float:
    """Median over the rounds; NaN where it did not run."""
    values = [row[column] for row in rows if row["name"] == name and row["concurrency"] == concurrency]
    return float(np.median(values)) if values else float("nan")


def verdict(results: dict[str, Any]) -> list[str]:
    """Each target, reached or by how much not."""
    lines = []
    for what, seconds in results.get("startup", {}).items():
        if seconds is not None:
            lines.append(judged(f"{what}: {seconds:.2f} s, at most {STARTUP_S[what]:g}", STARTUP_S[what] / seconds))
    lines += quality_verdict(results["quality"]) if "quality" in results else []
    lines += inprocess_verdict(results) if "inprocess" in results else []
    limit = (
        results["limits"]["FP32"] * 1e9 / results["facts"]["flop_per_sentence"] if "inprocess" in results else np.inf
    )
    lines += served_verdict(results["served"], limit) if "served" in results else []
    return lines


def summary(lines: list[str]) -> str:
    """How many targets are reached."""
    reached = sum(line.endswith(": reached") for line in lines)
    return f"{reached} of {len(lines)} targets reached, {len(lines) - reached} missed"


def quality_verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Right answers in INT8 beside FP32, on the same held-out texts."""
    exact, rounded = rows
    moved = sum(one != other for one, other in zip(exact["labels"], rounded["labels"], strict=True))
    words = (
        f"sentiment on {exact['n']} held-out texts: FP32 {exact['accuracy']:.1%}, INT8 {rounded['accuracy']:.1%} "
        f"({rounded['low']:.1%} to {rounded['high']:.1%}), another label for {moved}; FP32 lies in INT8's interval"
    )
    return [judged(words, rounded["high"] / exact["accuracy"])]


def inprocess_verdict(results: dict[str, Any]) -> list[str]:
    """Ratios within a turn, and agreement."""
    rows = {row["name"]: row for row in results["inprocess"]}
    ours, lines = rows["ours FP32"], []
    for name, target in BATCHED_32:
        if name in rows:
            ratio = float(np.median(np.array(ours["rates"]) / np.array(rows[name]["rates_32"])))
            lines.append(judged(f"FP32 over {name} in sorted 32s: {ratio:.2f}×, at least {target:g}", ratio / target))
    peers = [row for name, row in rows.items() if not name.startswith("ours")]
    best = max(peers, key=lambda row: np.median(row["rates"]))
    for name in ("ours FP32", "ours INT8"):
        ratio = float(np.median(np.array(rows[name]["rates"]) / np.array(best["rates"])))
        words = f"{name} over the best of them, {best['name']} {ways(best['batching'])}: {ratio:.2f}×"
        lines.append(judged(f"{words}, at least {AT_BEST:g}", ratio / AT_BEST))
    for name, least in COSINE.items():
        cosine = rows[f"ours {name}"]["cosine_mean"]
        lines.append(judged(f"{name}: mean cosine {cosine:.4f}, at least {least:g}", cosine / least))
    kept = rows["ours INT8"]["top10_overlap"]
    lines.append(judged(f"INT8: {kept:.1%} of the ten nearest kept, at least {OVERLAP:.0%}", kept / OVERLAP))
    return lines


def served_verdict(rows: list[dict[str, Any]], limit: float) -> list[str]:
    """Ours through Triton against infinity, and against the best peer at one client.

    `limit` is what the machine's rate of FP32 matrices allows, in sentences a second: a target above it is said to be.
    """
    lines = []
    names = list(dict.fromkeys(row["name"] for row in rows))
    for precision, targets in SERVED.items():
        ours = f"Triton, ours {precision}"
        for clients, target in targets.items() if "infinity" in names else ():
            ratio = median(rows, ours, clients, "rate") / median(rows, "infinity", clients, "rate")
            sooner = median(rows, "infinity", clients, "p95_ms") / median(rows, ours, clients, "p95_ms")
            words = f"{precision} over infinity at {clients} clients: {ratio:.2f}×, at least {target:g}"
            words += f"; p95 {'lower' if sooner > 1 else 'NOT lower'}"
            asked = target * median(rows, "infinity", clients, "rate")
            if precision == "FP32" and ratio < target and asked > limit:
                words += f"; that would be {asked:.0f}/s, where FP32 matrices end at {limit:.0f}/s on this machine"
            lines.append(judged(words, min(ratio / target, sooner if sooner < 1 else np.inf)))
        kept = median(rows, ours, 256, "rate") / median(rows, ours, 8, "rate")
        lines.append(judged(f"{precision}: at 256 clients {kept:.0%} of the rate at 8, no fall", kept / FALLS))
        others = {name: median(rows, name, 1, "p50_ms") for name in names if "our" not in name}
        best = min(others, key=lambda name: others[name])
        alone = median(rows, ours, 1, "p50_ms")
        words = f"{precision} at one client: p50 {alone:.1f} ms, {best} {others[best]:.1f} ms"
        lines.append(judged(words, others[best] / alone))
    return lines


def judged(words: str, share: float) -> str:
    """The words with whether the target is reached."""
    return f"{words}: {'reached' if share >= 1 else f'missed by {1 - share:.1%}'}"
