"""Intervals hold what they promise on families that they have not seen, or there is none."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibrate.intervals import Ratios, Refusal, two_sided
from benchmarks.calibrate.recovery import (
    SPREADS,
    Spread,
    held_of_new_families,
    made_up_ratios,
)


@pytest.mark.parametrize("spread", SPREADS)
def test_intervals_hold_what_they_promise_of_new_families(spread: Spread) -> None:
    assert 0.85 <= held_of_new_families(False, spread, trials=60) <= 0.95
    assert 0.92 <= held_of_new_families(True, spread, trials=60) <= 0.98


def test_too_few_families_or_runs_are_refused() -> None:
    random = np.random.default_rng(3)
    few = two_sided(*made_up_ratios(random, 2, 30, 0.02, 0.01))
    assert isinstance(few, Refusal)
    assert "of 2 model families" in few.reason
    short = two_sided(np.full(6, 1.0), ["a", "a", "b", "b", "c", "c"])
    assert isinstance(short, Refusal)
    assert "6 measured runs" in short.reason


def test_exact_predictions_have_an_interval_of_a_point() -> None:
    found = two_sided(np.ones(30), ["a"] * 10 + ["b"] * 10 + ["c"] * 10)
    assert found == Ratios(1.0, 1.0, pytest.approx(1.0))


def test_a_family_apart_is_refused_rather_than_promised() -> None:
    ratios = np.concatenate([np.full(20, 1.0), np.full(20, 1.0), np.full(20, 1.5)])
    found = two_sided(ratios, ["a"] * 20 + ["b"] * 20 + ["c"] * 20)
    assert isinstance(found, Refusal)
    assert "no width holds 90%" in found.reason
