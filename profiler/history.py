"""A measured run's allocation history: what PyTorch's snapshot says was alive, event by event.

`gpumem profile --snapshot` writes the file; any other that `torch.cuda.memory._dump_snapshot`
writes is read too. The snapshot counts what tensors ask for; here each block is rounded up to
512 B, as the allocator does, so that the bytes stand beside the traced `allocated` ones.

Source: torch/cuda/memory.py (`_snapshot`), c10/cuda/CUDACachingAllocator.cpp (`record_trace`).
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from estimator.errors import RecordError, show_value
from estimator.units import round_up

_BLOCK_BYTES = 512
_GROWS = ("segment_alloc", "segment_map")
_SHRINKS = ("segment_free", "segment_unmap")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a phase begins, by the number of events before it: `backward of step 2`."""

    event: int
    name: str


@dataclass(frozen=True, slots=True)
class History:
    """Columns of one length, an instant after each event: bytes alive, reserved, and allocated in
    all until then; and the phases, where the file names them."""

    allocated_bytes: tuple[int, ...]
    reserved_bytes: tuple[int, ...]
    turnover_bytes: tuple[int, ...]
    marks: tuple[Mark, ...]

    @property
    def peak_event(self) -> int:
        """The first instant at which most was alive."""
        return self.allocated_bytes.index(max(self.allocated_bytes))


def read_history(path: Path) -> History:
    """Read a snapshot of PyTorch's CUDA allocator.

    Raises:
        RecordError: it cannot be read, is no snapshot, or holds no history of one GPU.
    """
    shown = show_value(str(path), 200)
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RecordError(f"snapshot {shown} cannot be read: {reason}") from None
    try:
        found = _Plain(io.BytesIO(data)).load()
        traces = [trace for trace in found["device_traces"] if trace]
        segments = found["segments"]
        simulated = any(_is_traced(event) for trace in traces for event in trace[:1])
        if len(traces) == 1 and not simulated:
            return _follow(traces[0], _alive_bytes(segments))
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError):
        raise RecordError(f"{shown} is not a snapshot of PyTorch's CUDA allocator") from None
    if simulated:
        raise RecordError(f"snapshot {shown} was written by gpumem trace: it is not measured")
    count = "no GPU" if not traces else f"{len(traces)} GPUs"
    raise RecordError(f"snapshot {shown} holds the history of {count}, but must be of one")


class _Plain(pickle.Unpickler):
    """Reads lists, dictionaries, numbers and texts: a pickle of anything else could run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name}")


def _alive_bytes(segments: list[dict[str, Any]]) -> tuple[int, int]:
    """Return what is allocated and reserved at the end."""
    blocks = [block for segment in segments for block in segment["blocks"]]
    allocated = sum(
        _rounded(block["requested_size"]) for block in blocks if block["state"] != "inactive"
    )
    return allocated, sum(segment["total_size"] for segment in segments)


def _follow(trace: list[dict[str, Any]], at_end: tuple[int, int]) -> History:
    """Add up the events; what was there before the first follows from what is there at the end."""
    allocated, reserved, turnover, marks = [0], [0], [0], list[Mark]()
    for event in trace:
        action = event["action"]
        if action == "oom":
            continue
        size = event["size"]
        change = {"alloc": _rounded(size), "free_completed": -_rounded(size)}.get(action, 0)
        grown = size if action in _GROWS else -size if action in _SHRINKS else 0
        if not change and not grown:
            continue
        # A free bears the name of its allocation's phase.
        name = event.get("user_metadata", "") if action == "alloc" else ""
        if name and (not marks or marks[-1].name != name):
            marks.append(Mark(len(allocated) - 1, name))
        allocated.append(allocated[-1] + change)
        reserved.append(reserved[-1] + grown)
        turnover.append(turnover[-1] + max(change, 0))
    before = at_end[0] - allocated[-1], at_end[1] - reserved[-1]
    return History(
        tuple(size + before[0] for size in allocated),
        tuple(size + before[1] for size in reserved),
        tuple(turnover),
        tuple(marks),
    )


def _is_traced(event: dict[str, Any]) -> bool:
    """Whether an event is one of `profiler.trace.snapshot`'s, whose frames are no code."""
    return any(frame["filename"] == "component" for frame in event.get("frames", ()))


def _rounded(size_bytes: int) -> int:
    return round_up(size_bytes, _BLOCK_BYTES)
