"""Convert a transformer encoder, serve it with a real Triton server, and measure what each step gives.

>>> import accel_lib as accel
>>> model = accel.load_model("all-MiniLM-L6-v2")
>>> onnx = accel.to_onnx(model)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from accel_lib.version import __version__ as __version__

if TYPE_CHECKING:
    from accel_lib.artifact import Artifact
    from accel_lib.checkup import doctor
    from accel_lib.convert.onnx import to_onnx, to_torch
    from accel_lib.convert.tensorrt import to_tensorrt
    from accel_lib.convert.validate import validate
    from accel_lib.engines import open_engine
    from accel_lib.errors import AccelError
    from accel_lib.lab.calibrate import calibrate
    from accel_lib.lab.compare import choose, compare
    from accel_lib.lab.load import load
    from accel_lib.lab.simulate import simulate
    from accel_lib.lab.tune import tune
    from accel_lib.models import load_model
    from accel_lib.models.sentiment import train_classifier
    from accel_lib.prepare import ensure
    from accel_lib.service.gateway import serve_gateway
    from accel_lib.show.lesson import check, predict, reveal
    from accel_lib.show.widgets import sliders
    from accel_lib.texts import load_texts
    from accel_lib.triton.server import serve

# ONNX Runtime from 1.29 on reports to its maker from every process, unless this is set before its first session.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_ROOMS = {
    "AccelError": "errors",
    "Artifact": "artifact",
    "calibrate": "lab.calibrate",
    "check": "show.lesson",
    "choose": "lab.compare",
    "compare": "lab.compare",
    "doctor": "checkup",
    "ensure": "prepare",
    "load": "lab.load",
    "load_model": "models",
    "load_texts": "texts",
    "open_engine": "engines",
    "predict": "show.lesson",
    "reveal": "show.lesson",
    "serve": "triton.server",
    "serve_gateway": "service.gateway",
    "simulate": "lab.simulate",
    "sliders": "show.widgets",
    "to_onnx": "convert.onnx",
    "to_tensorrt": "convert.tensorrt",
    "to_torch": "convert.onnx",
    "train_classifier": "models.sentiment",
    "tune": "lab.tune",
    "validate": "convert.validate",
}

__all__ = [
    "AccelError",
    "Artifact",
    "calibrate",
    "check",
    "choose",
    "compare",
    "doctor",
    "ensure",
    "load",
    "load_model",
    "load_texts",
    "open_engine",
    "predict",
    "reveal",
    "serve",
    "serve_gateway",
    "simulate",
    "sliders",
    "to_onnx",
    "to_tensorrt",
    "to_torch",
    "train_classifier",
    "tune",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"accel_lib.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'accel_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
