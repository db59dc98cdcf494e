"""A comparison as text for a terminal of 80 columns, as Markdown, and as a JSON object."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import group_tables
from benchmarks.compare import WORDS, Comparison, Row, all_judged
from benchmarks.group_tables import share, short_share, summary_json
from benchmarks.judged import Group, group
from benchmarks.thresholds import Offender
from estimator.report import SCHEMA_VERSION, MemoryReport
from estimator.units import GB, GIB, format_both, format_error

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


def text_lines(
    comparison: Comparison, offenders: Sequence[Offender] = (), by: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the lines of the terminal's table, none of them wider than 80 columns.

    Args:
        by: keys of `judged.KEYS`: a table of errors by them stands in place of that of the cases.
    """
    if by:
        yield from group_tables.text_lines(_groups(comparison, by), by)
    else:
        yield from _case_lines(comparison)
    if comparison.summaries:
        yield ""
        yield from _summary_lines(comparison)
    for heading, lines in sections(comparison, offenders):
        yield ""
        yield heading
        for line in lines:
            yield from _wrapped(line, "  ")


def _groups(comparison: Comparison, by: Sequence[str]) -> tuple[Group, ...]:
    return group(all_judged(comparison, counters="counter" in by), by)


def _case_lines(comparison: Comparison) -> Iterator[str]:
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


def _summary_lines(comparison: Comparison) -> Iterator[str]:
    title = summary_title(comparison)
    if len(title) > 27:
        yield title
        title = ""
    yield f"{title:<27}{'median':>9}{'95th pct':>9}{'worst':>12}{'under':>7}{'+95%':>8}{'+99%':>8}"
    yield "-" * WIDTH
    for summary in comparison.summaries:
        name = f"{summary_name(summary.name)} (n = {summary.count})"
        yield (
            f"{name:<27}{share(summary.median):>9}{share(summary.p95):>9}"
            f"{format_error(summary.worst):>12}{summary.under * 100:>5.0f} %"
            f"{short_share(summary.margin_95):>8}{short_share(summary.margin_99):>8}"
        )
    if comparison.kind == "estimates":
        yield "+95%, +99%: what a prediction needed on top for so many cases to stay below it"
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
    if comparison.ran_out:
        yield "ran out of memory on their cards", list(_ran_out_lines(comparison))
    if comparison.left_out:
        labels: dict[str, list[str]] = {}
        for gone in comparison.left_out:
            labels.setdefault(gone.reason, []).append(gone.label)
        yield "not compared", [f"{'; '.join(who)}: {why}" for why, who in labels.items()]
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


def _ran_out_lines(comparison: Comparison) -> Iterator[str]:
    """Yield how often each prediction says that what ran out of memory fits."""
    for name in dict.fromkeys(name for run in comparison.ran_out for name in run.predicted):
        runs = [run for run in comparison.ran_out if name in run.predicted]
        wrong = [run for run in runs if run.said_to_fit(name)]
        yield f"{name} says that {len(wrong)} of {len(runs)} fit"
        yield from (
            f"{name}: {run.label}: {format_both(run.predicted[name])} of "
            f"{format_both(run.capacity_bytes)}"
            for run in wrong
        )


def markdown_lines(
    comparison: Comparison, offenders: Sequence[Offender] = (), by: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the comparison as Markdown: one table of cases (or of groups), one of errors."""
    if by:
        yield from group_tables.markdown_lines(_groups(comparison, by), by)
    else:
        yield from _markdown_cases(comparison)
    yield ""
    title = summary_title(comparison)
    yield (
        f"| {title} | cases | median | 95th percentile | worst | under-estimates "
        "| margin 95 % | margin 99 % |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for summary in comparison.summaries:
        yield (
            f"| {summary_name(summary.name)} | {summary.count} | {share(summary.median)} "
            f"| {share(summary.p95)} | {format_error(summary.worst)} "
            f"({_cell(summary.worst_label)}) | {summary.under * 100:.0f} % "
            f"| {share(summary.margin_95)} | {share(summary.margin_99)} |"
        )
    # In the terminal's table each flag stands below its case.
    flags = [f"{row.label}: {flag}" for row in comparison.rows for flag in row.flags]
    doubtful = [("careful", flags)] if flags else []
    for heading, lines in (*doubtful, *sections(comparison, offenders)):
        yield ""
        yield f"**{heading}**"
        yield ""
        yield from (f"- {line}" for line in lines)


def _markdown_cases(comparison: Comparison) -> Iterator[str]:
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


def to_json(
    comparison: Comparison, offenders: Sequence[Offender] = (), by: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the comparison as a JSON object; errors are shares (0.01 is 1 %)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": comparison.kind,
        "base": comparison.base,
        "new": comparison.new,
        "cases": [_row_json(row) for row in comparison.rows],
        "summary": [summary_json(summary) for summary in comparison.summaries],
        "groups": group_tables.to_json(_groups(comparison, by), by) if by else [],
        "ran_out": [
            {
                "label": run.label,
                "capacity_bytes": run.capacity_bytes,
                "predicted": run.predicted,
                "said_to_fit": {name: run.said_to_fit(name) for name in run.predicted},
            }
            for run in comparison.ran_out
        ],
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
        "keys": dict(row.keys),
    }


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
