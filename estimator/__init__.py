"""What an LLM run should need of GPU memory: pure arithmetic, no torch, no network.

>>> from estimator import Case, estimate
>>> report = estimate(Case.from_dict({"model": "Llama-3.2-1B", "task": "training"}))
>>> report.peak.phase
'backward'
"""

from estimator.case import Case
from estimator.errors import CaseError, GpumemError
from estimator.report import MemoryReport
from estimator.spec import ModelSpec

FORMULAS = ("architecture", "article")


def estimate(case: Case, formulas: str = "architecture") -> MemoryReport:
    """Return what a run should need, by our formulas or by the seed article's.

    Raises:
        GpumemError: the model or the case cannot be estimated; the message says why.
    """
    if formulas == "architecture":
        from estimator.architecture import estimate_architecture

        return estimate_architecture(case)
    if formulas == "article":
        from estimator.article import estimate_article

        return estimate_article(case)
    raise CaseError(f"formulas is {formulas!r}, but must be architecture or article", "formulas")


__all__ = ["FORMULAS", "Case", "GpumemError", "MemoryReport", "ModelSpec", "estimate"]
