"""What a fit is worth: its errors on model families that were left out of it, before and after.

A fitted constant that only absorbs the runs it was fitted to makes unseen models worse. So each
family is predicted by a fit to all the others, and the fit is refused where that does not beat the
nominal coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.calibrate.least_squares import System, Term, fit_point
from estimator.coefficients import Errors

if TYPE_CHECKING:
    from benchmarks.calibrate.least_squares import Array

MIN_FAMILIES = 3
"""With fewer, leaving one out says nothing about a new one."""

MIN_GAIN = 0.05
"""Share of the median error that a fit has to take away to be worth its coefficients."""


def left_out_predictions(system: System, terms: Sequence[Term], families: Sequence[str]) -> Array:
    """Return predicted bytes, [runs], each family's from a fit to the others."""
    import numpy as np

    names = np.array(families)
    predicted = np.empty(len(names))
    for family in sorted(set(families)):
        held = names == family
        values = fit_point(system.subset(~held), terms)
        predicted[held] = system.subset(held).predict(values)
    return predicted


def nominal_predictions(system: System, terms: Sequence[Term]) -> Array:
    """Return predicted bytes, [runs], without a fit."""
    import numpy as np

    return system.predict(np.array([term.nominal for term in terms], np.float64))


def errors(predicted: Array, measured: Array, families: Sequence[str]) -> Errors:
    """Summarize relative errors; every family has the same weight, whatever its runs' number."""
    import numpy as np

    relative = (predicted - measured) / measured
    weights = family_weights(families)
    sizes = np.abs(relative)
    return Errors(
        median=weighted_quantile(sizes, weights, 0.5),
        p95=weighted_quantile(sizes, weights, 0.95),
        worst=float(relative[int(sizes.argmax())]),
        under=float(weights[relative < 0].sum()),
    )


def family_weights(families: Sequence[str]) -> Array:
    """Return weights, [runs], that add up to 1 and give every family the same share."""
    import numpy as np

    names, place, count = np.unique(np.array(families), return_inverse=True, return_counts=True)
    result: Array = 1 / (len(names) * count[place])
    return result


def weighted_quantile(values: Array, weights: Array, share: float) -> float:
    """Return the smallest value up to which at least `share` of the weight lies."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(reached, share - 1e-9))
    return float(values[order][min(place, len(values) - 1)])


def verdict(before: Errors, after: Errors) -> tuple[bool, str]:
    """Say whether a fit is accepted, and why in one sentence.

    It has to lower the median error on left-out families by `MIN_GAIN`, without making the 95th
    percentile worse.
    """
    medians = f"median error on left-out families {_percent(before.median)} before, "
    medians += f"{_percent(after.median)} after"
    tails = f"95th percentile {_percent(before.p95)} and {_percent(after.p95)}"
    if after.median > (1 - MIN_GAIN) * before.median:
        return False, f"refused: no better on left-out families ({medians})"
    if after.p95 > before.p95:
        return False, f"refused: its worst cases get worse ({tails}; {medians})"
    return True, f"{medians}; {tails}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
