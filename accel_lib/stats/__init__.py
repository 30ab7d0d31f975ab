"""Percentiles and shares with confidence intervals, and how well two sets of vectors agree."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
