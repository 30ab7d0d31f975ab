from accel_lib.triton.backend import TritonPythonModel as TritonPythonModel
