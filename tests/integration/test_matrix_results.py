"""The formulas of today against the trace's stored answers to random cases of every type.

The answers are the trace's (results/reports/matrix.jsonl, docs/matrix.md): simulated, and of the
libraries that they were traced with. What they are compared with is computed here.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.matrix_answers import AnswerFile
from benchmarks.matrix_comparison import Comparison, Result, compare_answer, summarize
from benchmarks.matrix_tables import end_errors, errors_of, family, split

FILE = Path(__file__).parents[2] / "results" / "reports" / "matrix.jsonl"


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return [compare_answer(answer) for answer in AnswerFile(FILE).read().values()]


@pytest.fixture(scope="module")
def compared(results: list[Result]) -> list[Comparison]:
    return split(results)[0]


def test_most_cases_are_answered_by_both(results: list[Result], compared: list[Comparison]) -> None:
    assert len(results) >= 1_000
    assert len(compared) >= 0.9 * len(results)


def test_every_type_is_among_them(compared: list[Comparison]) -> None:
    counts = Counter(family(item.case) for item in compared)
    assert len(counts) >= 80
    assert sum(count >= 5 for count in counts.values()) >= 80


def test_no_formula_breaks(results: list[Result]) -> None:
    # What a formula does not know is a sentence; an exception's name before it is a fault.
    for failure in split(results)[1]:
        if failure.side == "formulas":
            assert not failure.message.partition(":")[0].endswith("Error"), failure


@pytest.mark.parametrize("counter", ["requested", "allocated"])
def test_median_and_95th_percentile(compared: list[Comparison], counter: str) -> None:
    summary = summarize(errors_of(compared, counter))
    assert summary.median <= 0.003
    assert summary.percentile_95 <= 0.02


def test_requested_bytes_are_met_to_the_byte_almost_always(compared: list[Comparison]) -> None:
    errors = errors_of(compared, "requested")
    assert sum(abs(error) <= 1e-4 for error in errors) >= 0.9 * len(errors)


def test_loading_is_met_to_the_allocators_rounding(compared: list[Comparison]) -> None:
    errors = [abs(error) for error in end_errors(compared, "load")]
    assert summarize(errors).percentile_95 <= 1e-4
    assert max(errors) <= 0.003


def test_parameters_are_the_same(compared: list[Comparison]) -> None:
    for item in compared:
        assert item.formulas.parameters == item.trace.parameters, item.case.to_dict()
