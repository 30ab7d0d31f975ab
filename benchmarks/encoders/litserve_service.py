"""LitServe with its batching, waiting 5 ms for company. Run as ``FOLDER BACKEND BATCH_SIZE PORT``."""

import sys

import litserve  # type: ignore[import-not-found]
from sentence_transformers import SentenceTransformer


class Embeddings(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002
        self.model = SentenceTransformer(sys.argv[1], device="cpu", backend=sys.argv[2])

    def decode_request(self, request):
        return request["text"]

    def predict(self, texts):
        return self.model.encode(texts, show_progress_bar=False)

    def encode_response(self, vector):
        return {"embedding": vector.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Embeddings(max_batch_size=int(sys.argv[3]), batch_timeout=0.005), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[4]), log_level="error", generate_client_file=False)
