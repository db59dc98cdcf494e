"""What a run's history adds to an estimate: rests of blocks that earlier, larger ones left.

A block of more than 1 MiB that is cut from a larger free one keeps a rest of up to 1 MiB. Which
blocks do is decided by all that was allocated and freed before. In a small run that is a percent or
two, so a small run is played block by block (segments.py), and each component of each phase gets
what its blocks had beyond their expected sizes. In a large one it is a small share, and playing
takes long: there the expected sizes stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from estimator.architecture.run import Instant, Run
from estimator.report import Phase
from estimator.units import GIB

if TYPE_CHECKING:
    from estimator.architecture.segments import Segments

PLAYED_BELOW_BYTES = 12 * GIB
"""Peaks up to which a run is played: with 12 GiB, a thousand rests of half a MiB are 4 %."""

MOST_EVENTS = 30_000
"""Allocations and frees of a run that is played for its rests: some 60 ms."""


@dataclass(frozen=True, slots=True)
class Highest:
    """The highest instant of a run, what its bytes are, and all phases."""

    instant: Instant
    allocated: int
    sizes: dict[str, int]
    phases: tuple[Phase, ...]


def as_expected(run: Run) -> Highest:
    """Return the highest instant with every block at its expected size."""
    instant = run.highest
    return Highest(instant, instant.allocated, instant.sizes(), run.finish())


def as_played(run: Run, played: Segments) -> Highest:
    """Return the highest instant with every block at the size that it had when it was played."""
    rises = {name: sum(seen.highest.beyond.values()) for name, seen in played.phases.items()}
    instant = max(
        (run.instants[name] for name in rises),
        key=lambda one: one.allocated + rises[one.phase],
    )
    sizes = _joined(instant.sizes(), played.phases[instant.phase].highest.beyond)
    most = sum(sizes.values())
    if most < run.highest_requested:
        # What was played is not quite this run: no block is smaller than what is asked for.
        return as_expected(run)
    phases = []
    for known in run.finish():
        name, peak, end = known.name, known.peak_allocated_bytes, known.end_allocated_bytes
        if name in rises:
            peak = min(peak + rises[name], most)
            end = min(end + played.phases[name].end_beyond, most)
        if name == instant.phase:
            peak = most
        phases.append(Phase(name, max(peak, end), end))
    return Highest(instant, most, sizes, tuple(phases))


def _joined(sizes: dict[str, int], beyond: dict[str, int]) -> dict[str, int]:
    """Add what blocks of each component had beyond the expected, which may be less than nothing.

    What would leave a component below zero is another's, which the play knows by another name.
    """
    joined = dict(sizes)
    for kind, more in beyond.items():
        name = "temporaries" if kind == "batch" else kind
        joined[name] = joined.get(name, 0) + more
    missing = sum(size for size in joined.values() if size < 0)
    if missing:
        joined = {name: max(0, size) for name, size in joined.items()}
        joined[max(joined, key=lambda name: joined[name])] += missing
    return joined
