"""The three Grafana dashboards, from one list of panels: ``python deploy/grafana/dashboards.py`` writes their JSON.

A panel that shows nothing while all is well, or on a machine without a GPU, says so: `Panel.may_be_empty` goes into its
description, and the test that runs every query on a real Prometheus lets only those be empty.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import StackingConfig, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableRefresh,
)

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_MODEL, _GATEWAY = 'model=~"$model"', 'job=~".*accel-gateway.*"'
_FAILURES = "while nothing fails"
_GPU = "without a GPU"
_GENERATOR, _NO_GENERATOR = 'model_name=~"$model"', "while no model generates"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel: its queries by legend, its unit in Grafana's words, and what an empty one means."""

    title: str
    queries: dict[str, str]
    unit: str
    what: str
    may_be_empty: str = ""
    kind: str = "lines"  # or "stacked", "number"
    width: int = 8


def _rate(counter: str, by: str, *, only: str = _MODEL) -> str:
    return f"sum by ({by}) (rate({counter}{{{only}}}[$__rate_interval]))"


def _mean(histogram: str, by: str, *, only: str = _MODEL) -> str:
    return f"{_rate(f'{histogram}_sum', by, only=only)} / ({_rate(f'{histogram}_count', by, only=only)} > 0)"


def _quantile(share: float, histogram: str, *, only: str = _MODEL) -> str:
    return f"histogram_quantile({share}, {_rate(f'{histogram}_bucket', 'model, le', only=only)})"


PERFORMANCE = {
    "Throughput": (
        Panel(
            title="Requests",
            queries={"{{model}} {{endpoint}}": _rate("accel_requests_total", "model, endpoint")},
            unit="reqps",
            what="What the gateway answered, whatever the code.",
        ),
        Panel(
            title="Texts computed",
            queries={"{{model}} v{{version}}": _rate("nv_inference_count", "model, version")},
            unit="ops",
            what="Rows through a model. Answers from Triton's cache are not in it.",
        ),
        Panel(
            title="Tokens",
            queries={"{{model}}": _rate("accel_tokens_total", "model")},
            unit="ops",
            what="Real tokens, without padding: the work that was asked for.",
        ),
    ),
    "Batching": (
        Panel(
            title="Mean batch",
            queries={"{{model}} v{{version}}": 'accel:batch_size:mean{model=~"$model"}'},
            unit="none",
            what="Texts an execution. It grows with load even at a queue delay of zero.",
        ),
        Panel(
            title="Tokens a sub-batch",
            queries={
                "{{model}} median": _quantile(0.5, "accel_batch_tokens"),
                "{{model}} p95": _quantile(0.95, "accel_batch_tokens"),
            },
            unit="none",
            what="Padded tokens that one request to Triton carries.",
        ),
        Panel(
            title="Padding",
            queries={"{{model}}": _mean("accel_batch_padding_ratio", "model")},
            unit="percentunit",
            what="Share of the sent tokens that is padding.",
        ),
    ),
    "Time inside Triton": (
        Panel(
            title="Queue time a request",
            queries={"{{model}}": 'accel:queue_seconds:by_model{model=~"$model"}'},
            unit="s",
            what="The average. It is what the autoscaler follows: it rises without end where utilisation saturates.",
        ),
        Panel(
            title="Compute time a request",
            queries={
                "{{model}} v{{version}}": _rate("nv_inference_compute_infer_duration_us", "model, version")
                + " / 1e6 / ("
                + _rate("nv_inference_request_success", "model, version")
                + " > 0)"
            },
            unit="s",
            what="What a request spends in the model, batch mates included.",
        ),
        Panel(
            title="Waiting requests",
            queries={"{{model}}": 'accel:pending_requests:sum{model=~"$model"}'},
            unit="none",
            what="Requests in Triton's queue at the moment of the scrape.",
        ),
        Panel(
            title="Answers from the cache",
            queries={"{{model}}": _rate("nv_cache_num_hits_per_model", "model")},
            unit="reqps",
            what="Only models that enable response_cache.",
            may_be_empty="while no model uses the response cache",
        ),
        Panel(
            title="Versions under test",
            queries={
                "{{experiment}} v{{version}}": _rate("accel_experiment_exposures_total", "experiment, version", only="")
            },
            unit="reqps",
            what="Requests that an A/B experiment sent to each version.",
            may_be_empty="while no experiment runs",
        ),
    ),
}

