"""The GPU as its driver sees it: name, total and used memory, who else is on it.

Through nvidia-ml-py where it is installed and allowed; a machine without it, or a container
that hides it, gives None, and the caller falls back to `torch.cuda.mem_get_info`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU at one moment; None where the driver does not say.

    `used_bytes` is what nvidia-smi shows as used, without the driver's reserve (NVML memory v2).
    `process_ids` are the processes with a CUDA context, numbered as the driver's host sees them.
    """

    name: str | None = None
    driver: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    process_ids: tuple[int, ...] | None = None


def read_device() -> Device | None:
    """Return the GPU that CUDA would call device 0 in this process, or None if NVML shows none."""
    with _nvml() as nvml:
        if nvml is None:
            return _from_proc(Path("/proc/driver/nvidia"))
        try:
            handle = _visible_handle(nvml)
            memory = _memory(nvml, handle)
            return Device(
                name=_text(nvml.nvmlDeviceGetName(handle)),
                driver=_text(nvml.nvmlSystemGetDriverVersion()),
                total_bytes=int(memory.total),
                used_bytes=int(memory.used),
                process_ids=_processes(nvml, handle),
            )
        except nvml.NVMLError:
            return None


@contextmanager
def _nvml() -> Iterator[Any | None]:
    """Yield the initialised NVML module, or None where it is missing or refused."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _visible_handle(nvml: Any) -> Any:
    """Return the handle of CUDA's device 0: NVML itself ignores CUDA_VISIBLE_DEVICES."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdecimal() else 0)


def _memory(nvml: Any, handle: Any) -> Any:
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        # Drivers before 510 know version 1 only, which counts the driver's reserve as used.
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _processes(nvml: Any, handle: Any) -> tuple[int, ...] | None:
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    return tuple(sorted(int(process.pid) for process in running))


def _from_proc(folder: Path) -> Device | None:
    """Read the kernel driver's own files: name and driver, but no memory."""
    for path in sorted(folder.glob("gpus/*/information")):
        name = re.search(r"^Model:\s*(.+?)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        version = folder / "version"
        text = version.read_text(encoding="utf-8") if version.exists() else ""
        driver = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text)
        return Device(
            name=None if name is None else name.group(1),
            driver=None if driver is None else driver.group(1),
        )
    return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
