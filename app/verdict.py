"""Does it fit? A peak against what a card really has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from estimator.gpus import Gpu
from estimator.report import MemoryReport
from estimator.units import GIB, MIB, format_both

CONTEXT_LOW_BYTES = 205 * MIB
CONTEXT_HIGH_BYTES = 563 * MIB
"""CUDA context: 0.2 to 0.55 GiB by GPU and driver (docs/counters.md); in no PyTorch counter."""

SLACK = 0.05
"""Share of the peak to keep free for the allocator's unused parts of segments."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run fits on a card.

    `fits`: the peak, the highest context and 5 % of the peak are below the card's memory;
    `tight`: the peak and the lowest context are; else `does not fit`. `headroom_bytes` is the
    card's memory minus the peak, negative where it is short.
    """

    state: Literal["fits", "tight", "does not fit"]
    headroom_bytes: int
    sentence: str


def judge(report: MemoryReport, gpu: Gpu) -> Verdict:
    """Compare a report's peak (reserved where known, else allocated) with a card."""
    need = report.peak.reserved_bytes or report.peak.allocated_bytes
    headroom = gpu.memory_bytes - need
    state: Literal["fits", "tight", "does not fit"]
    if headroom < CONTEXT_LOW_BYTES:
        state = "does not fit"
    elif headroom < CONTEXT_HIGH_BYTES + SLACK * need:
        state = "tight"
    else:
        state = "fits"
    if headroom < 0:
        room = f"short by {format_both(-headroom)}"
    else:
        room = f"headroom {format_both(headroom)}"
    low, high = CONTEXT_LOW_BYTES / GIB, CONTEXT_HIGH_BYTES / GIB
    return Verdict(
        state,
        headroom,
        f"{gpu.name} ({gpu.memory_mib} MiB): {state}, {room}; "
        f"the CUDA context takes another {low:.1f} to {high:.2f} GiB on top",
    )
