"""Reads the counters at the phases' boundaries, as the observer of the loops."""

from __future__ import annotations

from collections.abc import Callable

from profiler.counters import Counters, Reading
from profiler.record import Counts, MeasuredPhase

NOT_STARTED = Counts(requested_bytes=0, allocated_bytes=0, reserved_bytes=0)


class PhaseMeter:
    """Measures phases; the first, `load`, is open from the start.

    A phase that comes more than once starts where it first started, ends where it last ended, and
    has the highest peak of all its turns.

    Args:
        counters: the device's.
        first_step: steps before this one are run but not measured.
        on_end: called at the end of each measured phase, with its name, while its tensors live.
    """

    def __init__(self, counters: Counters, first_step: int, on_end: Callable[[str], None]) -> None:
        self.current = "load"
        self._counters = counters
        self._first_step = first_step
        self._step = 0
        self._on_end = on_end
        self._measuring = True
        self._start: Counts | None = NOT_STARTED
        self._phases: dict[str, MeasuredPhase] = {}

    @property
    def phases(self) -> tuple[MeasuredPhase, ...]:
        """The phases that have ended, in the order in which they first came."""
        return tuple(self._phases.values())

    def step(self, index: int) -> None:
        """A training step, or the run's only generate, begins."""
        self.finish()
        self._step = index
        self._measuring = index >= self._first_step

    def phase(self, name: str) -> None:
        """A phase begins, or goes on if it is the one that is open."""
        if name == self.current and self._start is not None:
            return
        reading = self.finish()
        self.current = name
        self._counters.mark(f"{name} of step {self._step + 1}")
        self._counters.reset_peaks()
        self._start = reading.current

    def finish(self) -> Reading:
        """End the phase that is open, if one is; return the counters."""
        self._counters.synchronize()
        reading = self._counters.read()
        if self._start is not None and self._measuring:
            ended = MeasuredPhase(
                name=self.current, start=self._start, peak=reading.peak, end=reading.current
            )
            known = self._phases.get(self.current)
            self._phases[self.current] = ended if known is None else _join(known, ended)
            self._on_end(self.current)
        self._start = None
        return reading


def _join(first: MeasuredPhase, second: MeasuredPhase) -> MeasuredPhase:
    peak = highest([first.peak, second.peak])
    return MeasuredPhase(name=first.name, start=first.start, peak=peak, end=second.end)


def highest(counts: list[Counts]) -> Counts:
    """Return the highest of each counter: they need not stand at the same instant."""
    return Counts(
        requested_bytes=max(count.requested_bytes for count in counts),
        allocated_bytes=max(count.allocated_bytes for count in counts),
        reserved_bytes=max(count.reserved_bytes for count in counts),
    )
