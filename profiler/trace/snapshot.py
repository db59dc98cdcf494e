"""A traced run in the format of PyTorch's memory snapshots, for pytorch.org/memory_viz.

What `torch.cuda.memory._snapshot()` returns after a run under `_record_memory_history()`: the
segments as they are at the run's end, and every event before. Frames carry no lines of code but
the operation, the module and the phase that made an allocation; its category is the component.

Source: torch/cuda/memory.py (`_snapshot`), c10/cuda/CUDACachingAllocator.cpp (`record_trace`:
sizes are the requested ones), torch/utils/viz/MemoryViz.js (the reader: few pickle opcodes,
addresses that a double holds exactly).
"""

from __future__ import annotations

import pickle
from typing import Any

from estimator.allocator import Block, CachingAllocator
from profiler.trace.replay import play
from profiler.trace.timeline import Allocation, Timeline

_BASE_ADDRESS = 0x7F0000000000
_POOL_ADDRESSES = 2**60
"""Where the allocator model puts an expandable segment of large blocks: too far for a double."""

_NEAR = 2**43
_POOL_ID = (0, 0)
PICKLE_PROTOCOL = 4

Frames = list[dict[str, Any]]


def pickled_snapshot(timeline: Timeline, expandable: bool = False) -> bytes:
    """Return the snapshot as `torch.cuda.memory._dump_snapshot` would write it."""
    return pickle.dumps(snapshot(timeline, expandable), protocol=PICKLE_PROTOCOL)


def snapshot(timeline: Timeline, expandable: bool = False) -> dict[str, Any]:
    """Return a timeline as the dictionary of `torch.cuda.memory._snapshot()`."""
    allocator = CachingAllocator(expandable=expandable)
    frames_of: dict[tuple[str | None, ...], Frames] = {}
    trace: list[dict[str, Any]] = []
    segments: list[Block] = []
    alive: dict[int, Frames] = {}
    reserved = 0
    for played in play(timeline, allocator):
        allocation = timeline.allocations[played.handle]
        if played.block is None:
            continue
        component = timeline.component(played.handle)
        frames = _frames(timeline, allocation, component, frames_of)
        event = {
            "addr": _shown(played.address),
            "size": allocation.size_bytes,
            "stream": 0,
            "pool_id": _POOL_ID,
            "frames": frames,
        }
        if played.freed:
            del alive[played.address]
            trace.append({"action": "free_requested", **event})
            trace.append({"action": "free_completed", **event})
            continue
        alive[played.address] = frames
        if allocator.reserved_bytes > reserved:
            grown = allocator.reserved_bytes - reserved
            end = _end(played.block)
            mapped = {**event, "addr": _shown(end - grown), "size": grown}
            trace.append({"action": "segment_map" if expandable else "segment_alloc", **mapped})
            first = _first(played.block)
            if first not in segments[-2:]:
                segments.append(first)
            reserved = allocator.reserved_bytes
        trace.append({"action": "alloc", **event, "category": component})
    return {
        "segments": [_segment(first, alive, expandable) for first in segments],
        "device_traces": [trace],
        "allocator_settings": {"expandable_segments": expandable},
    }


def _frames(
    timeline: Timeline,
    allocation: Allocation,
    component: str,
    known: dict[tuple[str | None, ...], Frames],
) -> Frames:
    """Return the frames of an allocation, innermost first; equal ones are one object.

    The viewer shows a frame as `filename:line:name`.
    """
    span = timeline.spans[allocation.phase]
    phase = span.name if span.name == "load" else f"{span.name} of step {span.step + 1}"
    recomputed = "recomputed" if allocation.recomputed else None
    key = (allocation.operation, allocation.module, recomputed, component, phase)
    if key not in known:
        told = {
            "operation": allocation.operation,
            "module": allocation.module,
            "checkpointing": recomputed,
            "component": component,
            "phase": phase,
        }
        known[key] = [
            {"filename": what, "line": 0, "name": name}
            for what, name in told.items()
            if name is not None
        ]
    return known[key]


def _segment(first: Block, alive: dict[int, Frames], expandable: bool) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    block: Block | None = first
    while block is not None:
        blocks.append(
            {
                "address": _shown(block.address),
                "size": block.size_bytes,
                "requested_size": block.requested_bytes,
                "state": "inactive" if block.free else "active_allocated",
                "frames": [] if block.free else alive[block.address],
            }
        )
        block = block.next
    active = sum(block["size"] for block in blocks if block["state"] == "active_allocated")
    return {
        "device": 0,
        "address": _shown(first.address),
        "total_size": sum(block["size"] for block in blocks),
        "allocated_size": active,
        "active_size": active,
        "requested_size": sum(block["requested_size"] for block in blocks),
        "stream": 0,
        "segment_type": "small" if first.small else "large",
        "segment_pool_id": _POOL_ID,
        "is_expandable": expandable,
        "frames": [],
        "blocks": blocks,
    }


def _first(block: Block) -> Block:
    while block.previous is not None:
        block = block.previous
    return block


def _end(block: Block) -> int:
    while block.next is not None:
        block = block.next
    return block.address + block.size_bytes


def _shown(address: int) -> int:
    pool, offset = divmod(address, _POOL_ADDRESSES)
    return _BASE_ADDRESS + pool * _NEAR + offset
