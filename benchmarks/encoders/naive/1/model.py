"""Triton as its tutorials use it: a batch is padded to its longest text and goes through ONNX Runtime."""

import numpy as np
import onnxruntime
import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = f"{args['model_repository']}/{args['model_version']}"
        self.session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])

    def execute(self, requests):
        ids = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "input_ids")) for request in requests]
        longest = max(one.shape[1] for one in ids)
        padded = np.concatenate([np.pad(one, ((0, 0), (0, longest - one.shape[1]))) for one in ids])
        mask = np.concatenate([np.pad(np.ones_like(one), ((0, 0), (0, longest - one.shape[1]))) for one in ids])
        (vectors,) = self.session.run(None, {"input_ids": padded, "attention_mask": mask})
        parts = np.split(vectors, np.cumsum([len(one) for one in ids])[:-1])
        answers = [pb_utils.Tensor.from_dlpack("sentence_embedding", torch.from_numpy(part.copy())) for part in parts]
        return [pb_utils.InferenceResponse([answer]) for answer in answers]
