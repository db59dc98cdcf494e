"""What a record was made with: library versions, GPU, driver, allocator settings.

Nothing here imports torch: versions come from package metadata, the GPU from NVML (or the
kernel driver's files), so that the process that starts workers stays small and quick.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from profiler.nvml import Device, read_device

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")

_EQUAL_ALWAYS = ("torch", "transformers", "peft", "bitsandbytes")
_TRACING_MODULES = ("build", "loops", "optimizers", "quantize", "stacks")
_EQUAL_MEASURED = ("gpu", "cuda", "allocator", "cublas_workspace")


class Environment(BaseModel):
    """What a record was made with; `environment_id` is equal where records may be compared.

    For a measured record the id covers the GPU's name, torch, CUDA, transformers, peft,
    bitsandbytes and the allocator's settings; for a traced one the libraries' versions and
    `tracer`, a hash of the code that traces, because a trace needs no GPU but is only as good as
    that code. Unknown is None. No host name is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    environment_id: str
    gpu: str | None = None
    gpu_total_bytes: int | None = None
    driver: str | None = None
    torch: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    transformers: str | None = None
    peft: str | None = None
    bitsandbytes: str | None = None
    accelerate: str | None = None
    python: str
    platform: str
    allocator: str | None = None
    cublas_workspace: str | None = None
    tracer: str | None = None


def collect_environment(source: str = "cuda") -> Environment:
    """Return the environment of this process, as a record of `source` needs it.

    For `trace` the GPU, its driver and the settings of its allocator are left out, and the
    `+cpu` or `+cu130` part of torch's version is cut off: the answer does not depend on them.
    """
    values: dict[str, Any] = {name: library_version(name) for name in LIBRARIES}
    if source == "cuda":
        device = read_device() or Device()
        values |= {
            "gpu": device.name,
            "gpu_total_bytes": device.total_bytes,
            "driver": device.driver,
            "cuda": torch_cuda_version(),
            "cudnn": _cudnn_version(),
            "allocator": _allocator_settings(),
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
    else:
        values["tracer"] = _tracer_hash()
        if values["torch"] is not None:
            values["torch"] = values["torch"].partition("+")[0]
    return Environment(
        environment_id=_identify(source, values),
        python=platform.python_version(),
        platform=f"{platform.system()}-{platform.machine()}",
        **values,
    )


@functools.cache
def _tracer_hash() -> str:
    """Return twelve hex digits of the sources by which a trace is made."""
    package = Path(__file__).parent
    sources = [package / f"{name}.py" for name in _TRACING_MODULES]
    sources += sorted((package / "trace").glob("*.py"))
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def library_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None; imports nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torch_cuda_version() -> str | None:
    """Return the CUDA version that the installed torch was built for, or None.

    Read from `torch/version.py` as text: importing torch takes seconds.
    """
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return None if found is None else found.group(1)


def cuda_problem() -> str | None:
    """Return why nothing can be measured on a CUDA GPU here, in one phrase, or None if it can.

    Cheap (no torch import, no subprocess): whether CUDA then starts is for the worker to find.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    if not _has_device():
        return "there is no NVIDIA GPU on this machine, or no driver for it"
    if library_version("torch") is None:
        return "torch is not installed: pip install 'gpumem[profile]'"
    if torch_cuda_version() is None:
        return "the installed torch was built without CUDA"
    return None


def cuda_available() -> bool:
    """Return whether a CUDA GPU and a torch built for CUDA are here."""
    return cuda_problem() is None


def _has_device() -> bool:
    # /dev/dxg is how a GPU shows under WSL 2.
    if any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists():
        return True
    return read_device() is not None


def _allocator_settings() -> str | None:
    # torch reads the first name since 2.9 and still honours the second.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if value := os.environ.get(name):
            return value
    return None


def _cudnn_version() -> str | None:
    major = (torch_cuda_version() or "").partition(".")[0]
    return library_version(f"nvidia-cudnn-cu{major}") if major else None


def _identify(source: str, values: dict[str, Any]) -> str:
    names = _EQUAL_ALWAYS + (_EQUAL_MEASURED if source == "cuda" else ("tracer",))
    equal = {name: values.get(name) for name in names}
    text = json.dumps([source, equal], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
