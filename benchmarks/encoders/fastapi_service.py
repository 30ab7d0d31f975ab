"""What most people write first: FastAPI around ``SentenceTransformer.encode``; uvicorn starts the workers."""

from fastapi import FastAPI
from pydantic import BaseModel
from service_model import load  # type: ignore[import-not-found]

app = FastAPI()
model = load()


class Body(BaseModel):
    text: str


@app.post("/embed")
def embed(body: Body) -> dict[str, list[float]]:
    return {"embedding": model.encode(body.text, show_progress_bar=False).tolist()}
