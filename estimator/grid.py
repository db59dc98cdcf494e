"""Peak memory over a grid of batch sizes and lengths, from a few estimates.

Every instant of a run has its bytes as a polynomial in batch size and length, with coefficients
that are not negative; the peak is the highest of them. So a part of the grid is estimated at a few
points, the estimates are sorted by the instant at which they peak, each instant's polynomial is
fitted to its own, and the highest is taken everywhere.

What this leaves out is the rounding of blocks, what a small run's history adds to them, and an
instant that is nowhere the peak at the estimated points; docs/surfaces.md says how much that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from estimator.architecture import estimate_architecture
from estimator.case import Case
from estimator.config_source import load_config

_LENGTHS_A_PART = 7
_BATCHES_A_PART = 5
_LENGTHS_AN_INSTANT = 3
_WINDOWS = ("sliding_window", "attention_chunk_size")
_POWERS = ((0, 0), (1, 0), (0, 1), (1, 1), (1, 2))
"""Powers of B and S: what does not change, sequences, positions, tokens, scores."""

_ROUNDING = 1.01
"""How far a polynomial may be above a peak: blocks that are rounded up have no polynomial."""

_Point = tuple[int, int]
_Fit = dict[tuple[int, int], float]


def grid(case: Case, batches: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Return estimated peak allocated bytes, a row a batch and a column a length.

    A few points are estimates. Of more, those that were looked at are the formulas' own, and the
    others come from the instants' polynomials; no run is played for what its history adds.

    Raises:
        GpumemError: as `estimate`, for any of the estimated points.
    """
    rows, columns = sorted(set(batches)), sorted(set(lengths))
    if len(rows) * len(columns) <= _LENGTHS_A_PART * _BATCHES_A_PART:
        at = {(b, s): replace(case, batch_size=b, sequence_length=s) for b in rows for s in columns}
        few = {point: estimate_architecture(there).peak for point, there in at.items()}
        return [[few[b, s].allocated_bytes for s in lengths] for b in batches]
    values: dict[_Point, float] = {}
    # A batch of one takes paths without copies; a window adds masks where it is reached.
    config = load_config(case.model).config
    new = case.max_new_tokens or 0
    windows = [config[name] for name in _WINDOWS if type(config.get(name)) is int]
    for part_rows in _parts(rows, [2]):
        for part in _parts(columns, [*windows, *(window - new + 1 for window in windows)]):
            values.update(_part(case, part_rows, part))
    return [[round(values[b, s]) for s in lengths] for b in batches]


def _parts(axis: Sequence[int], bounds: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut a sorted axis so that no part crosses a bound."""
    inner = {sum(value < bound for value in axis) for bound in bounds}
    for first, last in pairwise(sorted({0, len(axis)} | inner)):
        yield axis[first:last]


def _part(case: Case, batches: Sequence[int], lengths: Sequence[int]) -> dict[_Point, float]:
    known: dict[_Point, float] = {}
    by_instant: dict[tuple[str, str | None], dict[_Point, float]] = {}

    def look(b: int, s: int) -> None:
        if (b, s) not in known:
            at = replace(case, batch_size=b, sequence_length=s)
            peak = estimate_architecture(at, history=False).peak
            known[b, s] = peak.allocated_bytes
            by_instant.setdefault((peak.phase, peak.instant), {})[b, s] = peak.allocated_bytes

    rows, columns = _spread(batches, _BATCHES_A_PART), _spread(lengths, _LENGTHS_A_PART)
    for b in rows:
        for s in columns:
            look(b, s)
    # An instant seen at a length or two may grow in any way: look around them.
    for points in list(by_instant.values()):
        seen = sorted({s for _, s in points})
        if len(seen) < _LENGTHS_AN_INSTANT:
            few = {b for b, _ in points}
            for s in _between(lengths, columns, seen):
                look(min(few), s)
                look(max(few), s)
    fits = [_fit(points, known) for points in by_instant.values()]
    values: dict[_Point, float] = {}
    for b in batches:
        # Polynomials in S alone, for this batch.
        by_length = [
            [sum(c * b**p for (p, q), c in fit.items() if q == n) for n in range(3)] for fit in fits
        ]
        for s in lengths:
            values[b, s] = max(c0 + s * (c1 + s * c2) for c0, c1, c2 in by_length)
    return values | known


def _spread(axis: Sequence[int], count: int) -> list[int]:
    """Return up to `count` values of an axis, both ends and about equal ratios between them."""
    ratio = axis[-1] / axis[0]
    wanted = [axis[0] * ratio ** (i / (count - 1)) for i in range(count)]
    return sorted({min(axis, key=lambda value: abs(value - want)) for want in wanted})


def _between(axis: Sequence[int], nodes: Sequence[int], seen: Sequence[int]) -> list[int]:
    """Return values of an axis on the way from those seen to the nodes on either side."""
    below = max((node for node in nodes if node < seen[0]), default=seen[0])
    above = min((node for node in nodes if node > seen[-1]), default=seen[-1])
    wanted = [seen[0] + (below - seen[0]) * part for part in (0.25, 0.6)]
    wanted += [seen[-1] + (above - seen[-1]) * part for part in (0.25, 0.6)]
    return sorted({min(axis, key=lambda value: abs(value - want)) for want in wanted})


def _fit(points: dict[_Point, float], known: dict[_Point, float]) -> _Fit:
    """Return the polynomial without negative coefficients that is the nearest, relatively.

    Least squares over every set of terms. An instant is never above the peak, so that neither its
    polynomial may be at any point that is known; without any such, the polynomial is 0.
    """
    best: _Fit = {}
    best_error = float("inf")
    several = len({b for b, _ in points}) > 1
    powers = [p for p in _POWERS if several or p[0] == 0 or p == (1, 2)]
    for count in range(1, min(len(points), len(powers)) + 1):
        for terms in combinations(powers, count):
            rows = [[b**p * s**q / value for p, q in terms] for (b, s), value in points.items()]
            found = _least_squares(rows)
            if found is None or min(found) < 0:
                continue
            error = sum((sum(map(float.__mul__, row, found)) - 1) ** 2 for row in rows)
            fit = dict(zip(terms, found, strict=True))
            if error < best_error and not _exceeds(fit, known):
                best, best_error = fit, error
    return best


def _exceeds(fit: _Fit, known: dict[_Point, float]) -> bool:
    return any(
        sum(c * b**p * s**q for (p, q), c in fit.items()) > _ROUNDING * peak
        for (b, s), peak in known.items()
    )


def _least_squares(rows: list[list[float]]) -> list[float] | None:
    """Return x that brings rows . x nearest to 1, or None where it is not determined."""
    count = len(rows[0])
    scales = [max(abs(row[i]) for row in rows) for i in range(count)]
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    matrix = [
        [sum(row[i] * row[j] for row in scaled) for j in range(count)]
        + [sum(row[i] for row in scaled)]
        for i in range(count)
    ]
    for i in range(count):
        pivot = max(range(i, count), key=lambda k: abs(matrix[k][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-9:
            return None
        for k in range(count):
            if k != i:
                factor = matrix[k][i] / matrix[i][i]
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    return [matrix[i][count] / matrix[i][i] / scales[i] for i in range(count)]
