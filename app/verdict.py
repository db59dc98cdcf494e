"""Does it fit? A peak against what a card really has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from estimator.gpus import Gpu
from estimator.headroom import CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES, SLACK
from estimator.report import MemoryReport
from estimator.units import GIB, MIB, format_both

if TYPE_CHECKING:
    from profiler.trace.capacity import Capacity, Failure


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run fits on a card.

    `fits`: the peak and the largest context are within the card's memory, where the peak is the
    reserved one of a replay or a measurement; an estimate has to leave 5 % of its allocated peak.
    `tight`: the peak and the smallest context are; else `does not fit`. `headroom_bytes` is the
    card's memory minus the peak, negative where short.
    """

    state: Literal["fits", "tight", "does not fit"]
    headroom_bytes: int
    sentence: str


def judge(report: MemoryReport, gpu: Gpu) -> Verdict:
    """Compare a report's peak (reserved where known, else allocated) with a card."""
    reserved = report.peak.reserved_bytes
    need = report.peak.allocated_bytes if reserved is None else reserved
    # An estimate's reserved bytes are what is typical of its kind of run: half of them are above.
    replayed = reserved is not None and report.source in ("trace", "cuda")
    slack = 0 if replayed else max(0, (1 + SLACK) * report.peak.allocated_bytes - need)
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


def judge_capacity(capacity: Capacity, gpu: Gpu | None) -> Verdict:
    """Put into words what a replay on a card of limited memory, `gpu` if it has a name, found."""
    attempt = capacity.attempt
    context = f"with {capacity.context_bytes // MIB} MiB of it for the CUDA context"
    if attempt.failure is None:
        found = f"fits {context}; reserved at most {format_both(attempt.peak_reserved_bytes)}"
        if attempt.retries:
            found += f", after giving cached memory back ({attempt.retries} retries: slow)"
    elif capacity.state == "tight":
        found = (
            f"tight: {context}, {_failed(attempt.failure)}; "
            f"it fits if the context takes only {CONTEXT_LOW_BYTES // MIB} MiB"
        )
    else:
        found = f"does not fit: {context}, {_failed(attempt.failure)}"
    mib = capacity.memory_bytes // MIB
    card = f"a card of {mib} MiB" if gpu is None else f"{gpu.name} ({mib} MiB)"
    segments = ", expandable segments" if capacity.expandable_segments else ""
    return Verdict(
        capacity.state,
        capacity.memory_bytes - attempt.peak_reserved_bytes,
        f"{card}{segments}: {found}",
    )


def _failed(failure: Failure) -> str:
    step = "" if failure.phase == "load" else f" of step {failure.step + 1}"
    return (
        f"out of memory in {failure.phase.replace('_', ' ')}{step}: {failure.place} "
        f"asks for {format_both(failure.asked_bytes)} while "
        f"{format_both(failure.reserved_bytes)} are reserved"
    )
