"""The machine is described as it is, within its container's limits, and the doctor names each fix."""

import dataclasses
import re
import stat
import sys
import types

import pytest

from accel_lib import machine as machine_module
from accel_lib.checkup import doctor
from accel_lib.engines.tensorrt_runtime import requirement
from accel_lib.errors import MachineError
from accel_lib.machine import Gpu, inspect_machine

T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_bytes=15 * 2**30, driver="580.82.07")


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "_CGROUP", tmp_path)
    return tmp_path


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program of that name on the path, which prints what it is told."""

    def install(text, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def finding(checkup, what):
    return next(finding for finding in checkup.findings if finding.what == what)


def with_gpu(driver, **versions):
    seen = inspect_machine()
    packages = {name: version for name, version in seen.versions.items() if not name.startswith("tensorrt")}
    return dataclasses.replace(seen, gpus=(dataclasses.replace(T4, driver=driver),), versions=packages | versions)


def test_the_caption_names_cores_processor_gpu_and_python():
    machine = dataclasses.replace(
        inspect_machine(), cores=2, cpu="Intel Xeon", isa=("AVX2",), gpus=(T4,), python="3.12.3"
    )
    assert str(machine).startswith("2 cores Intel Xeon (AVX2), Tesla T4 · Python 3.12.3")
    assert "1 core Intel Xeon (AVX2), no GPU" in str(dataclasses.replace(machine, cores=1, gpus=()))


def test_a_container_limits_the_cores_and_the_memory(cgroup):
    (cgroup / "cpu.max").write_text("150000 100000\n")
    (cgroup / "memory.max").write_text(f"{512 * 2**20}\n")
    machine = inspect_machine()
    assert machine.cores == 1
    assert machine.memory_bytes == 512 * 2**20


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("os.cpu_count", lambda: 64)


@pytest.mark.usefixtures("many_cores")
def test_threads_follow_the_quota_in_the_gateway_in_tritons_stub_and_in_one_process(cgroup, monkeypatch, tmp_path):
    (cgroup / "cpu.max").write_text("200000 100000\n")
    assert machine_module.cores() == inspect_machine().cores == 2
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("stub"))
    from accel_lib.triton.backend import thread_count

    one, two = ({"instance_group": [{"count": count, "kind": "KIND_CPU"}]} for count in (1, 2))
    assert (thread_count(one, {}), thread_count(two, {}), thread_count(one, {"threads": "5"})) == (2, 1, 5)
    from accel_lib.service.app import create_app
    from accel_lib.service.settings import Settings

    app = create_app(Settings(state_file=tmp_path / "state", repository=tmp_path))
    assert app.state.services.workers == 2
    app.state.services.database.close()


@pytest.mark.usefixtures("many_cores")
def test_what_knows_no_quota_is_told_unless_the_user_says_more(cgroup, monkeypatch):
    (cgroup / "cpu.max").write_text("300000 100000\n")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    assert machine_module.thread_environment() == {"OMP_NUM_THREADS": "3"}


@pytest.mark.usefixtures("many_cores")
def test_quotas_of_the_groups_above_count_too(cgroup, monkeypatch):
    monkeypatch.setattr(machine_module, "_groups", lambda _: ["", "a.slice/", "a.slice/b.service/"])
    for folder, quota in (("a.slice", "400000"), ("a.slice/b.service", "max")):
        (cgroup / folder).mkdir()
        (cgroup / folder / "cpu.max").write_text(f"{quota} 100000\n")
        (cgroup / folder / "memory.max").write_text(f"{2**28}\n" if quota != "max" else "max\n")
    assert (inspect_machine().cores, inspect_machine().memory_bytes) == (4, 2**28)


def test_an_older_container_limits_them_too(cgroup):
    for folder, name, value in [("cpu", "cpu.cfs_quota_us", 100_000), ("cpu", "cpu.cfs_period_us", 100_000)]:
        (cgroup / folder).mkdir(exist_ok=True)
        (cgroup / folder / name).write_text(str(value))
    (cgroup / "memory").mkdir()
    (cgroup / "memory" / "memory.limit_in_bytes").write_text(str(2**30))
    machine = inspect_machine()
    assert (machine.cores, machine.memory_bytes) == (1, 2**30)


def test_a_container_without_limits_changes_nothing(cgroup):
    before = inspect_machine()
    (cgroup / "cpu.max").write_text("max 100000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert inspect_machine() == before


def test_each_gpu_is_read_with_its_driver(nvidia_smi):
    nvidia_smi("Tesla T4, 7.5, 15360, 580.82.07\\nTesla T4, 7.5, 15360, 580.82.07\\n")
    assert inspect_machine().gpus == (T4, T4)


def test_hidden_gpus_are_not_there(nvidia_smi, monkeypatch):
    nvidia_smi("Tesla T4, 7.5, 15360, 580.82.07\\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert inspect_machine().gpus == ()


def test_a_driver_that_does_not_answer_is_a_warning_and_no_gpu(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed", code=9)
    checkup = doctor()
    assert checkup.machine.gpus == ()
    assert finding(checkup, "GPU").state == "warn"
    assert "nvidia-smi" in finding(checkup, "GPU").fix


def test_no_gpu_is_a_normal_state(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr("shutil.which", lambda _: None)
    row = finding(doctor(), "GPU")
    assert (row.state, row.seen) == ("ok", "none: CPU engines")


def test_this_machine_passes_its_checkup():
    checkup = doctor()
    assert checkup.ok, repr(checkup)
    assert len(checkup.to_frame()) == len(checkup.findings)
    assert "Python" in checkup._repr_html_()


@pytest.mark.parametrize(
    ("driver", "versions", "what"),
    [
        ("470.10", {}, "Driver"),
        ("550.54", {"tensorrt-rtx-cu13": "1.7.1"}, "TensorRT"),
        ("580.82", {"tensorrt-rtx-cu12": "1.7.1", "tensorrt-rtx-cu13": "1.7.1"}, "TensorRT"),
        ("580.82", {"numpy": "1.26.4"}, "numpy"),
        ("580.82", {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.22.0"}, "ONNX Runtime"),
    ],
)
def test_what_cannot_work_fails_with_a_fix(driver, versions, what):
    checkup = doctor(with_gpu(driver, **versions))
    assert not checkup.ok
    assert finding(checkup, what).state == "fail"
    assert finding(checkup, what).fix


@pytest.mark.parametrize(
    ("changed", "what", "state", "words"),
    [
        ({"place": "colab", "gpus": ()}, "GPU", "warn", "none attached.*Change runtime type, T4 GPU"),
        ({"place": "kaggle", "gpus": ()}, "GPU", "warn", "none attached.*Accelerator, GPU T4 x2"),
        ({"gpus": (dataclasses.replace(T4, name="Tesla P100", compute_capability="6.0"),)}, "GPU", "fail", "a T4"),
        ({"versions": {"torch": "2.11.0+cu130"}, "driver": "550.54"}, "torch", "fail", "CUDA 13.*driver 580"),
        ({"versions": {"torch": "2.15.0", "nvidia-cuda-runtime": "13.0"}, "driver": "535.1"}, "torch", "fail", "13"),
        (
            {"versions": {"torch": "2.11.0+cu128", "tensorrt-rtx-cu13": "1.7.1"}},
            *("TensorRT", "warn", "torch is built for CUDA 12.*cu12 build"),
        ),
        ({"versions": {"tensorrt-cu12": "10.13"}, "libraries": frozenset()}, "TensorRT", "fail", "libnvinfer is miss"),
        ({"versions": {"tensorrt-rtx-cu12": "1.7.1"}}, "TensorRT", "ok", "on Turing it runs FP16, and refuses FP32"),
        (
            {
                "versions": {"tensorrt-rtx-cu12": "1.7.1"},
                "gpus": (dataclasses.replace(T4, name="NVIDIA H200", compute_capability="9.0"),),
            },
            *("TensorRT", "warn", "not run on Hopper"),
        ),
        ({"libc": "glibc 2.31"}, "System", "warn", "glibc 2.31.*needs Linux x86-64 with glibc 2.35"),
        ({"libc": ""}, "System", "warn", "no glibc"),
        ({"libraries": frozenset()}, "Python library", "warn", "no libpython.*apt-get install libpython"),
    ],
)
def test_each_mismatch_is_explained_with_its_fix(changed, what, state, words):
    changed = dict(changed)
    seen = with_gpu(changed.pop("driver", "580.82"), **changed.pop("versions", {}))
    row = finding(doctor(dataclasses.replace(seen, **changed)), what)
    assert row.state == state, row
    assert re.search(words, f"{row.seen} → {row.fix}"), row


def test_tensorrt_follows_the_cuda_release_of_torch_and_the_driver():
    assert requirement("tensorrt_rtx", with_gpu("580.82", torch="2.11.0+cu128")) == "tensorrt-rtx-cu12>=1.7"
    assert requirement("tensorrt", with_gpu("580.82", torch="2.11.0+cu130")) == "tensorrt-cu13>=10.12"
    assert requirement("tensorrt_rtx", with_gpu("550.54", torch="2.13.0+cpu")) == "tensorrt-rtx-cu12>=1.7"
    assert requirement("tensorrt_rtx", dataclasses.replace(inspect_machine(), gpus=())) == "tensorrt-rtx-cu12>=1.7"
    with pytest.raises(MachineError, match="too old for CUDA 13"):
        requirement("tensorrt", with_gpu("550.54", torch="2.11.0+cu130"))


def test_a_missing_package_names_the_extra_that_installs_it():
    seen = inspect_machine()
    bare = dataclasses.replace(seen, versions={"numpy": seen.versions["numpy"]})
    fixes = {finding.what: finding.fix for finding in doctor(bare).findings if finding.state == "fail"}
    assert fixes["torch"] == "python -m pip install 'accel_lib[models]'"
    assert fixes["onnx"] == fixes["ONNX Runtime"] == "python -m pip install 'accel_lib[convert]'"
    assert fixes["tritonclient"] == "python -m pip install 'accel_lib[triton]'"


def test_a_cpu_build_of_torch_beside_a_gpu_is_a_warning():
    row = finding(doctor(with_gpu("580.82", torch="2.13.0+cpu")), "torch")
    assert row.state == "warn"
    assert "pip install torch" in row.fix


def test_a_driver_of_cuda_12_serves_the_cuda_12_build():
    checkup = doctor(with_gpu("550.54", **{"tensorrt-rtx-cu12": "1.7.1", "torch": "2.10.0+cu128"}))
    assert checkup.ok, repr(checkup)
    assert finding(checkup, "Driver").seen.endswith("CUDA 12")
