"""A comparison as text for a terminal of 80 columns, as Markdown, and as a JSON object."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.compare import WORDS, Comparison, Row
from benchmarks.error_summary import ErrorSummary
from benchmarks.thresholds import Offender
from estimator.report import SCHEMA_VERSION, MemoryReport
from estimator.units import GB, GIB, format_error

WIDTH = 80


def source_word(report: MemoryReport) -> str:
    """Return how to call a report's source: traced, measured, architecture, article."""
    return WORDS.get(report.source, report.source)


def row_names(row: Row, kind: str) -> Iterator[tuple[str, MemoryReport, float | None]]:
    """Yield (name, report, relative error) of a row: the reference first, without an error."""
    prefix = "base " if kind == "records" else ""
    yield prefix + source_word(row.reference), row.reference, None
    for name, report in row.compared.items():
        shown = f"new {source_word(report)}" if name == "new" else name
        yield shown, report, row.error(name)


def summary_name(name: str) -> str:
    """Return a summary's name for people."""
    return "new against base" if name == "new" else name


def text_lines(comparison: Comparison, offenders: Sequence[Offender] = ()) -> Iterator[str]:
    """Yield the lines of the terminal's table, none of them wider than 80 columns."""
    last = "change" if comparison.kind == "records" else "error"
    if comparison.rows:
        yield f"{'case':<22}{'phase at peak':<18}{'GB':>12}{'GiB':>13}{last:>15}"
        yield "-" * WIDTH
    for row in comparison.rows:
        yield row.label if len(row.label) <= WIDTH else row.label[: WIDTH - 1] + "…"
        for name, report, error in row_names(row, comparison.kind):
            size_bytes = report.peak.allocated_bytes
            shown = "" if error is None else format_error(error)
            yield (
                f"  {name:<20}{report.peak.phase:<18}{size_bytes / GB:>9.2f} GB"
                f"{size_bytes / GIB:>9.2f} GiB{shown:>15}"
            ).rstrip()
        for flag in row.flags:
            yield from _wrapped(f"! {flag}", "  ")
    if comparison.summaries:
        yield ""
        yield from _summary_lines(comparison)
    for heading, lines in sections(comparison, offenders):
        yield ""
        yield heading
        for line in lines:
            yield from _wrapped(line, "  ")


def _summary_lines(comparison: Comparison) -> Iterator[str]:
    yield f"{summary_title(comparison):<30}{'median':>10}{'95th pct':>10}{'worst':>13}{'under':>9}"
    yield "-" * WIDTH
    for summary in comparison.summaries:
        name = f"{summary_name(summary.name)} (n = {summary.count})"
        yield (
            f"{name:<30}{_share(summary.median):>10}{_share(summary.p95):>10}"
            f"{format_error(summary.worst):>13}{summary.under * 100:>7.0f} %"
        )
    for summary in comparison.summaries:
        yield from _wrapped(f"worst of {summary_name(summary.name)}: {summary.worst_label}", "")


def summary_title(comparison: Comparison) -> str:
    """Return what the summary is a summary of."""
    if comparison.kind == "records":
        return "change of peak allocated"
    words = sorted({source_word(row.reference) for row in comparison.rows})
    return f"error against {' and '.join(words)}"


def sections(
    comparison: Comparison, offenders: Sequence[Offender] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Yield (heading, lines) of what stands below the tables; nothing is left out in silence."""
    if comparison.left_out:
        lines = [f"{gone.label}: {gone.reason}" for gone in comparison.left_out]
        yield "not compared", lines
    if comparison.problems:
        yield "files without a readable record", [str(one) for one in comparison.problems]
    if comparison.notes:
        yield "notes", list(comparison.notes)
    drops = [one.sentence for one in offenders if not one.fails]
    if drops:
        yield "below the base, which fails nothing", drops
    over = [one.sentence for one in offenders if one.fails]
    if over:
        yield "over the limits of --fail-on", over


def markdown_lines(comparison: Comparison, offenders: Sequence[Offender] = ()) -> Iterator[str]:
    """Yield the comparison as Markdown: one table of cases, one of errors."""
    last = "change" if comparison.kind == "records" else "error"
    yield f"| case | source | phase at peak | GB | GiB | {last} |"
    yield "| --- | --- | --- | ---: | ---: | ---: |"
    for row in comparison.rows:
        for name, report, error in row_names(row, comparison.kind):
            size_bytes = report.peak.allocated_bytes
            shown = "" if error is None else format_error(error)
            label = _cell(row.label) if error is None else ""
            yield (
                f"| {label} | {name} | {report.peak.phase} | {size_bytes / GB:.2f} "
                f"| {size_bytes / GIB:.2f} | {shown} |"
            )
    yield ""
    title = summary_title(comparison)
    yield f"| {title} | cases | median | 95th percentile | worst | under-estimates |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for summary in comparison.summaries:
        yield (
            f"| {summary_name(summary.name)} | {summary.count} | {_share(summary.median)} "
            f"| {_share(summary.p95)} | {format_error(summary.worst)} "
            f"({_cell(summary.worst_label)}) | {summary.under * 100:.0f} % |"
        )
    for heading, lines in sections(comparison, offenders):
        yield ""
        yield f"**{heading}**"
        yield ""
        yield from (f"- {line}" for line in lines)


def to_json(comparison: Comparison, offenders: Sequence[Offender] = ()) -> dict[str, Any]:
    """Return the comparison as a JSON object; errors are shares (0.01 is 1 %)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": comparison.kind,
        "base": comparison.base,
        "new": comparison.new,
        "cases": [_row_json(row) for row in comparison.rows],
        "summary": [summary_json(summary) for summary in comparison.summaries],
        "left_out": [
            {"label": gone.label, "reason": gone.reason, "failed": gone.failed}
            for gone in comparison.left_out
        ],
        "problems": [
            {"path": str(one.path), "message": one.message} for one in comparison.problems
        ],
        "notes": list(comparison.notes),
        "environments": {
            key: environment.model_dump() for key, environment in comparison.environments.items()
        },
        "offenders": [
            {"label": one.label, "threshold": one.threshold, "message": one.sentence}
            for one in offenders
            if one.fails
        ],
        "drops": [
            {"label": one.label, "threshold": one.threshold, "message": one.sentence}
            for one in offenders
            if not one.fails
        ],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "case_id": row.case_id,
        "label": row.label,
        "reference": row.reference.to_dict(),
        "compared": {
            name: {"error": row.error(name), "report": report.to_dict()}
            for name, report in row.compared.items()
        },
        "flags": list(row.flags),
    }


def summary_json(summary: ErrorSummary) -> dict[str, Any]:
    """Return a summary as a JSON object."""
    return {
        "name": summary.name,
        "count": summary.count,
        "median_absolute_error": summary.median,
        "p95_absolute_error": summary.p95,
        "worst_error": summary.worst,
        "worst_label": summary.worst_label,
        "under_estimate_share": summary.under,
    }


def _share(value: float) -> str:
    return f"{value * 100:.2f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _wrapped(line: str, indent: str) -> list[str]:
    # A path stays whole, however long: people copy it.
    return textwrap.wrap(
        line,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
