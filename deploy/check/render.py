"""What Helm's own engine makes of the chart: without values, those of a cluster without extra resource types.

    python render.py CHART FILE

It needs helm-python-sdk, which carries Helm 4 and asks no cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from helm_python import Chart, Config


def render(chart: Path, values: dict[str, Any]) -> str:
    """The manifests that an installation as ``accel`` would create; `HelmError` says what Helm refuses."""
    helm = Config(namespace="accel", storage_driver="memory")
    done = helm.install(Chart.load(chart), "accel", values, namespace="accel", dry_run="client")
    return str(done["manifest"])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(Path(sys.argv[1]), {}), encoding="utf-8")
