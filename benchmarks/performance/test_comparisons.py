"""Comparisons by the thousand: `pytest benchmarks/performance/test_comparisons.py`, with
`--benchmark-timer=time.process_time` on a machine that others use too.

To be met: 5 000 comparisons of estimates with published rows, grouped and shown, in under 2 s
beside the estimator's own cost, which is left out here: it answers every case with one report.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.evidence.comparison import compare_published
from benchmarks.evidence.rows import PublishedRow, published_figures
from benchmarks.tables import text_lines, to_json
from estimator import estimate
from estimator.case import Case
from estimator.report import MemoryReport

COMPARISONS = 5_000


@pytest.fixture(scope="module")
def rows() -> list[PublishedRow]:
    """Published rows over and over, each with a case of its own."""
    known = published_figures()
    made = []
    for index, row in enumerate(itertools.islice(itertools.cycle(known), COMPARISONS)):
        assert row.case is not None
        length = row.case.sequence_length + index // len(known)
        case = replace(row.case, sequence_length=length)
        made.append(replace(row, row_id=f"{row.row_id}-{index}", case=case))
    return made


def test_many_rows_are_compared_and_shown(benchmark: Any, rows: list[PublishedRow]) -> None:
    case = Case.from_dict({"model": "gpt2"})
    answers = {name: estimate(case, name) for name in ("architecture", "article")}

    def answer(_: Case, formulas: str) -> MemoryReport:
        return answers[formulas]

    def compare() -> int:
        done = compare_published(estimator=answer, rows=rows)
        assert [*text_lines(done), *text_lines(done, by=("family", "method"))]
        assert to_json(done, by=("family", "stack"))["groups"]
        return len(done.rows)

    assert benchmark.pedantic(compare, rounds=3) == COMPARISONS
