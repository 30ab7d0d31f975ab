"""GPUs of the machine that Triton runs on, from the metrics that Triton itself gives of them."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from accel_lib.service.operate_schemas import Gpu

_FIELDS = {
    "nv_gpu_utilization": "utilization",
    "nv_gpu_memory_used_bytes": "memory_used_bytes",
    "nv_gpu_memory_total_bytes": "memory_total_bytes",
    "nv_gpu_power_usage": "power_w",
}
_TIMEOUT_S = 1.0


def read_gpus(metrics_url: str) -> list[Gpu]:
    """The GPUs that the Triton behind an address sees; none where it sees none or does not answer."""
    try:
        answer = httpx.get(metrics_url, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return []
    return gpus_in(answer.text) if answer.status_code == 200 else []


def gpus_in(text: str) -> list[Gpu]:
    """The GPUs in Triton's metrics, in the order of their ids.

    Parameters
    ----------
    text
        Prometheus's text format. What the metrics mean says Triton's user guide under "GPU Metrics".
    """
    lines = [line for line in text.splitlines() if line.startswith("nv_gpu_")]
    seen: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.name in _FIELDS:
                seen.setdefault(sample.labels["gpu_uuid"], {})[_FIELDS[sample.name]] = sample.value
    return [Gpu.model_validate({"uuid": uuid} | seen[uuid]) for uuid in sorted(seen)]
