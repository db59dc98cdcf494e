"""The project's own results, as far as they are at hand: error tables and measured cases.

`results/` is not part of the installed package; where it is missing, nothing is shown in its
place. A traced figure is a simulated one, and never counted among the measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.error_summary import ErrorSummary
from benchmarks.evidence.rows import FOLDER, MEASUREMENTS, published_figures
from benchmarks.published import NAMES, REPORT, errors, peaks, read_report, summaries
from benchmarks.readme_table import SUITES
from benchmarks.scatter import Point, Series
from benchmarks.store import read_records
from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import GpumemError
from estimator.families import count_parameters

RECORDS = FOLDER.parent / "records"
MEASURED = "measured by others"

_SUITES = {"inference": "inference", "full": "training"}
"""The suite of the same kind of runs, by a published row's method; the others train adapters."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Errors of one prediction against one reference, as shares; `worst` is signed."""

    prediction: str
    reference: str
    count: int
    median: float
    worst: float
    worst_label: str
    under: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured case: by this project, or by others, whose figures are as precise as printed.

    `allocated_bytes` is at the peak. `error` is that of our estimate of it in the stored report, a
    share with its sign; None where it has none.
    """

    case: Case
    parameters: int | None
    allocated_bytes: int
    error: float | None
    gpu: str
    framework: str
    source: str


@dataclass(frozen=True, slots=True)
class Nearest:
    """A measured case, and in what it differs from the one asked about."""

    measured: Measured
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of it. `rows` and `series` are empty where `results/` is not at hand."""

    rows: tuple[ErrorRow, ...]
    series: tuple[Series, ...]
    measured: tuple[Measured, ...]


@cache
def read_evidence() -> Evidence:
    """Read what is there, once."""
    report: dict[str, Any] = read_report() if REPORT.exists() else {"rows": []}
    return Evidence(
        (*_published_rows(report), *_suite_rows()),
        tuple(_scatter(report)),
        (*_own_cases(), *_published_cases(report)),
    )


def known_error(case: Case, source: str) -> tuple[ErrorRow, ...]:
    """Return a source's errors over what is most like a case: measured by others, and traced."""
    suite = "inference" if not case.training else "peft" if case.method == "lora" else "training"
    references = (_measured(suite), _traced(suite))
    return tuple(
        row
        for row in read_evidence().rows
        if row.prediction == source and row.reference in references
    )


def nearest_cases(case: Case, count: int = 3) -> tuple[Nearest, ...]:
    """Return the measured cases of the same task that are most like a case, the nearest first."""
    size = _parameters(case)
    found = []
    for number, measured in enumerate(read_evidence().measured):
        other = measured.case
        if other.task != case.task:
            continue
        differs, distance = _differences(case, other)
        if size is not None and measured.parameters is not None:
            distance += abs(math.log2(size / measured.parameters))
        found.append((distance, number, Nearest(measured, differs)))
    return tuple(item for _, _, item in sorted(found)[:count])


def _differences(case: Case, other: Case) -> tuple[tuple[str, ...], float]:
    differs, distance = [], 0.0
    weights = {
        "model_name": 1.0,
        "method": 4.0,
        "quantization": 3.0,
        "dtype": 2.0,
        "gradient_checkpointing": 2.0,
        "recompute_granularity": 1.0,
        "optimizer": 0.5,
        "attention": 0.5,
        "mixed_precision": 0.5,
        "stack": 0.25,
    }
    for name, weight in weights.items():
        if getattr(case, name) != getattr(other, name):
            differs.append(name.replace("_", " "))
            distance += weight
    for name in ("batch_size", "sequence_length"):
        ours, theirs = getattr(case, name), getattr(other, name)
        if ours != theirs:
            differs.append(name.replace("_", " "))
            distance += 0.5 * abs(math.log2(ours / theirs))
    return tuple(differs), distance


def _parameters(case: Case) -> int | None:
    try:
        config = load_config(case.model)
        return config.parameters or count_parameters(config)
    except GpumemError:
        return None


def _own_cases() -> Iterator[Measured]:
    if not RECORDS.is_dir():
        return
    for stored in read_records(RECORDS).records:
        record = stored.record
        if record.source == "cuda" and record.peak is not None:
            case = Case.from_dict(record.case)
            environment = record.environment
            yield Measured(
                case,
                _parameters(case),
                record.peak.allocated_bytes,
                None,
                "GPU not named" if environment is None else environment.gpu or "GPU not named",
                "the installed libraries" if environment is None else f"torch {environment.torch}",
                "measured by this project",
            )


def _published_cases(report: Mapping[str, Any]) -> list[Measured]:
    if not (FOLDER / MEASUREMENTS).exists():
        return []
    ours = {
        row["id"]: row["predicted"]["architecture"] / row["published_bytes"] - 1
        for row in report["rows"]
        if row["instant"] == "peak" and "architecture" in row["predicted"]
    }
    return [
        Measured(
            row.case,
            _parameters(row.case),
            row.size_bytes,
            ours.get(row.row_id),
            row.gpu,
            row.framework,
            row.source,
        )
        for row in published_figures(tiers=("A", "B"))
        if row.case is not None and row.size_bytes is not None
    ]


def _published_rows(report: Mapping[str, Any]) -> list[ErrorRow]:
    rows = peaks(dict(report))
    groups: dict[str, list[dict[str, Any]]] = {MEASURED: rows}
    for row in rows:
        groups.setdefault(_measured(_SUITES.get(row["method"], "peft")), []).append(row)
    return [_row(one, name) for name, group in groups.items() for one in summaries(group)]


def _measured(kind: str) -> str:
    return f"{MEASURED} ({kind})"


def _row(summary: ErrorSummary, reference: str) -> ErrorRow:
    return ErrorRow(
        summary.name,
        reference,
        summary.count,
        summary.median,
        summary.worst,
        summary.worst_label,
        summary.under,
    )


def _suite_rows() -> list[ErrorRow]:
    if not SUITES.exists():
        return []
    suites: Mapping[str, Any] = json.loads(SUITES.read_text(encoding="utf-8"))
    return [
        ErrorRow(
            summary["name"],
            _traced(name),
            summary["count"],
            summary["median_absolute_error"],
            summary["worst_error"],
            summary["worst_label"],
            summary["under_estimate_share"],
        )
        for name, suite in suites.items()
        for summary in suite["summary"]
    ]


def _traced(suite: str) -> str:
    return f"traced (suite {suite}): simulated, not measured"


def _scatter(report: Mapping[str, Any]) -> list[Series]:
    """Return every predictor's points, ours first; each predictor has a mark of its own."""
    rows = peaks(dict(report))
    return [
        Series(
            name,
            f"mark-{number}",
            tuple(
                Point(row["published_bytes"], row["predicted"][name], label)
                for row, (label, _) in zip(
                    [row for row in rows if name in row["predicted"]],
                    errors(rows, name),
                    strict=True,
                )
            ),
        )
        for number, name in enumerate(NAMES)
        if any(name in row["predicted"] for row in rows)
    ]
