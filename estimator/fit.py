"""What fits on a card: the largest batch, the longest sequence, the cheapest changes; and grids.

Everything here asks an `Answer` (the formulas, or a traced surface) at cases that differ from the
given one, and looks for the largest value that fits. Memory grows with batch and length but for
steps of the allocator's rounding, so that the search is one of a rising function's root: along a
line through the nearest points, and by bisection where that does not halve what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import combinations
from typing import Any

from estimator import estimate
from estimator.case import Case
from estimator.changes import Change, possible_changes
from estimator.config_source import load_config
from estimator.errors import CaseError, UnsupportedError
from estimator.grid import grid as grid
from estimator.headroom import Room

MAX_BATCH = 2**16
MAX_LENGTH = 2**20
"""Where a search ends if memory does not end it."""

SETS_SHOWN = 5
_MAX_SET = 3
_MAX_TRIED = 200
"""Sets of changes that are tried at most: each costs an estimate."""

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest bytes of a run; `reserved_bytes` is None where a source does not know them.

    `runs_within` tells whether the run fits in what a card can give PyTorch, in bytes, where a
    source knows more of that than the peaks say. `whole` gives the peaks that are shown, where a
    search does with simpler ones.
    """

    phase: str
    allocated_bytes: int
    reserved_bytes: int | None = None
    runs_within: Callable[[int], bool] | None = field(default=None, compare=False, repr=False)
    whole: Callable[[], Peaks] | None = field(default=None, compare=False, repr=False)

    def held_by(self, room: Room) -> bool:
        """Whether the run fits."""
        if self.runs_within is not None:
            return self.runs_within(room.room_bytes)
        return room.holds(self.allocated_bytes, self.reserved_bytes)

    def shown(self) -> Peaks:
        """Return the peaks that `estimate` gives of the case."""
        if self.whole is None:
            return self
        return replace(self.whole(), runs_within=self.runs_within)


Answer = Callable[[Case], Peaks]


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest value that fits, its peaks, and what ends it.

    `value` and `peaks` are None where not even the smallest fits. `limit` is `memory`, `positions`
    (the model knows no more) or `search` (the search goes no further).
    """

    value: int | None
    peaks: Peaks | None
    limit: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A change with its predicted peaks."""

    change: Change
    peaks: Peaks
    fits: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """Single changes by price, and sets of two or three that fit; `skipped` says what could not
    be predicted: (fields, reason)."""

    tried: tuple[Tried, ...]
    skipped: tuple[tuple[dict[str, Any], str], ...]


def estimated_peaks(case: Case) -> Peaks:
    """Answer from the architecture formulas.

    Raises:
        GpumemError: as `estimate`.
    """
    peak = estimate(case).peak
    return Peaks(peak.phase, peak.allocated_bytes)


def played_peaks(case: Case) -> Peaks:
    """Answer from the architecture formulas; whether it fits, from the run's blocks, which takes
    ten times as long.

    What its history adds to a small run is in its blocks; a search need not work it out twice.

    Raises:
        GpumemError: as `estimate`.
    """
    from estimator.architecture import estimate_architecture
    from estimator.counters import runs_within

    peak = estimate_architecture(case, history=False).peak
    within = cache(partial(runs_within, case, peak.allocated_bytes))
    whole = cache(partial(estimated_peaks, case))
    return Peaks(peak.phase, peak.allocated_bytes, runs_within=within, whole=whole)


def largest_batch(case: Case, answer: Answer, room: Room) -> Largest:
    """Return the largest batch size that fits at the case's sequence length."""
    return _search(
        lambda batch: answer(replace(case, batch_size=batch)),
        room,
        (1, case.batch_size, MAX_BATCH),
        "search",
    )


