"""What a card has to have besides PyTorch's memory, and how much of the card that leaves.

Nothing here is in a counter of PyTorch's allocator; see docs/counters.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.gpus import Gpu
from estimator.units import MIB

CONTEXT_LOW_BYTES = 205 * MIB
CONTEXT_HIGH_BYTES = 563 * MIB
"""CUDA context: 0.2 to 0.55 GiB by GPU and driver (docs/counters.md); in no PyTorch counter."""

SLACK = 0.05
"""Share of an allocated peak to keep free for unused parts of the allocator's segments."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a card leaves for a run.

    `reserve_bytes` is kept free for the CUDA context; `slack` is the share of an allocated peak
    that is kept free for fragmentation where the reserved peak is not known.
    """

    gpu: Gpu
    reserve_bytes: int = CONTEXT_HIGH_BYTES
    slack: float = SLACK

    @property
    def room_bytes(self) -> int:
        """What is left for PyTorch's segments."""
        return self.gpu.memory_bytes - self.reserve_bytes

    def need_bytes(self, allocated_bytes: int, reserved_bytes: int | None) -> int:
        """Return what a run takes of the room: reserved where known, else allocated and slack."""
        if reserved_bytes is not None:
            return reserved_bytes
        return allocated_bytes + int(self.slack * allocated_bytes)

    def holds(self, allocated_bytes: int, reserved_bytes: int | None) -> bool:
        """Whether a run with these peaks fits."""
        return self.need_bytes(allocated_bytes, reserved_bytes) <= self.room_bytes
