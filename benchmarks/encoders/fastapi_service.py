"""What most people write first: FastAPI around ``SentenceTransformer.encode``. Run as ``FOLDER BACKEND PORT``."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(sys.argv[1], device="cpu", backend=sys.argv[2])


class Body(BaseModel):
    text: str


@app.post("/embed")
def embed(body: Body) -> dict[str, list[float]]:
    return {"embedding": model.encode(body.text, show_progress_bar=False).tolist()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="error")
