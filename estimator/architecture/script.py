"""A run that remembers its passes and what happens between them, so that it can be played again.

What a run adds up as one sum of bytes (masks, a held input, the cache) is told apart here as far as
the allocator would notice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from estimator.allocator import ROUND_LARGE_BYTES
from estimator.architecture.inventory import Held
from estimator.architecture.run import Growth, Pass, Run

_MOST_STEPS = 256
"""Of a cache's growth: with more, it outgrows every card many times over."""


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes of a component that appear between passes, or with a minus go."""

    component: str
    size: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The cache's tensors have these sizes now; the old ones go one by one, or all at the end."""

    sizes: tuple[int, ...]
    at_once: bool


@dataclass(frozen=True, slots=True)
class Holding:
    """A caller holds the newest tensor of a size, from now on or no longer."""

    size: int
    begins: bool


Happening = Pass | Change | Resized | Holding


@dataclass(slots=True)
class Script(Run):
    """A run that also remembers what happened in which phase, in order."""

    happened: dict[str, list[Happening]] = field(default_factory=dict)
    thorough: bool = True

    def begin(self, phase: str) -> None:
        """Later happenings belong to a phase."""
        self.happened.setdefault(phase, [])
        Run.begin(self, phase)

    def change(self, component: str, allocated: int, requested: int | None = None) -> None:
        """Remember a change of what is asked for."""
        self._now.append(Change(component, allocated if requested is None else requested))
        Run.change(self, component, allocated, requested)

    def resize_cache(self, old: Held, new: Held, growth: Growth) -> None:
        """Remember how the cache's tensors grow, as far as it takes new segments."""
        first, last = growth.first, growth.last
        if last > first:
            begin, end = growth.sizes(first), growth.sizes(last)
            rises = [(big - small) / (last - first) for small, big in zip(begin, end, strict=False)]
            # A segment holds what a tensor grows by up to 2 MiB: steps in between find room.
            step = max(1, int(ROUND_LARGE_BYTES / max([*rises, 1])), (last - first) // _MOST_STEPS)
            for tokens in (*range(first + step, last, step), last):
                # Where all of it exists twice, both copies outgrow their segments.
                for token in (tokens - 1, tokens) if growth.at_once else (tokens,):
                    self._now.append(Resized(growth.sizes(token), growth.at_once))
        more = new.allocated_bytes - old.allocated_bytes
        Run.change(self, "kv_cache", more, new.requested_bytes - old.requested_bytes)

    def hold(self, item: Held) -> None:
        """Remember who holds a tensor."""
        self._hold(item, 1)

    def let_go(self, item: Held) -> None:
        """Remember that it is held no longer."""
        self._hold(item, -1)

    def _hold(self, item: Held, sign: int) -> None:
        if item.requested_bytes:
            self._now.append(Holding(item.requested_bytes, sign > 0))
        allocated, requested = sign * item.allocated_bytes, sign * item.requested_bytes
        Run.change(self, "temporaries", allocated, requested)

    def play(self, item: Pass, times: int = 1) -> None:
        """Remember a pass."""
        self._now.extend([item] * times)
        Run.play(self, item, times)

    @property
    def events(self) -> int:
        """How many allocations and frees there are, about."""
        return sum(
            len(item.events) if isinstance(item, Pass) else len(item.sizes)
            for items in self.happened.values()
            for item in items
            if isinstance(item, (Pass, Resized))
        )

    @property
    def _now(self) -> list[Happening]:
        return self.happened[self._phase]
