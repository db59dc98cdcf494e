"""A history as text for a terminal of 80 columns, as Markdown, and as a JSON object."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.compare import WORDS
from benchmarks.history import CaseHistory, Change, Figure, History, stretches
from estimator.report import SCHEMA_VERSION
from estimator.units import GB, GIB, format_error, format_gb, format_gib

WIDTH = 80


def text_lines(history: History, cases: Sequence[CaseHistory] | None = None) -> Iterator[str]:
    """Yield the lines of the terminal's tables, none of them wider than 80 columns.

    Args:
        cases: those to show, all by default; the steps are counted over all of them.
    """
    yield _headline(history)
    for index in range(len(history.points)):
        yield from textwrap.wrap(
            f"{index + 1:>3}  {history.title(index)}", WIDTH, subsequent_indent=" " * 5
        )
    yield ""
    yield f"{'case':<12}{'GB':>12}{'GiB':>14}{'change':>12}  {'what changed most'}"
    yield "-" * WIDTH
    for case in history.cases if cases is None else cases:
        label = _label(history, case)
        yield label if len(label) <= WIDTH else label[: WIDTH - 1] + "…"
        steps = {step.second: step for step in case.changes}
        for first, last, figure in stretches(case):
            yield _text_stretch(span(first, last), figure, steps.get(first))
    yield ""
    yield f"{'step':<12}{'cases':>8}{'equal':>8}{'grew':>8}{'fell':>8}{'worst':>14}"
    yield "-" * WIDTH
    for first, second, changes in steps_between(history):
        grew = sum(step.change_bytes > 0 for step in changes)
        fell = sum(step.change_bytes < 0 for step in changes)
        worst = max(changes, key=lambda step: abs(step.relative))
        yield (
            f"{first + 1:>3} -> {second + 1:<5}{len(changes):>8}{len(changes) - grew - fell:>8}"
            f"{grew:>8}{fell:>8}{format_change(worst.relative):>14}"
        )


def _headline(history: History) -> str:
    words = sorted({WORDS[case.source] for case in history.cases})
    count = len(history.points)
    environments = "set of versions" if count == 1 else "sets of versions"
    return (
        f"{len(history.cases)} cases over {count} {environments}, {' and '.join(words)} "
        "peak allocated"
    )


def _text_stretch(where: str, figure: Figure, step: Change | None) -> str:
    if figure.report is None:
        line = f"  {where:<10}{figure.reason}"
        return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
    size_bytes = figure.report.peak.allocated_bytes
    shown = "" if step is None else format_change(step.relative)
    return (
        f"  {where:<10}{size_bytes / GB:>9.2f} GB{size_bytes / GIB:>10.2f} GiB{shown:>12}"
        f"  {reason(step)}"
    ).rstrip()


def markdown_lines(history: History, cases: Sequence[CaseHistory] | None = None) -> Iterator[str]:
    """Yield the history as Markdown: the points, the cases' figures, a row a step.

    Args:
        cases: those to show, all by default; the steps are counted over all of them.
    """
    yield "| | versions |"
    yield "| ---: | --- |"
    for index in range(len(history.points)):
        yield f"| {index + 1} | {history.title(index)} |"
    yield ""
    yield "| case | at | GB | GiB | change | what changed most |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for case in history.cases if cases is None else cases:
        label = _label(history, case).replace("|", "\\|")
        steps = {step.second: step for step in case.changes}
        for first, last, figure in stretches(case):
            where, step = span(first, last), steps.get(first)
            if figure.report is None:
                why = (figure.reason or "").replace("|", "\\|")
                yield f"| {label} | {where} | none | none | | {why} |"
            else:
                size_bytes = figure.report.peak.allocated_bytes
                shown = "" if step is None else format_change(step.relative)
                yield (
                    f"| {label} | {where} | {format_gb(size_bytes)} | {format_gib(size_bytes)} "
                    f"| {shown} | {reason(step)} |"
                )
            label = ""
    yield ""
    yield "| step | cases | equal | grew | fell | worst |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for first, second, changes in steps_between(history):
        grew = sum(step.change_bytes > 0 for step in changes)
        fell = sum(step.change_bytes < 0 for step in changes)
        worst = max(changes, key=lambda step: abs(step.relative))
        yield (
            f"| {first + 1} to {second + 1} | {len(changes)} | {len(changes) - grew - fell} "
            f"| {grew} | {fell} | {format_change(worst.relative)} |"
        )


def to_json(history: History) -> dict[str, Any]:
    """Return the history as a JSON object; changes are shares (0.01 is 1 %)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "history",
        "points": [
            {"versions": history.title(index), "environment": point.model_dump()}
            for index, point in enumerate(history.points)
        ],
        "cases": [
            {
                "case_id": case.case_id,
                "label": case.label,
                "source": case.source,
                "machine": case.machine,
                "changed": case.changed,
                "figures": [_figure_json(figure) for figure in case.figures],
                "changes": [
                    {
                        "first": step.first,
                        "second": step.second,
                        "change_bytes": step.change_bytes,
                        "change": step.relative,
                        "component": step.component,
                        "component_change_bytes": step.component_bytes,
                    }
                    for step in case.changes
                ],
            }
            for case in history.cases
        ],
    }


def _figure_json(figure: Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    if figure.report is None:
        return {"peak_allocated_bytes": None, "phase": None, "error": {"message": figure.reason}}
    peak = figure.report.peak
    return {"peak_allocated_bytes": peak.allocated_bytes, "phase": peak.phase, "error": None}


def steps_between(history: History) -> Iterator[tuple[int, int, list[Change]]]:
    """Yield (point, point, changes between them) for each pair that any case steps over."""
    found: dict[tuple[int, int], list[Change]] = {}
    for case in history.cases:
        for step in case.changes:
            found.setdefault((step.first, step.second), []).append(step)
    for first, second in sorted(found):
        yield first, second, found[first, second]


def span(first: int, last: int) -> str:
    """Return points as people count them: `1-3`, or `2`."""
    return f"{first + 1}" if first == last else f"{first + 1}-{last + 1}"


def format_change(relative: float) -> str:
    """Return a change as a percentage, with digits enough to show that it is one."""
    if relative and abs(relative) < 0.0005:
        return f"{relative * 100:+.4f} %"
    return format_error(relative)


def _signed_size(size_bytes: int) -> str:
    for unit, name in ((GB, "GB"), (10**6, "MB"), (10**3, "kB")):
        if abs(size_bytes) >= unit:
            return f"{size_bytes / unit:+.2f} {name}"
    return f"{size_bytes:+d} B"


def reason(step: Change | None) -> str:
    """Return the component that changed most in a step: `logits -410.00 MB`."""
    if step is None or step.component is None:
        return ""
    return f"{step.component.replace('_', ' ')} {_signed_size(step.component_bytes)}"


def _label(history: History, case: CaseHistory) -> str:
    """Return a case's label, with what tells it from others of that label."""
    others = [other for other in history.cases if other.label == case.label]
    if len(others) == 1:
        return case.label
    more = [case.case_id[:6], WORDS[case.source], case.machine]
    return f"{case.label} [{', '.join(word for word in more if word is not None)}]"
