"""Intervals hold what they promise on families that they have not seen, or there is none."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibrate.intervals import Ratios, Refusal, two_sided, upper_bound


def made_up(
    random: np.random.Generator, families: int, runs: int, between: float, within: float
) -> tuple[np.ndarray, list[str]]:
    """Ratios with an effect of the family and one of the run."""
    ratios: list[float] = []
    names: list[str] = []
    for number in range(families):
        count = int(random.integers(runs // 2, 2 * runs))
        effect = random.normal(0, between)
        ratios += np.exp(effect + random.normal(0, within, count)).tolist()
        names += [f"family {number}"] * count
    return np.array(ratios), names


@pytest.mark.parametrize(("between", "within"), [(0.02, 0.01), (0.0, 0.02), (0.05, 0.005)])
def test_ninety_percent_hold_85_to_95_of_new_families(between: float, within: float) -> None:
    random = np.random.default_rng(1)
    held = []
    for _ in range(60):
        found = two_sided(*made_up(random, 8, 15, between, within))
        assert isinstance(found, Ratios)
        assert found.low is not None
        new = np.exp(random.normal(0, between, 500) + random.normal(0, within, 500))
        held.append(((new >= found.low) & (new <= found.high)).mean())
    assert 0.85 <= np.mean(held) <= 0.95


def test_one_sided_bounds_hold_92_to_98() -> None:
    random = np.random.default_rng(2)
    held = []
    for _ in range(60):
        found = upper_bound(*made_up(random, 8, 25, 0.03, 0.03))
        assert isinstance(found, Ratios)
        assert found.low is None
        new = np.exp(random.normal(0, 0.03, 500) + random.normal(0, 0.03, 500))
        held.append((new <= found.high).mean())
    assert 0.92 <= np.mean(held) <= 0.98


def test_too_few_families_or_runs_are_refused() -> None:
    random = np.random.default_rng(3)
    few = two_sided(*made_up(random, 2, 30, 0.02, 0.01))
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
