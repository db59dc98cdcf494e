"""A calibration: coefficients and intervals that were fitted to measured runs, as a file.

`gpumem calibrate` writes it (docs/calibration.md says how); estimates use it where it has evidence
for their kind of run. Everything in it states the evidence it rests on and its errors on model
families that were left out of the fit; what did not improve those was refused and is never used.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import GpumemError, UnsupportedError, show_choices, show_value
from estimator.families import parse_spec
from estimator.spec import Moe
from estimator.strict_json import MAX_JSON_BYTES, parse_json

SCHEMA_VERSION = 1

_MOST = 10**15
"""No coefficient, ratio or count is larger; bytes are the largest of them."""

_NAMES = {
    "article": {
        "activation_linear",
        "activation_scores",
        "gradient_bytes",
        "adamw_bytes",
        "adamw_quantized_bytes",
        "sgd_bytes",
    },
    "scratch": {"workspace_scale", "temporaries_scale"},
}
"""Coefficients that a fit has to have for estimates to use it."""

ANY_GPU = "any"
"""Ends the name of the coefficient for cards without evidence of their own."""


class CalibrationError(GpumemError):
    """A calibration cannot be found or read."""


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A fitted number.

    `nominal` is what holds without a calibration, `value` the fitted point, `low` and `high` its
    interval (None where there is no evidence for it, and `value` is the nominal one), within the
    bounds `least` and `most` that it was allowed. `runs` is how many runs tell something of it.
    """

    name: str
    unit: str
    nominal: float
    value: float
    low: float | None
    high: float | None
    least: float
    most: float
    runs: int


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors on left-out families, as shares (0.01 is 1 %).

    `median` and `p95` are of absolute values and give every family the same weight; `worst` is
    signed; `under` is the share of under-estimates.
    """

    median: float
    p95: float
    worst: float
    under: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients that were fitted together, and whether they may be used.

    `before` and `after` are errors on families that were left out of the fit, None where there were
    too few to leave one out. `reason` says in one sentence why it is used or refused.
    """

    name: str
    formulas: str
    counter: str
    accepted: bool
    reason: str
    coefficients: tuple[Coefficient, ...]
    runs: int
    families: tuple[str, ...]
    before: Errors | None
    after: Errors | None
    evidence: tuple[str, ...]

    def values(self) -> dict[str, float]:
        """Return the fitted coefficients by name."""
        return {item.name: item.value for item in self.coefficients}


