"""Predict what a load does to a served model: Triton's dynamic batcher as a discrete-event simulation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
