"""Figures of GPU runs, with the card and the date as their caption: what `gpu_check` kept, and what `gpu` kept."""

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from accel_lib.formatting import number
from accel_lib.show.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILLION

COLORS = (BLUE, ORANGE, GREEN, VERMILLION)


def draw(kept: dict, path: Path) -> None:
    """Draw what `gpu_check` kept; panels of steps that did not run are left out."""
    steps = kept["steps"]
    experiments = steps.get("served", {}).get("experiments", {})
    panels = [(_engines, steps["engines"])] if "rows" in steps.get("engines", {}) else []
    panels += [
        (panel, experiments[name])
        for panel, name in ((_by_load, "instances"), (_delay, "delay"), (_batch_size, "batch size"))
        if name in experiments
    ]
    if not panels:
        return
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    for (panel, step), ax in zip(panels, axes.flat, strict=False):
        panel(step, ax)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    note = f" · {kept['note']}" if kept["note"] else ""
    figure.suptitle(f"all-MiniLM-L6-v2 on {kept['card']}, {kept['date']}", x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(f"measured on {kept['machine']}{note}", x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_speed(kept: dict, path: Path) -> None:
    """Draw what `gpu` kept: one short text, and the share of the matrix rate in full batches, by engine and model."""
    rows, facts = kept["engines"], kept["facts"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    names = list(dict.fromkeys(row["engine"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    panels = (
        ("1x16_ms", "1 × 16 tokens, ms", "{:.2f}", 1),
        ("256x128_of_matrix_rate", "256 × 128 tokens, % of the matrix rate", "{:.0f}%", 100),
    )
    tall = 0.8 / len(models)
    for ax, (column, what, words, scale) in zip(axes, panels, strict=True):
        for place, model in enumerate(models):
            mine = {row["engine"]: scale * row[column] for row in rows if row["model"] == model}
            at = [names.index(name) + (place - (len(models) - 1) / 2) * tall for name in mine]
            bars = ax.barh(at, mine.values(), tall, color=COLORS[place], label=model)
            ax.bar_label(bars, [words.format(value) for value in mine.values()], fontsize=8, padding=2)
        ax.set_yticks([_middle(rows, models, name, names.index(name), tall) for name in names], names)
        ax.margins(x=0.15)
        ax.set_title(what, loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[1].legend(frameon=False, fontsize=8)
    rate = f"matrix rate {facts['matrix_tflops']:.0f} TFLOP/s, in products of 8,192"
    figure.suptitle(_finding(rows, names), x=0.01, ha="left", fontweight="bold")
    note = f"encoders with random weights in FP16 on {facts['card']}, {facts['date']}; {rate}"
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _middle(rows: list[dict], models: list[str], name: str, at: int, tall: float) -> float:
    """The middle of the bars that an engine has: not every model was run by each."""
    places = [models.index(row["model"]) for row in rows if row["engine"] == name]
    return at + (sum(places) / len(places) - (len(models) - 1) / 2) * tall


def _finding(rows: list[dict], names: list[str]) -> str:
    """What the engine that is nearest to the card's limit does."""
    shares = {name: [row["256x128_of_matrix_rate"] for row in rows if row["engine"] == name] for name in names}
    best = max(names, key=lambda name: max(shares[name]))
    times = [row["1x16_ms"] for row in rows if row["engine"] == best]
    ends = (
        f"{min(times):.2f} to {max(times):.2f} ms, full batches at {min(shares[best]):.0%} to {max(shares[best]):.0%}"
    )
    return f"{best[0].upper()}{best[1:]}: a short text in {ends} of the matrix rate"


def _title(ax, step: dict, what: str = "") -> None:
    ax.set_title(textwrap.fill(what + step["finding"].partition(";")[0], 61), loc="left", fontsize=10)


def _log(ax) -> None:
    ax.set_yscale("log")
    for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        axis(lambda value, _position: number(value) if f"{value:e}"[0] in "125" else "")


def _engines(step: dict, ax) -> None:
    names = list(dict.fromkeys(row["name"] for row in step["rows"]))
    shapes = list(dict.fromkeys((row["batch_size"], row["tokens"]) for row in step["rows"]))
    wide = 0.8 / len(names)
    for place, name in enumerate(names):
        mine = [row for row in step["rows"] if row["name"] == name]
        at = [index + (place - (len(names) - 1) / 2) * wide for index in range(len(mine))]
        bars = ax.bar(at, [row["ms"] for row in mine], wide, color=COLORS[place], label=name)
        ax.bar_label(bars, [number(row["ms"]) for row in mine], fontsize=8, padding=2)
    _log(ax)
    ax.margins(y=0.25)
    ax.set_xticks(range(len(shapes)), [f"{batch} × {tokens} tokens" for batch, tokens in shapes])
    ax.set_ylabel("one batch, ms (log)")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    _title(ax, step)


def _lines(step: dict):
    """Rows by load, in the order of the settings."""
    for place, load in enumerate(dict.fromkeys(row["load"] for row in step["rows"])):
        yield COLORS[place], load, [row for row in step["rows"] if row["load"] == load]


def _by_load(step: dict, ax, what: str = "") -> None:
    for color, load, rows in _lines(step):
        ax.plot([row["setting"] for row in rows], [row["texts_per_s"] for row in rows], "o-", color=color)
        for place, row in enumerate(rows):
            words = f"p95 {number(row['p95_ms'])} ms" if place == 0 else number(row["p95_ms"])
            ax.annotate(words, (place, row["texts_per_s"]), (0, -13), ha="center", textcoords="offset points",
                        color=color, fontsize=8)  # fmt: skip
        most = max(range(len(rows)), key=lambda place: rows[place]["texts_per_s"])
        ax.annotate(f"{load:.0f} requests in flight", (most, rows[most]["texts_per_s"]), (0, 6),
                    ha="right" if most == len(rows) - 1 else "center", textcoords="offset points", color=color,
                    fontsize=9)  # fmt: skip
    ax.margins(x=0.12, y=0.15)
    ax.set_ylim(0, None)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_ylabel("texts/s")
    _title(ax, step, what)


def _delay(step: dict, ax) -> None:
    _by_load(step, ax, "Queue delay ")
    ax.set_xlabel("queue delay")


def _batch_size(step: dict, ax) -> None:
    rows = step["rows"]
    bars = ax.bar([row["setting"] for row in rows], [row["texts_per_s"] for row in rows], color=BLUE, width=0.6)
    ax.bar_label(bars, [f"{row['texts_per_s']:,.0f}\np95 {number(row['p95_ms'])} ms" for row in rows], fontsize=8)
    ax.margins(y=0.2)
    ax.set_xlabel("max_batch_size")
    ax.set_ylabel("texts/s")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    _title(ax, step, "Largest batch ")