LATENCY = {
    "What clients see": (
        Panel(
            title="Latency, median",
            queries={"{{model}} {{endpoint}}": 'accel:request_seconds:p50{model=~"$model"}'},
            unit="s",
            what="From the last byte of the request to the first of the answer.",
        ),
        Panel(
            title="Latency, 95%",
            queries={"{{model}} {{endpoint}}": 'accel:request_seconds:p95{model=~"$model"}'},
            unit="s",
            what="From the gateway's histogram; Triton's own counters give averages only.",
        ),
        Panel(
            title="Latency, 99%",
            queries={"{{model}} {{endpoint}}": 'accel:request_seconds:p99{model=~"$model"}'},
            unit="s",
            what="From the gateway's histogram.",
        ),
        Panel(
            title="Within the target",
            queries={
                "of 5 minutes": "1 - accel:slow_requests:ratio5m",
                "of an hour": "1 - accel:slow_requests:ratio1h",
            },
            unit="percentunit",
            what="Share of the requests within 0.5 s; the target is 99%.",
            kind="number",
        ),
        Panel(
            title="In flight",
            queries={"{{pod}}": "sum by (pod) (accel_requests_in_flight)"},
            unit="none",
            what="Requests inside the gateway.",
        ),
        Panel(
            title="Estimated wait",
            queries={"{{model}}": 'max by (model) (accel_queue_wait_estimate_seconds{model=~"$model"})'},
            unit="s",
            what="What admission believes a new request would wait. Past the deadline it is rejected.",
        ),
    ),
    "Where the time goes": (
        Panel(
            title="Stages, average",
            queries={"{{stage}}": _mean("accel_stage_duration_seconds", "stage", only=_MODEL + ', stage!="total"')},
            unit="s",
            what="Tokenize, queue and inference, one above the other.",
            kind="stacked",
            width=16,
        ),
        Panel(
            title="Total, 95%",
            queries={"{{model}}": _quantile(0.95, "accel_stage_duration_seconds", only=_MODEL + ', stage="total"')},
            unit="s",
            what="All stages together.",
        ),
    ),
    "Language models": (
        Panel(
            title="To the first token, 95%",
            queries={"{{model_name}}": f"accel:first_token_seconds:p95{{{_GENERATOR}}}"},
            unit="s",
            what="From the request's head, as the gateway measures it.",
            may_be_empty=_NO_GENERATOR,
        ),
        Panel(
            title="Between tokens, 95%",
            queries={"{{model_name}}": f"accel:between_tokens_seconds:p95{{{_GENERATOR}}}"},
            unit="s",
            what="It grows with the rows that share a step, and while long prompts are read.",
            may_be_empty=_NO_GENERATOR,
        ),
        Panel(
            title="Tokens generated",
            queries={"{{model_name}}": _rate("vllm:generation_tokens_total", "model_name", only=_GENERATOR)},
            unit="ops",
            what="Of all requests together.",
            may_be_empty=_NO_GENERATOR,
        ),
        Panel(
            title="Requests",
            queries={
                "{{model_name}} running": f"max by (model_name) (vllm:num_requests_running{{{_GENERATOR}}})",
                "{{model_name}} waiting": f"max by (model_name) (vllm:num_requests_waiting{{{_GENERATOR}}})",
            },
            unit="none",
            what="Those that receive tokens, and those that wait for their first one.",
            may_be_empty=_NO_GENERATOR,
        ),
        Panel(
            title="Key-value cache in use",
            queries={"{{model_name}}": f"max by (model_name) (vllm:kv_cache_usage_perc{{{_GENERATOR}}})"},
            unit="percentunit",
            what="What running requests may need at most, as Triton's model promises it to them.",
            may_be_empty=_NO_GENERATOR,
        ),
        Panel(
            title="Texts by their end",
            queries={
                "{{model_name}} {{finished_reason}}": _rate(
                    "vllm:request_success_total", "model_name, finished_reason", only=_GENERATOR
                )
            },
            unit="reqps",
            what="stop: the model or a stop string ended it. length: it was cut.",
            may_be_empty=_NO_GENERATOR,
        ),
    ),
    "What goes wrong": (
        Panel(
            title="Answers by code",
            queries={"{{code}}": _rate("accel_requests_total", "code")},
            unit="reqps",
            what="200 beside what is not.",
            kind="stacked",
        ),
        Panel(
            title="Server errors",
            queries={"{{model}}": 'accel:request_errors:ratio5m{model=~"$model"}'},
            unit="percentunit",
            what="5xx among all answers of five minutes; an alert from 1% on.",
        ),
        Panel(
            title="Rejected",
            queries={"{{model}} {{reason}}": _rate("accel_sheds_total", "model, reason")},
            unit="reqps",
            what="Full queue, or a wait longer than the deadline.",
            may_be_empty=_FAILURES,
        ),
        Panel(
            title="Over quota",
            queries={"{{reason}}": _rate("accel_quota_rejections_total", "reason", only="")},
            unit="reqps",
            what="Requests of keys that used up their quota.",
            may_be_empty=_FAILURES,
        ),
        Panel(
            title="Vectors refused",
            queries={"{{model}} {{reason}}": _rate("accel_guard_rejections_total", "model, reason")},
            unit="reqps",
            what="Not finite, or without length: computed, but never answered.",
            may_be_empty=_FAILURES,
        ),
        Panel(
            title="Triton's refusals",
            queries={"{{model}} {{reason}}": _rate("nv_inference_request_failure", "model, reason")},
            unit="reqps",
            what="By Triton's own reasons: rejected, cancelled, backend, other.",
        ),
    ),
}

