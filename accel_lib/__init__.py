"""Convert a transformer encoder, serve it with a real Triton server, and measure what each step gives.

>>> import accel_lib as accel
>>> model = accel.load_model("all-MiniLM-L6-v2")  # doctest: +SKIP
>>> onnx = accel.to_onnx(model)  # doctest: +SKIP
"""

import os
import sys

import lazy_loader

from accel_lib.version import __version__ as __version__

# ONNX Runtime from 1.29 on reports to its maker from every process, unless this is set before its first session.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# So do OpenVINO and NNCF, from their import on, by a package that they do without where it cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
