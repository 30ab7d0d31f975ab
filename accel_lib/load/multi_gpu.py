"""What a second GPU gives: one model split over the two, beside the same model whole on one.

Splitting a model halves what each GPU holds; for one that fits into either, it is the slower way unless batches follow
each other closely, for a batch's layers cannot run at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.engines.batching import GPU_BATCH_TOKENS, plan_batches
from accel_lib.errors import ModelError
from accel_lib.formatting import listed, ratio
from accel_lib.measurement import Result, columns, take_turns, to_frame
from accel_lib.models.tokenizer import pad

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_lib.models import Model


class ParallelResult(Result):
    """Two rows: the work on one device, and on more; `speedup` is the second's over the first."""

    @property
    def headline(self) -> str:
        """What the second device gave."""
        first, second = self.frame.to_dict("records")
        return f"{second['name']}: {ratio(second, 'speedup')} as many texts/s as {first['name']}."


def compare_gpu_split(
    model: Model, texts: Sequence[str], devices: Sequence[str] = ("cuda:0", "cuda:1"), *, repeats: int = 9
) -> ParallelResult:
    """Run a model split over devices and the same model whole on the first, in turns, on the same batches.

    Batches are handed over without waiting for each other, so the devices of a split model work on different ones.
    """
    import torch

    rows = model.tokenizer(list(texts))
    plan = plan_batches(np.array([len(row) for row in rows], dtype=np.int64), max_batch_tokens=GPU_BATCH_TOKENS // 4)
    batches = [
        [torch.from_numpy(part) for part in pad([rows[i] for i in batch], model.tokenizer.pad_id)] for batch in plan
    ]
    modules = {
        f"whole on {devices[0]}": copy.deepcopy(model.module).to(devices[0]),
        f"split over {listed(list(devices))}": split_over_devices(model, devices),
    }
    runs = {name: _runner(module, batches, devices[0]) for name, module in modules.items()}
    for run in runs.values():
        run()
    taken = take_turns(runs, repeats=repeats)
    return compared({name: len(rows) / seconds for name, seconds in taken.items()})


def split_over_devices(model: Model, devices: Sequence[str]) -> nn.Module:
    """A copy of a model with its layers dealt out in order: the first half on the first device, and so on.

    Activations move where the next device begins, and back to the first for the pooling. A transformer without a list
    of layers is refused.
    """
    import torch

    module: nn.Module = copy.deepcopy(model.module).to(devices[0])
    lists = [part for part in module.modules() if isinstance(part, torch.nn.ModuleList) and len(part) >= len(devices)]
    if not lists:
        raise ModelError("This model has no layers to deal out.", seen=model.name, fix="run it whole, one a GPU")
    for number, layer in enumerate(lists[0]):
        device = devices[number * len(devices) // len(lists[0])]
        layer.to(device)
        layer.register_forward_pre_hook(_mover(device), with_kwargs=True)
    lists[0][-1].register_forward_hook(lambda _layer, _inputs, output: _moved(output, devices[0]))
    return module


def _mover(device: str) -> Callable[..., tuple[Any, Any]]:
    return lambda _layer, inputs, named: (_moved(inputs, device), _moved(named, device))


def _moved(value: Any, device: str) -> Any:
    """Tensors on another device, in whatever tuples and dictionaries they come."""
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device, non_blocking=True) if hasattr(value, "is_cuda") else value


def _runner(module: nn.Module, batches: Sequence[Sequence[Tensor]], device: str) -> Callable[[], None]:
    import torch

    def run() -> None:
        with torch.inference_mode():
            answers = [module(*(part.to(device) for part in batch)) for batch in batches]
            for answer in answers:
                answer.cpu()

    return run


def compared(rates: Mapping[str, NDArray[np.float64]]) -> ParallelResult:
    """Rates of two ways, one value a turn, as a result; speed-ups are over the first."""
    first = next(iter(rates.values()))
    rows: list[dict[str, Any]] = [
        {"name": name, **columns("texts_per_s", rate), **columns("speedup", rate / first)}
        for name, rate in rates.items()
    ]
    return ParallelResult(frame=to_frame(rows))
