"""Allocations and frees in the order in which they happen, and their sums."""

from __future__ import annotations

from itertools import accumulate

from estimator.allocator import expected_block


class Storage:
    """Bytes of memory with a reference count. `saved` is whether autograd ever kept it."""

    __slots__ = ("allocated", "component", "dead", "held", "refs", "requested", "saved")

    def __init__(self, size: int, component: str | None) -> None:
        self.requested = size
        self.allocated = expected_block(size)
        self.component = component
        self.refs = 1
        self.held = 0
        self.saved = False
        self.dead = False

    @property
    def kind(self) -> str:
        """The component of the report to which the bytes belong."""
        return self.component or ("activations" if self.saved else "temporaries")


Event = tuple[Storage, int]
"""An allocation (1) or a free (-1) of a storage."""


def peak(events: list[Event]) -> tuple[int, int]:
    """Return the highest sum of allocated bytes over events, and the index after it.

    The sum starts at 0 before the first event; the peak is at least 0.
    """
    sums = [0, *accumulate([sign * storage.allocated for storage, sign in events])]
    best = max(sums)
    return best, sums.index(best)


def totals(events: list[Event]) -> tuple[dict[str, int], int]:
    """Return net allocated bytes by component, and net requested bytes.

    A storage's component is final only when everything that may save it has been played.
    """
    # Most storages come and go: only the others are looked at.
    left: dict[Storage, int] = {}
    for storage, sign in events:
        if sign < 0 and left.pop(storage, 0):
            continue
        left[storage] = sign
    sizes: dict[str, int] = {}
    requested = 0
    for storage, sign in left.items():
        kind = storage.kind
        sizes[kind] = sizes.get(kind, 0) + sign * storage.allocated
        requested += sign * storage.requested
    return sizes, requested
