"""Errors by group, margins, and what of a report can be judged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import Comparison, Row, all_judged
from benchmarks.error_summary import margin
from benchmarks.group_tables import to_json as groups_json
from benchmarks.judged import KEYS, Judged, case_keys, group, judge_counters, judge_report
from benchmarks.tables import markdown_lines, text_lines, to_json
from estimator import Case, estimate
from estimator.report import Components, MemoryReport, Phase


def report(make: SimpleNamespace, size: int, source: str, weights: int) -> MemoryReport:
    made: MemoryReport = make.report(make.case(), size, source)
    return replace(
        made,
        components=Components(weights_bytes=weights, kv_cache_bytes=size - weights),
        phases=(Phase("prefill", size // 2, size // 2), Phase("decode", size, size)),
    )


@pytest.fixture
def comparison(make: SimpleNamespace) -> Comparison:
    """Two cases: one predicted 10 % under, one 5 % over; the article is twice as wrong."""
    rows = []
    for index, share in enumerate((0.9, 1.05)):
        reference = report(make, 1000, "cuda", 600)
        compared = {
            "architecture": report(make, round(1000 * share), "architecture", 600),
            "article": report(make, round(1000 * (2 * share - 1)), "article", 600),
        }
        rows.append(Row(f"{index:012}", f"case {index}", reference, compared))
    return Comparison("estimates", "estimates", "records", tuple(rows))


def test_a_margin_by_hand() -> None:
    # Predictions of 90 and 105 for 100: the first needs 100 / 90 - 1.
    assert margin([-0.1, 0.05], 1.0) == pytest.approx(1 / 9)
    assert margin([-0.1, 0.05], 0.5) == 0.0
    assert margin([-0.1] + [0.0] * 99, 0.99) == 0.0
    assert margin([-0.1] * 2 + [0.0] * 98, 0.99) == pytest.approx(1 / 9)
    assert math.isinf(margin([-1.0], 0.95))


@given(
    st.lists(st.floats(-0.9, 5), min_size=1, max_size=60),
    st.sampled_from((0.5, 0.9, 0.95, 0.99)),
)
def test_a_margin_covers_what_it_promises(errors: list[float], share: float) -> None:
    needed = margin(errors, share)
    enough = sum((1 + error) * (1 + needed) >= 1 - 1e-9 for error in errors)
    assert enough >= share * len(errors) - 1e-9


def test_groups_by_family_and_method(comparison: Comparison) -> None:
    architecture, article = group(all_judged(comparison), ("family", "method"))
    assert architecture.values == article.values == ("gpt2", "inference")
    assert (architecture.summary.name, article.summary.name) == ("architecture", "article")
    assert architecture.summary.count == 2
    assert architecture.summary.worst == pytest.approx(-0.1)
    assert article.summary.worst == pytest.approx(-0.2)
    assert architecture.summary.under == 0.5
    assert architecture.summary.margin_95 == pytest.approx(1 / 9)


def test_groups_by_phase_have_the_peak_beside_them(comparison: Comparison) -> None:
    groups = group(all_judged(comparison), ("phase",))
    assert {one.values for one in groups} == {("peak",), ("prefill",), ("decode",)}


def test_components_are_judged_as_shares_of_the_peak(comparison: Comparison) -> None:
    found = {
        (one.values[0], one.summary.name): one.summary
        for one in group(all_judged(comparison), ("component",))
    }
    assert found["weights", "architecture"].worst == 0.0
    assert found["kv cache", "architecture"].worst == pytest.approx(-0.1)
    assert found["kv cache", "article"].worst == pytest.approx(-0.2)


def test_what_nobody_told_apart_is_no_component(make: SimpleNamespace) -> None:
    measured = replace(
        report(make, 1000, "published", 600), components=Components(unattributed_bytes=1000)
    )
    ours = report(make, 900, "architecture", 600)
    keys = {key for one in judge_report("a", "l", ours, measured, {}) for key in one.keys}
    assert "component" not in keys


def test_other_counters_only_where_they_are_asked_for() -> None:
    device = Judged("a", "l", 90, 100, {"counter": "device", "phase": "peak"})
    peak = Judged("a", "l", 100, 100, {"counter": "allocated", "phase": "peak"})
    assert [one.summary.count for one in group([device, peak], ("family",))] == [1]
    assert {one.values for one in group([device, peak], ("counter",))} == {
        ("allocated",),
        ("device",),
    }


@pytest.mark.parametrize(
    ("fields", "method", "dtype"),
    [
        ({"task": "training"}, "full", "bfloat16"),
        ({"task": "training", "method": "lora"}, "lora", "bfloat16"),
        ({"task": "training", "method": "lora", "quantization": "nf4"}, "qlora", "nf4"),
        ({"task": "training", "method": "lora", "lora": {"use_dora": True}}, "dora", "bfloat16"),
        ({"dtype": "float32"}, "inference", "float32"),
    ],
)
def test_the_keys_of_a_case(
    make: SimpleNamespace, fields: dict[str, object], method: str, dtype: str
) -> None:
    keys = case_keys(make.case(**fields).to_dict())
    assert (keys["method"], keys["dtype"], keys["family"]) == (method, dtype, "gpt2")
    assert keys["stack"] == "today"


def test_a_configuration_has_a_family_too(make: SimpleNamespace) -> None:
    fields = make.case().to_dict()
    assert case_keys({**fields, "model": {"model_type": "llama"}})["family"] == "llama"
    assert case_keys({**fields, "model": "gone/away"})["family"] == "-"


@pytest.mark.parametrize("by", [(key,) for key in KEYS] + [("family", "method", "dtype")])
def test_every_key_makes_a_table_of_80_columns(comparison: Comparison, by: tuple[str, ...]) -> None:
    lines = list(text_lines(comparison, by=by))
    assert lines[0].startswith(", ".join(by))
    assert max(map(len, lines)) <= 80
    assert "architecture" in "\n".join(lines)
    markdown = list(markdown_lines(comparison, by=by))
    assert markdown[0].count("|") == markdown[1].count("|") == markdown[2].count("|")
    told = json.loads(json.dumps(to_json(comparison, by=by)))
    assert set(told["groups"][0]["by"]) == set(by)


def test_a_margin_that_nothing_gives_is_null_in_json() -> None:
    nothing = Judged("a", "l", 0, 100, {"counter": "allocated", "phase": "peak"})
    (told,) = groups_json(group([nothing], ("family",)), ("family",))
    assert told["margin_95"] is None
    json.dumps(told, allow_nan=False)


def test_reserved_bytes_are_judged_where_counters_are_asked_for() -> None:
    case = Case.from_dict({"model": "gpt2", "task": "training"})
    predicted = estimate(case)
    known = predicted.peak.reserved_bytes
    assert known is not None
    reference = replace(predicted, peak=replace(predicted.peak, reserved_bytes=2 * known))
    (reserved,) = judge_counters("architecture", "one", predicted, reference, {})
    assert reserved.keys == {"counter": "reserved", "phase": "peak"}
    assert reserved.error == -0.5
