"""What most people write first: FastAPI around ``SentenceTransformer.encode``; uvicorn starts the workers."""

import contextlib
import json
import os
import threading

from fastapi import FastAPI
from pydantic import BaseModel
from service_model import load  # type: ignore[import-not-found]

app = FastAPI()
model = load()
# Its OpenVINO backend has one request for all threads: two at a time get each other's vectors.
turn = (
    threading.Lock() if json.loads(os.environ["MODEL_OPTIONS"])["backend"] == "openvino" else contextlib.nullcontext()
)


class Body(BaseModel):
    text: str


@app.post("/embed")
def embed(body: Body) -> dict[str, list[float]]:
    with turn:
        return {"embedding": model.encode(body.text, show_progress_bar=False).tolist()}