SYSTEM = {
    "Health": (
        Panel(
            title="Targets that answer",
            queries={"{{job}}": 'min by (job) (up{job=~".*accel.*"})'},
            unit="bool_on_off",
            what="Whether Prometheus reaches the gateway and Triton.",
            kind="number",
        ),
        Panel(
            title="Models ready",
            queries={"{{model}} v{{version}}": 'min by (model, version) (accel_model_ready{model=~"$model"})'},
            unit="bool_on_off",
            what="As Triton says, asked by the gateway.",
            kind="number",
        ),
        Panel(
            title="Restarts of Triton",
            queries={"{{pod}}": "sum by (pod) (increase(accel_triton_restarts_total[1h]))"},
            unit="none",
            what="Within the last hour; more than one is a ticket.",
            kind="number",
        ),
    ),
    "Gateway": (
        Panel(
            title="CPU",
            queries={"{{pod}}": _rate("process_cpu_seconds_total", "pod", only=_GATEWAY)},
            unit="none",
            what="Cores in use. Tokenizing and JSON are the gateway's work.",
        ),
        Panel(
            title="Memory",
            queries={"{{pod}}": f"sum by (pod) (process_resident_memory_bytes{{{_GATEWAY}}})"},
            unit="bytes",
            what="Resident memory of the gateway's process.",
        ),
        Panel(
            title="Open files",
            queries={"{{pod}}": f"sum by (pod) (process_open_fds{{{_GATEWAY}}})"},
            unit="none",
            what="Sockets count too; a climb without load is a leak.",
        ),
    ),
    "Machine of Triton": (
        Panel(
            title="CPU",
            queries={"{{pod}}": "avg by (pod) (nv_cpu_utilization)"},
            unit="percentunit",
            what="Of the whole machine. At 100% it says nothing more about how long the queue is.",
        ),
        Panel(
            title="Memory",
            queries={
                "{{pod}} used": "max by (pod) (nv_cpu_memory_used_bytes)",
                "{{pod}} total": "max by (pod) (nv_cpu_memory_total_bytes)",
            },
            unit="bytes",
            what="Of the whole machine.",
        ),
        Panel(
            title="Pinned memory",
            queries={"{{pod}}": "max by (pod) (nv_pinned_memory_pool_used_bytes)"},
            unit="bytes",
            what="Triton's pool for copies to the GPU; unused on a CPU.",
        ),
        Panel(
            title="GPU",
            queries={"{{gpu_uuid}}": "avg by (gpu_uuid) (nv_gpu_utilization)"},
            unit="percentunit",
            what="Share of the time in which some kernel ran: 100% long before the card is full.",
            may_be_empty=_GPU,
        ),
        Panel(
            title="GPU memory",
            queries={
                "{{gpu_uuid}} used": "max by (gpu_uuid) (nv_gpu_memory_used_bytes)",
                "{{gpu_uuid}} total": "max by (gpu_uuid) (nv_gpu_memory_total_bytes)",
            },
            unit="bytes",
            what="A reload holds two copies of a model for a moment.",
            may_be_empty=_GPU,
        ),
        Panel(
            title="GPU power",
            queries={"{{gpu_uuid}}": "max by (gpu_uuid) (nv_gpu_power_usage)"},
            unit="watt",
            what="Power says more about real work than utilisation does.",
            may_be_empty=_GPU,
        ),
    ),
}

