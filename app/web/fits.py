"""What would fit on the chosen card: the largest batch and length, changes, and a heat map."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from app.web.form import State, read_case, read_model
from estimator.case import MAX_COUNT, Case
from estimator.errors import GpumemError, UnsupportedError
from estimator.fit import (
    Answer,
    Changes,
    Largest,
    Peaks,
    cheapest_changes,
    estimated_peaks,
    largest_batch,
    longest_sequence,
    positions,
)
from estimator.gpus import find_gpu
from estimator.headroom import Room

BUDGET_S = 5.0
"""Configurations of thousands of different layers would keep everybody else waiting."""

_BATCHES = 5
_LENGTHS_BELOW, _LENGTHS_ABOVE = 2, 3


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Peak allocated bytes, a row a batch size and a column a length; None: not to be estimated."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    peaks: tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Fits:
    """What fits. `changes` is None where the case fits as it is, `room` without a card."""

    case: Case
    room: Room | None
    fits: bool
    batch: Largest | None
    length: Largest | None
    changes: Changes | None
    heat_map: HeatMap


def fits(state: State) -> Fits | None:
    """Answer a state, or return None where `answer` has no estimate either."""
    try:
        case = read_case(state, read_model(state))
        ask = _remembering(estimated_peaks, time.monotonic() + BUDGET_S)
        peaks = ask(case)
        if case.gpu is None:
            return Fits(case, None, False, None, None, None, _heat_map(case, ask))
        room = Room(find_gpu(case.gpu))
        holds = room.holds(peaks.allocated_bytes, peaks.reserved_bytes)
        return Fits(
            case,
            room,
            holds,
            largest_batch(case, ask, room),
            longest_sequence(case, ask, room),
            None if holds else cheapest_changes(case, ask, room),
            _heat_map(case, ask),
        )
    except GpumemError:
        return None  # `answer` says why


def _remembering(answer: Answer, deadline: float) -> Answer:
    """Ask once for each case of one model, and not beyond a deadline (of `time.monotonic`)."""
    known: dict[tuple[object, ...], Peaks] = {}
    names = [field.name for field in fields(Case) if field.name != "model"]

    def ask(case: Case) -> Peaks:
        key = tuple(getattr(case, name) for name in names)
        if key not in known:
            if time.monotonic() > deadline:
                raise UnsupportedError("this model is too large to search for what fits")
            known[key] = answer(case)
        return known[key]

    return ask


def _heat_map(case: Case, ask: Answer) -> HeatMap:
    """Estimate around the case, by factors of two in both directions."""
    batches = _axis(case.batch_size, _BATCHES // 2, _BATCHES, MAX_COUNT)
    known = positions(case)
    most = MAX_COUNT if known is None else max(known - (case.max_new_tokens or 0), 1)
    count = _LENGTHS_BELOW + 1 + _LENGTHS_ABOVE
    lengths = _axis(case.sequence_length, _LENGTHS_BELOW, count, max(most, case.sequence_length))
    point = _point(case, ask)
    return HeatMap(batches, lengths, tuple(tuple(point(b, s) for s in lengths) for b in batches))


def _axis(value: int, below: int, count: int, most: int) -> tuple[int, ...]:
    values = [value]
    while len(values) <= below and values[0] > 1:
        values.insert(0, values[0] // 2)
    while len(values) < count and values[-1] * 2 <= most:
        values.append(values[-1] * 2)
    while len(values) < count and values[0] > 1:
        values.insert(0, values[0] // 2)
    return tuple(values)


def _point(case: Case, ask: Answer) -> Callable[[int, int], int | None]:
    def point(batch: int, length: int) -> int | None:
        try:
            return ask(replace(case, batch_size=batch, sequence_length=length)).allocated_bytes
        except GpumemError:
            return None

    return point
