"""What INT8 takes from a classifier: right answers on texts that its head never saw."""

from __future__ import annotations

from typing import Any

import accel_lib as accel
from accel_lib.engines.batching import run_batches
from accel_lib.models.classifier import accuracy


def measure() -> list[dict[str, Any]]:
    """A row a precision: share of the held-out sentiment texts that are classified rightly, with its interval."""
    held_out = accel.load_texts("sentiment-test")
    classifier = accel.train_classifier(accel.load_model(), accel.load_texts("sentiment-train"))
    rows = []
    for name, options in {"FP32": {}, "INT8": {"precision": "int8", "keep": "auto"}}.items():
        artifact = accel.to_onnx(classifier, packed=True, progress=False, **options)
        engine = accel.open_engine(artifact, device="cpu")
        logits = run_batches(engine, classifier.tokenizer(held_out))
        found = accuracy(lambda _, logits=logits: logits, held_out)
        row = {"name": name, "accuracy": found.value, "low": found.low, "high": found.high, "n": found.n}
        rows.append(row | {"labels": logits.argmax(axis=1).tolist()})
        print(f"sentiment in {name}: {found}", flush=True)
        engine.close()
    return rows