DASHBOARDS = {
    "model-performance": ("Model performance", PERFORMANCE),
    "request-latency": ("Request latency", LATENCY),
    "system-resources": ("System resources", SYSTEM),
}


def panels() -> list[Panel]:
    """Every panel of the three dashboards."""
    return [panel for _, rows in DASHBOARDS.values() for row in rows.values() for panel in row]


def generated() -> dict[str, str]:
    """File name -> JSON of each dashboard."""
    return {f"{name}.json": _json(name, title, rows) for name, (title, rows) in DASHBOARDS.items()}


def _json(name: str, title: str, rows: dict[str, tuple[Panel, ...]]) -> str:
    board = (
        dashboard.Dashboard(f"accel / {title}")
        .uid(f"accel-{name}")
        .tags(["accel"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("model")
            .label("Model")
            .datasource(_SOURCE)
            .query("label_values(nv_inference_count, model)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
        .link(dashboard.DashboardLink("accel").type("dashboards").tags(["accel"]).keep_time(True).include_vars(True))
    )
    for heading, row in rows.items():
        board = board.with_row(dashboard.Row(heading))
        for panel in row:
            board = board.with_panel(_panel(panel))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    description = f"{panel.what} Empty {panel.may_be_empty}." if panel.may_be_empty else panel.what
    built: stat.Panel | timeseries.Panel
    if panel.kind == "number":
        built = stat.Panel()
    else:
        built = (
            timeseries.Panel()
            .min(0)
            .line_width(2)
            .fill_opacity(30 if panel.kind == "stacked" else 6)
            .legend(
                VizLegendOptions()
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        )
        if panel.kind == "stacked":
            built = built.stacking(StackingConfig().mode(StackingMode.NORMAL))
    built = built.title(panel.title).description(description).unit(panel.unit).datasource(_SOURCE)
    built = built.height(8).span(panel.width)
    for letter, (legend, query) in zip("ABCD", panel.queries.items(), strict=False):
        built = built.with_target(prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend))
    return built


def differing() -> list[str]:
    """Dashboards on disk that are not what is generated."""
    wanted = generated()
    kept = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.json")}
    return sorted(name for name in wanted.keys() | kept.keys() if wanted.get(name) != kept.get(name))


if __name__ == "__main__":
    if "--check" in sys.argv:
        print(f"{len(generated())} dashboards, {len(panels())} panels, as generated")
        sys.exit(f"differ: {', '.join(differing())}" if differing() else 0)
    FOLDER.mkdir(exist_ok=True)
    for file, text in generated().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
