"""Figures: one function each, a tidy table in, the Axes out, the finding as its title."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
