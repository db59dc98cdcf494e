"""The environment: what it holds, what its id depends on, whether a GPU can be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from profiler import environment as module
from profiler import nvml
from profiler.environment import Environment, collect_environment, cuda_available, cuda_problem
from profiler.nvml import Device, read_device
from profiler.worker_process import worker_variables

H100 = Device("NVIDIA H100 80GB HBM3", "580.1", 85_520_809_984, 0, ())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with an H100 and a torch built for CUDA 13."""
    for name in (
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "read_device", lambda: H100)
    monkeypatch.setattr(module, "torch_cuda_version", lambda: "13.0")
    return monkeypatch


def test_everything_about_the_machine_is_there(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    environment = collect_environment("cuda")
    assert environment.gpu == H100.name
    assert environment.driver == "580.1"
    assert environment.gpu_total_bytes == H100.total_bytes
    assert environment.cuda == "13.0"
    assert environment.allocator == "expandable_segments:True"
    assert environment.python == sys.version.split()[0]
    assert Environment.model_validate_json(environment.model_dump_json()) == environment


def test_the_id_changes_with_what_decides_memory_and_with_nothing_else(
    machine: pytest.MonkeyPatch,
) -> None:
    first = collect_environment("cuda").environment_id
    assert collect_environment("cuda").environment_id == first
    machine.setattr(module, "read_device", lambda: Device(H100.name, "999.9", 1, 1, (1,)))
    machine.setattr(module.platform, "python_version", lambda: "3.99.0")
    assert collect_environment("cuda").environment_id == first
    ids = {first}
    machine.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    ids.add(collect_environment("cuda").environment_id)
    machine.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    ids.add(collect_environment("cuda").environment_id)
    machine.setattr(module, "torch_cuda_version", lambda: "12.8")
    ids.add(collect_environment("cuda").environment_id)
    machine.setattr(module, "read_device", lambda: Device("NVIDIA A100"))
    ids.add(collect_environment("cuda").environment_id)
    machine.setattr(module, "library_version", lambda name: "1.2.3")
    ids.add(collect_environment("cuda").environment_id)
    assert len(ids) == 6


def test_a_trace_s_id_is_the_same_with_and_without_a_gpu(machine: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cu130", "transformers": "5.17.0"}
    machine.setattr(module, "library_version", versions.get)
    here = collect_environment("trace")
    assert (here.gpu, here.driver, here.cuda, here.torch) == (None, None, None, "2.13.0")
    versions["torch"] = "2.13.0+cpu"
    machine.setattr(module, "read_device", lambda: None)
    assert collect_environment("trace").environment_id == here.environment_id
    versions["transformers"] = "5.18.0"
    assert collect_environment("trace").environment_id != here.environment_id


def test_collecting_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from profiler.environment import *; collect_environment(); cuda_available();"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=worker_variables(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_the_versions_are_those_that_torch_itself_tells() -> None:
    import torch

    # A wheel's metadata may leave out `+cu130`, which torch itself appends.
    version = collect_environment("cuda").torch
    assert version is not None
    assert torch.__version__ in (version, f"{version}+{torch.__version__.partition('+')[2]}")
    assert module.torch_cuda_version() == torch.version.cuda


def test_a_gpu_can_be_used_here(machine: pytest.MonkeyPatch) -> None:
    assert cuda_problem() is None
    assert cuda_available()


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_gpus(machine: pytest.MonkeyPatch, value: str) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", value)
    assert cuda_problem() == "CUDA_VISIBLE_DEVICES hides every GPU"


def test_why_no_gpu_can_be_used(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(module, "torch_cuda_version", lambda: None)
    assert cuda_problem() == "the installed torch was built without CUDA"
    machine.setattr(module, "library_version", lambda name: None)
    assert "pip install 'gpumem[profile]'" in str(cuda_problem())
    machine.setattr(module, "_has_device", lambda: False)
    assert "no NVIDIA GPU" in str(cuda_problem())
    assert not cuda_available()


class FakeNvml:
    """As nvidia-ml-py: `refuse` names the functions that raise."""

    nvmlMemory_v2 = 2

    class NVMLError(Exception):
        pass

    def __init__(self, *refuse: str) -> None:
        self.refuse = refuse
        self.asked: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetName": b"NVIDIA L4",
            "nvmlSystemGetDriverVersion": "570.2",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=100, used=40),
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=9),
                SimpleNamespace(pid=4),
            ],
        }

        def call(*args: Any, **options: Any) -> Any:
            self.asked.append((name, *args, *options.values()))
            if name in self.refuse or (name, *options) in self.refuse:
                raise self.NVMLError(name)
            return answers[name]

        return call


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*refuse: Any) -> FakeNvml:
        fake = FakeNvml(*refuse)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def test_nvml_tells_about_the_device(fake_nvml: Any) -> None:
    fake = fake_nvml()
    assert read_device() == Device("NVIDIA L4", "570.2", 100, 40, (4, 9))
    assert fake.asked[-1] == ("nvmlShutdown",)


def test_an_old_driver_or_a_container_tells_less(fake_nvml: Any) -> None:
    fake_nvml(("nvmlDeviceGetMemoryInfo", "version"), "nvmlDeviceGetComputeRunningProcesses")
    assert read_device() == Device("NVIDIA L4", "570.2", 100, 40, None)
    fake_nvml("nvmlDeviceGetHandleByIndex")
    assert read_device() is None


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        ("2,0", ("nvmlDeviceGetHandleByIndex", 2)),
        ("GPU-ab,1", ("nvmlDeviceGetHandleByUUID", "GPU-ab")),
    ],
)
def test_the_device_is_the_one_that_cuda_sees_first(
    fake_nvml: Any, monkeypatch: pytest.MonkeyPatch, visible: str, asked: tuple[Any, ...]
) -> None:
    fake = fake_nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    read_device()
    assert asked in fake.asked


def test_without_nvml_the_kernel_driver_s_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "gpus" / "0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   1\n")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
    )
    assert nvml._from_proc(tmp_path) == Device("NVIDIA H100 80GB HBM3", "580.159.04")
    assert nvml._from_proc(tmp_path / "none") is None
