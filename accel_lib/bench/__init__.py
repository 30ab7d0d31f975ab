"""Benchmarks in one process: speed, size, agreement and memory of models and their conversions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
