"""The calibration that comes with the package: its copies, its page, and whether it still holds.

Where evidence or formulas changed: `python -m benchmarks.calibrate.page` makes it anew.
"""

from __future__ import annotations

import json

import pytest

from benchmarks.calibrate import page
from benchmarks.calibrate.answers import Answered, answer_runs
from benchmarks.calibrate.evidence import evidence_hash, published_runs
from benchmarks.calibrate.left_out import family_weights
from estimator import Case, estimate
from estimator.coefficients import load_calibration, matching_calibration


@pytest.fixture(scope="module")
def answered() -> tuple[Answered, ...]:
    return answer_runs(published_runs()).runs


def test_the_package_has_the_stored_one() -> None:
    assert load_calibration(page.NAME) == page.stored()


def test_the_page_shows_it() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.refreshed(text, page.stored()) == text


def test_it_was_made_from_the_evidence_that_is_there(answered: tuple[Answered, ...]) -> None:
    assert page.stored().evidence_hash == evidence_hash(item.run for item in answered)


def test_estimates_use_it_and_say_so() -> None:
    case = Case.from_dict({"model": "gpt2", "gpu": "A100-80GB"})
    calibration = matching_calibration(case)
    assert calibration is not None
    report = estimate(case, calibration=calibration)
    assert report.interval is not None
    assert "published by others" in report.interval.basis
    low, high = report.interval.low_bytes, report.interval.high_bytes
    assert 0 < low <= high
    peak = report.peak
    assert peak.device_bytes is not None
    assert peak.device_bytes > peak.allocated_bytes
    json.dumps(report.to_dict(), allow_nan=False)


def share_held(answered: tuple[Answered, ...], counter: str) -> float:
    """Return the share of runs that the shipped calibration holds, each family the same weight."""
    shipped = load_calibration(page.NAME)
    held, families = [], []
    for item in answered:
        if item.architecture is None or counter not in item.run.counters:
            continue
        report = estimate(item.run.case, calibration=shipped)
        measured = item.run.counters[counter]
        bound = report.peak.device_interval
        if counter == "device" and bound is not None:
            held.append(measured <= bound.high_bytes)
        elif counter == "allocated" and report.interval is not None:
            held.append(report.interval.low_bytes <= measured <= report.interval.high_bytes)
        else:
            continue
        families.append(item.run.family)
    assert len(held) >= 50
    return float(family_weights(families)[held].sum())


def test_its_intervals_and_bounds_hold_what_todays_formulas_miss(
    answered: tuple[Answered, ...],
) -> None:
    assert share_held(answered, "allocated") >= 0.85
    assert share_held(answered, "device") >= 0.92
