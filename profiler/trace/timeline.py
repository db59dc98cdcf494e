"""The timeline of a run: allocations and frees in order, with phases, and its replay.

The timeline knows nothing of torch. `replay` feeds it to the allocator model and reads peaks by
phase and the breakdown at the peak.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from estimator.allocator import Block, CachingAllocator
from estimator.report import Components, Phase

LOAD = "load"


@dataclass(slots=True)
class Allocation:
    """One storage: its bytes, the phase and step that made it, and what is known of it."""

    size_bytes: int
    phase: int
    component: str | None = None
    recomputed: bool = False
    freed_in: int | None = None


@dataclass(slots=True)
class Span:
    """A phase as it ran: its name, the step it belongs to and where its events begin."""

    name: str
    step: int
    first_event: int


@dataclass(slots=True)
class Timeline:
    """Events in order. An event is an allocation's index, or `~index` for its free."""

    allocations: list[Allocation] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=lambda: [Span(LOAD, 0, 0)])
    _step: int = 0
    _closed: bool = False

    def close(self) -> None:
        """The run is over: what is freed after this is not part of it."""
        self._closed = True

    def begin_step(self, index: int) -> None:
        """Later phases belong to step `index`."""
        self._step = index

    def begin_phase(self, name: str) -> None:
        """Later events belong to a phase."""
        self.spans.append(Span(name, self._step, len(self.events)))

    def allocate(self, size_bytes: int, component: str | None = None) -> int:
        """Record an allocation and return its handle."""
        handle = len(self.allocations)
        self.allocations.append(Allocation(size_bytes, len(self.spans) - 1, component))
        self.events.append(handle)
        return handle

    def free(self, handle: int) -> None:
        """Record that an allocation is freed."""
        if self._closed:
            return
        self.allocations[handle].freed_in = len(self.spans) - 1
        self.events.append(~handle)

    def name(self, handle: int, component: str) -> None:
        """Say what an allocation is."""
        self.allocations[handle].component = component

    def mark_recomputed(self, handle: int) -> None:
        """Say that an allocation was made by checkpointing's second forward pass."""
        self.allocations[handle].recomputed = True


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
    largest: tuple[tuple[int, str, str], ...]


def replay(timeline: Timeline, first_step: int, expandable: bool = False) -> Replay:
    """Play a timeline through the allocator model.

    Args:
        first_step: peaks are read from this step on, as a profiler that skips the first step
            (in which the optimizer's states do not exist yet) would.
    """
    allocator = CachingAllocator(expandable=expandable)
    blocks: dict[int, Block | None] = {}
    by_name: dict[str, list[int]] = {}
    best_peak, best_event, best_phase, requested_peak = -1, 0, LOAD, 0
    bounds = [span.first_event for span in timeline.spans[1:]] + [len(timeline.events)]
    position = 0
    for span, end in zip(timeline.spans, bounds, strict=True):
        allocator.reset_peaks()
        counted = span.name == LOAD or span.step >= first_step
        span_peak, span_event = allocator.allocated_bytes, position
        for index in range(position, end):
            handle = timeline.events[index]
            if handle >= 0:
                blocks[handle] = allocator.allocate(timeline.allocations[handle].size_bytes)
                if allocator.allocated_bytes > span_peak:
                    span_peak, span_event = allocator.allocated_bytes, index + 1
            else:
                allocator.release(blocks.pop(~handle))
        position = end
        if counted:
            known = by_name.setdefault(span.name, [0, 0])
            known[0] = max(known[0], span_peak)
            known[1] = allocator.allocated_bytes
            requested_peak = max(requested_peak, allocator.peak_requested_bytes)
            if span_peak > best_peak:
                best_peak, best_event, best_phase = span_peak, span_event, span.name
    components, largest = _breakdown(timeline, best_event, best_peak, expandable)
    return Replay(
        phases=tuple(Phase(name, peak, end) for name, (peak, end) in by_name.items()),
        peak_phase=best_phase,
        peak_requested_bytes=requested_peak,
        peak_allocated_bytes=best_peak,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        components=components,
        largest=largest,
    )


def _breakdown(
    timeline: Timeline, event: int, total_bytes: int, expandable: bool
) -> tuple[Components, tuple[tuple[int, str, str], ...]]:
    """Return the components alive just before `event`, and the ten largest storages."""
    allocator = CachingAllocator(expandable=expandable)
    alive: dict[int, Block | None] = {}
    for handle in timeline.events[:event]:
        if handle >= 0:
            alive[handle] = allocator.allocate(timeline.allocations[handle].size_bytes)
        else:
            allocator.release(alive.pop(~handle))
    sizes: dict[str, int] = {}
    rows: list[tuple[int, str, str]] = []
    for handle, block in alive.items():
        if block is None:
            continue
        allocation = timeline.allocations[handle]
        component = allocation.component or _component(timeline, allocation)
        sizes[component] = sizes.get(component, 0) + block.size_bytes
        rows.append((block.size_bytes, component, timeline.spans[allocation.phase].name))
    if sum(sizes.values()) != total_bytes:
        raise AssertionError("the components at the peak do not add up to it")
    return Components.from_names(sizes), tuple(sorted(rows, reverse=True)[:10])


def _component(timeline: Timeline, allocation: Allocation) -> str:
    """Tell activations from temporaries by their lives.

    Saved for backward is what a forward pass (or its recomputation) made and backward freed.
    """
    made = timeline.spans[allocation.phase].name
    freed = None if allocation.freed_in is None else timeline.spans[allocation.freed_in].name
    if allocation.recomputed or (made == "forward" and freed != "forward"):
        return "activations"
    return "temporaries"
