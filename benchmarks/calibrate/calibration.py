"""From measured runs to a `Calibration`: fit, leave each family out, keep or refuse, store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.calibrate.answers import Answered
from benchmarks.calibrate.evidence import EvidenceError, described, evidence_hash
from benchmarks.calibrate.fits import MODELS, Model
from benchmarks.calibrate.intervals import (
    ONE_SIDED_LEVEL,
    TWO_SIDED_LEVEL,
    Ratios,
    Refusal,
    two_sided,
    upper_bound,
)
from benchmarks.calibrate.least_squares import RESAMPLES, fit_with_intervals, need_scipy
from benchmarks.calibrate.left_out import (
    MIN_FAMILIES,
    errors,
    left_out_predictions,
    nominal_predictions,
    verdict,
)
from benchmarks.store import write_whole
from estimator.coefficients import Calibration, Coefficient, Errors, Fit, IntervalRule
from profiler.provenance import code_version

if TYPE_CHECKING:
    from benchmarks.calibrate.least_squares import Array

MIN_KIND_RUNS = 2
"""A kind of run with fewer is not covered by its task's interval either."""

_DIGITS = 6
"""Significant digits that are stored: far below any interval's width."""


def calibrate(
    answered: Sequence[Answered], name: str, seed: int = 0, resamples: int = RESAMPLES
) -> Calibration:
    """Fit everything that there is evidence for.

    Raises:
        EvidenceError: there is no run with an estimate.
        EnvironmentUnavailable: scipy is not installed.
    """
    need_scipy()
    if not answered:
        raise EvidenceError(
            "no measured run has an estimate to calibrate: measure some (gpumem run SUITE --source "
            "cuda -o FOLDER) and give the folder"
        )
    fits: list[Fit] = []
    intervals: list[IntervalRule] = []
    for build in MODELS:
        model = build(answered)
        if not model.equations:
            fits.append(_without_evidence(model))
            continue
        fit, predicted = _fit(model, seed, resamples)
        fits.append(fit)
        if model.formulas == "architecture" and (fit.accepted or model.counter == "allocated"):
            intervals += _rules(model, predicted)
    version, dirty = code_version()
    return Calibration(
        name=name,
        evidence=described([item.run for item in answered]),
        evidence_hash=evidence_hash(item.run for item in answered),
        code_version=version + ("-dirty" if dirty else ""),
        fits=tuple(fits),
        intervals=tuple(intervals),
    )


def store(calibration: Calibration, folder: Path) -> Path:
    """Write a calibration as NAME.json and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{calibration.name}.json"
    text = json.dumps(calibration.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")
    return path


def _fit(model: Model, seed: int, resamples: int) -> tuple[Fit, Array]:
    """Return the fit, and predictions of every run that did not see its family."""
    system, families = model.system(), model.families
    solution = fit_with_intervals(system, model.terms, seed, resamples)
    names = tuple(sorted(set(families)))
    predicted = nominal_predictions(system, model.terms)
    before = errors(predicted, system.measured, families)
    after, accepted = None, False
    if len(names) < MIN_FAMILIES:
        reason = f"refused: evidence of {_count(names)}, and {MIN_FAMILIES} are needed"
    else:
        fitted = left_out_predictions(system, model.terms, families)
        after = errors(fitted, system.measured, families)
        accepted, reason = verdict(before, after)
        predicted = fitted if accepted else predicted
    coefficients = tuple(
        Coefficient(
            name=term.name,
            unit=term.unit,
            nominal=term.nominal,
            value=_rounded(solution.values[place]),
            low=_rounded(solution.low[place]) if solution.known[place] else None,
            high=_rounded(solution.high[place]) if solution.known[place] else None,
            least=term.least,
            most=term.most,
            runs=int((system.features[:, place] != 0).sum()),
        )
        for place, term in enumerate(model.terms)
    )
    fit = Fit(
        name=model.name,
        formulas=model.formulas,
        counter=model.counter,
        accepted=accepted,
        reason=reason,
        coefficients=coefficients,
        runs=len(families),
        families=names,
        before=_rounded_errors(before),
        after=None if after is None else _rounded_errors(after),
        evidence=_ids(model),
    )
    return fit, predicted


def _without_evidence(model: Model) -> Fit:
    coefficients = tuple(
        Coefficient(
            term.name, term.unit, term.nominal, term.nominal, None, None, term.least, term.most, 0
        )
        for term in model.terms
    )
    return Fit(
        name=model.name,
        formulas=model.formulas,
        counter=model.counter,
        accepted=False,
        reason=f"refused: no measured run has {model.counter} bytes and an estimate",
        coefficients=coefficients,
        runs=0,
        families=(),
        before=None,
        after=None,
        evidence=(),
    )


def _rules(model: Model, predicted: Array) -> list[IntervalRule]:
    """Return a rule for every kind of run that the equations know.

    A kind with too little evidence of its own takes the interval of all runs of its task, or else
    of all runs, if it is among them at least `MIN_KIND_RUNS` times, and that interval misses no
    more of its own runs than chance allows.
    """
    import numpy as np

    one_sided = model.counter == "device"
    kinds = np.array([item.run.run.kind for item in model.equations])
    tasks = np.array([item.run.run.case.task for item in model.equations])
    families = np.array(model.families)
    ratios = np.array([item.measured for item in model.equations], np.float64) / predicted
    rules = []
    for kind in sorted(set(kinds.tolist())):
        own = kinds == kind
        count = int(own.sum())
        task = kind.split(" ")[0]
        pool, words = own, f"runs of this kind ({kind})"
        found = _interval(ratios[own], families[own].tolist(), one_sided)
        wider = ((tasks == task, f"runs of {task}"), (np.ones(len(kinds), np.bool_), "runs"))
        for others, name in wider if isinstance(found, Refusal) and count >= MIN_KIND_RUNS else ():
            pooled = _interval(ratios[others], families[others].tolist(), one_sided)
            if isinstance(pooled, Ratios) and pooled.suits(ratios[own]):
                pool, found = others, pooled
                words = f"all {name}, {count} of them of this kind ({kind})"
                break
        ratio = found if isinstance(found, Ratios) else None
        rules.append(
            IntervalRule(
                counter=model.counter,
                kind=kind,
                level=ONE_SIDED_LEVEL if one_sided else TWO_SIDED_LEVEL,
                low_ratio=_rounded(ratio.low) if ratio and ratio.low else None,
                high_ratio=_rounded(ratio.high) if ratio else None,
                coverage=_rounded(ratio.coverage) if ratio else None,
                runs=int(pool.sum()),
                families=tuple(sorted(set(families[pool].tolist()))),
                reason=f"refused: {found.reason}" if isinstance(found, Refusal) else words,
            )
        )
    return rules


def _interval(ratios: Array, families: Sequence[str], one_sided: bool) -> Ratios | Refusal:
    return upper_bound(ratios, families) if one_sided else two_sided(ratios, families)


def _ids(model: Model) -> tuple[str, ...]:
    return tuple(sorted(name for item in model.equations for name in item.run.run.ids))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _rounded_errors(found: Errors) -> Errors:
    return Errors(*(_rounded(getattr(found, field.name)) for field in fields(Errors)))


def _count(names: Sequence[str]) -> str:
    return "one model family" if len(names) == 1 else f"{len(names)} model families"
