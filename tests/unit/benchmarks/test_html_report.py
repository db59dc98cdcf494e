"""The HTML report: whole, offline, escaped, honest about what was traced."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import Comparison, LeftOut, Row
from benchmarks.html_report import render_report, write_report
from benchmarks.scatter import HEIGHT, WIDTH, Point, Series, draw_scatter, ticks
from benchmarks.thresholds import Offender
from estimator.errors import RecordError


def comparison_of(make: SimpleNamespace, count: int = 3, source: str = "trace") -> Comparison:
    rows = []
    for number in range(1, count + 1):
        case = make.case(batch_size=number)
        size = number * 10**9
        compared = {
            "architecture": make.report(case, round(size * 0.99), "architecture"),
            "article": make.report(case, size * 2, "article"),
        }
        rows.append(Row(case.case_id, case.label, make.report(case, size, source), compared))
    return Comparison(
        "estimates",
        "estimates",
        "records",
        tuple(rows),
        (LeftOut("a <b>case</b>", "oom in records"),),
        notes=("a note",),
        environments={make.environment_id: make.environment()},
    )


class Checker(HTMLParser):
    """Collects what a page would fetch, and checks that its tags are closed in order."""

    VOID = ("meta", "br", "circle", "path", "line", "polygon")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {n}" for n, _ in attrs if n in ("src", "href", "srcset", "data")]
        if tag in ("script", "link", "iframe", "img"):
            self.fetched.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def test_the_page_is_whole_and_fetches_nothing(make: SimpleNamespace) -> None:
    page = render_report(comparison_of(make))
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert not re.search(r"https?://|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_the_page_says_it_all_and_escapes(make: SimpleNamespace) -> None:
    offender = Offender("x", "peak_allocated:+1%", "x: grew <fast>")
    page = render_report(comparison_of(make), (offender,))
    for said in (
        "1.00 %",
        "+100.00 %",
        "a note",
        "2.13.0",
        "1.00 GB",
        "0.93 GiB",
        "oom in records",
    ):
        assert said in page, said
    assert "a &lt;b&gt;case&lt;/b&gt;" in page
    assert "x: grew &lt;fast&gt;" in page
    assert "<fast>" not in page


def test_a_trace_is_not_called_a_measurement(make: SimpleNamespace) -> None:
    traced = render_report(comparison_of(make, source="trace"))
    assert "Estimated against traced" in traced
    assert "Nothing here was measured" in traced
    measured = render_report(comparison_of(make, source="cuda"))
    assert "Estimated against measured" in measured
    assert "Nothing here was measured" not in measured


def test_a_thousand_cases_stay_under_three_mebibytes(make: SimpleNamespace) -> None:
    assert len(render_report(comparison_of(make, 1000)).encode()) < 3 * 2**20


def test_an_empty_comparison_still_makes_a_page(make: SimpleNamespace) -> None:
    page = render_report(Comparison("records", "a", "b", (), (LeftOut("x", "only in a"),)))
    assert "only in a" in page
    assert '<svg class="scatter"' not in page


def test_a_report_that_cannot_be_written(make: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RecordError, match="cannot be written"):
        write_report(comparison_of(make), tmp_path / "file" / "report.html")
    path = tmp_path / "new" / "report.html"
    write_report(comparison_of(make), path)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


sizes = st.integers(1, 2**45)


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=20))
def test_every_point_is_inside_the_picture(pairs: list[tuple[int, int]]) -> None:
    points = tuple(Point(x, y, "p") for x, y in pairs)
    picture = str(draw_scatter([Series("s", "mark-0", points)], "x", "y"))
    places = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', picture)
    assert len(places) == len(pairs)
    for (across, up), (x, y) in zip(places, pairs, strict=True):
        assert 0 <= float(across) <= WIDTH
        assert 0 <= float(up) <= HEIGHT
        # Above the diagonal is an over-estimate.
        left, right, top, bottom = 56, WIDTH - 14, 14, HEIGHT - 48
        diagonal = bottom - (float(across) - left) / (right - left) * (bottom - top)
        assert (y > x) == (float(up) < diagonal - 1e-9) or abs(float(up) - diagonal) < 0.3


@given(st.floats(1, 1e12), st.floats(1.5, 1e6))
def test_ticks_are_few_and_inside(low: float, ratio: float) -> None:
    found = ticks(low, low * ratio)
    assert len(found) <= 10
    assert all(low <= tick <= low * ratio for tick in found)
    assert found == sorted(found)


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_scatter([Series("s", "mark-0", ())], "x", "y")
