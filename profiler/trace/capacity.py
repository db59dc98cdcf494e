"""Does a traced run fit on a card? Its timeline, replayed in an allocator that can run out.

What the card has, minus an assumed CUDA context, is what the allocator can take from the driver;
where that is short it gives back what is wholly free and tries again, as PyTorch does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from estimator.allocator import CachingAllocator, OutOfMemory
from profiler.trace.replay import play
from profiler.trace.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Failure:
    """Where the run ends for want of memory.

    `asked_bytes` is the tensor's size, `segment_bytes` what PyTorch then tried to take from the
    driver; `reserved_bytes` and `allocated_bytes` are what it held then, after a retry.
    """

    phase: str
    step: int
    module: str | None
    operation: str | None
    asked_bytes: int
    segment_bytes: int
    reserved_bytes: int
    allocated_bytes: int
    place: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A replay with `available_bytes` for the allocator.

    `retries` counts how often cached memory had to be given back; a run with retries fits, but is
    slow and close to the edge. `peak_reserved_bytes` is the highest of the whole run.
    """

    available_bytes: int
    retries: int
    peak_reserved_bytes: int
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Capacity:
    """Whether a run fits on a card of `memory_bytes`, and the replay that decided it.

    `fits`: with the largest CUDA context; `tight`: with the smallest only (`failure` is that of
    the largest); else `does not fit` (`failure` is that of the smallest).
    """

    memory_bytes: int
    context_bytes: int
    expandable_segments: bool
    state: Literal["fits", "tight", "does not fit"]
    attempt: Attempt

    def to_dict(self) -> dict[str, Any]:
        """Return the `capacity` object of the trace's JSON answer."""
        values = asdict(self)
        attempt = values.pop("attempt")
        if attempt["failure"] is not None:
            del attempt["failure"]["place"]
        return {**values, **attempt}


def attempt(timeline: Timeline, available_bytes: int, expandable: bool = False) -> Attempt:
    """Replay a whole timeline with a limit, up to its end or its failure."""
    allocator = CachingAllocator(capacity_bytes=available_bytes, expandable=expandable)
    events = 0
    failure = None
    try:
        for played in play(timeline, allocator):
            events = played.event + 1
    except OutOfMemory as problem:
        allocation = timeline.allocations[timeline.events[events]]
        span = timeline.span_at(events)
        failure = Failure(
            phase=span.name,
            step=span.step,
            module=allocation.module,
            operation=allocation.operation,
            asked_bytes=allocation.size_bytes,
            segment_bytes=problem.asked_bytes,
            reserved_bytes=allocator.reserved_bytes,
            allocated_bytes=allocator.allocated_bytes,
            place=allocation.place,
        )
    return Attempt(available_bytes, allocator.retries, allocator.peak_reserved_bytes, failure)


def check_capacity(
    timeline: Timeline,
    memory_bytes: int,
    context_low_bytes: int,
    context_high_bytes: int,
    expandable: bool = False,
) -> Capacity:
    """Say whether a timeline fits on a card.

    Args:
        memory_bytes: what the card really has.
        context_low_bytes, context_high_bytes: the CUDA context that no PyTorch counter shows,
            between bounds.
    """
    high = attempt(timeline, memory_bytes - context_high_bytes, expandable)
    if high.failure is None:
        return Capacity(memory_bytes, context_high_bytes, expandable, "fits", high)
    low = attempt(timeline, memory_bytes - context_low_bytes, expandable)
    if low.failure is None:
        return Capacity(memory_bytes, context_high_bytes, expandable, "tight", high)
    return Capacity(memory_bytes, context_low_bytes, expandable, "does not fit", low)
