"""The trace and the formulas against what others measured on a GPU and published.

The rows are in results/published/, with their sources. The trace is a prediction here;
the published figure is the measurement.
"""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks import published
from benchmarks.error_summary import percentile
from benchmarks.evidence.rows import published_figures, published_measurements
from estimator import MemoryReport, estimate
from estimator.errors import UnsupportedError
from estimator.units import relative_error
from profiler.trace import trace_case

ROWS = {row.row_id: row for row in published_measurements()}
TRACED = ("fms_a100-0026", "fms_a100-0066", "fms_a100-0114", "fms_a100-0168", "fms_a100-0002")


@cache
def traced(case_id: str) -> MemoryReport:
    # Two rows of one run, its peak and its end, are traced once.
    (case,) = {row.case for row in ROWS.values() if row.case and row.case.case_id == case_id}
    return trace_case(case)


def test_every_row_names_its_source_and_what_was_read() -> None:
    for row in ROWS.values():
        assert "@" in row.source or "issue" in row.source
        assert row.metric
        assert row.case is not None


@pytest.mark.parametrize("row_id", TRACED)
def test_the_trace_meets_the_peak_and_what_is_left(row_id: str) -> None:
    peak, after = ROWS[row_id], ROWS[f"{row_id[:-4]}{int(row_id[-4:]) + 1:04}"]
    assert peak.case is not None
    assert peak.size_bytes is not None
    assert after.size_bytes is not None
    assert (after.case, after.instant) == (peak.case, "after_step")
    report = traced(peak.case.case_id)
    assert abs(relative_error(report.peak.allocated_bytes, peak.size_bytes)) < 0.001
    left = report.phases[-1]
    assert left.name == "optimizer_step"
    assert abs(relative_error(left.end_allocated_bytes, after.size_bytes)) < 0.0003


def test_full_fine_tuning_has_its_peak_in_the_optimizers_step() -> None:
    case = ROWS["fms_a100-0026"].case
    assert case is not None
    assert traced(case.case_id).peak.phase == "optimizer_step"


def test_the_stored_report_is_what_is_predicted_today() -> None:
    """Where this fails, `python -m benchmarks.published` writes it anew."""
    stored, today = published.read_report(), published.collect()
    for name in ("architecture", "article"):
        ours, theirs = (
            {
                (row["id"], row["instant"]): row["predicted"][name]
                for row in report["rows"]
                if name in row["predicted"]
            }
            for report in (stored, today)
        )
        assert ours.keys() == theirs.keys()
        for key, size in ours.items():
            assert abs(relative_error(size, theirs[key])) < 0.001, key


def test_the_page_shows_the_stored_report() -> None:
    text = published.PAGE.read_text(encoding="utf-8")
    assert published.refreshed(text, published.read_report()) == text


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Errors of the formulas against every published peak of allocated bytes, by row."""
    found = {}
    for row in published_figures("allocated", "peak", tiers=("A",)):
        assert row.case is not None
        assert row.size_bytes is not None
        try:
            report = estimate(row.case)
        except UnsupportedError:
            continue
        found[row.row_id] = relative_error(report.peak.allocated_bytes, row.size_bytes)
    return found


def test_almost_every_published_peak_is_answered(errors: dict[str, float]) -> None:
    assert len(errors) >= 0.99 * len(published_figures("allocated", "peak"))


def test_published_peaks_are_met(errors: dict[str, float]) -> None:
    sizes = sorted(abs(error) for error in errors.values())
    assert percentile(sizes, 0.5) < 0.001
    assert percentile(sizes, 0.95) < 0.015
    assert min(errors.values()) > -0.03


@pytest.mark.parametrize(
    ("source", "worst"), [("fms_a100", 0.015), ("qwen2_speed", 0.003), ("ob_llamas", 0.0002)]
)
def test_every_source_is_met_alone(errors: dict[str, float], source: str, worst: float) -> None:
    own = [abs(error) for row_id, error in errors.items() if row_id.startswith(source)]
    assert len(own) >= 11
    assert max(own) < worst


def test_what_is_left_after_a_step_is_met() -> None:
    rows = published_figures("allocated", "after_step", tiers=("A", "B"))
    answered = 0
    for row in rows:
        assert row.case is not None
        assert row.size_bytes is not None
        try:
            report = estimate(row.case)
        except UnsupportedError:
            continue
        answered += 1
        left = report.phases[-1].end_allocated_bytes
        # santacoder's QLoRA runs keep 28 to 30 MB more than anything explains.
        bound = 0.04 if row.size_bytes < 10**9 else 0.0005
        assert abs(relative_error(left, row.size_bytes)) < bound, row.row_id
    assert answered >= 13


def test_what_is_left_after_the_last_token_is_met() -> None:
    rows = published_figures("allocated", "after_generate", tiers=("B",))
    errors = []
    for row in rows:
        assert row.case is not None
        assert row.size_bytes is not None
        left = estimate(row.case).phases[-1].end_allocated_bytes
        errors.append(abs(relative_error(left, row.size_bytes)))
    assert len(errors) == 21
    assert percentile(sorted(errors), 0.5) < 0.0005
    assert max(errors) < 0.006
