"""The timeline of a run: allocations and frees in order, with phases. It knows nothing of torch."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

LOAD = "load"


@dataclass(slots=True)
class Allocation:
    """One storage: its bytes, the span (an index) that made it, and what is known of it.

    `module` is the path of the module that was running (or that owns a weight), `operation` what
    it ran (`aten.mm`).
    """

    size_bytes: int
    phase: int
    component: str | None = None
    recomputed: bool = False
    freed_in: int | None = None
    module: str | None = None
    operation: str | None = None

    @property
    def place(self) -> str:
        """Where it was made, in words: `model.layers.3.mlp (mm)`."""
        operation = (self.operation or "").rpartition(".")[2]
        again = "recomputed " if self.recomputed else ""
        made = f" ({again}{operation})" if operation else ""
        return f"{self.module or 'outside the model'}{made}"


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

    def allocate(
        self,
        size_bytes: int,
        component: str | None = None,
        module: str | None = None,
        operation: str | None = None,
    ) -> int:
        """Record an allocation and return its handle."""
        handle = len(self.allocations)
        self.allocations.append(
            Allocation(
                size_bytes,
                len(self.spans) - 1,
                component,
                module=module,
                operation=operation,
            )
        )
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

    def place(self, handle: int, module: str) -> None:
        """Say which module an allocation belongs to, where that is not known yet."""
        if self.allocations[handle].module is None:
            self.allocations[handle].module = module

    def component(self, handle: int) -> str:
        """Return what an allocation is; asked once the run is over.

        Activations and temporaries are told apart by their lives: saved for backward is what a
        forward pass (or its recomputation) made and backward freed.
        """
        allocation = self.allocations[handle]
        if allocation.component is not None:
            return allocation.component
        made = self.spans[allocation.phase].name
        freed = None if allocation.freed_in is None else self.spans[allocation.freed_in].name
        if allocation.recomputed or (made == "forward" and freed != "forward"):
            return "activations"
        return "temporaries"

    def span_at(self, event: int) -> Span:
        """Return the span that an event belongs to."""
        return self.spans[bisect_right(self.spans, event, key=lambda span: span.first_event) - 1]
