"""Holds the formulas, or records, against what others measured and published.

A published row has one figure of one counter at one instant. Peaks of allocated bytes are compared
case by case; the others (after the step, reserved, device) are judged where a prediction has them,
and runs that ran out of memory are counted where a prediction says that they fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compare import (
    CompareError,
    Comparison,
    Estimator,
    LeftOut,
    RanOut,
    Row,
    Tracer,
    predictions,
)
from benchmarks.evidence.rows import PublishedRow, published_measurements
from benchmarks.judged import Judged, case_keys
from benchmarks.sides import Side
from estimator import estimate
from estimator.case import Case
from estimator.config_source import load_config
from estimator.families import parse_spec
from estimator.report import Components, MemoryReport, Parameters, Peak

NAME = "published"
"""The word that stands for the published rows on the command line."""

DEFAULT_TIERS = ("A",)

PHASES = {
    "peak": "peak",
    "after_step": "after the step",
    "after_generate": "after generate",
}
"""What instants are called in tables."""


def compare_published(
    tiers: Sequence[str] = DEFAULT_TIERS,
    estimates_first: bool = True,
    estimator: Estimator = estimate,
    trace: Tracer | None = None,
    rows: Sequence[PublishedRow] | None = None,
) -> Comparison:
    """Hold both sets of formulas, computed now, against the published rows of the given tiers.

    Args:
        trace: how to trace a case, where the trace is to be judged too.
        rows: the rows, instead of the project's own.
    """
    known: dict[str, dict[str, MemoryReport]] = {}
    left_out: list[LeftOut] = []
    compared: list[Row] = []
    further: list[Judged] = []
    ran_out: list[RanOut] = []
    for row, case in _cases(rows):
        label = f"{row.row_id}: {case.label}"
        if row.outcome != "oom" and row.tier not in tiers:
            continue
        case_id = case.case_id
        if case_id not in known:
            known[case_id] = predictions(case, label, left_out, estimator, trace)
        answers = known[case_id]
        if row.outcome == "oom":
            assert row.capacity_bytes is not None
            peaks = {name: report.peak.allocated_bytes for name, report in answers.items()}
            ran_out.append(RanOut(label, row.capacity_bytes, peaks))
        elif (row.counter, row.instant) == ("allocated", "peak"):
            report = published_report(row, case, answers)
            compared.append(Row(case_id, label, report, answers, keys=_own_keys(row)))
        else:
            further += _judge(row, case, label, answers)
    base, new = ("estimates", NAME) if estimates_first else (NAME, "estimates")
    return Comparison(
        kind="estimates",
        base=base,
        new=new,
        rows=tuple(sorted(compared, key=lambda one: one.label.lower())),
        left_out=tuple(left_out),
        notes=(_note(tiers),),
        further=tuple(further),
        ran_out=tuple(ran_out),
    )


def compare_with_published(
    side: Side, tiers: Sequence[str] = DEFAULT_TIERS, rows: Sequence[PublishedRow] | None = None
) -> Comparison:
    """Hold records against the published peaks of the same cases: the published is the base.

    Raises:
        CompareError: when no record is of a published case.
    """
    own = {case_id: entry for (case_id, _), entry in side.cases.items()}
    compared = []
    left_out = []
    for row, case in _cases(rows):
        entry = own.get(case.case_id)
        if entry is None or row.tier not in tiers:
            continue
        if (row.outcome, row.counter, row.instant) != ("ok", "allocated", "peak"):
            continue
        label = f"{row.row_id}: {case.label}"
        answer = entry.record.report
        if answer is None:
            left_out.append(LeftOut(label, f"{entry.record.status} in {side.name}", True))
            continue
        report = published_report(row, case, {"new": answer})
        answers = {"new": answer}
        compared.append(Row(case.case_id, label, report, answers, entry.flags, keys=_own_keys(row)))
    if not compared and not left_out:
        raise CompareError(f"no record of {side.name} is of a published case of the given tiers")
    return Comparison(
        kind="records",
        base=NAME,
        new=side.name,
        rows=tuple(compared),
        left_out=tuple(left_out),
        problems=side.problems,
        notes=(_note(tiers), *side.notes()),
        environments=side.environments,
    )


def published_report(
    row: PublishedRow, case: Case, answers: dict[str, MemoryReport]
) -> MemoryReport:
    """Return a published peak of allocated bytes as a report: nobody told its parts apart.

    The parameters are not measured: they are those of the case's configuration.
    """
    assert row.size_bytes is not None
    counted = next((report.parameters for report in answers.values()), None)
    return MemoryReport(
        source="published",
        case=case.to_dict(),
        parameters=counted or Parameters(_parameters(case), 0),
        peak=Peak(
            phase="peak",
            requested_bytes=None,
            allocated_bytes=row.size_bytes,
            reason=f"{row.value} {row.unit}, {row.metric}; {row.source}",
        ),
        phases=(),
        components=Components(unattributed_bytes=row.size_bytes),
    )


def _parameters(case: Case) -> int:
    config = load_config(case.model)
    return parse_spec(config).parameters if config.parameters is None else config.parameters


def _cases(rows: Sequence[PublishedRow] | None) -> Iterator[tuple[PublishedRow, Case]]:
    for row in published_measurements() if rows is None else rows:
        if row.case is not None:
            yield row, row.case


def _judge(
    row: PublishedRow, case: Case, label: str, answers: dict[str, MemoryReport]
) -> Iterator[Judged]:
    assert row.size_bytes is not None
    assert row.counter is not None
    assert row.instant is not None
    phase = PHASES[row.instant]
    keys = {
        **case_keys(case.to_dict()),
        **_own_keys(row),
        "counter": row.counter,
        "phase": phase,
    }
    for name, report in answers.items():
        if row.instant == "peak":
            size = getattr(report.peak, f"{row.counter}_bytes")
        else:
            size = report.phases[-1].end_allocated_bytes if report.phases else None
        if size is not None and not (name == "article" and row.instant != "peak"):
            yield Judged(name, label, size, row.size_bytes, keys)


def _own_keys(row: PublishedRow) -> dict[str, str]:
    return {"source": row.source.partition("@")[0].partition(":")[0], "tier": row.tier}


def _note(tiers: Sequence[str]) -> str:
    return (
        f"measured by others and published, tier {', '.join(tiers)}; each with its source in "
        "results/published/measurements.jsonl"
    )
