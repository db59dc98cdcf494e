"""Does it fit? A peak against what a card really has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from estimator.case import Case
from estimator.counters import runs_within
from estimator.gpus import Gpu
from estimator.headroom import CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES, SLACK
from estimator.report import MemoryReport
from estimator.units import GIB, MIB, format_both

if TYPE_CHECKING:
    from profiler.trace.capacity import Capacity, Failure


State = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run fits on a card.

    `fits`: the peak and the largest context are within the card's memory, where the peak is the
    reserved one of a replay or a measurement, or the upper end of an estimate's; where only the
    allocated peak is known, 5 % of it have to be left. `tight`: the peak and the smallest context
    are; else `does not fit`. An estimate's run may also fit because the allocator gives cached
    memory back: it is played within the card. `headroom_bytes` is the card's memory minus the
    reserved peak (the allocated one where cached memory is given back), negative where short.
    """

    state: State
    headroom_bytes: int
    sentence: str


def judge(report: MemoryReport, gpu: Gpu, play: bool = True) -> Verdict:
    """Compare a report's peak (reserved where known, else allocated) with a card.

    Args:
        play: whether an estimate whose reserved peak is too much is played within the card; it is
            `tight` otherwise, as long as its allocated peak is not too much.

    Raises:
        GpumemError: as `estimate`, for an estimate that has to be played within the card.
    """
    if report.source == "architecture" and report.peak.reserved_bytes is not None:
        return _judge_estimate(report, gpu, play)
    reserved = report.peak.reserved_bytes
    need = report.peak.allocated_bytes if reserved is None else reserved
    replayed = reserved is not None and report.source in ("trace", "cuda")
    slack = 0 if replayed else max(0, (1 + SLACK) * report.peak.allocated_bytes - need)
    headroom = gpu.memory_bytes - need
    state: State = "fits"
    if headroom < CONTEXT_LOW_BYTES:
        state = "does not fit"
    elif headroom < CONTEXT_HIGH_BYTES + slack:
        state = "tight"
    return _verdict(state, gpu, headroom)


def _judge_estimate(report: MemoryReport, gpu: Gpu, play: bool) -> Verdict:
    """Say whether an estimate fits: its reserved peak's upper end, or if that is too much the run
    played within what the card can give, with the largest CUDA context; `tight` with the smallest.
    """
    case = replace(Case.from_dict(report.case), gpu=gpu.name)
    peak = report.peak
    assert peak.reserved_bytes is not None
    high = peak.reserved_interval.high_bytes if peak.reserved_interval else peak.reserved_bytes
    room = gpu.memory_bytes - CONTEXT_HIGH_BYTES
    if high <= room:
        return _verdict("fits", gpu, gpu.memory_bytes - peak.reserved_bytes)
    needed = f", though it would reserve {format_both(peak.reserved_bytes)} of a larger card"
    least = gpu.memory_bytes - peak.allocated_bytes
    if least < CONTEXT_LOW_BYTES:
        return _verdict("does not fit", gpu, gpu.memory_bytes - peak.reserved_bytes)
    if not play:
        return _verdict("tight", gpu, least, needed)
    if runs_within(case, peak.allocated_bytes, room):
        return _verdict("fits", gpu, least, f"{needed}: cached memory is given back")
    if runs_within(case, peak.allocated_bytes, gpu.memory_bytes - CONTEXT_LOW_BYTES):
        return _verdict("tight", gpu, least, needed)
    return _verdict("does not fit", gpu, gpu.memory_bytes - peak.reserved_bytes)


def _verdict(state: State, gpu: Gpu, headroom: int, more: str = "") -> Verdict:
    if headroom < 0:
        room = f"short by {format_both(-headroom)}"
    else:
        room = f"headroom {format_both(headroom)}"
    low, high = CONTEXT_LOW_BYTES / GIB, CONTEXT_HIGH_BYTES / GIB
    return Verdict(
        state,
        headroom,
        f"{gpu.name} ({gpu.memory_mib} MiB): {state}, {room}{more}; "
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
