"""CUDA's counters, read from torch's and NVML's answers as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from estimator.errors import UnsupportedError
from estimator.units import GIB, MIB
from profiler import counters as module
from profiler.counters import CudaCounters, DeviceReading, Shortage
from profiler.nvml import Device


class Nvml:
    """NVML, which answers with one device after the other."""

    def __init__(self, *devices: Device | None) -> None:
        self._devices = list(devices)

    def __call__(self) -> Device | None:
        return self._devices.pop(0)


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    values = {"num_alloc_retries": 2, "num_ooms": 1}
    for number, name in enumerate(("requested_bytes", "allocated_bytes", "reserved_bytes")):
        values[f"{name}.all.current"] = (number + 1) * GIB
        values[f"{name}.all.peak"] = (number + 2) * GIB
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: values)
    return values


def counters_of(monkeypatch: pytest.MonkeyPatch, *devices: Device | None) -> CudaCounters:
    monkeypatch.setattr(module, "read_device", Nvml(*devices))
    return CudaCounters()


def device(used_bytes: int, ids: tuple[int, ...] | None) -> Device:
    return Device("NVIDIA H100", "580.1", 80 * GIB, used_bytes, ids)


def test_memory_stats_are_read_by_name(
    monkeypatch: pytest.MonkeyPatch, stats: dict[str, int]
) -> None:
    reading = counters_of(monkeypatch, None).read()
    assert reading.current.requested_bytes == GIB
    assert reading.current.allocated_bytes == 2 * GIB
    assert reading.peak.allocated_bytes == 3 * GIB
    assert reading.peak.reserved_bytes == 4 * GIB
    assert (reading.retries, reading.ooms) == (2, 1)


@pytest.mark.parametrize(
    ("before", "now", "alone", "context_bytes"),
    [
        (device(MIB, ()), device(4 * GIB, (7,)), True, GIB),
        (device(MIB, None), device(4 * GIB, None), True, GIB),
        # In a container the list may be empty although we are there.
        (device(MIB, ()), device(4 * GIB, ()), True, GIB),
        (device(MIB, (5,)), device(4 * GIB, (5, 7)), False, None),
        (device(MIB, ()), device(4 * GIB, (5, 7)), False, None),
        (device(9 * GIB, None), device(12 * GIB, None), False, None),
    ],
)
def test_the_context_is_known_only_where_we_are_alone(
    monkeypatch: pytest.MonkeyPatch,
    stats: dict[str, int],
    before: Device,
    now: Device,
    alone: bool,
    context_bytes: int | None,
) -> None:
    reading = counters_of(monkeypatch, before, now).read_device()
    assert reading == DeviceReading(now.used_bytes, 80 * GIB, context_bytes, alone)


def test_without_nvml_the_driver_is_asked_through_torch(
    monkeypatch: pytest.MonkeyPatch, stats: dict[str, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (76 * GIB, 80 * GIB))
    reading = counters_of(monkeypatch, None, None).read_device()
    assert reading == DeviceReading(4 * GIB, 80 * GIB, GIB, None)


def test_workspaces_are_what_their_freeing_frees(
    monkeypatch: pytest.MonkeyPatch, stats: dict[str, int]
) -> None:
    def free() -> None:
        stats["allocated_bytes.all.current"] -= 32 * MIB

    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", free, raising=False)
    assert counters_of(monkeypatch, None).free_workspaces() == 32 * MIB


def test_the_start_listens_for_failed_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    listeners: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "native")
    name = "_cuda_attach_out_of_memory_observer"
    monkeypatch.setattr(torch._C, name, listeners.append, raising=False)
    counters = counters_of(monkeypatch, None)
    counters.start()
    assert counters.shortage is None
    listeners[0](0, 5 * GIB, 80 * GIB, GIB)
    assert counters.shortage == Shortage(5 * GIB, 80 * GIB, GIB)


def test_an_allocator_that_does_not_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "cudaMallocAsync")
    with pytest.raises(UnsupportedError, match="cudaMallocAsync does not count"):
        counters_of(monkeypatch, None).start()


def test_the_history_is_recorded_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        torch.cuda.memory, "_record_memory_history", lambda **options: asked.append(options)
    )
    monkeypatch.setattr(
        torch.cuda.memory, "_dump_snapshot", lambda name: Path(name).write_text("snapshot")
    )
    marks: list[str] = []
    monkeypatch.setattr(torch.cuda.memory, "_set_memory_metadata", marks.append)
    counters = counters_of(monkeypatch, None)
    counters.mark("nobody listens yet")
    counters.record_history()
    counters.mark("forward of step 1")
    counters.write_history(tmp_path / "history.pickle")
    counters.mark("nobody listens any more")
    assert marks == ["forward of step 1"]
    assert (tmp_path / "history.pickle").read_text() == "snapshot"
    assert asked[0]["stacks"] == "python"
    assert asked[-1] == {"enabled": None}
