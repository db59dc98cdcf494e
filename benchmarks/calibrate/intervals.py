"""Intervals that keep what they promise on model families that were left out of them.

The ratios measured / predicted of left-out predictions are exchangeable by family, not by run, so
every family has the same weight (Dunn, Wasserman & Ramdas, "Distribution-Free Prediction Sets for
Two-Layer Hierarchical Models", 2023). With a handful of families the plain quantiles hold less than
they say; they are widened until the share held of left-out families, each by an interval from the
others, is the level. Where no width does that within a tolerance, there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.calibrate.left_out import MIN_FAMILIES, family_weights, weighted_quantile

if TYPE_CHECKING:
    from benchmarks.calibrate.least_squares import Array

MIN_RUNS = 20
TWO_SIDED_LEVEL = 0.9
TWO_SIDED_TOLERANCE = 0.05
"""A 90 % interval has to hold 85 to 95 %."""

ONE_SIDED_LEVEL = 0.95
ONE_SIDED_TOLERANCE = 0.03
"""A one-sided 95 % bound has to hold 92 to 98 %."""

MIN_CHANCE = 0.05
"""Of as many misses or more among the runs of one kind, for them to have all runs' interval."""

_WIDTHS = tuple(1.03**step for step in range(-60, 140))
"""Factors on the quantiles' distance from the median, on a logarithmic scale: 0.17 to 60."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Where measured / predicted lies; `low` is None for a bound from above."""

    low: float | None
    high: float
    coverage: float

    def suits(self, ratios: Array) -> bool:
        """Whether some of the runs may have it: it misses no more of them than chance allows.

        By the binomial distribution of misses at its level; below `MIN_CHANCE` is no chance.
        """
        outside = ratios > self.high
        miss = 1 - ONE_SIDED_LEVEL
        if self.low is not None:
            outside |= ratios < self.low
            miss = 1 - TWO_SIDED_LEVEL
        count, missed = len(ratios), int(outside.sum())
        chance = sum(
            math.comb(count, number) * miss**number * (1 - miss) ** (count - number)
            for number in range(missed, count + 1)
        )
        return chance >= MIN_CHANCE


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no interval, in one sentence."""

    reason: str


def two_sided(ratios: Array, families: Sequence[str]) -> Ratios | Refusal:
    """Return the interval for `TWO_SIDED_LEVEL`, or why there is none.

    Args:
        ratios: measured / predicted, [runs], of predictions that did not see the run's family.
    """
    return _fit(ratios, families, TWO_SIDED_LEVEL, TWO_SIDED_TOLERANCE, sides=2)


def upper_bound(ratios: Array, families: Sequence[str]) -> Ratios | Refusal:
    """Return the bound for `ONE_SIDED_LEVEL` from above, or why there is none."""
    return _fit(ratios, families, ONE_SIDED_LEVEL, ONE_SIDED_TOLERANCE, sides=1)


def _fit(
    ratios: Array, families: Sequence[str], level: float, tolerance: float, sides: int
) -> Ratios | Refusal:
    count, names = len(ratios), sorted(set(families))
    if len(names) < MIN_FAMILIES or count < MIN_RUNS:
        return Refusal(
            f"{count} measured runs of {len(names)} model families, where "
            f"{MIN_RUNS} of {MIN_FAMILIES} are needed"
        )
    import numpy as np

    logs = np.log(ratios)
    place = np.array([names.index(family) for family in families])
    middles, reaches = _left_out(logs, place, level, sides)
    weights = family_weights(families)
    best_width, best = 0.0, -1.0
    for width in _WIDTHS:
        beyond = (logs - middles)[:, None] > width * reaches[:, 1:]
        if sides == 2:
            beyond |= (logs - middles)[:, None] < width * reaches[:, :1]
        coverage = float(weights[~beyond[:, 0]].sum())
        if abs(coverage - level) < abs(best - level) - 1e-9:
            best_width, best = width, coverage
        if coverage >= level:
            break
    # Where even the narrowest holds more, residuals are all but equal: no promise is too large.
    exact = best > level and best_width == _WIDTHS[0]
    if abs(best - level) > tolerance + 1e-9 and not exact:
        return Refusal(
            f"no width holds {level:.0%} of left-out families: the nearest holds {best:.0%} "
            f"({count} measured runs of {len(names)} families)"
        )
    middle, low, high = _reach(logs, family_weights(families), level, sides)
    return Ratios(
        low=None if sides == 1 else float(np.exp(middle + best_width * low)),
        high=float(np.exp(middle + best_width * high)),
        coverage=best,
    )


def _left_out(logs: Array, place: Any, level: float, sides: int) -> tuple[Array, Array]:
    """Return, for each run, the median [runs] of the other families' and its quantiles' distances
    from it [runs, 2]."""
    import numpy as np

    middles, reaches = np.empty(len(logs)), np.empty((len(logs), 2))
    for family in range(place.max() + 1):
        others = place != family
        weights = family_weights([str(item) for item in place[others]])
        middle, low, high = _reach(logs[others], weights, level, sides)
        middles[~others], reaches[~others] = middle, (low, high)
    return middles, reaches


def _reach(logs: Array, weights: Array, level: float, sides: int) -> tuple[float, float, float]:
    """Return the median, and how far below and above it the quantiles lie."""
    tail = (1 - level) / sides
    middle = weighted_quantile(logs, weights, 0.5)
    low = weighted_quantile(logs, weights, tail)
    high = weighted_quantile(logs, weights, 1 - tail)
    return middle, low - middle, high - middle
