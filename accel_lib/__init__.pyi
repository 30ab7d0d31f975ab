from .artifact import Artifact as Artifact
from .bench.choose import choose as choose
from .bench.compare import compare as compare
from .checkup import doctor as doctor
from .convert.onnx import to_onnx as to_onnx
from .convert.onnx import to_torch as to_torch
from .convert.openvino import to_openvino as to_openvino
from .convert.tensorrt import to_tensorrt as to_tensorrt
from .convert.validate import validate as validate
from .course_models import ensure as ensure
from .engines import open_engine as open_engine
from .errors import AccelError as AccelError
from .load.generation import generation_load_test as generation_load_test
from .load.runner import load_test as load_test
from .models import load_model as load_model
from .models.classifier import train_classifier as train_classifier
from .service.gateway import serve_gateway as serve_gateway
from .show.quiz import check as check
from .show.quiz import guess as guess
from .show.quiz import reveal as reveal
from .show.sliders import sliders as sliders
from .simulation.fit import fit_simulator as fit_simulator
from .simulation.simulator import simulate as simulate
from .texts import load_texts as load_texts
from .triton.server import serve as serve
from .tuning.grid import tune as tune

__version__: str
