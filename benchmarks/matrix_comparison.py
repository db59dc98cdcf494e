"""What the formulas say of the matrix's cases beside the trace's answers, and how far they differ.

Both sides are predictions: nothing here is measured. Errors are relative to the trace; minus is an
under-estimate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from benchmarks.matrix_answers import Answer
from estimator import estimate
from estimator.case import Case
from estimator.errors import GpumemError
from estimator.report import COMPONENTS, MemoryReport
from estimator.units import relative_error


@dataclass(frozen=True)
class Comparison:
    """One case, answered by the formulas and by the trace."""

    case: Case
    formulas: MemoryReport
    trace: MemoryReport

    @cached_property
    def requested_error(self) -> float:
        """Relative error of the peak that tensors ask for."""
        ours, theirs = self.formulas.peak.requested_bytes, self.trace.peak.requested_bytes
        assert ours is not None
        assert theirs is not None
        return relative_error(ours, theirs)

    @cached_property
    def allocated_error(self) -> float:
        """Relative error of the peak that is handed out."""
        return relative_error(self.formulas.peak.allocated_bytes, self.trace.peak.allocated_bytes)

    def end_error(self, phase: str) -> float | None:
        """Relative error of what is allocated when a phase has ended; None without the phase."""
        ends = [
            one.end_allocated_bytes
            for report in (self.formulas, self.trace)
            for one in report.phases
            if one.name == phase
        ]
        return relative_error(*ends) if len(ends) == 2 else None

    def differences(self) -> dict[str, int]:
        """Return formulas minus trace at the peak, by component, where they differ."""
        pairs = {
            name: getattr(self.formulas.components, f"{name}_bytes")
            - getattr(self.trace.components, f"{name}_bytes")
            for name in COMPONENTS
        }
        return {name: size for name, size in pairs.items() if size}


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that one side could not answer; `side` says which."""

    case: Case
    side: str
    message: str


Result = Comparison | Failure


@dataclass(frozen=True, slots=True)
class Summary:
    """Sizes of relative errors over many comparisons: fractions, not percents."""

    count: int
    median: float
    percentile_95: float
    worst: float
    worst_over: float
    worst_under: float
    """The largest under-estimate as a negative number, 0 where there is none."""


def compare_case(case: Case, trace: Callable[[Case], MemoryReport]) -> Comparison:
    """Ask both sides.

    Raises:
        GpumemError: either side cannot answer.
    """
    return Comparison(case, estimate(case), trace(case))


def compare_answer(answer: Answer) -> Result:
    """Ask the formulas about a case that the trace has answered, or refused."""
    if answer.report is None:
        return Failure(answer.case, "trace", answer.message or "")
    try:
        return Comparison(answer.case, estimate(answer.case), answer.report)
    except GpumemError as error:
        return Failure(answer.case, "formulas", str(error))
    except Exception as error:
        # A formula that fails is what the matrix is there to find: it costs one case, not all.
        return Failure(answer.case, "formulas", f"{type(error).__name__}: {error}")


def summarize(errors: Iterable[float]) -> Summary:
    """Summarize relative errors; the 95th percentile is the smallest error that 95 % stay within.

    Raises:
        ValueError: there are none.
    """
    signed = list(errors)
    if not signed:
        raise ValueError("there are no errors to summarize")
    sizes = sorted(abs(error) for error in signed)
    within = -(-len(sizes) * 95 // 100) - 1
    return Summary(
        count=len(sizes),
        median=statistics.median(sizes),
        percentile_95=sizes[within],
        worst=sizes[-1],
        worst_over=max(0.0, *signed, 0.0),
        worst_under=min(0.0, *signed, 0.0),
    )
