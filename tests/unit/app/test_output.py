"""Tables and reports for a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.output import SOURCES, headline, render_report, table
from estimator.article import estimate_article
from estimator.case import Case
from estimator.report import Interval, MemoryReport


def report(**fields: object) -> MemoryReport:
    return estimate_article(Case.from_dict({"model": "Qwen2-72B-Instruct", **fields}))


def test_table_aligns_text_left_and_numbers_right() -> None:
    assert table([["name", "GB"], ["a", "1.00"], ["long name", "12.00"]]) == (
        "name          GB\n---------  -----\na           1.00\nlong name  12.00"
    )


def test_headline_has_both_units_phase_and_reason() -> None:
    text = headline(report(sequence_length=2048))
    assert text.startswith("peak 158.43 GB (147.55 GiB) in decode: ")


@pytest.mark.parametrize("task", ["inference", "training"])
def test_report_fits_80_columns(task: str) -> None:
    text = render_report(report(task=task, batch_size=4096))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("weights", "total", "parameters", "assumed:", "GB", "GiB", "seed article"):
        assert word in text
    assert "workspace" not in text, "components that are zero are left out"


def test_verbose_report_has_bytes_and_the_case() -> None:
    text = render_report(report(), verbose=True)
    assert "workspace" in text
    assert "145 412 407 296" in text
    assert "sequence_length = 1024" in text


def test_interval_and_other_counters_are_shown() -> None:
    base = report()
    peak = replace(base.peak, requested_bytes=10**9, reserved_bytes=2 * 10**9)
    text = render_report(
        replace(base, peak=peak, interval=Interval(10**9, 3 * 10**9, 0.9, "12 cases"))
    )
    lines = text.splitlines()
    assert "requested    1.00    0.93" in text
    assert "reserved     2.00    1.86" in text
    row = next(line.split() for line in lines if line.startswith("allocated "))
    assert row[1] == f"{base.peak.allocated_bytes / 1e9:.2f}"
    assert row[3:] == ["1.00", "to", "3.00", "0.93", "to", "2.79", "90%"]
    assert "allocated: 12 cases" in lines
    assert all(len(line) <= 80 for line in lines)


def test_counters_may_have_an_interval_without_a_point() -> None:
    base = report()
    span = Interval(10**9, 3 * 10**9, 0.95, "a bound")
    text = render_report(replace(base, peak=replace(base.peak, device_interval=span)))
    row = next(line.split() for line in text.splitlines() if line.startswith("device "))
    assert row == ["device", "1.00", "to", "3.00", "0.93", "to", "2.79", "95%"]
    assert "device: a bound" in text


def test_only_a_gpu_run_is_called_measured() -> None:
    measured = [source for source, words in SOURCES.items() if words.startswith("measured")]
    assert measured == ["cuda"]
    assert "not measured" in SOURCES["trace"]
