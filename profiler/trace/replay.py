"""Replays a timeline through the allocator model: peaks by phase, the breakdown at the peak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from estimator.allocator import Block, CachingAllocator
from estimator.report import Components, Phase
from profiler.trace.timeline import LOAD, Allocation, Timeline

LARGEST = 10
"""How many of the storages alive at the peak are told."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that is alive at an instant; `size_bytes` is its block's size."""

    size_bytes: int
    component: str
    module: str | None
    operation: str | None
    phase: str
    step: int


class Played(NamedTuple):
    """An event as the allocator saw it: the allocation's handle, and where its block is.

    `block` is what the allocator handed out, None for 0 bytes; once freed it may have been joined
    to others, so that `address` and `size_bytes` tell what it was.
    """

    event: int
    handle: int
    freed: bool
    block: Block | None
    address: int
    size_bytes: int


def play(timeline: Timeline, allocator: CachingAllocator) -> Iterator[Played]:
    """Feed a timeline's events to an allocator, yielding each when it has been carried out.

    Raises:
        OutOfMemory: from the allocator; the event after the last one yielded is what failed.
    """
    blocks: dict[int, Block | None] = {}
    for number, event in enumerate(timeline.events):
        freed = event < 0
        handle = ~event if freed else event
        if freed:
            block = blocks.pop(handle)
        else:
            block = allocator.allocate(timeline.allocations[handle].size_bytes)
            blocks[handle] = block
        address, size = (0, 0) if block is None else (block.address, block.size_bytes)
        if freed:
            allocator.release(block)
        yield Played(number, handle, freed, block, address, size)


@dataclass(frozen=True, slots=True)
class Replay:
    """What the allocator model says of a timeline, in bytes.

    The peak is that of the spans from step `first_step` on (and of `load`).
    """

    phases: tuple[Phase, ...]
    peak_phase: str
    peak_requested_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    components: Components
    peak_event: int
    """How many events had happened at the peak."""
    peak_maker: Allocation | None
    """What was allocated last at the peak; None where a phase began with it."""
    largest: tuple[Storage, ...]

    @property
    def instant(self) -> str:
        """The moment of the peak: `backward: model.layers.31.mlp (mm)`."""
        if self.peak_maker is None:
            return self.peak_phase
        return f"{self.peak_phase}: {self.peak_maker.place}"

    @property
    def reason(self) -> str:
        """Where the peak is and what it consists of, in one line."""
        shares = self.components.largest()
        return shares if self.peak_maker is None else f"{self.peak_maker.place}; {shares}"


def replay(timeline: Timeline, first_step: int, expandable: bool = False) -> Replay:
    """Play a timeline through the allocator model.

    Args:
        first_step: peaks are read from this step on, as a profiler that skips the first step
            (in which the optimizer's states do not exist yet) would.
    """
    allocator = CachingAllocator(expandable=expandable)
    by_name: dict[str, list[int]] = {}
    best_peak, best_event, best_phase, requested_peak = -1, 0, LOAD, 0
    maker: Allocation | None = None
    bounds = [span.first_event for span in timeline.spans[1:]] + [len(timeline.events)]
    events = play(timeline, allocator)
    position = 0
    for span, end in zip(timeline.spans, bounds, strict=True):
        allocator.reset_peaks()
        counted = span.name == LOAD or span.step >= first_step
        span_peak, span_event = allocator.allocated_bytes, position
        for played in islice(events, end - position):
            if allocator.allocated_bytes > span_peak:
                span_peak, span_event = allocator.allocated_bytes, played.event + 1
        start, position = position, end
        if counted:
            known = by_name.setdefault(span.name, [0, 0])
            known[0] = max(known[0], span_peak)
            known[1] = allocator.allocated_bytes
            requested_peak = max(requested_peak, allocator.peak_requested_bytes)
            if span_peak > best_peak:
                best_peak, best_event, best_phase = span_peak, span_event, span.name
                last = timeline.events[span_event - 1]
                maker = timeline.allocations[last] if span_event > start else None
    components, largest = _breakdown(timeline, best_event, best_peak, expandable)
    return Replay(
        phases=tuple(Phase(name, peak, end) for name, (peak, end) in by_name.items()),
        peak_phase=best_phase,
        peak_requested_bytes=requested_peak,
        peak_allocated_bytes=best_peak,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        components=components,
        peak_event=best_event,
        peak_maker=maker,
        largest=largest,
    )


def _breakdown(
    timeline: Timeline, event: int, total_bytes: int, expandable: bool
) -> tuple[Components, tuple[Storage, ...]]:
    """Return the components alive just before `event`, and the ten largest storages."""
    alive: dict[int, int] = {}
    for played in islice(play(timeline, CachingAllocator(expandable=expandable)), event):
        if played.freed:
            del alive[played.handle]
        else:
            alive[played.handle] = played.size_bytes
    sizes: dict[str, int] = {}
    for handle, size in alive.items():
        component = timeline.component(handle)
        sizes[component] = sizes.get(component, 0) + size
    if sum(sizes.values()) != total_bytes:
        raise AssertionError("the components at the peak do not add up to it")
    handles = sorted(alive, key=lambda handle: (-alive[handle], handle))[:LARGEST]
    return Components.from_names(sizes), tuple(
        _storage(timeline, handle, alive[handle]) for handle in handles
    )


def _storage(timeline: Timeline, handle: int, size_bytes: int) -> Storage:
    allocation = timeline.allocations[handle]
    span = timeline.spans[allocation.phase]
    return Storage(
        size_bytes=size_bytes,
        component=timeline.component(handle),
        module=allocation.module,
        operation=allocation.operation,
        phase=span.name,
        step=span.step,
    )
