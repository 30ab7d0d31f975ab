"""A real Triton Inference Server: install it, start it, configure it, talk to it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
