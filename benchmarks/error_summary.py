"""How wrong a source is over many cases.

Error is (predicted - reference) / reference: plus is an over-estimate, minus an under-estimate,
the expensive mistake. The percentile interpolates linearly between order statistics (definition
7 of Hyndman & Fan, "Sample Quantiles in Statistical Packages", 1996, numpy's default). A margin
is a promise, so it takes the next order statistic instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Relative errors of one source; all but `count` are shares: 0.01 is 1 %.

    `worst` is signed, and `worst_label` its case; `under` is the share of under-estimates.
    `margin_95` is what had to be added to a prediction, as a share of it, for no less than 95 % of
    the cases to stay below; `margin_99` for 99 %.
    """

    name: str
    count: int
    median: float
    p95: float
    worst: float
    worst_label: str
    under: float
    margin_95: float
    margin_99: float


def summarize(name: str, errors: Sequence[tuple[str, float]]) -> ErrorSummary:
    """Summarize (label, relative error) pairs; median and p95 are of absolute values.

    Raises:
        ValueError: when there are none.
    """
    if not errors:
        raise ValueError("no errors to summarize")
    sizes = sorted(abs(error) for _, error in errors)
    worst_label, worst = max(errors, key=lambda item: abs(item[1]))
    return ErrorSummary(
        name=name,
        count=len(errors),
        median=percentile(sizes, 0.5),
        p95=percentile(sizes, 0.95),
        worst=worst,
        worst_label=worst_label,
        under=sum(error < 0 for _, error in errors) / len(errors),
        margin_95=margin([error for _, error in errors], 0.95),
        margin_99=margin([error for _, error in errors], 0.99),
    )


def margin(errors: Sequence[float], share: float) -> float:
    """Return by what share predictions had to be raised for `share` of them to suffice.

    A prediction p of a reference r = p / (1 + error) suffices with the margin r / p - 1, which is
    -error / (1 + error); infinite where nothing was predicted.
    """
    needed = sorted(max(0.0, math.inf if e <= -1 else -e / (1 + e)) for e in errors)
    return needed[min(len(needed), math.ceil(share * len(needed) - 1e-9)) - 1]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the ordered, non-empty sequence lies."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
