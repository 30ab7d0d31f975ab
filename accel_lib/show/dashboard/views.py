"""What the tabs of the web UI show: plain functions from a gateway's answers to HTML."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel_lib.formatting import number
from accel_lib.show.dashboard import html as page
from accel_lib.show.dashboard.live import HISTORY, Batches, Live
from accel_lib.show.dashboard.streams import Streams

if TYPE_CHECKING:
    from accel_lib.simulation.generation_prediction import GenerationPrediction

_WORDS = {"requests_per_s": "requests", "errors_per_s": "errors", "p50_ms": "p50", "p95_ms": "p95"}
_GIB = 2**30


def performance(live: Live) -> str:
    """The last seconds' numbers, and the curves of the last minutes; those of GPUs where there are some."""
    if not live.points:
        return page.loading("A first second of numbers")
    last, series = live.points[-1], live.series
    cards = page.cards(
        [
            ("requests", last.requests_per_s, "per second"),
            ("errors", last.errors_per_s, "per second"),
            ("p95", last.p95_ms, "ms"),
            ("in flight", last.in_flight, "requests"),
            ("tokens", last.tokens_per_s, "per second"),
        ]
    )
    memory = [value / 2**20 for value in series("memory_bytes")]
    charts = [
        page.lines("Throughput", "per second", _named(live, "requests_per_s", "errors_per_s"), HISTORY),
        page.lines("Latency", "ms", _named(live, "p50_ms", "p95_ms"), HISTORY),
        page.lines("Queue in Triton", "ms", {"mean": series("queue_ms")}, HISTORY),
        page.lines("Gateway's CPU", "cores", {"cores": series("cores")}, HISTORY),
        page.lines("Gateway's memory", "MiB", {"resident": memory}, HISTORY),
        *_gpus(live),
    ]
    idle = "" if any(series("requests_per_s")) else page.empty("No requests now: the curves move when some come.")
    return cards + idle + page.heading(f"The last {HISTORY} seconds") + page.grid(charts)


def _gpus(live: Live) -> list[str]:
    """Two charts with a line for each GPU that Triton sees; none where it sees none."""
    if not live.gpus:
        return []
    busy = {uuid[:12]: [100 * share for share in live.gpu_series(uuid, "utilization")] for uuid in live.gpus}
    used = {uuid[:12]: [n / _GIB for n in live.gpu_series(uuid, "memory_used_bytes")] for uuid in live.gpus}
    totals = {number(gpu["memory_total_bytes"] / _GIB) for gpu in live.gpus.values() if gpu["memory_total_bytes"]}
    unit = f"GiB of {' or '.join(sorted(totals))}" if totals else "GiB"
    return [page.lines("GPU utilisation", "%", busy, HISTORY), page.lines("GPU memory", unit, used, HISTORY)]


def models(listed: Sequence[Mapping[str, Any]]) -> str:
    """Every version of every model, its state, and whether it answers."""
    rows = [
        (
            model["id"],
            version["version"],
            page.state(version["state"].lower(), "ok" if version["state"] == "READY" else "warn"),
            version.get("precision", ""),
            "live" if version["version"] == model.get("live_version") else "",
            version.get("reason", ""),
        )
        for model in listed
        for version in model.get("versions", [])
    ]
    if not rows:
        return page.empty("No model is in the repository.")
    return page.table(("model", "version", "state", "precision", "traffic", "reason"), rows)


def batching(seen: Batches, simulated: Mapping[int, float] | None) -> str:
    """Batch sizes as they were, and beside them what the simulator makes of the chosen setting."""
    counted = seen.counted
    cards = page.cards(
        [
            ("mean batch", counted["mean_batch_size"], "texts"),
            ("executions", counted["executions"], ""),
            ("queue", counted["queue_ms"], "ms per request"),
            ("model", counted["compute_infer_ms"], "ms per request"),
        ]
    )
    executions = max(1, sum(seen.sizes.values()))
    measured = {size: count / executions for size, count in seen.sizes.items()}
    when = f"in the last {seen.seconds:.0f} s" if seen.requests_per_s else "since the last load"
    chart = page.bars(f"Batch sizes {when}", "share of executions", measured, simulated)
    return cards + page.heading("What the batcher makes of the load") + page.grid([chart]) + _what_is_simulated(seen)


def generation(seen: Streams, predicted: GenerationPrediction | None) -> str:
    """What a model that generates does, and beside it what the simulator makes of the chosen rows and load."""
    if not seen.seen:
        return page.empty("Nothing was generated in the last minute: numbers appear with the first request.")
    measured = ("now", seen.requests_per_s, seen.tokens_per_s, seen.p95_ms(first=True), seen.p95_ms(first=False))
    rows: list[tuple[Any, ...]] = [measured]
    if predicted:
        latencies = (predicted.percentile(name, 95) for name in ("ttft_ms", "itl_ms"))
        rows.append(("predicted", predicted.offered, predicted.output_tokens_per_s, *latencies))
    columns = ("", "requests/s", "tokens/s", "first token p95, ms", "between tokens p95, ms")
    lengths = f"{seen.prompt_tokens} tokens of prompt and {seen.output_tokens} of answer on average"
    said = f"Simulated: {lengths}, Poisson, with steps as they were in the last minute. The limit is "
    said += f"{predicted.bottleneck}." if predicted else "not known until the load has varied a little."
    written = [(name, *map(number, values)) for name, *values in rows]
    return page.heading("What it generates") + page.table(columns, written) + page.empty(said)


def _what_is_simulated(seen: Batches) -> str:
    if not seen.requests_per_s:
        return page.empty("The simulator is shown beside the measurement while requests come.")
    texts = round(seen.rows_per_request)
    load = f"{number(seen.requests_per_s)} requests/s, Poisson, of {texts} text{'s' if texts > 1 else ''}"
    return page.empty(
        f"Simulated: what {load} would make of the setting below, with executions that take as long as those of their "
        "size were measured to take. How one instance slows another down it does not know."
    )


def health(status: Mapping[str, Any]) -> str:
    """Every component, the last errors, and what the doctor saw."""
    ready = page.state("ready", "ok") if status["ready"] else page.state("not ready", "bad")
    parts = [
        (p["name"], page.state("ok" if p["ok"] else "down", "ok" if p["ok"] else "bad"), p["detail"])
        for p in status["components"]
    ]
    errors = [(time.strftime("%H:%M:%S", time.localtime(e["at"])), e["what"]) for e in status["last_errors"]]
    kinds = {"ok": "ok", "warn": "warn", "fail": "bad"}
    checks = [(c["what"], page.state(c["state"], kinds[c["state"]]), c["seen"], c["fix"]) for c in status["doctor"]]
    return (
        f"<p>The service is {ready}</p>"
        + page.table(("component", "state", "detail"), parts)
        + page.heading("Last errors")
        + (page.table(("at", "what"), errors) if errors else page.empty("None since the gateway started."))
        + page.heading("Doctor: the gateway's machine")
        + page.table(("what", "state", "seen", "what to do"), checks)
    )


def _named(live: Live, *names: str) -> dict[str, list[float]]:
    return {_WORDS[name]: live.series(name) for name in names}
