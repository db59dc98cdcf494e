"""A comparison as one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.compare import Comparison, Row
from benchmarks.scatter import Point, Series, draw_scatter
from benchmarks.store import write_whole
from benchmarks.tables import row_names, sections, source_word, summary_name, summary_title
from benchmarks.thresholds import Offender
from estimator.errors import RecordError
from estimator.report import COMPONENTS, Components, MemoryReport
from estimator.units import format_both, format_error, format_gb, format_gib

ENVIRONMENT_FIELDS = (
    "gpu",
    "driver",
    "torch",
    "cuda",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "python",
    "platform",
    "allocator",
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A component's part of a bar; `percent` of the bar's full width."""

    component: str
    percent: float
    title: str


@dataclass(frozen=True, slots=True)
class Bar:
    """What one source says of one case, as a stacked bar."""

    name: str
    size: str
    segments: tuple[Segment, ...]


def write_report(comparison: Comparison, path: Path, offenders: Sequence[Offender] = ()) -> None:
    """Write the report of a comparison to `path`, whole or not at all.

    Raises:
        RecordError: when the file cannot be written.
    """
    write_page(render_report(comparison, offenders), path)


def write_page(text: str, path: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        RecordError: when the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RecordError(f"report {str(path)!r} cannot be written: {reason}") from None


def render_report(comparison: Comparison, offenders: Sequence[Offender] = ()) -> str:
    """Return the report's HTML."""
    template = template_environment().get_template("report.html.j2")
    return template.render(_page(comparison, offenders))


def template_environment() -> Environment:
    """Return the environment that all pages are rendered in: strict, and escaping everything."""
    environment = Environment(
        loader=PackageLoader("benchmarks"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"gb": format_gb, "gib": format_gib, "signed": format_error}
    return environment


def _page(comparison: Comparison, offenders: Sequence[Offender]) -> dict[str, Any]:
    words = sorted({source_word(row.reference) for row in comparison.rows})
    return {
        "comparison": comparison,
        "title": _title(comparison, words),
        "reference_word": " and ".join(words),
        "traced_only": words == ["traced"],
        "names": [(name, summary_name(name)) for name in comparison.names],
        "summary_title": summary_title(comparison),
        "summary_name": summary_name,
        "scatter": _scatter(comparison, " or ".join(words)),
        "legend": [(summary_name(n), f"mark-{i}") for i, n in enumerate(comparison.names)],
        "bars": [(row, tuple(_bars(row, comparison.kind))) for row in comparison.rows],
        "components": [name for name in COMPONENTS if _is_used(comparison, name)],
        "sections": list(sections(comparison)),
        "offenders": [one for one in offenders if one.fails],
        "drops": [one for one in offenders if not one.fails],
        "environments": [
            (key, [(name, getattr(env, name)) for name in ENVIRONMENT_FIELDS])
            for key, env in comparison.environments.items()
        ],
    }


def _title(comparison: Comparison, words: list[str]) -> str:
    if comparison.kind == "records":
        return f"{comparison.new} against {comparison.base}"
    return f"Estimated against {' and '.join(words) or 'recorded'} GPU memory"


def _scatter(comparison: Comparison, word: str) -> Markup | None:
    """Draw peak allocated bytes; None where there is nothing to draw."""
    series = tuple(
        Series(
            summary_name(name),
            f"mark-{index}",
            tuple(_points(comparison.rows, name)),
        )
        for index, name in enumerate(comparison.names)
    )
    if not any(one.points for one in series):
        return None
    if comparison.kind == "records":
        return draw_scatter(series, "base peak, GB", "new peak, GB")
    return draw_scatter(series, f"{word} peak, GB", "estimated peak, GB")


def _points(rows: Sequence[Row], name: str) -> Iterator[Point]:
    for row in rows:
        predicted = row.compared.get(name)
        if predicted is not None and predicted.peak.allocated_bytes > 0:
            size_bytes = predicted.peak.allocated_bytes
            label = f"{row.label}, {format_both(size_bytes)}, {format_error(row.error(name))}"
            yield Point(row.reference.peak.allocated_bytes, size_bytes, label)


def _bars(row: Row, kind: str) -> Iterator[Bar]:
    """Yield a case's bars, on one scale: the longest of them is the full width."""
    named = [(name, report) for name, report, _ in row_names(row, kind)]
    full_bytes = max(report.components.total_bytes for _, report in named)
    for name, report in named:
        segments = report_segments(report.components, full_bytes)
        yield Bar(name, format_gb(report.peak.allocated_bytes), segments)


def report_segments(components: Components, full_bytes: int) -> tuple[Segment, ...]:
    """Return a bar's parts; `full_bytes` are its full width."""
    found = []
    for component in COMPONENTS:
        size_bytes = getattr(components, f"{component}_bytes")
        if size_bytes > 0:
            title = f"{component.replace('_', ' ')}: {format_both(size_bytes)}"
            found.append(Segment(component, round(100 * size_bytes / full_bytes, 2), title))
    return tuple(found)


def _is_used(comparison: Comparison, component: str) -> bool:
    return any(
        _size(report, component) > 0
        for row in comparison.rows
        for report in (row.reference, *row.compared.values())
    )


def _size(report: MemoryReport, component: str) -> int:
    size_bytes: int = getattr(report.components, f"{component}_bytes")
    return size_bytes
