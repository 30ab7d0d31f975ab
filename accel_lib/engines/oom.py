"""Out of memory, as the engines' libraries say it, and what an engine is known to hold since."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from accel_lib.engines import Engine

# PyTorch on CUDA and on a CPU, ONNX Runtime on both, the C++ standard library.
_WORDS = re.compile(
    r"out of memory|[Ff]ailed to allocate memory|can't allocate memory|not enough memory|bad_alloc|"
    r"CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"
)
_HOLDS: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out."""
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, MemoryError) or _WORDS.search(str(step)):
            return True
        step = step.__cause__
    return False


def safe_tokens(engine: Engine) -> int | None:
    """Padded tokens that a batch of this engine may have, since a larger one ran out of memory; None if none did."""
    return _HOLDS.get(engine)


def remember_safe_tokens(engine: Engine, tokens: int) -> int:
    """Keep `tokens` as what the engine holds, unless less is known, and give its library's unused memory back."""
    _HOLDS[engine] = max(1, min(tokens, _HOLDS.get(engine, tokens)))
    torch = sys.modules.get("torch")
    if engine.device.startswith("cuda") and torch is not None:
        torch.cuda.empty_cache()
    return _HOLDS[engine]
