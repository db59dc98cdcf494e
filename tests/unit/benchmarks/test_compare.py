"""Comparisons: pairing, errors, what is left out and said so, environments, thresholds."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import CompareError, Comparison, Row, compare_estimates, compare_records
from benchmarks.error_summary import percentile, summarize
from benchmarks.sides import Side, read_side
from benchmarks.store import CaseKey, RecordStore
from benchmarks.tables import markdown_lines, text_lines, to_json
from benchmarks.thresholds import ThresholdError, find_offenders, parse_thresholds
from estimator.case import Case
from estimator.errors import RecordError, UnsupportedError
from estimator.report import MemoryReport
from profiler.record import Record

MIB = 2**20


def write(folder: Path, make: SimpleNamespace, *records: Record) -> Side:
    store = RecordStore(folder)
    store.prepare()
    for record in records:
        environment = record.environment
        identity = make.environment_id if environment is None else environment.environment_id
        store.write(record, CaseKey(record.case_id, record.source, identity))
    return read_side(str(folder))


def shifted(make: SimpleNamespace, share: dict[str, float]) -> object:
    """An estimator that answers a share of 1 GB by formulas."""

    def estimate(case: Case, formulas: str) -> MemoryReport:
        report: MemoryReport = make.report(case, round(10**9 * share[formulas]), formulas)
        return report

    return estimate


def test_estimates_are_held_against_what_was_recorded(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    side = write(tmp_path, make, make.record(make.case(), allocated_bytes=10**9))
    comparison = compare_estimates(
        side, estimator=shifted(make, {"architecture": 0.98, "article": 1.5})
    )
    (row,) = comparison.rows
    assert row.error("architecture") == pytest.approx(-0.02)
    assert row.error("article") == pytest.approx(0.5)
    by_name = {summary.name: summary for summary in comparison.summaries}
    assert by_name["architecture"].under == 1.0
    assert by_name["article"].under == 0.0
    assert comparison.judged == "architecture"


def test_nothing_is_left_out_in_silence(tmp_path: Path, make: SimpleNamespace) -> None:
    good, bad, odd = (make.case(batch_size=size) for size in (1, 2, 3))

    def estimate(case: Case, formulas: str) -> MemoryReport:
        if case == odd and formulas == "article":
            raise UnsupportedError("the article has no such optimizer")
        report: MemoryReport = make.report(case, 10**9, formulas)
        return report

    write(tmp_path, make, make.record(good), make.failure(bad, "oom", "no room"), make.record(odd))
    (tmp_path / "half.json").write_text('{"schema_version": 1, "sou', encoding="utf-8")
    comparison = compare_estimates(read_side(str(tmp_path)), estimator=estimate)
    assert len(comparison.rows) == 2
    reasons = [gone.reason for gone in comparison.left_out]
    assert any(reason.startswith("oom in") and "no room" in reason for reason in reasons)
    assert "no article estimate: the article has no such optimizer" in reasons
    assert [problem.path.name for problem in comparison.problems] == ["half.json"]
    text = "\n".join(text_lines(comparison))
    for said in ("no room", "no such optimizer", "half.json", "cut off"):
        assert said in " ".join(text.split())
    assert [s.count for s in comparison.summaries] == [2, 1]


def test_records_are_held_against_records(tmp_path: Path, make: SimpleNamespace) -> None:
    same, gone, fresh, broken = (make.case(batch_size=size) for size in (1, 2, 3, 4))
    base = write(tmp_path / "base", make, make.record(same), make.record(gone), make.record(broken))
    new = write(
        tmp_path / "new",
        make,
        make.record(same, allocated_bytes=1_020_000_000),
        make.record(fresh),
        make.failure(broken),
    )
    comparison = compare_records(base, new)
    (row,) = comparison.rows
    assert row.error("new") == pytest.approx(0.02)
    assert sorted(gone.reason.split(" in ")[0] for gone in comparison.left_out) == [
        "error",
        "only",
        "only",
    ]
    offenders = find_offenders(comparison, parse_thresholds("peak_allocated:+1%"))
    assert len(offenders) == 2
    assert "it broke" in offenders[0].sentence
    assert "1.00 GB (0.93 GiB) -> 1.02 GB (0.95 GiB), +2.00 %" in offenders[1].sentence


def test_other_environments_are_refused_unless_asked_for(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    base = write(tmp_path / "base", make, make.record(case))
    newer = make.environment("ba9876543210", torch="2.14.0")
    new = write(tmp_path / "new", make, make.record(case, environment=newer))
    with pytest.raises(CompareError, match=r"torch 2\.13\.0 and 2\.14\.0.*--across-environments"):
        compare_records(base, new)
    comparison = compare_records(base, new, across_environments=True)
    assert len(comparison.rows) == 1
    assert comparison.notes == ("across environments: torch 2.13.0 and 2.14.0",)
    assert set(comparison.environments) == {make.environment_id, "ba9876543210"}


def test_a_trace_against_a_measurement_is_said_to_be_one(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    base = write(tmp_path / "base", make, make.record(case, source="cuda"))
    new = write(
        tmp_path / "new",
        make,
        make.record(case, source="trace", environment=make.environment("f" * 12)),
    )
    with pytest.raises(CompareError, match="measured and traced"):
        compare_records(base, new)
    text = "\n".join(text_lines(compare_records(base, new, across_environments=True)))
    assert "base measured" in text
    assert "new traced" in text


def test_a_trace_is_never_called_measured(tmp_path: Path, make: SimpleNamespace) -> None:
    side = write(tmp_path, make, make.record(make.case(), source="trace"))
    comparison = compare_estimates(side, estimator=shifted(make, {"architecture": 1, "article": 2}))
    for text in ("\n".join(text_lines(comparison)), "\n".join(markdown_lines(comparison))):
        assert "traced" in text
        assert "measured" not in text


def test_the_newest_repeat_counts_and_a_difference_is_flagged(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    side = write(
        tmp_path,
        make,
        make.record(case, allocated_bytes=1000, repeat=1),
        make.record(case, allocated_bytes=1024, repeat=2),
    )
    (entry,) = side.cases.values()
    assert entry.record.peak is not None
    assert entry.record.peak.allocated_bytes == 1024
    assert entry.flags == ("its 2 repeats differ by 24 B",)


def test_repeats_that_agree_in_what_is_allocated_may_differ_in_what_is_reserved(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    repeats = [make.record(case, repeat=n, reserved_bytes=n * 2**31) for n in (1, 2)]
    (entry,) = write(tmp_path, make, *repeats).cases.values()
    assert entry.flags == ("its 2 repeats differ in requested or reserved bytes",)


FLAGS = (
    "the allocator retried 2 times after freeing its cache",
    "another process was on the GPU: the device counter is not known",
    "the code had changes that are not committed",
)


def test_why_a_measurement_is_doubtful_is_shown_wherever_it_is_compared(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    doubtful = make.record(case, 1100, source="cuda", repeat=2).with_flags(*FLAGS)
    first = make.record(case, 1000, source="cuda", repeat=1)
    new = write(tmp_path / "new", make, first, doubtful)
    base = write(tmp_path / "base", make, first)
    estimator = shifted(make, {"architecture": 1, "article": 2})
    for comparison in (compare_estimates(new, estimator=estimator), compare_records(base, new)):
        texts = ["\n".join(text_lines(comparison)), "\n".join(markdown_lines(comparison))]
        texts.append(json.dumps(to_json(comparison)))
        for text in texts:
            flat = " ".join(text.split())
            for flag in (*FLAGS, "its 2 repeats differ by 100 B"):
                assert flag in flat


def trained(make: SimpleNamespace, size_bytes: int, loop: str, batch_size: int = 1) -> Record:
    case = make.case(task="training", batch_size=batch_size)
    record: Record = make.record(case, size_bytes, source="cuda")
    return record.model_copy(update={"loop": loop})


def test_trainers_records_stand_beside_the_own_loops(tmp_path: Path, make: SimpleNamespace) -> None:
    side = write(
        tmp_path,
        make,
        trained(make, 1000, "own"),
        trained(make, 1004, "trainer"),
        trained(make, 2000, "own", batch_size=2),
        trained(make, 1960, "trainer", batch_size=2),
        trained(make, 3000, "own", batch_size=3),
    )
    assert len(side.cases) == 3
    assert len(side.trainer) == 2
    assert {entry.record.loop for entry in side.cases.values()} == {"own"}
    flags = {entry.case.batch_size: entry.flags for entry in side.cases.values()}
    assert flags == {
        1: (),
        2: ("the own loop's peak is +2.04 % apart from transformers.Trainer's",),
        3: (),
    }
    (note,) = side.notes()
    assert note.startswith("2 of 2 cases of ")
    assert note.endswith(
        "were run by transformers.Trainer as well: the own loop's peak is at most +2.04 % apart "
        "from it"
    )


def test_trainers_records_alone_are_a_side_to_compare_with(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    own = write(tmp_path / "own", make, trained(make, 1000, "own"))
    trainer = write(tmp_path / "trainer", make, trained(make, 1004, "trainer"))
    (row,) = compare_records(trainer, own).rows
    assert row.error("new") == pytest.approx(-4 / 1004)


def test_a_failed_trainer_says_nothing_of_the_own_loop(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    failed = make.failure(make.case(task="training")).model_copy(
        update={"source": "cuda", "loop": "trainer"}
    )
    side = write(tmp_path, make, trained(make, 1000, "own"), failed)
    (entry,) = side.cases.values()
    assert (entry.record.status, entry.flags) == ("ok", ())
    (note,) = side.notes()
    assert note.startswith("0 of 1 cases of ")


def test_records_of_code_that_is_not_committed_are_noted(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    clean, dirty = make.record(make.case()), make.record(make.case(batch_size=2))
    provenance = dirty.provenance.model_copy(update={"dirty": True})
    side = write(tmp_path, make, clean, dirty.model_copy(update={"provenance": provenance}))
    (note,) = side.notes()
    assert note.startswith("1 of 2 records")
    assert "not committed" in note


def test_a_single_record_file_is_a_side(tmp_path: Path, make: SimpleNamespace) -> None:
    write(tmp_path, make, make.record(make.case()), make.record(make.case(batch_size=2)))
    one = next(tmp_path.glob("*.json"))
    assert len(read_side(str(one)).cases) == 1
    one.write_text(one.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(RecordError, match="cut off"):
        read_side(str(one))


def test_lines_fit_eighty_columns_and_labels_are_told_apart(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    common = {"model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "task": "training", "method": "lora"}
    records = [
        make.record(make.case(**common, lora={"r": r}), allocated_bytes=10**12, repeat=1)
        for r in (8, 16)
    ]
    side = write(tmp_path, make, *records)
    comparison = compare_estimates(
        side, estimator=shifted(make, {"architecture": 99, "article": 9999})
    )
    assert len({row.label for row in comparison.rows}) == 2
    offenders = find_offenders(comparison, parse_thresholds("peak_allocated:1%"))
    assert max(len(line) for line in text_lines(comparison, offenders)) <= 80


def test_json_holds_everything_and_is_json(tmp_path: Path, make: SimpleNamespace) -> None:
    side = write(tmp_path, make, make.record(make.case()), make.failure(make.case(batch_size=2)))
    comparison = compare_estimates(side, estimator=shifted(make, {"architecture": 1, "article": 2}))
    data = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    (row,) = data["cases"]
    assert row["compared"]["article"]["error"] == 1.0
    assert MemoryReport.from_dict(row["reference"]).source == "trace"
    assert data["left_out"][0]["reason"].startswith("error in")
    assert data["summary"][0]["median_absolute_error"] == 0.0


@given(st.lists(st.floats(-0.9, 5), min_size=1, max_size=40))
def test_a_summary_is_numpys(errors: list[float]) -> None:
    summary = summarize("x", [(str(index), error) for index, error in enumerate(errors)])
    sizes = np.abs(errors)
    assert summary.median == pytest.approx(np.median(sizes))
    assert summary.p95 == pytest.approx(np.percentile(sizes, 95))
    assert abs(summary.worst) == sizes.max()
    assert summary.worst == errors[int(summary.worst_label)]
    assert summary.under == pytest.approx(np.mean(np.array(errors) < 0))


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no errors"):
        summarize("x", [])
    assert percentile([3.0], 0.95) == 3.0


def rows_of(make: SimpleNamespace, base: dict[str, int | None], new: dict[str, int | None]) -> Row:
    def report(values: dict[str, int | None]) -> MemoryReport:
        allocated = values["peak_allocated"]
        found: MemoryReport = make.report(
            make.case(),
            allocated,
            requested_bytes=values.get("peak_requested"),
            reserved_bytes=values.get("peak_reserved"),
        )
        return found

    return Row("id", "label", report(base), {"new": report(new)})


@pytest.mark.parametrize(
    ("text", "change_bytes", "caught"),
    [
        ("peak_allocated:+1%", 10**7, False),
        ("peak_allocated:+1%", 10**7 + 1, True),
        ("peak_allocated:+1%", -(10**8), False),
        ("peak_allocated:-1%", -(10**7), False),
        ("peak_allocated:-1%", -(10**7) - 1, True),
        ("peak_allocated:-1%", 10**8, False),
        ("peak_allocated:1%", 10**7 + 1, True),
        ("peak_allocated:1%", -(10**7) - 1, True),
        ("peak_allocated:1%", 10**7, False),
        ("peak_allocated:+32MiB", 32 * MIB, False),
        ("peak_allocated:+32MiB", 32 * MIB + 1, True),
        ("peak_allocated:0%", 1, True),
        ("peak_allocated:+0B", 0, False),
        ("peak_allocated:+50%,+32MiB", 33 * MIB, True),
        (" peak_allocated : +1.5% ", 15 * 10**6, False),
    ],
)
def test_a_threshold_is_exact(
    make: SimpleNamespace, text: str, change_bytes: int, caught: bool
) -> None:
    row = rows_of(make, {"peak_allocated": 10**9}, {"peak_allocated": 10**9 + change_bytes})
    comparison = Comparison("records", "a", "b", (row,))
    assert bool(find_offenders(comparison, parse_thresholds(text))) is caught


def test_thresholds_name_their_counters(make: SimpleNamespace) -> None:
    first, second, third = parse_thresholds("peak_requested:+1%,2MB,peak_reserved:-3GiB")
    assert (first.counter, first.direction, first.share) == ("peak_requested", 1, Fraction(1, 100))
    assert (second.counter, second.direction) == ("peak_requested", 0)
    assert second.size_bytes == 2_000_000
    assert (third.counter, third.direction) == ("peak_reserved", -1)
    row = rows_of(
        make,
        {"peak_allocated": 100, "peak_requested": 100},
        {"peak_allocated": 100, "peak_requested": 102},
    )
    comparison = Comparison("records", "a", "b", (row,))
    sentences = [o.sentence for o in find_offenders(comparison, (first, second, third))]
    assert len(sentences) == 2
    assert "+2.00 % (peak_requested:+1%)" in sentences[0]
    # A gate that cannot see must not pass.
    assert "peak_reserved is not known to trace" in sentences[1]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("", "names no counter"),
        ("+1%", "names no counter: write peak_allocated:+1%"),
        ("peak:+1%", "counter is 'peak'"),
        ("peak_allocatd:+1%", "did you mean peak_allocated"),
        ("peak_allocated:", "limit is ''"),
        ("peak_allocated:1", "limit is '1'"),
        ("peak_allocated:+1 parsec", "must be like"),
        ("peak_allocated:nan%", "must be like"),
        ("peak_allocated:+1%,", "limit is ''"),
        ("peak_allocated:--1%", "must be like"),
    ],
)
def test_a_bad_threshold_is_one_sentence(bad: str, said: str) -> None:
    with pytest.raises(ThresholdError) as caught:
        parse_thresholds(bad)
    assert said in str(caught.value)


def test_a_gate_with_nothing_to_judge_does_not_pass() -> None:
    with pytest.raises(ThresholdError, match="nothing to judge"):
        find_offenders(Comparison("records", "a", "b", ()), parse_thresholds("peak_allocated:1%"))
