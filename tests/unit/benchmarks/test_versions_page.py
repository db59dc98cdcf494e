"""The page of versions says what the stored baselines say."""

from __future__ import annotations

import json

from benchmarks.history_tables import to_json
from benchmarks.versions_page import PAGE, REPORT, page, versions_history


def test_the_page_and_the_report_are_current() -> None:
    history = versions_history()
    assert page(history) == PAGE.read_text(encoding="utf-8")
    assert to_json(history) == json.loads(REPORT.read_text(encoding="utf-8"))


def test_it_covers_what_it_promises() -> None:
    history = versions_history()
    assert len({point.transformers for point in history.points}) >= 3
    assert len({point.peft for point in history.points}) >= 2
    # One tracer and one torch throughout, so that each change has one cause.
    assert set(history.names) == {"transformers", "peft", "bitsandbytes"}
    assert {case.source for case in history.cases} == {"trace"}
    assert any(case.changed for case in history.cases)
