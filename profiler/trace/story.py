"""The story of a traced run: bytes alive by component from its first allocation to its last.

A run has thousands of allocations; the story keeps at most `MAX_POINTS` instants: the highest and
the lowest of each stretch, and exactly the run's peak and the beginnings and peaks of its phases.
Its JSON shape is in docs/verbs/trace.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from estimator.allocator import CachingAllocator
from estimator.report import COMPONENTS, MemoryReport
from profiler.trace.replay import Replay, Storage, play
from profiler.trace.timeline import LOAD, Span, Timeline

SCHEMA_VERSION = 1
MAX_POINTS = 2000

_MAX_PHASES_MARKED = 200
"""Phases that have points of their own; of more phases (thousands of micro-batches) none do."""


@dataclass(frozen=True, slots=True)
class Points:
    """Instants in order, as columns of one length.

    An instant is after `events` events, when `turnover_bytes` had been allocated in all, of which
    `allocated_bytes` are still there.
    """

    events: tuple[int, ...]
    turnover_bytes: tuple[int, ...]
    allocated_bytes: tuple[int, ...]
    reserved_bytes: tuple[int, ...]
    components: dict[str, tuple[int, ...]]
    """Of the components that occur; they add up to `allocated_bytes`."""


@dataclass(frozen=True, slots=True)
class StoryPhase:
    """A phase as it ran: events from `first_event` to before `end_event`."""

    name: str
    step: int
    first_event: int
    end_event: int
    peak_allocated_bytes: int


@dataclass(frozen=True, slots=True)
class StoryPeak:
    """The peak of the report: when, where, and the largest storages alive."""

    event: int
    phase: str
    instant: str
    allocated_bytes: int
    largest: tuple[Storage, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """A run's memory over its allocator events, down-sampled."""

    case: dict[str, Any]
    events: int
    phases: tuple[StoryPhase, ...]
    points: Points
    peak: StoryPeak

    def to_dict(self) -> dict[str, Any]:
        """Return the story as a JSON object of schema version `SCHEMA_VERSION`."""
        points = self.points
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "timeline",
            "source": "trace",
            "case": self.case,
            "events": self.events,
            "phases": [asdict(phase) for phase in self.phases],
            "points": {
                "event": list(points.events),
                "turnover_bytes": list(points.turnover_bytes),
                "allocated_bytes": list(points.allocated_bytes),
                "reserved_bytes": list(points.reserved_bytes),
                "components": {
                    f"{name}_bytes": list(sizes) for name, sizes in points.components.items()
                },
            },
            "peak": asdict(self.peak),
        }


def tell(timeline: Timeline, replay: Replay, report: MemoryReport, expandable: bool) -> Story:
    """Tell the story of a timeline, its replay and its report."""
    allocator = CachingAllocator(expandable=expandable)
    allocated, reserved, turnover = [0], [0], [0]
    changes: list[tuple[str, int]] = []
    for played in play(timeline, allocator):
        allocated.append(allocator.allocated_bytes)
        reserved.append(allocator.reserved_bytes)
        size = -played.size_bytes if played.freed else played.size_bytes
        turnover.append(turnover[-1] + max(size, 0))
        changes.append((timeline.component(played.handle), size))
    phases = _phases(timeline.spans, allocated)
    wanted = {replay.peak_event}
    if len(phases) <= _MAX_PHASES_MARKED:
        for phase in phases:
            first, end = phase.first_event, phase.end_event
            wanted |= {first, allocated.index(phase.peak_allocated_bytes, first, end + 1)}
    kept = _thin(allocated, turnover, wanted)
    return Story(
        case=report.case,
        events=len(timeline.events),
        phases=phases,
        points=Points(
            events=tuple(kept),
            turnover_bytes=tuple(turnover[event] for event in kept),
            allocated_bytes=tuple(allocated[event] for event in kept),
            reserved_bytes=tuple(reserved[event] for event in kept),
            components=_columns(changes, kept),
        ),
        peak=StoryPeak(
            event=replay.peak_event,
            phase=replay.peak_phase,
            instant=replay.instant,
            allocated_bytes=replay.peak_allocated_bytes,
            largest=replay.largest,
        ),
    )


def _phases(spans: list[Span], allocated: list[int]) -> tuple[StoryPhase, ...]:
    """Return the phases with their peaks; a `load` without events is left out."""
    last = len(allocated) - 1
    ends = [span.first_event for span in spans[1:]] + [last]
    return tuple(
        StoryPhase(
            span.name,
            span.step,
            span.first_event,
            end,
            max(allocated[span.first_event : end + 1]),
        )
        for span, end in zip(spans, ends, strict=True)
        if span.name != LOAD or end > span.first_event
    )


def place(event: int, turnover_bytes: int, events: int, total_bytes: int) -> float:
    """Return where in a run an instant is, from 0 to 1.

    Half by events and half by bytes: a loss is a few allocations among thousands, but not small;
    an optimizer's step allocates next to nothing.
    """
    return event / max(events, 1) / 2 + turnover_bytes / max(total_bytes, 1) / 2


def _thin(allocated: list[int], turnover: list[int], wanted: set[int]) -> list[int]:
    """Return the instants to keep, in order: those wanted, the ends, the extremes of stretches."""
    last = len(allocated) - 1
    if last < MAX_POINTS:
        return list(range(last + 1))
    kept = {0, last, *wanted}
    stretches = (MAX_POINTS - len(kept)) // 2

    def stretch_of(event: int) -> int:
        return min(
            int(place(event, turnover[event], last, turnover[-1]) * stretches), stretches - 1
        )

    for _, stretch in groupby(range(last + 1), key=stretch_of):
        instants = list(stretch)
        kept.add(max(instants, key=allocated.__getitem__))
        kept.add(min(instants, key=allocated.__getitem__))
    return sorted(kept)


def _columns(changes: list[tuple[str, int]], kept: list[int]) -> dict[str, tuple[int, ...]]:
    """Return the bytes of each component that occurs at the instants kept."""
    now = dict.fromkeys(COMPONENTS, 0)
    columns: dict[str, list[int]] = {name: [] for name in COMPONENTS}
    position = 0
    for event in kept:
        for component, size in changes[position:event]:
            now[component] += size
        position = event
        for name, column in columns.items():
            column.append(now[name])
    return {name: tuple(column) for name, column in columns.items() if any(column)}
