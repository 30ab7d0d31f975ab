"""Find settings that meet a latency target, hold it while the load changes, and replay an autoscaler."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
