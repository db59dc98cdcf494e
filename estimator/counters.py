"""From allocated to reserved and device bytes: a point, and intervals that say what they rest on.

Reserved bytes come from the run's blocks, played on a model of PyTorch's allocator. How far such a
figure is from the trace's, which plays what the real code allocates, is known from traced cases
(data/reserved.json, written by `python -m benchmarks.calibrate.reserved`); nothing of that was
measured on a GPU, and the basis says so. Device bytes add the CUDA context, known between bounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Protocol

from estimator.case import Case
from estimator.gpus import find_gpu
from estimator.headroom import CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES, SLACK
from estimator.report import Beyond, Interval
from estimator.units import format_gib

_AMPLE = 2
"""No run has been seen whose fragments take as much as what it has allocated, once the allocator
gives cached segments back: with so many times its allocated peak a run is not played."""


class Played(Protocol):
    """A run played on the allocator's model: its highest bytes of segments, and whether the
    capacity did not hold it."""

    @property
    def peak_bytes(self) -> int: ...

    @property
    def failed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ReservedRule:
    """Where the trace's reserved bytes lie, as multiples of the estimate's, by task.

    `coverage` is the share that it held of model families that were left out of it.
    """

    task: str
    level: float
    low_ratio: float
    high_ratio: float
    coverage: float
    cases: int
    families: int

    @property
    def basis(self) -> str:
        """What it rests on, in a sentence."""
        return (
            f"simulated, not measured: of {self.cases} traced {self.task} cases of "
            f"{self.families} model families, each left out in turn, it held "
            f"{100 * self.coverage:.0f} %"
        )


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """What the driver showed at most above estimated reserved bytes, in a share `level` of
    published runs: the CUDA context, other libraries, and what loading left in the cache.

    `coverage` is the share that it held of model families that were left out of it.
    """

    level: float
    most_bytes: int
    coverage: float
    runs: int
    families: int
    cards: str

    @property
    def basis(self) -> str:
        """What it rests on, in a sentence."""
        return (
            f"{self.runs} runs of {self.families} model families measured and published by "
            f"others on {self.cards}: {self.level:.0%} of them stay within "
            f"{format_gib(self.most_bytes)} of the estimate's reserved bytes, and "
            f"{100 * self.coverage:.0f} % of left-out families"
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """The package's rules: of reserved bytes by task, and of device bytes."""

    reserved: dict[str, ReservedRule]
    device: DeviceRule


@cache
def rules() -> Rules:
    """Return the package's rules."""
    text = files("estimator").joinpath("data", "reserved.json").read_text(encoding="utf-8")
    data = json.loads(text)
    found = [ReservedRule(**row) for row in data["rules"]]
    return Rules({rule.task: rule for rule in found}, DeviceRule(**data["device"]))


def beyond_allocated(
    case: Case, allocated_bytes: int, play: Callable[[int | None], Played]
) -> Beyond:
    """Return reserved and device bytes of an estimate.

    On a card that the run fits on, the allocator gives cached segments back rather than exceed it:
    then both end at the card's memory. Where it does not fit, they are what it would take.

    Args:
        play: plays the run on a card that can give so many bytes, or on one without a limit.
    """
    rule, device = rules().reserved[case.task], rules().device
    point = max(play(None).peak_bytes, allocated_bytes)
    most: int | None = None
    if case.gpu is not None:
        memory = find_gpu(case.gpu).memory_bytes
        if math.ceil(rule.high_ratio * point) > memory - CONTEXT_HIGH_BYTES:
            limited = play(memory - CONTEXT_LOW_BYTES)
            if not limited.failed:
                most = memory
                point = max(limited.peak_bytes, allocated_bytes)
    low = max(allocated_bytes, math.floor(rule.low_ratio * point))
    high = max(point, math.ceil(rule.high_ratio * point))
    device_high = high + max(device.most_bytes, CONTEXT_HIGH_BYTES)
    if most is not None:
        high, device_high = min(high, most - CONTEXT_LOW_BYTES), min(device_high, most)
    return Beyond(
        reserved_bytes=point,
        reserved_interval=Interval(low, high, rule.level, rule.basis),
        # Below, the CUDA context alone; the cache may have been given back when it was read.
        device_interval=Interval(
            allocated_bytes + CONTEXT_LOW_BYTES, device_high, device.level, device.basis
        ),
    )


def runs_within(case: Case, allocated_bytes: int, capacity_bytes: int) -> bool:
    """Whether an estimated run fits in what a card can give PyTorch.

    It is played with no more than that, less what reserved bytes of such runs were off by: the
    allocator gives cached segments back before it fails, so that a run may pass with less than it
    would reserve of a larger card.

    Raises:
        GpumemError: as `estimate`.
    """
    from estimator.architecture.estimate import play_within
    from estimator.architecture.segments import TooManyEvents

    if allocated_bytes > capacity_bytes:
        return False
    if _AMPLE * allocated_bytes <= capacity_bytes:
        return True
    margin = rules().reserved[case.task].high_ratio
    try:
        return not play_within(case, int(capacity_bytes / margin)).failed
    except TooManyEvents:
        return (1 + SLACK) * allocated_bytes <= capacity_bytes
