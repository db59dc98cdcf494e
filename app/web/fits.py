"""What would fit on the chosen card: the largest batch and length, changes, and a heat map."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from app.web.form import State, read_case, read_model
from estimator.case import MAX_COUNT, Case
from estimator.errors import GpumemError
from estimator.fit import (
    Answer,
    Changes,
    Largest,
    Peaks,
    cheapest_changes,
    estimated_peaks,
    largest_batch,
    longest_sequence,
    played_peaks,
    positions,
)
from estimator.gpus import find_gpu
from estimator.headroom import Room

BUDGET_S = 5.0
"""Processor time: configurations of thousands of different layers would keep everybody else
waiting. It is not the clock's, so that the answer does not depend on who else asks."""

PLAYED_S = 3.0
"""The part of it for playing runs on the allocator's model; after that, a rule stands for it."""

_BATCHES = 5
_LENGTHS_BELOW, _LENGTHS_ABOVE = 2, 3


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Peak allocated bytes, a row a batch size and a column a length; None: not to be estimated.

    `held` says of each whether the card holds it; no card holds what cannot be estimated.
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    peaks: tuple[tuple[int | None, ...], ...]
    held: tuple[tuple[bool, ...], ...]


@dataclass(frozen=True, slots=True)
class Fits:
    """What fits. `changes` is None where the case fits as it is, `room` without a card.

    `played`: whether runs were played on the allocator's model, as `gpumem fit` does; if not, a
    share of the allocated peak is kept free in its place.
    """

    case: Case
    room: Room | None
    played: bool
    fits: bool
    batch: Largest | None
    length: Largest | None
    changes: Changes | None
    heat_map: HeatMap


class _OutOfTime(Exception):
    """A search has taken as long as it may."""


def fits(state: State) -> Fits | None:
    """Answer a state, or return None where `answer` has no estimate either."""
    start = time.thread_time()
    try:
        case = read_case(state, read_model(state))
        try:
            return _solve(case, played_peaks, start + PLAYED_S)
        except _OutOfTime:
            return _solve(case, estimated_peaks, start + BUDGET_S)
    except (GpumemError, _OutOfTime):
        return None  # `answer` says why there is no estimate


def _solve(case: Case, answer: Answer, deadline: float) -> Fits:
    ask = _remembering(answer, deadline)
    peaks = ask(case)
    if case.gpu is None:
        return Fits(case, None, False, False, None, None, None, _heat_map(case, ask, None))
    room = Room(find_gpu(case.gpu))
    holds = peaks.held_by(room)
    return Fits(
        case,
        room,
        peaks.runs_within is not None,
        holds,
        largest_batch(case, ask, room),
        longest_sequence(case, ask, room),
        None if holds else cheapest_changes(case, ask, room),
        _heat_map(case, ask, room),
    )


def _remembering(answer: Answer, deadline: float) -> Answer:
    """Ask once for each case of one model, and not beyond a deadline (of `time.thread_time`)."""
    known: dict[tuple[object, ...], Peaks] = {}
    names = [field.name for field in fields(Case) if field.name != "model"]

    def in_time() -> None:
        if time.thread_time() > deadline:
            raise _OutOfTime

    def ask(case: Case) -> Peaks:
        key = tuple(getattr(case, name) for name in names)
        if key not in known:
            in_time()
            peaks = answer(case)
            within = peaks.runs_within
            known[key] = peaks if within is None else replace(peaks, runs_within=timed(within))
        return known[key]

    def timed(within: Callable[[int], bool]) -> Callable[[int], bool]:
        def run(capacity_bytes: int) -> bool:
            in_time()
            return within(capacity_bytes)

        return run

    return ask


def _heat_map(case: Case, ask: Answer, room: Room | None) -> HeatMap:
    """Estimate around the case, by factors of two in both directions."""
    batches = _axis(case.batch_size, _BATCHES // 2, _BATCHES, MAX_COUNT)
    known = positions(case)
    most = MAX_COUNT if known is None else max(known - (case.max_new_tokens or 0), 1)
    count = _LENGTHS_BELOW + 1 + _LENGTHS_ABOVE
    lengths = _axis(case.sequence_length, _LENGTHS_BELOW, count, max(most, case.sequence_length))
    point = _point(case, ask)
    points = [[point(batch, length) for length in lengths] for batch in batches]
    return HeatMap(
        batches,
        lengths,
        tuple(
            tuple(None if peaks is None else peaks.shown().allocated_bytes for peaks in row)
            for row in points
        ),
        tuple(
            tuple(room is None or (peaks is not None and peaks.held_by(room)) for peaks in row)
            for row in points
        ),
    )


def _axis(value: int, below: int, count: int, most: int) -> tuple[int, ...]:
    values = [value]
    while len(values) <= below and values[0] > 1:
        values.insert(0, values[0] // 2)
    while len(values) < count and values[-1] * 2 <= most:
        values.append(values[-1] * 2)
    while len(values) < count and values[0] > 1:
        values.insert(0, values[0] // 2)
    return tuple(values)


def _point(case: Case, ask: Answer) -> Callable[[int, int], Peaks | None]:
    def point(batch: int, length: int) -> Peaks | None:
        try:
            return ask(replace(case, batch_size=batch, sequence_length=length))
        except GpumemError:
            return None

    return point
