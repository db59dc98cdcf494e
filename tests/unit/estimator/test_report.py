"""The one shape of every answer."""

from __future__ import annotations

import json
import pickle

import pytest

from estimator import estimate
from estimator.article import estimate_article
from estimator.case import Case
from estimator.report import COMPONENTS, Beyond, Components, Interval, MemoryReport, Peak


def report() -> MemoryReport:
    return estimate_article(Case.from_dict({"model": "gpt2", "task": "training"}))


def test_json_shape() -> None:
    data = report().to_dict()
    assert list(data) == [
        "schema_version",
        "source",
        "case",
        "parameters",
        "peak",
        "phases",
        "components",
        "interval",
        "assumptions",
    ]
    assert data["schema_version"] == 1
    assert {"phase", "requested_bytes", "allocated_bytes", "reserved_bytes", "device_bytes"} <= set(
        data["peak"]
    )
    assert set(data["phases"][0]) == {"name", "peak_allocated_bytes", "end_allocated_bytes"}
    assert list(data["components"]) == [f"{name}_bytes" for name in COMPONENTS]
    assert all(type(size) is int for size in data["components"].values())


def test_survives_json() -> None:
    original = report()
    assert MemoryReport.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_interval_survives_json() -> None:
    original = MemoryReport.from_dict(
        {
            **report().to_dict(),
            "interval": {"low_bytes": 1, "high_bytes": 2, "level": 0.9, "basis": "three cases"},
        }
    )
    assert original.interval == Interval(1, 2, 0.9, "three cases")
    assert MemoryReport.from_dict(original.to_dict()) == original


def test_missing_field_is_refused() -> None:
    data = report().to_dict()
    del data["peak"]
    with pytest.raises(KeyError):
        MemoryReport.from_dict(data)


def test_components_from_names() -> None:
    parts = Components.from_names({"weights": 3, "kv_cache": 4})
    assert (parts.weights_bytes, parts.kv_cache_bytes, parts.total_bytes) == (3, 4, 7)
    with pytest.raises(TypeError):
        Components.from_names({"wheels": 1})


def test_print_says_the_peak_in_one_line() -> None:
    text = str(estimate({"model": "Llama-3.2-1B", "task": "training"}))
    assert text.startswith("architecture: peak ")
    assert " GiB) in backward: backward" in text
    assert "\n" not in text


def test_more_assumptions() -> None:
    assert report().with_assumptions("one more").assumptions[-1] == "one more"


def test_notebook_shows_both_units() -> None:
    html = report()._repr_html_()
    assert "GB" in html
    assert "GiB" in html
    assert "weights" in html


def test_what_lies_beyond_allocated_is_worked_out_when_asked_for() -> None:
    asked = []

    def work_out() -> Beyond:
        asked.append(1)
        return Beyond(5, None, Interval(4, 6, 0.9, "tried"), None)

    peak = Peak.deferred(
        work_out, phase="load", requested_bytes=1, allocated_bytes=2, instant=None, reason=None
    )
    assert (peak.phase, peak.allocated_bytes, asked) == ("load", 2, [])
    assert peak.reserved_bytes == 5
    assert peak == Peak("load", 1, 2, 5, reserved_interval=Interval(4, 6, 0.9, "tried"))
    assert pickle.loads(pickle.dumps(peak)) == peak
    assert asked == [1]
    with pytest.raises(AttributeError):
        _ = peak.nothing  # type: ignore[attr-defined]
