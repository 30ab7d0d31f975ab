"""Peers as services: ``python services.py KIND FOLDER PORT``, run in each peer's own environment.

Each answers a POST of one text in JSON with one vector in JSON.
"""

from __future__ import annotations

import sys


def plain_fastapi(folder: str, port: int) -> None:
    """What most people write first: FastAPI around ``SentenceTransformer.encode``, in FastAPI's thread pool."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    class Body(BaseModel):
        text: str

    globals()["Body"] = Body  # FastAPI looks annotations up in the module
    model = SentenceTransformer(folder, device="cpu")
    app = FastAPI()

    @app.post("/embed")
    def embed(body: Body) -> dict[str, list[float]]:
        return {"embedding": model.encode(body.text, show_progress_bar=False).tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def litserve(folder: str, port: int) -> None:
    """LitServe with its batching: up to 32 texts, waiting 5 ms for company."""
    import litserve as ls
    from sentence_transformers import SentenceTransformer

    class Embeddings(ls.LitAPI):
        def setup(self, device: str) -> None:  # noqa: ARG002
            self.model = SentenceTransformer(folder, device="cpu")

        def decode_request(self, request: dict[str, str]) -> str:
            return request["text"]

        def predict(self, texts: list[str]) -> object:
            return self.model.encode(texts, show_progress_bar=False)

        def encode_response(self, vector: object) -> dict[str, object]:
            return {"embedding": vector.tolist()}  # type: ignore[attr-defined]

    server = ls.LitServer(Embeddings(max_batch_size=32, batch_timeout=0.005), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    {"fastapi": plain_fastapi, "litserve": litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
