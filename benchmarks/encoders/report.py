"""The tables of a run, and the sentences that sum it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel_lib.formatting import listed
from accel_lib.stats import QUALITY_CLASSES
from benchmarks.encoders.classes import CLASSES, Row, fastest, rate, ratio, split
from benchmarks.encoders.figure import draw
from benchmarks.encoders.verdict import SERVED_AT, summaries, summary, verdict

NO_CLASS = "–"
LARGE_IN_WORDS = "12 × 768 is an encoder of BGE-base's shape with random weights: its speed alone says something."


def write(results: dict[str, Any], folder: Path) -> None:
    """Write ``bench.md`` and ``bench.png``, and print the tables and the verdict last."""
    text = markdown(results)
    (folder / "bench.md").write_text(text, encoding="utf-8")
    if "inprocess" in results and "served" in results:
        draw(results, folder / "bench.png")
    print(text, end="")


def markdown(results: dict[str, Any]) -> str:
    """Everything in Markdown."""
    lines = [measured_on(results["facts"]), "", classes_in_words(), ""]
    if "inprocess" in results:
        lines += [against(results["inprocess"]), "", *inprocess_table(results), "", *spent(results), ""]
    if "served" in results:
        lines += [*served_table(results["served"]), "", *chosen(results["served"]), ""]
    targets = verdict(results)
    lines += ["Verdict:", "", *(f"- {line}" for line in targets), "", summary(targets)]
    return "\n".join(lines) + "\n"


def measured_on(facts: dict[str, Any]) -> str:
    """When and where it was measured, and on what."""
    short = " In a hurry, so that classes and ratios are rough." if facts["quick"] else ""
    return f"Measured on {facts['date']} on {facts['machine']}; {facts['texts']}; medians of the turns.{short}"


def classes_in_words() -> str:
    """What each class asks for."""
    exact, near, small = (QUALITY_CLASSES[name] for name in CLASSES)
    return (
        f"Quality classes, the same for everyone: *exact*, least cosine to the reference {exact.cosine_min} and "
        f"{exact.kept:.1%} of the ten nearest neighbours kept; *near*, {near.cosine_min} and {near.kept:.0%}; *small*, "
        f"mean cosine {small.cosine_mean} and {small.kept:.0%}, with a sentiment accuracy that is not certainly lower. "
        "A candidate of a stricter class takes part in the wider ones; one in no class wins nothing."
    )


def against(rows: list[Row]) -> str:
    """Ours over the best of the others in each class, and who the others are."""
    ours, theirs = split(rows)
    found = []
    for wanted in CLASSES:
        mine, best = fastest(ours, wanted), fastest(theirs, wanted)
        if mine and best:
            found.append(
                f"{wanted}: {mine['name']} encodes {ratio(mine, best):.2f} times as many texts as {best['name']}"
            )
    others = listed([row["name"] for row in theirs])
    return f"In one process, {'; '.join(found)}. The others are {others}."


def inprocess_table(results: dict[str, Any]) -> list[str]:
    """Rows by class, the fastest first, and the limit of the matrix products last."""
    flop = results["facts"]["flop_per_text"]
    texts = next((row["quality"]["texts"] for row in results["inprocess"]), 0)
    lines = [
        "| class | in one process | best batching | texts/s | one text, ms | 12 × 768, texts/s | mean cosine (least) "
        f"| ten nearest kept, {texts:,} texts | accuracy, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for wanted in (*CLASSES, None):
        own = [row for row in results["inprocess"] if row["class"] == wanted]
        lines += [inprocess_row(row) for row in sorted(own, key=rate, reverse=True)]
    lines += [
        f"| | limit: {billions:,.0f} billion operations/s in {name} products | | {billions * 1e9 / flop:,.0f} "
        "| | | | | |"
        for name, billions in results["limits"].items()
    ]
    return [*lines, "", LARGE_IN_WORDS]


def inprocess_row(row: Row) -> str:
    """One candidate."""
    quality = row["quality"]
    large = f"{np.median(row['large_rates']):.1f}" if row["large_rates"] else ""
    cells = [
        row["class"] or NO_CLASS,
        f"**{row['name']}**" if row["ours"] else row["name"],
        ways(row["way"]),
        f"{rate(row):.0f}",
        f"{row['alone_ms']:.1f}",
        large,
        f"{quality['cosine_mean']:.5f} ({quality['cosine_min']:.5f})",
        f"{quality['kept']:.1%} ({quality['kept_low']:.1%} to {quality['kept_high']:.1%})",
        "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * quality[f"accuracy_{end}"] for end in ("change", "low", "high"))),
    ]
    return f"| {' | '.join(cells)} |"


def spent(results: dict[str, Any]) -> list[str]:
    """Where the time of our engines on ONNX Runtime goes."""
    return [
        f"- {name} spends its time on: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        for name, shares in results.get("profile", {}).items()
    ]


def ways(how: str) -> str:
    """A way to batch in words."""
    size, _, lanes = how.partition("/")
    beside = f", {lanes} side by side" if lanes else ""
    if size.startswith("t"):
        return f"≤ {int(size[1:]):,} tokens{beside}"
    return "one by one" if size == "1" else f"{size}, sorted{beside}"


def served_table(rows: list[Row]) -> list[str]:
    """Requests a second and p95 by service and concurrency, medians over the rounds; p50 for one client."""
    levels = sorted({row["concurrency"] for row in rows})
    names = list(dict.fromkeys(row["name"] for row in rows))
    cells = {(row["name"], level): row for level in levels for row in summaries(rows, level)}
    head = " | ".join(f"{level} clients" if level > 1 else "1 client, p50 ms" for level in levels)
    lines = [f"| class | served, one text a request: requests/s (p95, ms) | {head} |", "|---" * (len(levels) + 2) + "|"]
    for wanted in (*CLASSES, None):
        own = [name for name in names if cells[name, levels[0]]["class"] == wanted]
        for name in sorted(own, key=lambda name: -rate(cells[name, min(SERVED_AT[1], levels[-1])])):
            shown = [served_cell(cells[name, level]) for level in levels]
            bold = f"**{name}**" if cells[name, levels[0]]["ours"] else name
            lines.append(f"| {wanted or NO_CLASS} | {bold} | {' | '.join(shown)} |")
    return lines


def served_cell(row: Row) -> str:
    """Rate and p95 under load, the latency of a lone client."""
    return f"{row['p50_ms']:.1f}" if row["concurrency"] == 1 else f"{rate(row):.0f} ({row['p95_ms']:,.0f})"


def chosen(rows: list[Row]) -> list[str]:
    """How each service ran, and the least cosine of its answers to the reference."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        how = f" ({own[0]['how']})" if own[0]["how"] else ""
        lines.append(f"- {name}{how}: cosine to the reference at least {min(row['cosine'] for row in own):.4f}")
    return lines
