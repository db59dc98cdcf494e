"""The counters of a measurement: who counts what is told in docs/counters.md.

`Counters` is what the measurement reads; `CudaCounters` reads PyTorch's CUDA allocator and the
driver. Tests drive the same measurement on a CPU with counters of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from estimator.errors import EnvironmentUnavailable, UnsupportedError
from estimator.units import MIB
from profiler.nvml import Device, read_device
from profiler.record import Counts

_IDLE_BYTES = 64 * MIB
"""Above this much in use before our context exists, somebody else is on the GPU."""

_HISTORY_ENTRIES = 1_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """The allocator at one moment: `peak` is since the last reset, events since the start."""

    current: Counts
    peak: Counts
    retries: int
    ooms: int


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """The device after a run; None where it is not known.

    `context_bytes` is what the driver shows above PyTorch's reserved bytes. `alone` says whether
    no other process was on the GPU.
    """

    used_bytes: int | None
    total_bytes: int | None
    context_bytes: int | None
    alone: bool | None


@dataclass(frozen=True, slots=True)
class Shortage:
    """One failed allocation, as the allocator reports it."""

    asked_bytes: int
    total_bytes: int
    free_bytes: int


class Counters(Protocol):
    """Reads and resets the counters of one device."""

    @property
    def shortage(self) -> Shortage | None:
        """The last allocation that failed, if the allocator told."""
        ...

    def start(self) -> None:
        """Create the context; `read` is allowed from here on."""
        ...

    def limit(self, size_bytes: int) -> None:
        """Let the allocator reserve no more than so many bytes of the device."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        ...

    def read(self) -> Reading:
        """Read the allocator."""
        ...

    def reset_peaks(self) -> None:
        """Let every peak begin again at the current value."""
        ...

    def read_device(self) -> DeviceReading:
        """Read the driver."""
        ...

    def free_workspaces(self) -> int:
        """Free cuBLAS' workspaces and return the allocated bytes that they held."""
        ...

    def record_history(self) -> None:
        """Note every allocation and free from here on, with its stack."""
        ...

    def mark(self, name: str) -> None:
        """Name what is allocated from here on in the history, if one is recorded."""
        ...

    def write_history(self, path: Path) -> None:
        """Write what `record_history` noted, as a snapshot for pytorch.org/memory_viz."""
        ...


class CudaCounters:
    """Counters of CUDA device 0, through torch and NVML."""

    def __init__(self) -> None:
        # Before our own context exists: what is in use now is not ours.
        self._before = read_device()
        self._shortage: Shortage | None = None
        self._recording = False

    @property
    def shortage(self) -> Shortage | None:
        """The last allocation that failed, if the allocator told."""
        return self._shortage

    def start(self) -> None:
        """Create the CUDA context.

        Raises:
            EnvironmentUnavailable: torch cannot use a GPU here.
            UnsupportedError: the allocator in use does not count.
        """
        import torch

        if not torch.cuda.is_available():
            raise EnvironmentUnavailable(
                "torch finds no CUDA GPU that it can use (`gpumem doctor` tells more); "
                "use gpumem trace"
            )
        if torch.cuda.memory.get_allocator_backend() != "native":
            raise UnsupportedError(
                "cudaMallocAsync does not count what is requested and allocated; "
                "unset `backend` in PYTORCH_ALLOC_CONF"
            )
        torch.cuda.init()
        torch._C._cuda_attach_out_of_memory_observer(self._note_shortage)

    def limit(self, size_bytes: int) -> None:
        """Let the allocator reserve no more than so many bytes of the device.

        It then runs out as it would on a smaller card, whatever is free. Source:
        c10/cuda/CUDACachingAllocator.cpp, `setMemoryFraction`.
        """
        import torch

        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size_bytes / total_bytes))

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        import torch

        torch.cuda.synchronize()

    def read(self) -> Reading:
        """Read `torch.cuda.memory_stats`."""
        import torch

        stats = torch.cuda.memory_stats()
        return Reading(
            current=_counts(stats, "current"),
            peak=_counts(stats, "peak"),
            retries=int(stats["num_alloc_retries"]),
            ooms=int(stats["num_ooms"]),
        )

    def reset_peaks(self) -> None:
        """Let every peak begin again at the current value."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def read_device(self) -> DeviceReading:
        """Read NVML, or `torch.cuda.mem_get_info` where NVML is missing or refused."""
        import torch

        reserved_bytes = self.read().current.reserved_bytes
        now = read_device()
        if now is not None and now.used_bytes is not None:
            alone = _alone(self._before, now)
            context_bytes = now.used_bytes - reserved_bytes if alone else None
            return DeviceReading(now.used_bytes, now.total_bytes, context_bytes, alone)
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        used_bytes = int(total_bytes - free_bytes)
        return DeviceReading(used_bytes, int(total_bytes), used_bytes - reserved_bytes, None)

    def free_workspaces(self) -> int:
        """Free cuBLAS' workspaces and return the allocated bytes that they held.

        They belong to (handle, stream) pairs and are alive from the first matrix product on.
        Source: aten/src/ATen/cuda/CublasHandlePool.cpp, `clearCublasWorkspaces`.
        """
        import torch

        before = self.read().current.allocated_bytes
        torch._C._cuda_clearCublasWorkspaces()
        return before - self.read().current.allocated_bytes

    def record_history(self) -> None:
        """Note every allocation and free from here on, with its Python stack."""
        import torch

        torch.cuda.memory._record_memory_history(max_entries=_HISTORY_ENTRIES, stacks="python")
        self._recording = True

    def mark(self, name: str) -> None:
        """Name what is allocated from here on in the history, if one is recorded."""
        if self._recording:
            import torch

            # A private name of recent torch: without it the history has no phases.
            set_metadata = getattr(torch.cuda.memory, "_set_memory_metadata", None)
            if set_metadata is not None:
                set_metadata(name)

    def write_history(self, path: Path) -> None:
        """Write what `record_history` noted, as a snapshot for pytorch.org/memory_viz."""
        import torch

        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)
        self._recording = False

    def _note_shortage(self, device: int, asked: int, total: int, free: int) -> None:
        self._shortage = Shortage(asked_bytes=asked, total_bytes=total, free_bytes=free)


def _counts(stats: Any, when: str) -> Counts:
    return Counts(
        requested_bytes=int(stats[f"requested_bytes.all.{when}"]),
        allocated_bytes=int(stats[f"allocated_bytes.all.{when}"]),
        reserved_bytes=int(stats[f"reserved_bytes.all.{when}"]),
    )


def _alone(before: Device | None, now: Device) -> bool | None:
    """Whether no other process is on the GPU, by NVML's process lists, else by what was in use.

    Process ids are those of the host and may not be ours in a container: so they are counted.
    """
    if before is None or before.used_bytes is None:
        return None
    if before.process_ids or (now.process_ids is not None and len(now.process_ids) > 1):
        return False
    return before.used_bytes < _IDLE_BYTES
