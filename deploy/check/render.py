"""What Helm's own engine makes of the chart and its default values, on a cluster without extra resource types.

    python render.py CHART FILE

Like chart.py it needs Python 3.12 and helm-sdkpy.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from cluster import Cluster, cluster
from helm_sdkpy import Configuration, Install


async def helm(running: Cluster, action: Any, chart: str, values: dict[str, Any]) -> dict[str, Any]:
    """Install or upgrade a release called accel; what Helm says of it, its manifest among that."""
    configuration = Configuration(namespace="accel", kubeconfig=running.kubeconfig)
    done: dict[str, Any] = await action(configuration).run(
        "accel", chart, values=values, wait=False, server_side_apply=True
    )
    return done


async def render(chart: str) -> str:
    """The manifest of the default values."""
    with cluster(monitoring=False) as running:
        return str((await helm(running, Install, chart, {}))["manifest"])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(asyncio.run(render(sys.argv[1])), encoding="utf-8")
