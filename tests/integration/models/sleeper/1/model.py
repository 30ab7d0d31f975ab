"""Sleeps 40 ms an execution and 5 ms a request, and says in which execution each request was."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils

from accel_lib.triton.backend import write_tensor


class TritonPythonModel:
    def initialize(self, args):
        self._executions = 0
        self._instance = int(args["model_instance_name"].rpartition("_")[2])

    def execute(self, requests):
        self._executions += 1
        time.sleep(0.04 + 0.005 * len(requests))
        answer = np.array([[self._instance, self._executions]], dtype=np.float32)
        return [pb_utils.InferenceResponse([write_tensor("execution", answer)]) for _ in requests]
