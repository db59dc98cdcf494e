"""The report's page: sections from evidence, drawn and filled into one template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.compare import PREDICTIONS, WORDS, Row
from benchmarks.history import CaseHistory, Figure, History
from benchmarks.history_tables import format_change, reason, steps_between
from benchmarks.html_report import (
    ENVIRONMENT_FIELDS,
    Bar,
    Segment,
    report_segments,
    template_environment,
    write_page,
)
from benchmarks.report.distribution import draw_distribution
from benchmarks.report.evidence import KINDS, ReferenceSet, kind_of
from benchmarks.report.evidence import WORDS as SHORT_WORDS
from benchmarks.report.ranges import draw_range
from benchmarks.report.timelines import draw_phases, draw_story
from benchmarks.scatter import Point, Series, draw_scatter
from estimator.coefficients import Calibration
from estimator.report import COMPONENTS, MemoryReport
from estimator.units import format_both, format_error, format_gb
from profiler.environment import Environment
from profiler.trace.story import Story

GROUPED = (("method", "dtype"), ("family",))
"""The keys by which errors are broken down."""

WORST = 10
"""How many of a set's cases are shown with their timelines."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything a report tells of; `stories` are timelines by `Case.case_id`."""

    sets: tuple[ReferenceSet, ...]
    history: History | None = None
    calibrations: tuple[Calibration, ...] = ()
    environments: tuple[Environment, ...] = ()
    stories: dict[str, Story] | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    code_version: str = "unknown"


@dataclass(frozen=True, slots=True)
class WorstCase:
    """One of the cases that are furthest off, with its pictures.

    `reason` says why the estimate's peak is where it is, `printed` how a published figure was
    printed, and where.
    """

    row: Row
    errors: tuple[tuple[str, str], ...]
    bars: tuple[Bar, ...]
    timeline: Markup | None
    traced: bool
    reason: str | None
    printed: str | None


def write_summary(contents: Contents, path: Path) -> None:
    """Write the report to `path`, whole or not at all.

    Raises:
        RecordError: when the file cannot be written.
    """
    write_page(render_summary(contents), path)


def render_summary(contents: Contents) -> str:
    """Return the report's HTML: one file, no script, no request."""
    sets = contents.sets
    return (
        template_environment()
        .get_template("summary.html.j2")
        .render(
            title="How wrong are the estimates?",
            contents=contents,
            words=[one.word for one in sets],
            predictions=PREDICTIONS,
            scatters=[(one, list(_scatters(one))) for one in sets],
            groups=[(one, [(keys, one.groups(keys)) for keys in GROUPED]) for one in sets],
            distributions=[(one, list(_distributions(one))) for one in sets],
            compositions=list(_compositions(sets)),
            worst=[
                (one, [_worst(row, one, contents.stories or {}) for row in one.worst(WORST)])
                for one in sets
            ],
            bars=[(one, [(row, _bars(row)) for row in one.rows]) for one in sets],
            components=[name for name in COMPONENTS if _is_used(sets, name)],
            history=None if contents.history is None else _history(contents.history),
            calibrations=[(one, _ranges(one)) for one in contents.calibrations],
            environments=[
                (env.environment_id, [(name, getattr(env, name)) for name in ENVIRONMENT_FIELDS])
                for env in contents.environments
            ],
        )
    )


def _scatters(one: ReferenceSet) -> Iterator[tuple[str, int, Markup]]:
    """Yield (kind of run, cases, picture), a kind of run each."""
    for kind, rows in _by_kind(one):
        series = tuple(
            Series(name, f"mark-{PREDICTIONS.index(name)}", tuple(_points(rows, name)))
            for name in one.names
        )
        if any(item.points for item in series):
            picture = draw_scatter(series, f"{one.word} peak, GB", "predicted peak, GB")
            yield kind, len(rows), picture


def _by_kind(one: ReferenceSet) -> Iterator[tuple[str, list[Row]]]:
    for kind in KINDS.values():
        rows = [row for row in one.rows if kind_of(row) == kind]
        if rows:
            yield kind, rows


def _points(rows: Sequence[Row], name: str) -> Iterator[Point]:
    for row in rows:
        report = row.compared.get(name)
        if report is not None and report.peak.allocated_bytes > 0:
            size_bytes = report.peak.allocated_bytes
            label = f"{row.label}, {format_gb(size_bytes)}, {format_error(row.error(name))}"
            yield Point(row.reference.peak.allocated_bytes, size_bytes, label)


def _distributions(one: ReferenceSet) -> Iterator[tuple[str, Markup]]:
    for name in one.names:
        errors = [row.error(name) for row in one.rows if name in row.compared]
        yield name, draw_distribution(f"{name} against {one.word}", errors)


