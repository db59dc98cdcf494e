"""Fits: they find what is there, stay within bounds, and are refused where they do not help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.calibrate.fits import (
    Model,
    article_model,
    context_model,
    device_model,
    fragmentation_model,
)
from benchmarks.calibrate.least_squares import System, Term, fit_point, fit_with_intervals
from benchmarks.calibrate.left_out import (
    errors,
    family_weights,
    left_out_predictions,
    nominal_predictions,
    verdict,
    weighted_quantile,
)
from benchmarks.calibrate.recovery import TRUTH, follow, made_up_models, made_up_runs, recovered
from estimator.coefficients import Errors
from estimator.units import MIB

TERMS = (Term("slope", "x", 1.0, 0.0, 10.0), Term("base", "B", 0.0, 0.0, 1e9))


def system(slope: float, base: float, count: int = 40, noise: float = 0.0) -> System:
    random = np.random.default_rng(3)
    size = random.uniform(1e9, 2e10, count)
    exact = slope * size + base
    measured = exact * (1 + noise * random.normal(size=count))
    features = np.stack([size, np.ones(count)], axis=1)
    return System(measured, np.zeros(count), features, np.full(count, np.inf))


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {model.name: model for model in made_up_models()}


def test_exact_evidence_gives_the_exact_coefficients() -> None:
    values = fit_point(system(1.5, 4e8), TERMS)
    assert values == pytest.approx([1.5, 4e8], rel=1e-5)


def test_bounds_hold() -> None:
    values = fit_point(system(12.0, 4e8), TERMS)
    assert values[0] <= 10.0
    assert values[1] <= 1e9


def test_a_run_that_went_otherwise_does_not_pull_the_fit() -> None:
    odd = system(1.5, 4e8)
    odd.measured[7] *= 10
    assert fit_point(odd, TERMS) == pytest.approx([1.5, 4e8], rel=0.01)


def test_a_term_that_no_run_tells_of_stays_nominal() -> None:
    plain = system(1.5, 0.0)
    plain.features[:, 1] = 0
    found = fit_with_intervals(plain, TERMS, resamples=10)
    assert found.values == pytest.approx([1.5, 0.0], rel=1e-5)
    assert found.known.tolist() == [True, False]


def test_intervals_hold_the_point_and_stay_within_bounds() -> None:
    found = fit_with_intervals(system(1.5, 1e7, noise=0.02), TERMS, resamples=40)
    assert (found.low <= found.values).all()
    assert (found.values <= found.high).all()
    assert found.low[1] == 0.0


def test_the_same_seed_gives_the_same_intervals() -> None:
    noisy = system(1.5, 4e8, noise=0.02)
    first, second = (fit_with_intervals(noisy, TERMS, seed=5, resamples=20) for _ in range(2))
    assert (first.low == second.low).all()
    assert (first.high == second.high).all()


def test_a_family_is_predicted_without_its_own_runs() -> None:
    mixed = system(1.5, 0.0, count=30)
    families = ["odd"] * 10 + ["a"] * 10 + ["b"] * 10
    mixed.measured[:10] *= 2
    predicted = left_out_predictions(mixed, TERMS, families)
    assert predicted[:10] == pytest.approx(mixed.measured[:10] / 2, rel=1e-3)


def test_predictions_end_at_what_a_card_shows() -> None:
    capped = system(1.5, 0.0)
    full = System(capped.measured, capped.offset, capped.features, np.full(40, 5e9))
    assert nominal_predictions(full, TERMS).max() == 5e9


def test_every_family_weighs_the_same() -> None:
    weights = family_weights(["a", "a", "a", "b"])
    assert weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert weighted_quantile(values, weights, 0.5) == 3.0
    assert weighted_quantile(values, weights, 0.51) == 4.0


def test_errors_are_signed_and_weighted() -> None:
    found = errors(np.array([90.0, 110.0, 100.0]), np.array([100.0, 100.0, 100.0]), ["a", "a", "b"])
    assert found.worst == pytest.approx(-0.1)
    assert found.under == pytest.approx(0.25)
    assert found.median == 0.0


@pytest.mark.parametrize(
    ("after", "accepted"),
    [
        (Errors(0.02, 0.05, 0.1, 0.5), True),
        (Errors(0.0391, 0.05, 0.1, 0.5), False),
        (Errors(0.02, 0.11, 0.1, 0.5), False),
    ],
)
def test_a_fit_has_to_help_unseen_families(after: Errors, accepted: bool) -> None:
    found, reason = verdict(Errors(0.04, 0.1, 0.2, 0.5), after)
    assert found is accepted
    assert ("refused" in reason) is not accepted


def test_known_coefficients_are_recovered(models: dict[str, Model]) -> None:
    trials = 20
    chosen = [models["fragmentation"], models["device"]]
    found = recovered(chosen, TRUTH, trials, resamples=50)
    assert all(count >= 0.9 * trials for count in found.values()), found


def test_the_article_is_met_by_its_own_figures(models: dict[str, Model]) -> None:
    nominal = {term.name: term.nominal for term in models["article"].terms}
    exact = follow(models["article"], nominal, np.random.default_rng(0), noise=0.0)
    for item in exact.equations:
        assert item.run.article is not None
        allocated = item.run.article.peak.allocated_bytes
        assert item.measured == pytest.approx(allocated, abs=4)


def test_reserved_bytes_of_the_formulas_own_are_the_base() -> None:
    runs = []
    for item in made_up_runs():
        report = item.architecture
        assert report is not None
        peak = replace(report.peak, reserved_bytes=report.peak.allocated_bytes + 5 * MIB)
        runs.append(replace(item, architecture=replace(report, peak=peak)))
    for build, prefix in ((fragmentation_model, "correction"), (device_model, "beyond")):
        model = build(runs)
        assert {term.name for term in model.terms} >= {f"{prefix}_inference", f"{prefix}_training"}
        for equation in model.equations:
            report = equation.run.architecture
            assert report is not None
            assert equation.offset == report.peak.reserved_bytes


def test_runs_without_the_counter_are_no_equations() -> None:
    runs = made_up_runs()[:4]
    bare = [type(run)(_without(run.run), run.architecture, run.article, run.shape) for run in runs]
    assert article_model(bare).equations == ()
    assert device_model(bare).equations == ()
    assert device_model(bare).system().features.shape == (0, 3)


def test_a_context_is_what_the_driver_shows_above_reserved() -> None:
    runs = []
    for item in made_up_runs():
        assert item.architecture is not None
        reserved = item.architecture.peak.allocated_bytes
        counters = {"reserved": reserved, "device": reserved + 600 * MIB}
        runs.append(replace(item, run=replace(item.run, counters=counters)))
    model = context_model(runs)
    assert [term.name for term in model.terms] == ["context_A100-80GB"]
    assert fit_point(model.system(), model.terms) == pytest.approx([600 * MIB], rel=1e-3)


def _without(run):  # type: ignore[no-untyped-def]
    return type(run)(run.ids, run.case, run.family, {}, run.measured_by)
