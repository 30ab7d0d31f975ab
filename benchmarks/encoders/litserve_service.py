"""LitServe with its batching, waiting 5 ms for company. Run as ``BATCH_SIZE WORKERS PORT``."""

import sys

import litserve  # type: ignore[import-not-found]
from service_model import load  # type: ignore[import-not-found]


class Embeddings(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002
        self.model = load()

    def decode_request(self, request):
        return request["text"]

    def predict(self, texts):
        return self.model.encode(texts, show_progress_bar=False)

    def encode_response(self, vector):
        return {"embedding": vector.tolist()}


if __name__ == "__main__":
    size, workers, port = map(int, sys.argv[1:4])
    api = Embeddings(max_batch_size=size, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)
