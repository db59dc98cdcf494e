"""What an LLM run should need of GPU memory: pure arithmetic, no torch, no network.

>>> from estimator import estimate
>>> report = estimate({"model": "Llama-3.2-1B", "task": "training"})
>>> report.peak.phase
'backward'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from estimator.case import Case
from estimator.errors import CaseError, GpumemError
from estimator.report import MemoryReport
from estimator.spec import ModelSpec

if TYPE_CHECKING:
    from estimator.coefficients import Calibration

FORMULAS = ("architecture", "article")


def estimate(
    case: Case | Mapping[str, Any],
    formulas: str = "architecture",
    calibration: Calibration | None = None,
) -> MemoryReport:
    """Return what a run should need, by our formulas or by the seed article's.

    A mapping is read as `Case.from_dict` does.

    A calibration (`estimator.coefficients`) adds an interval, reserved and device bytes to ours,
    and replaces the article's constants; without one there are none but the formulas' own.

    Raises:
        GpumemError: the model or the case cannot be estimated; the message says why.
    """
    if not isinstance(case, Case):
        case = Case.from_dict(case)
    if formulas == "architecture":
        from estimator.architecture import estimate_architecture

        report = estimate_architecture(case)
        if calibration is None:
            return report
        from estimator.calibrated import calibrated

        return calibrated(report, case, calibration)
    if formulas == "article":
        from estimator.article import estimate_article

        if calibration is None:
            return estimate_article(case)
        from estimator.calibrated import calibrated_article

        return calibrated_article(case, calibration)
    raise CaseError(f"formulas is {formulas!r}, but must be architecture or article", "formulas")


__all__ = ["FORMULAS", "Case", "GpumemError", "MemoryReport", "ModelSpec", "estimate"]
