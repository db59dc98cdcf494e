"""Calibrations: what a file must be, and what they add to an estimate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estimator import Case, estimate
from estimator.calibrated import calibrated, calibrated_article, capped, moving_bytes
from estimator.coefficients import (
    Calibration,
    CalibrationError,
    Coefficient,
    Errors,
    Fit,
    IntervalRule,
    load_calibration,
    matching_calibration,
    run_kind,
    shipped_names,
)
from estimator.headroom import CONTEXT_LOW_BYTES
from estimator.report import NO_INTERVAL, MemoryReport
from estimator.units import GIB, MIB

ERRORS = Errors(0.01, 0.02, -0.03, 0.5)


def fit(name: str, accepted: bool = True, **values: float) -> Fit:
    coefficients = tuple(
        Coefficient(key, "x", 0.0, value, value, value, 0.0, 1e12, 9)
        for key, value in values.items()
    )
    counter = "allocated" if name in ("article", "scratch") else name
    return Fit(
        name, "architecture", counter, accepted, "why", coefficients, 9, ("a", "b"), ERRORS, ERRORS,
        ("id",),
    )  # fmt: skip


def rule(
    counter: str, low: float | None, high: float | None, kind: str = "training full"
) -> IntervalRule:
    level = 0.95 if counter == "device" else 0.9
    return IntervalRule(counter, kind, level, low, high, 0.91, 40, ("a", "b", "c"), "why")


def calibration(fits: tuple[Fit, ...] = (), *rules: IntervalRule) -> Calibration:
    return Calibration("tried", "made up", "0" * 16, "abc", fits, rules)


CASE = Case.from_dict({"model": "gpt2", "task": "training", "gpu": "A100-80GB"})
REPORT = estimate(CASE)


def answer(found: Calibration, case: Case = CASE) -> MemoryReport:
    return calibrated(estimate(case), case, found)


def bare(found: Calibration, case: Case = CASE) -> MemoryReport:
    """An estimate that knows nothing beyond allocated bytes, calibrated."""
    report = estimate(case)
    nothing = dict.fromkeys(("reserved_bytes", "device_bytes", "reserved_interval"))
    peak = replace(report.peak, **nothing, device_interval=None)
    return calibrated(replace(report, peak=peak), case, found)


def test_kinds_of_runs() -> None:
    def kind(**fields: Any) -> str:
        return run_kind(Case.from_dict({"model": "gpt2", **fields}))

    assert kind() == "inference"
    assert kind(quantization="int8", attention="eager") == "inference int8"
    assert kind(cache="static") == "inference static"
    assert kind(model="mistralai/Mixtral-8x7B-v0.1") == "inference moe"
    assert kind(task="training") == "training full"
    assert kind(task="training", optimizer="adamw_torch") == "training full"
    assert kind(task="training", optimizer="sgd", attention="eager") == "training full eager sgd"
    qlora = {"method": "lora", "quantization": "nf4", "optimizer": "adamw_bnb_8bit"}
    ways = {"mixed_precision": "bf16", "gradient_checkpointing": True}
    assert kind(task="training", **qlora) == "training lora nf4"
    assert kind(task="training", **qlora, **ways) == "training lora nf4 amp-bf16 checkpointed"
    assert kind(task="training", method="lora", lora={"use_dora": True}) == "training dora"


def test_nothing_known_is_said_and_changes_nothing() -> None:
    found = answer(calibration())
    assert found.peak == REPORT.peak
    assert found.interval is None
    assert NO_INTERVAL in REPORT.assumptions
    assert "no interval: calibration tried has none for training full" in found.assumptions


def test_an_interval_is_around_the_allocated_peak_and_says_its_basis() -> None:
    found = answer(calibration((), rule("allocated", 0.98, 1.03)))
    assert found.interval is not None
    allocated = found.peak.allocated_bytes
    assert found.interval.low_bytes == pytest.approx(0.98 * allocated, abs=1)
    assert found.interval.high_bytes == pytest.approx(1.03 * allocated, abs=1)
    assert found.interval.level == 0.9
    assert "40 runs made up" in found.interval.basis
    assert "model families a, b, c" in found.interval.basis
    assert NO_INTERVAL not in found.assumptions


def test_an_interval_of_another_kind_is_not_taken() -> None:
    assert answer(calibration((), rule("allocated", 0.9, 1.1, "inference"))).interval is None


def test_reserved_bytes_are_allocated_and_a_share_of_what_moves() -> None:
    found = bare(
        calibration(
            (fit("fragmentation", fragmentation_training=0.25),), rule("reserved", 0.9, 1.2)
        )
    )
    moving = moving_bytes(REPORT.peak, REPORT.components)
    assert 0 < moving < REPORT.peak.allocated_bytes
    reserved, interval = found.peak.reserved_bytes, found.peak.reserved_interval
    assert reserved == pytest.approx(REPORT.peak.allocated_bytes + moving / 4, abs=1)
    assert interval is not None
    assert interval.low_bytes == pytest.approx(0.9 * reserved, abs=1)
    assert interval.high_bytes == pytest.approx(1.2 * reserved, abs=1)
    assert "40 runs made up" in interval.basis
    assert found.peak.device_bytes is None


def test_reserved_bytes_of_the_formulas_are_corrected() -> None:
    own = replace(REPORT, peak=replace(REPORT.peak, reserved_bytes=REPORT.peak.allocated_bytes + 7))
    shares = fit("fragmentation", correction_training=0.0)
    found = calibrated(own, CASE, calibration((shares,), rule("reserved", 0.9, 1.2)))
    assert found.peak.reserved_bytes == REPORT.peak.allocated_bytes + 7
    # A fit that was made without them does not suit them.
    other = fit("fragmentation", fragmentation_training=0.5)
    kept = calibrated(own, CASE, calibration((other,), rule("reserved", 0.9, 1.2)))
    assert kept.peak.reserved_bytes == REPORT.peak.allocated_bytes + 7


def test_device_bytes_are_a_point_and_a_bound_above_everything_else() -> None:
    values = {"beyond_training": 0.5, "context_A100-80GB": float(500 * MIB), "context_any": 1.0}
    known = calibration((fit("device", **values),), rule("device", None, 1.25))
    found = answer(known)
    moving = moving_bytes(REPORT.peak, REPORT.components)
    reserved = REPORT.peak.reserved_bytes
    assert reserved is not None
    point = reserved + moving / 2 + 500 * MIB
    assert found.peak.device_bytes == pytest.approx(point, abs=1)
    interval = found.peak.device_interval
    assert interval is not None
    assert REPORT.peak.reserved_interval is not None
    spread = REPORT.peak.reserved_interval.high_bytes - reserved
    assert interval.high_bytes == pytest.approx(1.25 * (point + spread), abs=2)
    assert interval.low_bytes == REPORT.peak.allocated_bytes + CONTEXT_LOW_BYTES
    assert interval.level == 0.95
    assert "40 runs made up" in interval.basis
    spelled = answer(known, replace(CASE, gpu="nvidia a100 80gb"))
    assert spelled.peak.device_bytes == found.peak.device_bytes
    elsewhere = answer(known, replace(CASE, gpu="H100")).peak
    assert elsewhere.device_bytes is not None
    assert elsewhere.device_bytes < found.peak.device_bytes


def test_the_driver_never_shows_less_than_reserved_and_the_smallest_context() -> None:
    values = {"beyond_training": 0.0, "context_any": 1.0}
    found = answer(calibration((fit("device", **values),), rule("device", None, 1.0))).peak
    assert found.reserved_bytes is not None
    assert found.device_bytes == found.reserved_bytes + CONTEXT_LOW_BYTES


def test_a_refused_fit_or_interval_is_never_used() -> None:
    values = {"beyond_training": 0.5, "context_any": 1.0}
    refused = fit("device", accepted=False, **values)
    assert answer(calibration((refused,), rule("device", None, 1.25))).peak.device_bytes is None
    alone = calibration((fit("device", **values),), rule("device", None, None))
    assert answer(alone).peak.device_bytes is None


def test_a_card_shows_no_more_than_it_has() -> None:
    memory = 81920 * MIB
    assert capped(100 * GIB, 40 * GIB, "A100-80GB") == memory
    assert capped(100 * GIB, 90 * GIB, "A100-80GB") == 100 * GIB
    assert capped(100 * GIB, 40 * GIB, None) == 100 * GIB


def test_scratch_factors_keep_the_sum_and_the_phases() -> None:
    found = answer(calibration((fit("scratch", workspace_scale=3.0, temporaries_scale=1.5),)))
    assert found.components.total_bytes == found.peak.allocated_bytes
    assert found.components.workspace_bytes == 3 * REPORT.components.workspace_bytes
    peaks = {phase.name: phase.peak_allocated_bytes for phase in found.phases}
    assert peaks[found.peak.phase] == found.peak.allocated_bytes == max(peaks.values())


def test_the_article_takes_fitted_constants_only_where_there_are_some() -> None:
    constants = {
        "activation_linear": 17.0, "activation_scores": 0.0, "gradient_bytes": 2.0,
        "adamw_bytes": 4.0, "adamw_quantized_bytes": 2.0, "sgd_bytes": 4.0,
    }  # fmt: skip
    found = calibrated_article(CASE, calibration((fit("article", **constants),)))
    total = found.parameters.total
    assert found.components.gradients_bytes == 2 * total
    assert found.components.optimizer_states_bytes == 4 * total
    assert any("calibration tried" in line for line in found.assumptions)
    with pytest.raises(CalibrationError, match="has no fit of the article's constants"):
        calibrated_article(CASE, calibration())


def test_a_calibration_survives_json(tmp_path: Path) -> None:
    whole = calibration((fit("device", cache_training=0.5),), rule("device", None, 1.25))
    path = tmp_path / "one.json"
    path.write_text(json.dumps(whole.to_dict()))
    assert load_calibration(str(path)) == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"fits": None}, "is not a calibration"),
        ({"name": 3}, "name is 3"),
        ({"intervals": [{}]}, "is not a calibration"),
        ({"fits": [{"name": "x"}]}, "is not a calibration"),
    ],
)
def test_what_is_no_calibration_is_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**calibration().to_dict(), **change}))
    with pytest.raises(CalibrationError, match=words):
        load_calibration(str(path))


@pytest.mark.parametrize("value", [10**400, 1e308, float("nan"), -1.0, "1", True, None])
def test_a_coefficient_is_a_number_within_reason(value: Any) -> None:
    data = calibration((fit("device", cache_training=0.5),)).to_dict()
    data["fits"][0]["coefficients"][0]["value"] = value
    with pytest.raises(CalibrationError, match="is not a calibration"):
        Calibration.from_dict(data)


def test_a_fit_has_the_coefficients_that_estimates_take() -> None:
    data = calibration((fit("scratch", workspace_scale=1.0),)).to_dict()
    with pytest.raises(CalibrationError, match="coefficients of scratch"):
        Calibration.from_dict(data)


@pytest.mark.parametrize("ratio", [float("inf"), 10**400, -1.0, "1", True])
def test_a_ratio_is_a_number_above_zero(ratio: Any) -> None:
    data = calibration((), rule("allocated", 0.9, 1.1)).to_dict()
    data["intervals"][0]["high_ratio"] = ratio
    with pytest.raises(CalibrationError, match="is not a calibration"):
        Calibration.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 1}'])
def test_files_that_hold_something_else(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(CalibrationError):
        load_calibration(str(path))


def test_no_such_calibration() -> None:
    with pytest.raises(CalibrationError, match="there is no calibration 'nowhere'"):
        load_calibration("nowhere")
    with pytest.raises(CalibrationError):
        load_calibration("a\0b")


def test_what_is_shipped_is_found_where_it_has_evidence() -> None:
    full = {"model": "gpt2", "task": "training"}
    kinds = {
        rule.kind
        for name in shipped_names()
        for rule in load_calibration(name).intervals
        if rule.held
    }
    for fields in ({"model": "gpt2"}, full, {**full, "gradient_checkpointing": True}):
        case = Case.from_dict(fields)
        assert (matching_calibration(case) is not None) is (run_kind(case) in kinds)
