"""The trace and the formulas against what others measured on a GPU and published.

The rows are in results/published/cited.json, with their sources. The trace is a prediction here;
the published figure is the measurement.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.error_summary import percentile
from benchmarks.evidence.rows import published_figures
from benchmarks.published import predicted_bytes
from estimator import Case, MemoryReport, estimate
from estimator.errors import UnsupportedError
from estimator.units import relative_error
from profiler.trace import trace_case

_FILE = Path(__file__).parents[2] / "results" / "published" / "cited.json"
ROWS: dict[str, dict[str, Any]] = {
    row["id"]: row for row in json.loads(_FILE.read_text(encoding="utf-8"))["rows"]
}


@cache
def traced_case(case: str) -> MemoryReport:
    return trace_case(Case.from_dict(json.loads(case)))


def traced(row_id: str) -> MemoryReport:
    # Two rows of one run, its peak and its end, are traced once.
    return traced_case(json.dumps(ROWS[row_id]["case"], sort_keys=True))


def test_every_row_names_its_source_and_what_was_read() -> None:
    for row in ROWS.values():
        assert "@" in row["source"]
        assert "torch.cuda" in row["metric"]
        assert row["allocated_bytes"] > 0
        assert row["instant"] in ("peak", "after_step")


def test_mistral_7b_in_full_at_its_peak() -> None:
    report = traced("fms_a100-0026")
    error = relative_error(report.peak.allocated_bytes, ROWS["fms_a100-0026"]["allocated_bytes"])
    assert abs(error) < 0.001
    assert report.peak.phase == "optimizer_step"


def test_mistral_7b_in_full_after_a_step() -> None:
    assert ROWS["fms_a100-0027"]["case"] == ROWS["fms_a100-0026"]["case"]
    after = traced("fms_a100-0026").phases[-1]
    assert after.name == "optimizer_step"
    measured = ROWS["fms_a100-0027"]["allocated_bytes"]
    assert abs(relative_error(after.end_allocated_bytes, measured)) < 0.0001


@pytest.mark.parametrize("row_id", list(ROWS))
def test_every_cited_row_is_met(row_id: str) -> None:
    row = ROWS[row_id]
    predicted = predicted_bytes(traced(row_id), row["instant"])
    bound = 0.001 if row["instant"] == "peak" else 0.0003
    assert abs(relative_error(predicted, row["allocated_bytes"])) < bound


@pytest.mark.parametrize("row_id", [row for row in ROWS if ROWS[row]["instant"] == "peak"])
def test_the_formulas_meet_what_is_cited(row_id: str) -> None:
    report = estimate(Case.from_dict(ROWS[row_id]["case"]))
    measured = ROWS[row_id]["allocated_bytes"]
    assert abs(relative_error(report.peak.allocated_bytes, measured)) < 0.001


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
    assert len(errors) >= 0.97 * len(published_figures("allocated", "peak"))


def test_published_peaks_are_met(errors: dict[str, float]) -> None:
    sizes = sorted(abs(error) for error in errors.values())
    assert percentile(sizes, 0.5) < 0.001
    assert percentile(sizes, 0.95) < 0.01
    assert min(errors.values()) > -0.03


@pytest.mark.parametrize("source", ["fms_a100", "qwen2_speed", "ob_llamas"])
def test_every_source_is_met_alone(errors: dict[str, float], source: str) -> None:
    own = [abs(error) for row_id, error in errors.items() if row_id.startswith(source)]
    assert len(own) >= 11
    assert max(own) < 0.003


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
        assert abs(relative_error(left, row.size_bytes)) < 0.0005, row.row_id
    assert answered >= 13