@dataclass(frozen=True, slots=True)
class IntervalRule:
    """Where the measured bytes of a counter lie, as multiples of the predicted ones.

    `low_ratio` is None for a one-sided bound. `coverage` is the share that it held of families that
    were left out of it, every family with the same weight; None, with both ratios, where it was
    refused, and `reason` says why.
    """

    counter: str
    kind: str
    level: float
    low_ratio: float | None
    high_ratio: float | None
    coverage: float | None
    runs: int
    families: tuple[str, ...]
    reason: str

    @property
    def held(self) -> bool:
        """Whether it keeps what it promises, and may be used."""
        return self.high_ratio is not None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one set of evidence taught.

    `evidence` says in words what was measured, and by whom; `evidence_hash` and `code_version`
    which rows of it, and which code, this was made from.
    """

    name: str
    evidence: str
    evidence_hash: str
    code_version: str
    fits: tuple[Fit, ...]
    intervals: tuple[IntervalRule, ...]

    def fit(self, name: str) -> Fit | None:
        """Return the fit of a name if it was accepted."""
        return next((fit for fit in self.fits if fit.name == name and fit.accepted), None)

    def interval(self, counter: str, kind: str) -> IntervalRule | None:
        """Return the rule for a counter and a kind of run if it keeps its promise."""
        for rule in self.intervals:
            if (rule.counter, rule.kind) == (counter, kind) and rule.held:
                return rule
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as a JSON object; `from_dict` reads it back."""
        return {"schema_version": SCHEMA_VERSION, **_plain(self)}

    @classmethod
    def from_dict(cls, data: Any, what: str = "the calibration") -> Calibration:
        """Read what `to_dict` wrote.

        Raises:
            CalibrationError: when it has another shape or a newer schema version.
        """
        try:
            version = data.get("schema_version")
            if version != SCHEMA_VERSION:
                raise CalibrationError(
                    f"{what} has schema_version {show_value(version)}, but this gpumem reads "
                    f"{SCHEMA_VERSION}: make it again with gpumem calibrate"
                )
            return cls(
                **_texts(data, ("name", "evidence", "evidence_hash", "code_version")),
                fits=tuple(_read_fit(item) for item in data["fits"]),
                intervals=tuple(_read_interval(item) for item in data["intervals"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise CalibrationError(
                f"{what} is not a calibration of gpumem: {show_value(str(problem), 100)}"
            ) from None


def run_kind(case: Case) -> str:
    """Return the kind of run that evidence is grouped by, such as `training lora nf4 checkpointed`.

    It names what changes which formulas answer: evidence of one kind says nothing of another.

    Raises:
        ModelError: when the model's configuration cannot be found or read.
    """
    parts = [case.task]
    if case.training:
        parts.append("dora" if case.lora is not None and case.lora.use_dora else case.method)
    parts += [case.quantization] if case.quantization else []
    parts += ["moe"] if _has_experts(case) else []
    parts += [f"amp-{case.mixed_precision}"] if case.mixed_precision else []
    if not case.training:
        return " ".join([*parts, *([case.cache] if case.cache != "dynamic" else [])])
    parts += ["checkpointed"] if case.checkpoints_layers else []
    parts += ["selective"] if case.recomputes_attention else []
    parts += ["sequence-parallel"] if case.parallelism is not None else []
    parts += ["eager"] if case.attention == "eager" else []
    if case.method == "full" and not case.optimizer.startswith("adamw_torch"):
        parts.append(case.optimizer)
    return " ".join(parts)


def _has_experts(case: Case) -> bool:
    with suppress(UnsupportedError):
        return any(
            isinstance(layer.mlp, Moe) for layer in parse_spec(load_config(case.model)).layers
        )
    return False


def shipped_names() -> tuple[str, ...]:
    """Return the names of the calibrations that come with the package."""
    folder = files("estimator").joinpath("data", "calibrations")
    names = (item.name for item in folder.iterdir()) if folder.is_dir() else iter(())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


@cache
def load_calibration(name: str) -> Calibration:
    """Return a calibration that comes with the package, by name, or one of a file, by path.

    Raises:
        CalibrationError: when there is none, or it cannot be read.
    """
    if name in shipped_names():
        item = files("estimator").joinpath("data", "calibrations", f"{name}.json")
        text: bytes = item.read_bytes()
    else:
        text = _read_file(name)
    what = f"calibration {show_value(name, 200)}"
    return Calibration.from_dict(parse_json(text, what, CalibrationError), what)


def matching_calibration(case: Case) -> Calibration | None:
    """Return the first calibration of the package that has evidence for a case's kind of run."""
    kind = run_kind(case)
    for name in shipped_names():
        calibration = load_calibration(name)
        if any(rule.kind == kind and rule.held for rule in calibration.intervals):
            return calibration
    return None


def _read_file(name: str) -> bytes:
    path = Path(name)
    try:
        if not path.is_file():
            known = show_choices([*shipped_names(), "none"])
            raise CalibrationError(
                f"there is no calibration {show_value(name, 200)}: give {known}, or a file that "
                "gpumem calibrate wrote"
            )
        with path.open("rb") as stream:
            return stream.read(MAX_JSON_BYTES + 1)
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        reason = getattr(problem, "strerror", None) or str(problem)
        raise CalibrationError(
            f"calibration {show_value(name, 200)} cannot be read: {reason}"
        ) from None


Row = TypeVar("Row", Coefficient, Errors, Fit, IntervalRule)


def _row(kind: type[Row], data: dict[str, Any], **read: Any) -> Row:
    """Build a row of plain fields; numbers have to be numbers, texts texts."""
    for field in fields(kind):
        if field.name not in read:
            _check(field.name, str(field.type), data[field.name])
    unknown = set(data) - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    return kind(**{**data, **read})


def _check(name: str, kind: str, value: Any) -> None:
    if value is None and kind.endswith("None"):
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    number = number and -_MOST <= value <= _MOST  # False for NaN, too
    good = {
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
        "int": number and isinstance(value, int),
        "float": number,
    }
    if not good[kind.split(" ")[0]]:
        raise ValueError(f"{name} is {show_value(value)}")


def _read_fit(data: dict[str, Any]) -> Fit:
    fit = _row(
        Fit,
        data,
        coefficients=tuple(_row(Coefficient, item) for item in data["coefficients"]),
        families=_names(data["families"]),
        evidence=_names(data["evidence"]),
        before=None if data["before"] is None else _row(Errors, data["before"]),
        after=None if data["after"] is None else _row(Errors, data["after"]),
    )
    if set(fit.values()) != _NAMES.get(fit.name, set(fit.values())):
        raise ValueError(f"the coefficients of {fit.name} are {sorted(fit.values())}")
    if any(item.value < item.least for item in fit.coefficients):
        raise ValueError(f"a coefficient of {fit.name} is out of its bounds")
    return fit


def _read_interval(data: dict[str, Any]) -> IntervalRule:
    rule = _row(IntervalRule, data, families=_names(data["families"]))
    if any(ratio is not None and ratio <= 0 for ratio in (rule.low_ratio, rule.high_ratio)):
        raise ValueError("a ratio is not above 0")
    return rule


def _names(data: Any) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise ValueError(f"{show_value(data)} is not a list of names")
    return tuple(data)


def _texts(data: dict[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    for name in names:
        _check(name, "str", data[name])
    return {name: data[name] for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, (Calibration, Fit, Coefficient, Errors, IntervalRule)):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value
