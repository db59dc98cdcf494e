"""A run as a list of instants: bases, passes over blocks, and the highest of them.

The ledger holds what is alive between passes, by component. Each pass over a block is played once
a kind of layer on a tape, and its highest instant is compared from the ledger at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from estimator.architecture.events import Event, peak, totals
from estimator.architecture.inventory import Held
from estimator.report import Phase


@dataclass(slots=True)
class Pass:
    """What playing a block did: its highest instant and what it left, by component."""

    events: list[Event]
    label: str
    peak: int = 0
    peak_event: int = 0
    peak_requested: int = 0
    net: dict[str, int] = field(default_factory=dict)
    net_allocated: int = 0
    net_requested: int = 0

    @classmethod
    def of(cls, events: list[Event], label: str) -> Pass:
        """Measure a stretch of a tape."""
        if not events:
            return cls(events, label)
        highest, where = peak(events)
        net, net_requested = totals(events)
        # What is requested may be highest at another instant than what is allocated.
        requested = max(accumulate([sign * storage.requested for storage, sign in events]))
        requested = max(requested, 0)
        net_allocated = sum(net.values())
        return cls(events, label, highest, where, requested, net, net_allocated, net_requested)


@dataclass(slots=True)
class Instant:
    """The highest instant of a phase so far."""

    allocated: int = -1
    requested: int = 0
    phase: str = ""
    label: str = ""
    base: dict[str, int] = field(default_factory=dict)
    inside: Pass | None = None

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each component: the ledger's, and of the pass up to its peak."""
        sizes = dict(self.base)
        if self.inside is not None:
            for name, size in totals(self.inside.events[: self.inside.peak_event])[0].items():
                sizes[name] = sizes.get(name, 0) + size
        return sizes


@dataclass(frozen=True, slots=True)
class Growth:
    """A cache grows from `first` to `last` tokens, one at a time.

    `sizes` returns the bytes of each of its tensors after so many tokens; `at_once` is whether all
    of them exist twice for a moment, and not one layer's.
    """

    first: int
    last: int
    sizes: Callable[[int], tuple[int, ...]]
    at_once: bool


@dataclass(slots=True)
class Run:
    """Accumulates passes in the order of the run."""

    ledger: dict[str, int] = field(default_factory=dict)
    requested: int = 0
    instants: dict[str, Instant] = field(default_factory=dict)
    """The highest of each phase."""
    highest_requested: int = 0
    phases: dict[str, list[int]] = field(default_factory=dict)
    total: int = 0
    """Bytes alive now: the ledger's sum."""
    thorough: bool = False
    """Whether instants are played that cannot be the highest, too."""
    _phase: str = "load"
    _highest: Instant = field(default_factory=Instant)

    @property
    def highest(self) -> Instant:
        """The highest instant of all phases; of equals the first."""
        return max(self.instants.values(), key=lambda instant: instant.allocated)

    def begin(self, phase: str) -> None:
        """Later changes belong to a phase."""
        self._phase = phase
        self._highest = self.instants.setdefault(phase, Instant())
        self.phases.setdefault(phase, [0, 0])
        self._note(self.total)

    def change(self, component: str, allocated: int, requested: int | None = None) -> None:
        """Something appears (or with a minus goes) and stays."""
        self.ledger[component] = self.ledger.get(component, 0) + allocated
        self.total += allocated
        self.requested += allocated if requested is None else requested
        self._note(self.total)
        self._compare(self.total, self.requested, self._phase, None)

    def resize_cache(self, old: Held, new: Held, growth: Growth) -> None:
        """The cache is another after tokens that are not played."""
        self.exchange("kv_cache", old, new)

    def hold(self, item: Held) -> None:
        """A caller keeps the tensor just made, whoever else lets go of it."""
        self.change("temporaries", item.allocated_bytes, item.requested_bytes)

    def let_go(self, item: Held) -> None:
        """The caller returns, and what it held goes."""
        self.change("temporaries", -item.allocated_bytes, -item.requested_bytes)

    def exchange(self, component: str, old: Held, new: Held) -> None:
        """Something goes, and another takes its place."""
        self.change(
            component,
            new.allocated_bytes - old.allocated_bytes,
            new.requested_bytes - old.requested_bytes,
        )

    def play_layers(self, item: Pass, times: int, before: Held, after: Held) -> None:
        """Equal layers run; the model's loop holds `before` until the first of them returns, and
        `after`, which each of them hands to it, from then on."""
        if before == after:
            self.play(item, times)
            return
        self.play(item)
        self.exchange("temporaries", before, after)
        if times > 1:
            self.play(item, times - 1)

    def correct(self, component: str, allocated: int) -> None:
        """So many bytes are what a component has, whatever the passes before summed up to."""
        self.total += allocated - self.ledger.get(component, 0)
        self.ledger[component] = allocated

    def restate(self, component: str, more: int) -> None:
        """A component has had so many bytes more since loading, at every instant."""
        self.ledger[component] = self.ledger.get(component, 0) + more
        self.total += more
        for phase, instant in self.instants.items():
            instant.allocated += more
            instant.base[component] = instant.base.get(component, 0) + more
            if phase != "load":
                self.phases[phase] = [size + more for size in self.phases[phase]]

    def rename(self, old: str, new: str, allocated: int) -> None:
        """So many bytes turn out to be something else."""
        self.ledger[old] = self.ledger.get(old, 0) - allocated
        self.ledger[new] = self.ledger.get(new, 0) + allocated

    def play(self, item: Pass, times: int = 1) -> None:
        """A block's pass runs so many times in a row: its peak from here, then what it leaves.

        What passes leave adds up evenly, so only the first or the last can be the highest.
        """
        self._play(item)
        if times > 1:
            self._leave(item, times - 2)
            self._play(item)

    def _play(self, item: Pass) -> None:
        total = self.total
        self._note(total + item.peak)
        self._compare(total + item.peak, self.requested + item.peak_requested, item.label, item)
        self._leave(item, 1)
        self._note(self.total)

    def _leave(self, item: Pass, times: int) -> None:
        for name, size in item.net.items():
            self.ledger[name] = self.ledger.get(name, 0) + times * size
        self.total += times * item.net_allocated
        self.requested += times * item.net_requested

    def spike(self, component: str, allocated: int, requested: int, label: str) -> None:
        """Something is alive for a moment."""
        self.ledger[component] = self.ledger.get(component, 0) + allocated
        self.total += allocated
        self.requested += requested
        self._note(self.total)
        self._compare(self.total, self.requested, label, None)
        self.ledger[component] -= allocated
        self.total -= allocated
        self.requested -= requested

    def finish(self) -> tuple[Phase, ...]:
        """Return the phases with their peaks and ends."""
        return tuple(Phase(name, peak, end) for name, (peak, end) in self.phases.items())

    def _note(self, total: int) -> None:
        known = self.phases[self._phase]
        if total > known[0]:
            known[0] = total
        known[1] = self.total

    def _compare(self, allocated: int, requested: int, label: str, item: Pass | None) -> None:
        if requested > self.highest_requested:
            self.highest_requested = requested
        if allocated > self._highest.allocated:
            found = Instant(allocated, requested, self._phase, label, dict(self.ledger), item)
            self._highest = self.instants[self._phase] = found