def longest_sequence(case: Case, answer: Answer, room: Room, least: int = 1) -> Largest:
    """Return the longest sequence that fits at the case's batch size, from `least` tokens on.

    In inference the tokens to be generated need positions, too.
    """
    known = positions(case)
    if known is None:
        most, limit = MAX_LENGTH, "search"
    else:
        most, limit = max(least, known - (case.max_new_tokens or 0)), "positions"
    # GPUs that share each sequence get equal parts of it.
    parts = case.sp_size
    found = _search(
        lambda length: answer(replace(case, sequence_length=parts * length)),
        room,
        (-(-least // parts), case.local_length, max(1, most // parts)),
        limit,
    )
    return found if found.value is None else replace(found, value=parts * found.value)


def positions(case: Case) -> int | None:
    """Return how many positions the model's configuration says that it knows, or None."""
    config = load_config(case.model).config
    return next((config[name] for name in _POSITIONS if type(config.get(name)) is int), None)


def _search(
    peaks_at: Callable[[int], Peaks], room: Room, bounds: tuple[int, int, int], limit: str
) -> Largest:
    """Return the largest value between the first and the last bound, beginning at the second."""
    least, start, most = bounds
    known: dict[int, Peaks] = {}

    def fits(value: int) -> bool:
        known[value] = peaks = peaks_at(value)
        return peaks.held_by(room)

    low, high = least - 1, most + 1
    value = min(max(start, least), most)
    while low < value < high:
        if fits(value):
            low, value = value, min(most, value * 2) if value < most else high
        else:
            high, value = value, least
    halved = True
    while high - low > 1:
        value = _on_a_line(known, room, low, high) if halved else (low + high) // 2
        width = high - low
        low, high = (value, high) if fits(value) else (low, value)
        halved = not halved or 2 * (high - low) <= width
    if low < least:
        return Largest(None, None, "memory")
    return Largest(low, known[low].shown(), limit if low == most else "memory")


def _on_a_line(known: dict[int, Peaks], room: Room, low: int, high: int) -> int:
    """Return where the line through the two known points nearest to the room says that it ends."""
    over = {
        value: room.need_bytes(peaks.allocated_bytes, peaks.reserved_bytes) - room.room_bytes
        for value, peaks in known.items()
    }
    near, far = sorted(over, key=lambda value: abs(over[value]))[:2]
    rise = over[far] - over[near]
    value = near - over[near] * (far - near) // rise if rise else low
    return min(max(value, low + 1), high - 1)


def cheapest_changes(case: Case, answer: Answer, room: Room) -> Changes:
    """Return what would make a case need less, each change with its predicted peak, by price.

    Sets of up to three changes are listed where they fit and none of their parts does.
    """
    tried: list[Tried] = []
    skipped: list[tuple[dict[str, Any], str]] = []
    known: list[Change] = []
    for change in possible_changes(case):
        try:
            tried.append(_tried(case, change, answer, room))
        except (UnsupportedError, CaseError) as error:
            skipped.append((change.fields, str(error)))
        else:
            known.append(change)
    fitting = [item.change for item in tried if item.fits]
    for change in _sets(known)[:_MAX_TRIED]:
        if len(fitting) >= SETS_SHOWN:
            break
        if any(part.fields.items() <= change.fields.items() for part in fitting):
            continue
        try:
            item = _tried(case, change, answer, room)
        except (UnsupportedError, CaseError):
            continue  # each of its parts has been answered or is in `skipped`
        if item.fits:
            tried.append(item)
            fitting.append(change)
    return Changes(tuple(sorted(tried, key=lambda item: item.change.price)), tuple(skipped))


def _tried(case: Case, change: Change, answer: Answer, room: Room) -> Tried:
    peaks = answer(change.applied(case))
    return Tried(change, peaks, peaks.held_by(room))


def _sets(changes: Sequence[Change]) -> list[Change]:
    """Return sets of two and three changes that go together, the cheapest first."""
    found: dict[str, Change] = {}
    for count in range(2, _MAX_SET + 1):
        for parts in combinations(changes, count):
            joined: Change | None = parts[0]
            for part in parts[1:]:
                joined = joined and joined.joined(part)
            if joined is not None:
                found.setdefault(repr(sorted(joined.fields.items())), joined)
    return sorted(found.values(), key=lambda change: change.price)
