"""Predict what a load does to a served model: Triton's dynamic batcher as a discrete-event simulation."""
