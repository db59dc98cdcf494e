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
def test_the_formulas_agree_or_say_that_they_cannot(row_id: str) -> None:
    case = Case.from_dict(ROWS[row_id]["case"])
    if case.stack is not None:
        try:
            report = estimate(case)
        except UnsupportedError as error:
            assert "gpumem trace" in str(error)  # noqa: PT017
            return
    else:
        report = estimate(case)
    measured = ROWS[row_id]["allocated_bytes"]
    assert abs(relative_error(report.peak.allocated_bytes, measured)) < 0.001
