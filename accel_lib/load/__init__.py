"""Load tests of a served model: closed and open loops, rate curves, experiments with settings, and monitoring."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
