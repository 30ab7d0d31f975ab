"""The HTTP gateway in front of Triton: keys, limits, deadlines, OpenAI's and other clients' endpoints, experiments."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
