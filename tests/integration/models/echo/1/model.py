"""Answers token ids as floats, through the tensor crossing of the real backend; the first id can ask for more.

An id of -1 fails the request, an id of -2 ends the process, an id of -3 - n waits n milliseconds.
"""

import os
import time

import triton_python_backend_utils as pb_utils

from accel_lib.triton.backend import read_tensor, write_tensor


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(read_tensor(request, "input_ids")) for request in requests]

    def _answer(self, ids):
        order = int(ids.flat[0])
        if order == -1:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("asked to fail"))
        if order == -2:
            os._exit(1)
        if order <= -3:
            time.sleep((-3 - order) / 1000)
        return pb_utils.InferenceResponse([write_tensor("echo", ids.astype("float32"))])
