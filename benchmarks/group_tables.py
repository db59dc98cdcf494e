"""Errors by family, method, component and so on: as text, as Markdown, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.error_summary import ErrorSummary
from benchmarks.judged import Group
from estimator.units import format_error

WIDTH = 80
_HEAD = f"{'n':>5}{'median':>8}{'95th':>8}{'worst':>11}{'under':>6}{'+95%':>8}{'+99%':>8}"


def text_lines(groups: Sequence[Group], by: Sequence[str]) -> Iterator[str]:
    """Yield a table of 80 columns: a group's values on a line, its predictors below.

    `under` is the share of under-estimates; +95% and +99% are margins (error_summary.py).
    """
    title = ", ".join(by)
    if len(title) >= WIDTH - len(_HEAD):
        yield title
        title = ""
    yield f"{title:<{WIDTH - len(_HEAD)}}{_HEAD}"
    yield "-" * WIDTH
    if not groups:
        yield f"no reference has figures by {', '.join(by)}"
    last: tuple[str, ...] = ()
    for one in groups:
        if one.values != last:
            title = ", ".join(one.values)
            yield title if len(title) <= WIDTH else title[: WIDTH - 1] + "…"
            last = one.values
        yield f"  {one.summary.name:<{WIDTH - len(_HEAD) - 2}}{_figures(one.summary)}"


def _figures(summary: ErrorSummary) -> str:
    return (
        f"{summary.count:>5}{short_share(summary.median):>8}{short_share(summary.p95):>8}"
        f"{format_error(summary.worst):>11}{summary.under * 100:>5.0f}%"
        f"{short_share(summary.margin_95):>8}{short_share(summary.margin_99):>8}"
    )


def markdown_lines(groups: Sequence[Group], by: Sequence[str]) -> Iterator[str]:
    """Yield the table as Markdown."""
    yield (
        f"| {' | '.join(by)} | prediction | n | median | 95th percentile | worst | under-estimates "
        "| margin 95 % | margin 99 % |"
    )
    yield "| --- " * len(by) + "| --- |" + " ---: |" * 7
    for one in groups:
        summary = one.summary
        cells = " | ".join(value.replace("|", "\\|") for value in one.values)
        yield (
            f"| {cells} | {summary.name} | {summary.count} | {share(summary.median)} "
            f"| {share(summary.p95)} | {format_error(summary.worst)} | {summary.under * 100:.0f} % "
            f"| {share(summary.margin_95)} | {share(summary.margin_99)} |"
        )


def to_json(groups: Sequence[Group], by: Sequence[str]) -> list[dict[str, Any]]:
    """Return the groups as JSON objects: the keys' values, then what `summary_json` gives."""
    return [
        {"by": dict(zip(by, one.values, strict=True)), **summary_json(one.summary)}
        for one in groups
    ]


def summary_json(summary: ErrorSummary) -> dict[str, Any]:
    """Return a summary as a JSON object; a margin is null where none would have sufficed."""
    return {
        "name": summary.name,
        "count": summary.count,
        "median_absolute_error": summary.median,
        "p95_absolute_error": summary.p95,
        "worst_error": summary.worst,
        "worst_label": summary.worst_label,
        "under_estimate_share": summary.under,
        "margin_95": None if math.isinf(summary.margin_95) else summary.margin_95,
        "margin_99": None if math.isinf(summary.margin_99) else summary.margin_99,
    }


def share(value: float) -> str:
    """Return a share as `1.23 %`, `none` where no number would do."""
    return "none" if math.isinf(value) else f"{value * 100:.2f} %"


def short_share(value: float) -> str:
    """Return a share in at most seven characters."""
    if math.isinf(value):
        return "none"
    return f"{value * 100:.0f}%" if value >= 10 else f"{value * 100:.2f}%"
