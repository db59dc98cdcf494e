"""Robust, bounded least squares for a few coefficients with a meaning, and their intervals.

A measured size is `offset + sum(coefficient x feature)`; residuals are relative to the measured
size, so that a run of 1 GB and one of 60 GB count the same, and soft L1 keeps single runs that went
otherwise from pulling the fit (scipy.optimize.least_squares; Triggs et al., "Bundle Adjustment - A
Modern Synthesis", 2000). Intervals come from a bootstrap over runs (Efron & Tibshirani, "An
Introduction to the Bootstrap", 1993): the spread of refits, times Student's quantile, at a level
that holds for all coefficients of a fit together (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from estimator.errors import EnvironmentUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LEVEL = 0.95
"""At which a fit's intervals hold all of its coefficients together."""

SOFT_SCALE = 0.02
"""Relative residuals well below it count as squares, well above it as absolute values."""

RESAMPLES = 200

_INSIDE = 1e-3
_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Term:
    """A coefficient to be fitted: its unit, what holds without a fit, and what it may become."""

    name: str
    unit: str
    nominal: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class System:
    """Runs as equations: `measured`, `offset` and `most` of shape [runs], `features` [runs, terms].

    `most` ends predictions, not the fit: what the card can show.
    """

    measured: Array
    offset: Array
    features: Array
    most: Array

    def subset(self, chosen: Any) -> System:
        """Return the runs at an index array or a mask."""
        return System(
            self.measured[chosen], self.offset[chosen], self.features[chosen], self.most[chosen]
        )

    def predict(self, values: Array) -> Array:
        """Return predicted bytes, [runs]."""
        import numpy as np

        result: Array = np.minimum(self.offset + self.features @ values, self.most)
        return result


@dataclass(frozen=True, slots=True)
class Solution:
    """Points and intervals, [terms]; where `known` is False no run tells of the term."""

    values: Array
    low: Array
    high: Array
    known: NDArray[np.bool_]


def need_scipy() -> None:
    """Check that what a fit needs is installed, without importing it.

    Raises:
        EnvironmentUnavailable: naming the extra that brings it.
    """
    from importlib.util import find_spec

    missing = [name for name in ("numpy", "scipy") if find_spec(name) is None]
    if missing:
        raise EnvironmentUnavailable(
            f"calibrate needs {' and '.join(missing)}, not installed here: "
            "pip install 'gpumem[calibrate]'"
        )


def fit_point(system: System, terms: Sequence[Term]) -> Array:
    """Return the fitted values, [terms]; a term without a feature in any run stays nominal."""
    import numpy as np
    from scipy.optimize import least_squares, lsq_linear

    values = np.array([term.nominal for term in terms], np.float64)
    known = informed(system)
    if not known.any():
        return values
    relative = system.features[:, known] / system.measured[:, None]
    rest = system.offset + system.features[:, ~known] @ values[~known]
    target = 1 - rest / system.measured
    least = np.array([term.least for term in terms])[known]
    most = np.array([term.most for term in terms])[known]
    # Columns of one size: coefficients are bytes, shares and factors, by ten powers apart.
    scale = np.sqrt((relative**2).mean(axis=0))
    scaled = relative / scale
    low, high = least * scale, most * scale
    start = lsq_linear(scaled, target, bounds=(low, high), method="bvls").x
    found = least_squares(
        lambda x: scaled @ x - target,
        # Not at a bound: the method stays inside, and a start there makes its first steps tiny.
        np.clip(start, low + _INSIDE * (high - low), high - _INSIDE * (high - low)),
        jac=lambda _: scaled,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=SOFT_SCALE,
        ftol=_TOLERANCE,
        xtol=_TOLERANCE,
        gtol=_TOLERANCE,
    )
    values[known] = np.clip(found.x / scale, least, most)
    return values


def informed(system: System) -> NDArray[np.bool_]:
    """Return, [terms], whether any run has a feature for the term."""
    result: NDArray[np.bool_] = (system.features != 0).any(axis=0)
    return result


def fit_with_intervals(
    system: System, terms: Sequence[Term], seed: int = 0, resamples: int = RESAMPLES
) -> Solution:
    """Fit, and refit on `resamples` draws of as many runs with replacement for the intervals."""
    import numpy as np
    from scipy.stats import t as student

    values = fit_point(system, terms)
    known = informed(system)
    count = len(system.measured)
    random = np.random.default_rng(seed)
    draws = np.array(
        [
            fit_point(system.subset(random.integers(0, count, count)), terms)
            for _ in range(resamples)
        ]
    )
    freedom = max(1, count - int(known.sum()))
    spread = draws.std(axis=0, ddof=1) * np.sqrt(count / freedom)
    reach = student.ppf(1 - (1 - LEVEL) / (2 * max(1, int(known.sum()))), freedom) * spread
    least = np.array([term.least for term in terms])
    most = np.array([term.most for term in terms])
    return Solution(
        values=values,
        low=np.clip(values - reach, least, most),
        high=np.clip(values + reach, least, most),
        known=known,
    )
