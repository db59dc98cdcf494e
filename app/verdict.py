"""Does it fit? A peak against what a card really has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from estimator.gpus import Gpu
from estimator.headroom import CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES, SLACK
from estimator.report import MemoryReport
from estimator.units import GIB, format_both


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run fits on a card.

    `fits`: the peak, the largest context and (where only the allocated peak is known) 5 % of the
    peak are within the card's memory; `tight`: the peak and the smallest context are; else
    `does not fit`. `headroom_bytes` is the card's memory minus the peak, negative where short.
    """

    state: Literal["fits", "tight", "does not fit"]
    headroom_bytes: int
    sentence: str


def judge(report: MemoryReport, gpu: Gpu) -> Verdict:
    """Compare a report's peak (reserved where known, else allocated) with a card."""
    reserved = report.peak.reserved_bytes
    need = report.peak.allocated_bytes if reserved is None else reserved
    slack = SLACK * need if reserved is None else 0
    headroom = gpu.memory_bytes - need
    state: Literal["fits", "tight", "does not fit"]
    if headroom < CONTEXT_LOW_BYTES:
        state = "does not fit"
    elif headroom < CONTEXT_HIGH_BYTES + slack:
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
