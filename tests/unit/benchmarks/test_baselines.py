"""Baselines: saved by name, found by name, and a gate that does not pass unseen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import baselines
from benchmarks.baselines import BaselineError
from benchmarks.compare import CompareError, compare_records
from benchmarks.sides import Side
from benchmarks.store import CaseKey, RecordStore
from benchmarks.suite import load_suite
from benchmarks.thresholds import find_drops, find_offenders, parse_thresholds
from estimator.errors import RecordError
from profiler.record import Record


def stored(folder: Path, *records: Record) -> str:
    store = RecordStore(folder)
    store.prepare()
    for record in records:
        assert record.environment is not None
        store.write(
            record, CaseKey(record.case_id, record.source, record.environment.environment_id)
        )
    return str(folder)


def test_a_baseline_is_what_was_saved(tmp_path: Path, make: SimpleNamespace) -> None:
    cases = [make.case(batch_size=size) for size in (1, 2, 3)]
    records = [*(make.record(case) for case in cases[:2]), make.failure(cases[2])]
    folder = tmp_path / "baselines"
    saved = baselines.save("main", stored(tmp_path / "records", *records), folder)
    loaded = baselines.load("main", folder)
    assert baselines.names(folder) == ("main",)
    assert loaded.side.cases == saved.side.cases
    kept = {entry.record.record_id for entry in loaded.side.cases.values()}
    assert kept == {record.record_id for record in records}
    assert loaded.side.problems == ()
    assert len((folder / "main.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_the_newest_repeat_is_kept(tmp_path: Path, make: SimpleNamespace) -> None:
    case = make.case()
    records = stored(tmp_path / "r", make.record(case, 1), make.record(case, 2, repeat=2))
    side = baselines.save("main", records, tmp_path).side
    assert [entry.record.repeat for entry in side.cases.values()] == [2]


def test_a_name_is_taken_only_once_unless_asked(tmp_path: Path, make: SimpleNamespace) -> None:
    first = stored(tmp_path / "first", make.record(make.case(), 1000))
    second = stored(tmp_path / "second", make.record(make.case(), 2000))
    baselines.save("main", first, tmp_path)
    with pytest.raises(BaselineError, match=r"there already.*--replace"):
        baselines.save("main", second, tmp_path)
    (kept,) = baselines.load("main", tmp_path).side.cases.values()
    assert kept.record.peak.allocated_bytes == 1000
    baselines.save("main", second, tmp_path, replace=True)
    (kept,) = baselines.load("main", tmp_path).side.cases.values()
    assert kept.record.peak.allocated_bytes == 2000


@pytest.mark.parametrize("name", ["", "../main", "a/b", ".hidden", "-n", "a b", "x" * 101])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="baseline name is"):
        baselines.baseline_path(name, tmp_path)


def test_what_is_missing_or_empty_is_said(tmp_path: Path, make: SimpleNamespace) -> None:
    with pytest.raises(BaselineError, match=r"no baseline 'main'.*there: none"):
        baselines.load("main", tmp_path)
    baselines.save("main", stored(tmp_path / "r", make.record(make.case())), tmp_path)
    with pytest.raises(BaselineError, match="did you mean main"):
        baselines.load("mian", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no records in"):
        baselines.save("other", str(tmp_path / "empty"), tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RecordError, match="cannot be written"):
        baselines.save("other", str(tmp_path / "r"), tmp_path / "file")


def test_a_damaged_line_is_named_and_the_others_are_read(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    cases = [make.case(batch_size=size) for size in (1, 2)]
    records = stored(tmp_path / "r", *(make.record(case) for case in cases))
    baselines.save("main", records, tmp_path)
    path = tmp_path / "main.jsonl"
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{second[:100]}\n", encoding="utf-8")
    side = baselines.load("main", tmp_path).side
    assert len(side.cases) == 1
    assert [problem.message for problem in side.problems] == [
        "line 2: the record is cut off after 100 characters"
    ]


def sides(
    tmp_path: Path, make: SimpleNamespace, base: list[Record], new: list[Record]
) -> tuple[Side, Side]:
    saved = baselines.save("main", stored(tmp_path / "base", *base), tmp_path)
    return saved.side, baselines.save("new", stored(tmp_path / "new", *new), tmp_path).side


def test_versions_may_differ_but_cards_and_sources_may_not(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    newer = make.environment("f" * 12, torch="2.14.0")
    base, new = sides(
        tmp_path, make, [make.record(case)], [make.record(case, 1020, environment=newer)]
    )
    comparison = compare_records(base, new, across_versions=True)
    assert comparison.notes == ("across environments: torch 2.13.0 and 2.14.0",)
    card = newer.model_copy(update={"gpu": "L4"})
    (tmp_path / "card").mkdir()
    base, new = sides(
        tmp_path / "card",
        make,
        [make.record(case, source="cuda")],
        [make.record(case, source="cuda", environment=card)],
    )
    with pytest.raises(CompareError, match="gpu none and L4"):
        compare_records(base, new, across_versions=True)
    (tmp_path / "source").mkdir()
    base, new = sides(
        tmp_path / "source",
        make,
        [make.record(case, source="cuda")],
        [make.record(case, environment=newer)],
    )
    with pytest.raises(CompareError, match="measured and traced"):
        compare_records(base, new, across_versions=True)


def test_a_drop_is_found_but_fails_nothing(tmp_path: Path, make: SimpleNamespace) -> None:
    cases = [make.case(batch_size=size) for size in (1, 2, 3)]
    base, new = sides(
        tmp_path,
        make,
        [make.record(case, 10**9) for case in cases],
        [
            make.record(case, size)
            for case, size in zip(cases, (990_000_000, 989_000_000, 1_010_000_000), strict=True)
        ],
    )
    comparison = compare_records(base, new)
    limits = parse_thresholds("peak_allocated:+1%")
    assert find_offenders(comparison, limits) == ()
    (drop,) = find_drops(comparison, limits)
    assert not drop.fails
    assert drop.threshold == "peak_allocated:-1%"
    assert "-1.10 %" in drop.sentence
    both = parse_thresholds("peak_allocated:1%")
    (caught,) = find_offenders(comparison, both)
    assert caught.fails
    assert find_drops(comparison, both) == ()


def test_a_case_that_is_gone_fails_where_the_baseline_must_be_met(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    kept, gone, fresh = (make.case(batch_size=size) for size in (1, 2, 3))
    base, new = sides(
        tmp_path,
        make,
        [make.record(kept), make.record(gone)],
        [make.record(kept), make.record(fresh)],
    )
    limits = parse_thresholds("peak_allocated:+1%")
    assert find_offenders(compare_records(base, new), limits) == ()
    (missing,) = find_offenders(compare_records(base, new, whole=True), limits)
    assert missing.fails
    assert missing.label == gone.label


def test_the_projects_own_baseline_is_of_the_smoke_suite() -> None:
    kept = baselines.load("smoke", Path(__file__).parents[3] / "results" / "baselines").side
    wanted = {(entry.case.case_id, "trace") for entry in load_suite("smoke").cases}
    assert set(kept.cases) == wanted, "make baseline takes the present suite over"
    assert {entry.record.status for entry in kept.cases.values()} == {"ok"}
