"""`gpumem report`: judged sets, pictures, and a page that is whole, offline and honest."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import Comparison
from benchmarks.evidence.comparison import compare_published
from benchmarks.evidence.rows import PublishedRow
from benchmarks.history import tell_history
from benchmarks.report.distribution import EDGES, class_name, count_classes, draw_distribution
from benchmarks.report.evidence import ReferenceSet, gather, kind_of
from benchmarks.report.page import Contents, render_summary, write_summary
from benchmarks.report.ranges import draw_range
from benchmarks.report.timelines import HEIGHT, WIDTH, draw_phases, draw_story
from benchmarks.sides import Side, read_side
from estimator.case import Case
from estimator.coefficients import Calibration, Coefficient, Errors, Fit, IntervalRule
from estimator.errors import RecordError, UnsupportedError
from estimator.report import COMPONENTS, MemoryReport
from profiler.record import Record
from profiler.trace.story import Points, Story, StoryPeak, StoryPhase


def side_of(folder: Path, *records: Record) -> Side:
    folder.mkdir(parents=True)
    path = folder / "records.jsonl"
    path.write_text("".join(f"{record.to_json()}\n" for record in records), encoding="utf-8")
    return read_side(str(path))


def estimator_of(make: SimpleNamespace, **shares: float) -> Any:
    def estimate(case: Case, formulas: str) -> MemoryReport:
        if formulas not in shares:
            raise UnsupportedError(f"{formulas} does not know it")
        size_bytes = round(10**9 * case.batch_size * shares[formulas])
        report: MemoryReport = make.report(case, size_bytes, formulas)
        return report

    return estimate


def published(estimator: Any, *figures: tuple[Case, int | None]) -> Comparison:
    """The formulas against published peaks; None is a run that ran out of 10 GB."""
    texts = {"model": "m", "task": "t", "method": "f", "metric": "peak", "value": "1", "unit": "B"}
    rows = [
        PublishedRow(
            row_id="r", source="a paper", tier="A", gpu="", framework="", notes="", case=case,
            outcome="oom" if size_bytes is None else "ok", counter="allocated", instant="peak",
            size_bytes=size_bytes, capacity_bytes=10**10, **texts,
        )
        for case, size_bytes in figures
    ]  # fmt: skip
    return compare_published(rows=rows, estimator=estimator)


def sets_of(make: SimpleNamespace, folder: Path, count: int = 3) -> tuple[ReferenceSet, ...]:
    cases = [make.case(batch_size=size) for size in range(1, count + 1)]
    side = side_of(folder, *(make.record(case, 10**9 * case.batch_size) for case in cases))
    estimator = estimator_of(make, architecture=0.99, article=2.0)
    return gather([side], published(estimator, (cases[0], 10**9), (cases[0], None)), estimator)[0]


def story(peak_bytes: int = 3 * 10**9) -> Story:
    sizes = (0, 10**9, peak_bytes, 10**9)
    return Story(
        case={},
        events=3,
        phases=(StoryPhase("load", 0, 0, 1, 10**9), StoryPhase("forward", 0, 1, 3, peak_bytes)),
        points=Points(
            events=(0, 1, 2, 3),
            turnover_bytes=(0, 10**9, peak_bytes, peak_bytes),
            allocated_bytes=sizes,
            reserved_bytes=sizes,
            components={
                "weights": (0, *(10**9,) * 3),
                "activations": (0, 0, peak_bytes - 10**9, 0),
            },
        ),
        peak=StoryPeak(2, "forward", "forward", peak_bytes, ()),
    )


class Checker(HTMLParser):
    """Collects what a page would fetch and where its links go, and checks that tags are closed."""

    VOID = ("meta", "br", "circle", "path", "line", "polygon", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.fetched += [f"{tag} {name}" for name in ("src", "srcset", "data") if name in given]
        if tag in ("script", "link", "iframe", "img"):
            self.fetched.append(tag)
        if "href" in given:
            self.links.append(str(given["href"]))
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert not re.search(r"url\(|@import", page)
    assert {link.removeprefix("#") for link in checker.links} <= set(checker.ids)
    return checker


def test_each_kind_of_reference_is_a_set_of_its_own(tmp_path: Path, make: SimpleNamespace) -> None:
    both, traced = make.case(batch_size=1), make.case(batch_size=2)
    side = side_of(
        tmp_path / "s",
        make.record(both, 10**9, "cuda"),
        make.record(both, 1_010_000_000),
        make.record(traced, 2 * 10**9),
    )
    estimator = estimator_of(make, architecture=0.9)
    sets, left_out = gather([side], published(estimator, (both, 2 * 10**9)), estimator)
    by_word = {one.word: one for one in sets}
    assert list(by_word) == ["measured", "published", "traced"]
    (measured,) = by_word["measured"].rows
    assert measured.error("trace") == pytest.approx(0.01)
    assert measured.error("architecture") == pytest.approx(-0.1)
    (cited,) = by_word["published"].rows
    assert "a paper" in str(cited.reference.peak.reason)
    assert cited.error("architecture") == pytest.approx(-0.55)
    assert [row.error("architecture") for row in by_word["traced"].rows] == [
        pytest.approx(0.9 / 1.01 - 1),
        pytest.approx(-0.1),
    ]
    assert "trace" not in by_word["traced"].names
    assert all("article does not know it" in line for line in left_out)
    assert len(left_out) == 3
    assert all("[" not in row.label for one in sets for row in one.rows)


def test_of_several_records_of_a_case_the_newest_counts(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    older = make.record(case, 10**9)
    later = older.provenance.model_copy(update={"started_at": "2026-02-01T00:00:00+00:00"})
    newer = make.record(case, 2 * 10**9).model_copy(update={"provenance": later})
    sides = [side_of(tmp_path / "new", newer), side_of(tmp_path / "old", older)]
    for order in (sides, sides[::-1]):
        ((one,), _) = gather(order, None, estimator_of(make, architecture=1.0))
        assert [row.reference.peak.allocated_bytes for row in one.rows] == [2 * 10**9]


def test_failed_records_are_left_out_and_said_to_be(tmp_path: Path, make: SimpleNamespace) -> None:
    side = side_of(tmp_path / "s", make.failure(make.case(), "oom", "no room"))
    sets, left_out = gather([side], None, estimator_of(make, architecture=1.0))
    assert sets == ()
    (line,) = left_out
    assert line.endswith("oom in the records: no room")


def test_kinds_and_groups(tmp_path: Path, make: SimpleNamespace) -> None:
    training = {"task": "training", "method": "lora"}
    cases = [make.case(), make.case(**training), make.case(quantization="nf4", **training)]
    side = side_of(tmp_path / "s", *(make.record(case) for case in cases))
    ((one,), _) = gather([side], None, estimator_of(make, architecture=1.0))
    assert {kind_of(row) for row in one.rows} == {"inference", "LoRA", "QLoRA"}
    assert sorted(group.values for group in one.groups(("method", "dtype"))) == [
        ("inference", "bfloat16"),
        ("lora", "bfloat16"),
        ("qlora", "nf4"),
    ]


def test_runs_that_ran_out_are_counted_where_they_are_said_to_fit(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    by_word = {one.word: one for one in sets_of(make, tmp_path / "s")}
    assert by_word["published"].said_to_fit() == [("architecture", 1, 1), ("article", 1, 1)]
    assert by_word["traced"].said_to_fit() == []


def test_the_worst_come_first(tmp_path: Path, make: SimpleNamespace) -> None:
    cases = [make.case(batch_size=size) for size in (1, 2, 3)]
    sizes = (1_100_000_000, 2_000_000_000, 2_000_000_000)
    side = side_of(tmp_path / "s", *(make.record(c, s) for c, s in zip(cases, sizes, strict=True)))
    ((one,), _) = gather([side], None, estimator_of(make, architecture=1.0))
    assert [row.reference.case["batch_size"] for row in one.worst(2)] == [3, 1]


@given(st.lists(st.floats(-1, 50), max_size=30))
def test_every_error_is_in_one_class(errors: list[float]) -> None:
    counts = count_classes(errors)
    assert len(counts) == len(EDGES) + 1
    assert sum(counts) == len(errors)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (-0.6, "below -50 %"),
        (-0.03, "-5 to -2 %"),
        (0.0, "-0.1 to +0.1 %"),
        (0.001, "+0.1 to +1 %"),
        (30.0, "above +50 %"),
    ],
)
def test_classes_have_the_borders_they_say(error: float, name: str) -> None:
    counts = count_classes([error])
    assert class_name(counts.index(1)) == name
    assert f"<title>{name}: 1</title>" in draw_distribution("x", [error])


def numbers_inside(picture: str) -> None:
    for across, up in re.findall(r"[ML](\d+) (-?[\d.]+)", picture):
        assert 0 <= int(across) <= WIDTH
        assert -0.05 <= float(up) <= HEIGHT


@given(st.integers(10**9 + 1, 10**12))
def test_a_timeline_reaches_its_peak_and_stays_inside(peak_bytes: int) -> None:
    picture = str(draw_story(story(peak_bytes), [("architecture", 2 * 10**9, "level-first")]))
    numbers_inside(picture)
    assert 'class="c-weights"' in picture
    assert 'class="c-activations"' in picture
    assert "c-gradients" not in picture
    assert "forward</text>" in picture


def test_phases_stand_side_by_side(make: SimpleNamespace) -> None:
    report = make.report(make.case(), 10**9)
    picture = str(draw_phases([("traced", report), ("architecture", report)]))
    assert picture.count("<rect") == 2
    assert "traced, decode: peak 1.00 GB" in picture


def coefficient(low: float | None, high: float | None) -> Coefficient:
    return Coefficient("context_L4", "B", 5.0, 6.0, low, high, 0.0, 9.0, 12)


def test_a_coefficient_without_an_interval_has_no_picture() -> None:
    assert draw_range(coefficient(None, None)) is None
    assert draw_range(coefficient(6.0, 6.0)) is not None
    assert "5.5 to 7" in str(draw_range(coefficient(5.5, 7.0)))


def calibration() -> Calibration:
    errors = Errors(0.02, 0.05, -0.1, 0.5)
    fit = Fit(
        "device", "architecture", "device", True, "it helps <much>", (coefficient(5.5, 7.0),),
        12, ("llama",), errors, errors, (),
    )  # fmt: skip
    refused = IntervalRule("allocated", "inference", 0.9, None, None, None, 3, (), "too few")
    held = IntervalRule("device", "inference", 0.95, None, 1.2, 0.95, 30, (), "holds")
    return Calibration("published", "what others measured", "abc", "1", (fit,), (refused, held))


def test_the_page_is_whole_offline_and_says_it_all(tmp_path: Path, make: SimpleNamespace) -> None:
    sets = sets_of(make, tmp_path / "s")
    case = Case.from_dict(sets[-1].rows[0].reference.case)
    newer = make.environment("f" * 12, torch="2.14.0")
    sides = [
        side_of(tmp_path / "a", make.record(case)),
        side_of(tmp_path / "b", make.record(case, 1_100_000_000, environment=newer)),
    ]
    page = render_summary(
        Contents(
            sets=sets,
            history=tell_history(sides),
            calibrations=(calibration(),),
            environments=(newer,),
            stories={case.case_id: story()},
            left_out=("a <b>case</b>",),
            notes=("a note",),
            code_version="v1",
        )
    )
    checker = checked(page)
    assert "history" in checker.ids
    for said in (
        "1.000 %",
        "a &lt;b&gt;case&lt;/b&gt;",
        "a note",
        "+10.00 %",
        "torch 2.14.0",
        "context_L4",
        "it helps &lt;much&gt;",
        "refused",
        "up to 1.2000",
        "peak; a paper",
        "says of 1 of 1 that they fit",
        "Nothing here was measured by gpumem",
        "They were not measured",
        'class="chart timeline"',
        "Made by gpumem v1",
    ):
        assert said in page, said
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_what_was_measured_is_not_called_traced(tmp_path: Path, make: SimpleNamespace) -> None:
    side = side_of(tmp_path / "s", make.record(make.case(), source="cuda"))
    sets, _ = gather([side], None, estimator_of(make, architecture=1.0))
    page = render_summary(Contents(sets))
    assert "against what was\nmeasured." in page
    assert "Nothing here was measured" not in page
    assert "simulated, without a GPU" not in page


def test_a_page_without_cases_is_a_page(tmp_path: Path, make: SimpleNamespace) -> None:
    checked(render_summary(Contents(())))
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RecordError, match="cannot be written"):
        write_summary(Contents(()), tmp_path / "file" / "x.html")


def test_a_thousand_records_stay_under_three_mebibytes(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    base = make.report(make.case(), 9 * 10**9)
    full = dict.fromkeys((f"{name}_bytes" for name in COMPONENTS), 10**9)

    def estimate(case: Case, formulas: str) -> MemoryReport:
        report: MemoryReport = make.report(case, 9 * 10**9, formulas)
        return report

    records = []
    for size in range(1, 1001):
        record = make.record(
            make.case(
                model="meta-llama/Llama-3.2-1B", task="training", method="lora",
                mixed_precision="bf16", gradient_checkpointing=True, batch_size=size,
            ),
            9 * 10**9,
        )  # fmt: skip
        parts = record.components.__class__(**full)
        records.append(record.model_copy(update={"components": parts}))
    assert base.components.total_bytes == 9 * 10**9
    sets, _ = gather([side_of(tmp_path / "s", *records)], None, estimate)
    page = render_summary(Contents(sets))
    assert page.count('class="c-weights" style') >= 2000
    assert len(page.encode()) < 3 * 2**20
