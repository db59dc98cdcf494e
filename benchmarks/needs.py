"""What a list of cases would need: memory of the largest, and time by the source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.durations import guess_duration
from estimator import estimate
from estimator.case import Case
from estimator.errors import UnsupportedError
from estimator.report import Peak
from estimator.units import GB, GIB


@dataclass(frozen=True, slots=True)
class Needs:
    """What some cases need if they are run one after another.

    `largest_bytes` is the highest estimate of peak allocated bytes, None where no case has one;
    `unknown` counts the cases without an estimate.
    """

    count: int
    largest_bytes: int | None
    unknown: int
    cuda_seconds: float
    trace_seconds: float


def predict_peak(case: Case) -> Peak | None:
    """Return the peak that `architecture` estimates, None where it has no estimate.

    Raises:
        ModelError: when the case's model cannot be found or read.
    """
    try:
        return estimate(case).peak
    except UnsupportedError:
        return None


def needs_of(cases: Iterable[Case]) -> Needs:
    """Return what cases need.

    Raises:
        ModelError: when a case's model cannot be found or read.
    """
    cases = list(cases)
    peaks = [predict_peak(case) for case in cases]
    known = [peak.allocated_bytes for peak in peaks if peak is not None]
    return Needs(
        count=len(cases),
        largest_bytes=max(known, default=None),
        unknown=len(peaks) - len(known),
        cuda_seconds=sum(guess_duration(case, "cuda").total_s for case in cases),
        trace_seconds=sum(guess_duration(case, "trace").total_s for case in cases),
    )


def short_size(size_bytes: int | None) -> str:
    """Return a size for a narrow column: `65.1 GB (60.6 GiB)`."""
    if size_bytes is None:
        return "unknown"
    return f"{size_bytes / GB:.1f} GB ({size_bytes / GIB:.1f} GiB)"


def short_time(seconds: float) -> str:
    """Return a guessed time in the unit that suits it: `40 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
