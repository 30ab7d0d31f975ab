"""Figures of a served model under load: where the time of a request goes, batches, and a model watched over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from accel_lib.formatting import number, percent
from accel_lib.load.curve import RateCurve
from accel_lib.load.gateway_requests import LatencyBreakdown, PayloadSizes
from accel_lib.load.monitor import Watched
from accel_lib.measurement import machine_line
from accel_lib.show.plots.style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    LINE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    canvas,
    finish,
    log_axis,
    note,
    rows,
    stack,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.triton.statistics import Timeline

_SPANS = {
    "tokenize_ms": "tokenize",
    "transport_ms": "transport",
    "queue_ms": "queue",
    "compute_input_ms": "gather inputs",
    "compute_infer_ms": "compute",
    "compute_output_ms": "take answer",
}
_PARTS = {
    "client_ms": ("client and connection", GREY),
    "http_ms": ("HTTP, key, JSON", ORANGE),
    "tokenize_ms": ("tokenize", SKY),
    "queue_ms": ("queue", PURPLE),
    "compute_infer_ms": ("model", GREEN),
}
_SPAN_COLORS = (VERMILLION, SKY, ORANGE, GREEN)
_NAMED_FROM = 9  # percent of a bar from which there is room for its percentage


def timeline(request: Timeline) -> Axes:
    """One request from text to vector, cut into the spans that ``server.model(name).timeline(text)`` returns."""
    spans = pd.Series({words: float(getattr(request, name)) for name, words in _SPANS.items()})
    total, computing = request.total_ms, request.compute_infer_ms
    serving = total - computing - request.tokenize_ms
    words = f"{number(computing)} ms in the model, {number(request.tokenize_ms)} ms tokenizing, {number(serving)} ms "
    ax = _waterfall(f"One request takes {number(total)} ms: {words}for being served", spans, green="compute")
    ax.set_xlabel("milliseconds, added up (transport: there and back; green: the model computes)")
    return ax


def stages(requests: pd.DataFrame) -> Axes:
    """The stages of requests, one after the other: a column for each, with the milliseconds of each request."""
    mean = requests.mean()
    total, longest = float(mean.sum()), str(mean.idxmax())
    said = f'the longest stage is "{longest}" with {percent(mean[longest] / total)}'
    ax = _waterfall(f"An answer takes {number(total)} ms on average; {said}", mean, green=longest)
    ax.set_xlabel(f"milliseconds since the question, mean of {len(requests)} (green: the longest stage)")
    return ax


def _waterfall(title: str, spans: pd.Series[float], *, green: str) -> Axes:
    """A bar a span, each from where the one before it ends."""
    frame = pd.DataFrame({"ms": spans})
    frame.attrs["machine"] = machine_line()
    ax = canvas(title, rows=len(frame))
    y, end, total = rows(ax, spans.index), frame["ms"].cumsum(), float(spans.sum())
    colors = [GREEN if span == green else BLUE for span in spans.index]
    stack(ax, y, [(end - frame["ms"], {"color": "none"}), (np.maximum(frame["ms"], total / 400), {"color": colors})])
    for row, x, width in zip(y, end, frame["ms"], strict=True):
        note(ax, f"{number(width)} ms", (x, row))
    return finish(ax, frame, right=total * 1.14)


def batch_sizes(executions: pd.Series[Any]) -> Axes:
    """How many requests ran in batches of each size: from the ``batch_sizes`` of a load run, which are executions."""
    sizes = executions.index.to_numpy()
    requests = sizes * executions.to_numpy()
    mean = float(np.average(sizes, weights=executions))
    middle = sizes[np.searchsorted(np.cumsum(requests), requests.sum() / 2)]
    larger = percent(requests[sizes >= middle].sum() / requests.sum())
    title = f"Triton ran {number(mean)} requests at a time on average; {larger} were in batches of {middle} or more"
    ax = canvas(title, rows=5)
    ax.bar(sizes, requests, color=BLUE, width=0.8)
    ax.set_xlabel("requests run together (batch size)")
    ax.set_ylabel("requests")
    ax.locator_params(axis="x", integer=True)
    return finish(ax, executions)


def latency(curve: RateCurve) -> Axes:
    """p95 against the offered rate: from when requests were due, on the client's clock, and the closed loop's."""
    frame = curve.frame
    ax = canvas(curve.headline, rows=6)
    x = frame["offered_per_s"].to_numpy()
    ax.axvline(curve.capacity, color=LIGHT, linewidth=1.4, zorder=0)
    lines = (("p95_ms", VERMILLION, "from when it was due"), ("naive_p95_ms", BLUE, "on the client's clock"))
    for column, color, words in lines:
        ax.plot(x, frame[column], color=color, label=words, **LINE)
    at = [curve.capacity], [curve.closed.p95_ms]
    ax.scatter(*at, color=GREEN, marker="D", s=70, zorder=3, label="closed loop")
    ax.legend(frameon=False, fontsize=10, loc="upper left")
    note(ax, "capacity", (curve.capacity, 0), (-4, 8), xycoords=("data", "axes fraction"), ha="right", color=GREY)
    log_axis(ax, "y")
    ax.margins(y=0.15)
    ax.set_xlabel("offered rate, requests per second")
    ax.set_ylabel("p95 latency, ms")
    return finish(ax, frame)


def split(curve: RateCurve) -> Axes:
    """Where the time of a request goes, by the offered rate."""
    frame = curve.frame
    ax = canvas(curve.explanation, rows=len(frame))
    y = rows(ax, [f"{percent(share)} of capacity" for share in frame["share"]])
    spans = zip(curve.spans.items(), _SPAN_COLORS, strict=True)
    end = stack(ax, y, [(values, {"color": color, "label": str(name)}) for (name, values), color in spans])
    for row, x in zip(y, end, strict=True):
        note(ax, f"{number(x)} ms", (x, row))
    ax.legend(frameon=False, loc="lower right", fontsize=10)
    ax.set_xlabel("mean time of a request, ms")
    return finish(ax, frame, right=float(end.max()) * 1.7)


def watching(seen: Watched) -> Axes:
    """Throughput, and the time that requests waited, second by second: the ``result`` of a `watch`."""
    frame = seen.frame
    ax = canvas(seen.headline, rows=6)
    ax.plot(frame["time_s"], frame["texts_per_s"], color=BLUE, linewidth=1.6)
    ax.set_xlabel("seconds")
    ax.set_ylabel("throughput, texts/s", color=BLUE)
    ax.set_ylim(0, float(frame["texts_per_s"].max()) * 1.15)
    waited = ax.twinx()
    waited.spines[["top"]].set_visible(False)
    waited.yaxis.set_major_formatter(ax.yaxis.get_major_formatter())
    told = frame[frame["requests_per_s"] > 0]  # without an answer there is no waiting time to show
    waited.fill_between(told["time_s"], told["queue_ms"], color=VERMILLION, alpha=0.25, linewidth=0)
    waited.plot(told["time_s"], told["queue_ms"], color=VERMILLION, linewidth=1.4)
    waited.set_ylabel("waiting in the queue, ms per request", color=VERMILLION)
    waited.set_ylim(0, max(float(frame["queue_ms"].max()) * 1.4, 1.0))
    for when in frame.loc[frame["reset"], "time_s"]:
        ax.axvline(when, color=GREY, linestyle=":", linewidth=1.2)
    return finish(ax, frame)


def latency_breakdown(frame: pd.DataFrame) -> Axes:
    """Each kind of request to the gateway as one bar, cut into what its time goes to: the frame of a breakdown."""
    ax = canvas(LatencyBreakdown(frame=frame).headline, rows=len(frame) + 1)
    y, end = rows(ax, frame["request"]), np.zeros(len(frame))
    shares = frame[list(_PARTS)].div(frame["total_ms"], axis=0) * 100
    stack(ax, y, [(shares[part], {"color": color, "label": name}) for part, (name, color) in _PARTS.items()])
    for part, (_, color) in _PARTS.items():
        for row, begin, width in zip(y.tolist(), end.tolist(), shares[part].tolist(), strict=True):
            if width >= _NAMED_FROM:
                ink = "white" if color in (GREY, GREEN, PURPLE) else "black"
                words, at = percent(width / 100), (begin + width / 2, row)
                note(ax, words, at, (0, 0), ha="center", color=ink)
        end += shares[part].to_numpy()
    for row, total in zip(y, frame["total_ms"], strict=True):
        note(ax, f"{number(total)} ms", (100, row))
    ax.set_xlabel("share of the time until the client holds the vectors, %")
    look = {"ncols": len(_PARTS), "frameon": False, "handlelength": 1, "columnspacing": 1.2, "fontsize": 10}
    ax.legend(loc="upper right", bbox_to_anchor=(1.02, -0.2), **look)
    return finish(ax, frame, right=112)


def payload(frame: pd.DataFrame) -> Axes:
    """Bytes per vector against the share of nearest neighbours kept, by the way to ask: the frame of payload sizes."""
    ax = canvas(PayloadSizes(frame=frame).headline, rows=5)
    size, kept = frame["bytes_each"].to_numpy(), 100 * frame["top10_overlap"].to_numpy()
    whole = kept >= 99.5
    ax.plot(size, kept, color=GREY, linewidth=1, zorder=1)
    ax.scatter(size[whole], kept[whole], color=GREEN, s=80, zorder=2)
    ax.scatter(size[~whole], kept[~whole], color=VERMILLION, s=80, marker="D", zorder=2)
    for at, value, name in zip(size, kept, frame["request"], strict=True):
        note(ax, name, (at, value), (8, -13))
    log_axis(ax, "x", "{x:,.0f}")
    ax.xaxis.set_minor_formatter("")
    ax.set_xticks(sorted({int(round(value, -2)) or int(value) for value in size}))
    ax.set_xlabel("bytes of the response for each text (logarithmic)")
    ax.set_ylabel("ten nearest neighbours kept, %")
    ax.set_ylim(kept.min() - 8, 104)
    ax.set_xlim(size.min() * 0.85, size.max() * 1.5)
    return finish(ax, frame)
