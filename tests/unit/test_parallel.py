"""A second device: a split model gives the same vectors, and what it gained is said against one device."""

import pytest
import torch

from accel_lib.errors import ModelError
from accel_lib.load.multi_gpu import compare_gpu_split, split_over_devices
from accel_lib.models.tokenizer import pad


def test_a_split_model_gives_the_vectors_of_the_whole_one(tiny_model, texts):
    ids, mask = (torch.from_numpy(part) for part in pad(tiny_model.tokenizer(texts), tiny_model.tokenizer.pad_id))
    with torch.inference_mode():
        whole, dealt = tiny_model.module(ids, mask), split_over_devices(tiny_model, ["cpu", "cpu"])(ids, mask)
    assert torch.equal(whole, dealt)


def test_the_layers_are_dealt_out_in_order(tiny_model):
    module = split_over_devices(tiny_model, ["cpu", "meta"])
    layers = next(part for part in module.modules() if isinstance(part, torch.nn.ModuleList))
    assert [next(layer.parameters()).device.type for layer in layers] == ["cpu", "meta"]
    assert {p.device.type for name, p in module.named_parameters() if "layer." not in name} == {"cpu"}


def test_more_devices_than_layers_are_refused(tiny_model):
    with pytest.raises(ModelError, match="no layers to deal out"):
        split_over_devices(tiny_model, ["cpu"] * 3)


def test_whole_and_split_take_turns_and_the_finding_names_both(tiny_model, texts):
    result = compare_gpu_split(tiny_model, texts, ("cpu", "cpu"), repeats=6)
    assert result.frame["name"].tolist() == ["whole on cpu", "split over cpu and cpu"]
    assert result.frame["speedup"][0] == 1
    assert "as many texts/s as whole on cpu" in result.headline
