"""What Helm's own engine makes of the chart and its default values, on a cluster without extra resource types.

    python render.py CHART FILE

Like chart.py it needs Python 3.12 and helm-sdkpy.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from cluster import cluster
from helm_sdkpy import Configuration, Install


async def render(chart: str) -> str:
    """The manifest of a release called accel."""
    with cluster(monitoring=False) as running:
        configuration = Configuration(namespace="accel", kubeconfig=running.kubeconfig)
        release = await Install(configuration).run("accel", chart, values={}, wait=False, server_side_apply=True)
    return str(release["manifest"])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(asyncio.run(render(sys.argv[1])), encoding="utf-8")