def _compositions(sets: Sequence[ReferenceSet]) -> Iterator[tuple[str, tuple[Bar, ...]]]:
    """Yield what the bytes of each kind of run are, over all its cases, by source."""
    for one in sets:
        for kind, rows in _by_kind(one):
            sources = [(one.word, [row.reference for row in rows if _is_told_apart(row)])]
            sources += [
                (name, [row.compared[name] for row in rows if name in row.compared])
                for name in one.names
            ]
            bars = tuple(
                Bar(name, f"n = {len(reports)}", _mean_segments(reports))
                for name, reports in sources
                if reports
            )
            if bars:
                yield f"{kind} ({one.word} cases)", bars


def _is_told_apart(row: Row) -> bool:
    """Whether anything is known of what the reference's bytes are: of published ones it is not."""
    reference = row.reference
    return reference.components.unattributed_bytes < reference.peak.allocated_bytes


def _mean_segments(reports: Sequence[MemoryReport]) -> tuple[Segment, ...]:
    """Return the mean share of each component, every case weighing the same."""
    shares = dict.fromkeys(COMPONENTS, 0.0)
    for report in reports:
        for name in COMPONENTS:
            size_bytes = getattr(report.components, f"{name}_bytes")
            shares[name] += 100 * size_bytes / report.components.total_bytes / len(reports)
    return tuple(
        Segment(name, round(share, 2), f"{name.replace('_', ' ')}: {share:.1f} %")
        for name, share in shares.items()
        if share > 0
    )


def _worst(row: Row, one: ReferenceSet, stories: dict[str, Story]) -> WorstCase:
    story = stories.get(row.case_id)
    first = row.compared[PREDICTIONS[0]]
    marks = [(PREDICTIONS[0], first.peak.allocated_bytes, "level-first")]
    if one.word != "traced":
        marks.append((one.word, row.reference.peak.allocated_bytes, "level-reference"))
    if story is not None:
        timeline = draw_story(story, marks)
    else:
        known = [(one.word, row.reference)] if row.reference.phases else []
        timeline = draw_phases([*known, (PREDICTIONS[0], first)], marks[1:])
    return WorstCase(
        row,
        tuple((n, format_error(row.error(n))) for n in one.names if n in row.compared),
        _bars(row),
        timeline,
        story is not None,
        first.peak.reason,
        row.reference.peak.reason if one.word == "published" else None,
    )


def _bars(row: Row) -> tuple[Bar, ...]:
    """Return a case's bars, on one scale: the longest of them is the full width."""
    reports = [(name, row.compared[name]) for name in PREDICTIONS if name in row.compared]
    word = SHORT_WORDS[row.reference.source]
    reports.insert(0, (word, row.reference))
    full_bytes = max(report.components.total_bytes for _, report in reports)
    return tuple(
        Bar(
            name,
            format_gb(report.peak.allocated_bytes),
            report_segments(report.components, full_bytes),
        )
        for name, report in reports
    )


def _is_used(sets: Sequence[ReferenceSet], component: str) -> bool:
    return any(
        getattr(report.components, f"{component}_bytes") > 0
        for one in sets
        for row in one.rows
        for report in (row.reference, *row.compared.values())
    )


def _ranges(calibration: Calibration) -> list[tuple[Any, list[tuple[Any, Markup | None]]]]:
    """Return each fit with its coefficients and their pictures."""
    return [
        (fit, [(coefficient, draw_range(coefficient)) for coefficient in fit.coefficients])
        for fit in calibration.fits
    ]


def _history(history: History) -> dict[str, Any]:
    changed = [case for case in history.cases if case.changed]
    return {
        "count": len(history.cases),
        "points": [history.title(index) for index in range(len(history.points))],
        "changed": [(case, _cells(case)) for case in changed],
        "steps": [
            (
                f"{first + 1} → {second + 1}",
                len(changes),
                sum(step.change_bytes > 0 for step in changes),
                sum(step.change_bytes < 0 for step in changes),
                format_change(max((c.relative for c in changes), key=abs)),
            )
            for first, second, changes in steps_between(history)
        ],
        "sources": sorted({WORDS[case.source] for case in history.cases}),
    }


def _cells(case: CaseHistory) -> list[tuple[str, str, str]]:
    """Return (text, CSS class, title) of each point: sizes, then changes from the one before."""
    steps = {step.second: step for step in case.changes}
    cells = []
    for index, figure in enumerate(case.figures):
        cells.append(_cell(figure, steps.get(index)))
    return cells


def _cell(figure: Figure | None, step: Any) -> tuple[str, str, str]:
    if figure is None:
        return "", "", "not run"
    if figure.report is None:
        return "none", "soft", figure.reason or ""
    size = format_both(figure.report.peak.allocated_bytes)
    if step is None:
        return format_gb(figure.report.peak.allocated_bytes), "", size
    if not step.change_bytes:
        return "=", "soft", size
    style = "grew" if step.change_bytes > 0 else "fell"
    return format_change(step.relative), style, f"{size}; {reason(step)}"
