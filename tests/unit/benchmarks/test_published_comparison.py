"""The formulas, the trace and records against published rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.compare import CompareError, Comparison
from benchmarks.evidence.comparison import compare_published, compare_with_published
from benchmarks.evidence.rows import PublishedRow
from benchmarks.judged import group
from benchmarks.sides import read_side
from benchmarks.store import CaseKey, RecordStore
from benchmarks.tables import markdown_lines, text_lines, to_json
from benchmarks.thresholds import find_offenders, parse_thresholds
from estimator.case import Case
from estimator.errors import UnsupportedError
from estimator.report import MemoryReport, Phase

GB = 10**9


def make_row(case: Case, row_id: str = "them-0001", **changes: object) -> PublishedRow:
    row = PublishedRow(
        row_id=row_id,
        source="someone/somewhere@abc:table.csv",
        tier="A",
        model="gpt2",
        task="inference",
        method="generate",
        metric="torch.cuda.max_memory_allocated",
        value="1",
        unit="GB (1e9)",
        gpu="A100",
        framework="transformers 5",
        notes="",
        case=case,
        counter="allocated",
        instant="peak",
        size_bytes=GB,
        resolution_bytes=0,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


@pytest.fixture
def rows(make: SimpleNamespace) -> list[PublishedRow]:
    first, second = make.case(), make.case(batch_size=2, gpu="A100-40GB")
    return [
        make_row(first),
        make_row(first, "them-0002", counter="device", tier="B", size_bytes=2 * GB),
        make_row(first, "them-0003", instant="after_step", size_bytes=GB // 2),
        make_row(second, "them-0004", tier="B"),
        make_row(
            second,
            "them-0005",
            outcome="oom",
            counter=None,
            instant=None,
            size_bytes=None,
            capacity_bytes=40960 * 2**20,
        ),
    ]


@pytest.fixture
def compared(make: SimpleNamespace, rows: list[PublishedRow]) -> Comparison:
    return compare_published(("A", "B"), estimator=estimator(make), rows=rows)


def estimator(make: SimpleNamespace) -> object:
    def answer(case: Case, formulas: str) -> MemoryReport:
        size = GB * 98 // 100 if formulas == "architecture" else 60 * GB
        made: MemoryReport = make.report(case, size, formulas)
        return replace(made, phases=(Phase("decode", size, size // 2),))

    return answer


def test_peaks_are_compared_case_by_case(compared: Comparison) -> None:
    assert [row.label.split(":")[0] for row in compared.rows] == ["them-0001", "them-0004"]
    row = compared.rows[0]
    assert row.error("architecture") == pytest.approx(-0.02)
    assert row.reference.source == "published"
    assert row.reference.peak.reason is not None
    assert "someone/somewhere@abc" in row.reference.peak.reason
    assert row.reference.components.total_bytes == GB
    assert row.keys == {"source": "someone/somewhere", "tier": "A"}


def test_other_figures_are_judged_where_a_prediction_has_them(compared: Comparison) -> None:
    # No prediction has device bytes here.
    (one,) = compared.further
    assert one.name == "architecture"
    assert one.keys["phase"] == "after the step"
    assert one.error == pytest.approx(-0.02)
    found = {one.values for one in group(compared.further, ("phase",))}
    assert found == {("after the step",)}


def test_what_ran_out_is_counted_where_it_is_said_to_fit(compared: Comparison) -> None:
    (run,) = compared.ran_out
    assert run.said_to_fit("architecture")
    assert not run.said_to_fit("article")
    text = " ".join("\n".join(text_lines(compared)).split())
    assert "architecture says that 1 of 1 fit" in text
    assert "article says that 0 of 1 fit" in text
    told = json.loads(json.dumps(to_json(compared)))
    assert told["ran_out"][0]["said_to_fit"] == {"architecture": True, "article": False}


def test_tiers_are_chosen(make: SimpleNamespace, rows: list[PublishedRow]) -> None:
    only_a = compare_published(estimator=estimator(make), rows=rows)
    assert [row.label.split(":")[0] for row in only_a.rows] == ["them-0001"]
    # One-sided evidence has no figure to be noisy.
    assert len(only_a.ran_out) == 1


def test_nothing_is_called_measured_by_us(compared: Comparison) -> None:
    for lines in (text_lines(compared), markdown_lines(compared)):
        text = "\n".join(lines)
        assert "measured by others" in text
        assert "results/published" in text


def test_thresholds_judge_the_architecture(compared: Comparison) -> None:
    caught = find_offenders(compared, parse_thresholds("peak_allocated:-1%"))
    assert [one.label.split(":")[0] for one in caught] == ["them-0001", "them-0004"]
    assert not find_offenders(compared, parse_thresholds("peak_allocated:-3%"))


def test_the_trace_stands_beside_where_it_is_asked_for(
    make: SimpleNamespace, rows: list[PublishedRow]
) -> None:
    traced: list[str] = []

    def trace(case: Case) -> MemoryReport:
        traced.append(case.case_id)
        if case.batch_size == 2:
            raise UnsupportedError("this stack cannot be traced: use gpumem estimate")
        report: MemoryReport = make.report(case, GB, "trace")
        return report

    done = compare_published(("A", "B"), estimator=estimator(make), trace=trace, rows=rows)
    assert done.names == ("architecture", "article", "trace")
    assert done.rows[0].error("trace") == 0.0
    # A case that several rows are of is traced once.
    assert len(traced) == len(set(traced)) == 2
    assert any("no trace: this stack" in gone.reason for gone in done.left_out)


def test_records_against_what_is_published(
    tmp_path: Path, make: SimpleNamespace, rows: list[PublishedRow]
) -> None:
    store = RecordStore(tmp_path)
    store.prepare()
    record = make.record(make.case(), allocated_bytes=GB * 101 // 100)
    store.write(record, CaseKey(record.case_id, record.source, make.environment_id))
    done = compare_with_published(read_side(str(tmp_path)), rows=rows)
    (row,) = done.rows
    assert (done.kind, done.base) == ("records", "published")
    assert row.error("new") == pytest.approx(0.01)
    with pytest.raises(CompareError, match="no record of"):
        compare_with_published(read_side(str(tmp_path)), tiers=("C",), rows=rows)
