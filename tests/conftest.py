"""Fixtures that every room shares: an empty cache, the default model, a tiny one, and some texts."""

import shutil
import signal

import pytest

import accel_lib as accel
from accel_lib.models.hub import DEFAULT, resolve


@pytest.fixture(scope="session", autouse=True)
def empty_cache(tmp_path_factory):
    """Nothing is taken from, or left in, the cache of whoever runs the tests; only a downloaded Triton is shared."""
    from accel_lib.machine import cache_dir

    triton = cache_dir("triton")
    triton.mkdir(parents=True, exist_ok=True)
    home = tmp_path_factory.mktemp("cache")
    (home / "triton").symlink_to(triton.resolve(), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_HOME", str(home))
        yield home


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A job in the background of a shell ignores interrupts, and so would what is started here and interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model():
    return accel.load_model()


@pytest.fixture(scope="session")
def onnx_fp32(model):
    return accel.to_onnx(model, progress=False)


@pytest.fixture(scope="session")
def tensorrt_here():
    """Skips where no installed TensorRT builds and runs an engine for this machine's GPU."""
    from accel_lib.engines.tensorrt_runtime import compute_target, installed
    from accel_lib.machine import inspect_machine

    gpu = inspect_machine().gpus[0]
    of_rtx = compute_target(gpu) in {"sm75", "sm80", "sm86", "sm89", "sm120"}
    if "tensorrt" not in installed() and not ("tensorrt_rtx" in installed() and of_rtx):
        pytest.skip(f"no installed TensorRT runs on {gpu.name}; installed: {', '.join(installed()) or 'none'}")


@pytest.fixture(scope="session")
def texts():
    return accel.load_texts("mixed", limit=24)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Two layers, 32 wide, random weights, the default model's own tokenizer: a real transformer in a blink."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(resolve(DEFAULT).folder / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """The model of `tiny_folder`."""
    return accel.load_model(str(tiny_folder), max_length=128)
