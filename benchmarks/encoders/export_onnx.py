"""What infinity's ONNX engine needs and cannot make itself from a local folder: run as ``FOLDER EXPORTED OPTIMIZED``.

EXPORTED becomes a copy of the model's folder with ``model.onnx``, which sentence-transformers reads as well; OPTIMIZED
gets the file that infinity would optimize at its start, which it cannot with today's optimum, and looks for there.
"""

import shutil
import sys

from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTOptimizer
from optimum.onnxruntime.configuration import OptimizationConfig

if __name__ == "__main__":
    folder, exported, optimized = sys.argv[1:4]
    shutil.copytree(folder, exported, dirs_exist_ok=True)
    main_export(folder, exported, task="feature-extraction", library_name="transformers", do_validation=False)
    model = ORTModelForFeatureExtraction.from_pretrained(exported, provider="CPUExecutionProvider")
    config = OptimizationConfig(optimization_level=2)
    ORTOptimizer.from_pretrained(model).optimize(optimization_config=config, save_dir=optimized)
