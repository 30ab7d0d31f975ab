"""What this code is running on: CPU, GPU, driver, memory, and where files may be kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir(*parts: str) -> Path:
    """Folder for downloads and built artifacts: ``$ACCEL_HOME``, or the user's cache folder."""
    home = os.environ.get("ACCEL_HOME") or platformdirs.user_cache_dir("accel_lib")
    return Path(home).joinpath(*parts)
