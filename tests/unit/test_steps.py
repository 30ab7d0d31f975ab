"""The way to a fast engine, step by step, in one tidy table."""

import pytest

from accel_lib import to_onnx
from accel_lib.bench.ablation import STEPS, ablate


@pytest.fixture(scope="module")
def ablated(tiny_model, texts):
    plain, packed, int8 = (
        to_onnx(tiny_model, progress=False, **options)
        for options in ({}, {"packed": True}, {"packed": True, "precision": "int8"})
    )
    return ablate(tiny_model, plain, packed, int8, texts, count=24)


def test_every_step_has_its_row_over_the_first(ablated):
    assert ablated.frame["name"].tolist() == list(STEPS)
    assert ablated.frame["over"].tolist() == ["", *["PyTorch"] * 5]
    assert (ablated.frame["texts_per_s"] > 0).all()
    assert ablated.frame.attrs["machine"]


def test_only_the_steps_before_packing_compute_padding(ablated):
    padding = ablated.frame.set_index("name")["padding"]
    assert (padding[["PyTorch", "export", "fusion"]] > 0.2).all()
    assert (padding[["no padding", "INT8", "batching"]] == 0).all()


def test_the_steps_in_fp32_keep_the_numbers_and_int8_the_fewest_bytes(ablated):
    frame = ablated.frame.set_index("name")
    assert frame["cosine_mean"][["PyTorch", "export", "fusion", "no padding"]].tolist() == pytest.approx([1] * 4)
    assert frame["size_mb"].idxmin() in ("INT8", "batching")
