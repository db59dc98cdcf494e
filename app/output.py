"""What people read on a terminal of 80 columns: plain text, both units, always labelled."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from estimator.case import Case
from estimator.report import COMPONENTS, MemoryReport
from estimator.units import GB, GIB, format_both

if TYPE_CHECKING:
    from profiler.trace.replay import Storage

WIDTH = 80

SOURCES = {
    "article": "estimated by the seed article's formulas",
    "architecture": "estimated from the architecture",
    "trace": "traced: the real code, simulated without a GPU, not measured",
    "cuda": "measured on a GPU",
    "published": "published by others",
}


def table(rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2) -> str:
    """Return rows as aligned columns, the first row being the header.

    The first `left` columns are aligned left, the others right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * gap).join(cells).rstrip())
    lines.insert(1, (" " * gap).join("-" * width for width in widths))
    return "\n".join(lines)


def headline(report: MemoryReport) -> str:
    """Return `peak 17.25 GB (16.06 GiB) in backward: reason`."""
    peak = report.peak
    reason = f": {peak.reason}" if peak.reason else ""
    return f"peak {format_both(peak.allocated_bytes)} in {peak.phase}{reason}"


def render_report(report: MemoryReport, verbose: bool = False) -> str:
    """Return a whole report: headline, components, phases, counters, parameters, assumptions.

    `verbose` adds the components that are zero, exact bytes, and the complete case.
    """
    parts = [
        wrap(Case.from_dict(report.case).label),
        wrap(SOURCES[report.source]),
        wrap(headline(report)),
        "",
        _components(report, verbose),
        "",
        _phases(report, verbose),
        "",
        *_counters(report),
        f"parameters  {_digits(report.parameters.total)}, "
        f"trainable {_digits(report.parameters.trainable)}",
    ]
    if report.assumptions:
        parts += ["assumed:", *(wrap(line, "- ") for line in report.assumptions)]
    if verbose:
        parts += ["case:", *(f"  {name} = {value!r}" for name, value in report.case.items())]
    return "\n".join(parts)


def render_storages(storages: Sequence[Storage]) -> str:
    """Return the largest storages alive at the peak as a table: sizes, what, made where."""
    rows = [["largest at the peak", "made by", "GB", "GiB"]]
    for storage in storages:
        operation = (storage.operation or "").rpartition(".")[2]
        made = " ".join(part for part in (storage.module, operation and f"({operation})") if part)
        sizes = [f"{storage.size_bytes / GB:.3f}", f"{storage.size_bytes / GIB:.3f}"]
        rows.append([storage.component.replace("_", " "), made or storage.phase, *sizes])
    return table(rows, left=2)


def _components(report: MemoryReport, verbose: bool) -> str:
    total = report.peak.allocated_bytes
    rows = [_header("at the peak", ("GB", "GiB", "share"), verbose)]
    for name in COMPONENTS:
        size: int = getattr(report.components, f"{name}_bytes")
        if size or verbose:
            share = f"{size / total:.1%}" if total else ""
            rows.append(_row(name.replace("_", " "), [size], [share], verbose))
    rows.append(_row("total", [total], [""], verbose))
    return table(rows)


def _phases(report: MemoryReport, verbose: bool) -> str:
    rows = [_header("phase", ("peak GB", "peak GiB", "end GB", "end GiB"), False)]
    for phase in report.phases:
        sizes = [phase.peak_allocated_bytes, phase.end_allocated_bytes]
        rows.append(_row(phase.name.replace("_", " "), sizes, [], False))
    if verbose:
        rows[0] += ["peak bytes", "end bytes"]
        for row, phase in zip(rows[1:], report.phases, strict=True):
            row += [_digits(phase.peak_allocated_bytes), _digits(phase.end_allocated_bytes)]
    return table(rows)


def _counters(report: MemoryReport) -> list[str]:
    """Return what each counter shows at its highest, as far as the source knows, and on what its
    interval rests; nothing where `allocated` alone is known."""
    rows = [["counter", "GB", "GiB", "interval in GB", "in GiB", "level"]]
    notes = []
    for one in report.counters():
        size, interval = one.size_bytes, one.interval
        row = [one.name, *(["", ""] if size is None else [f"{size / GB:.2f}", f"{size / GIB:.2f}"])]
        if interval is None:
            rows.append([*row, "", "", ""])
            continue
        low, high = interval.low_bytes, interval.high_bytes
        spans = [f"{low / unit:.2f} to {high / unit:.2f}" for unit in (GB, GIB)]
        rows.append([*row, *spans, f"{interval.level:.0%}"])
        notes.append(wrap(f"{one.name}: {interval.basis}"))
    return [table(rows), "", *notes] if len(rows) > 2 or notes else []


def _header(first: str, names: Sequence[str], verbose: bool) -> list[str]:
    return [first, *names, *(["bytes"] if verbose else [])]


def _row(name: str, sizes: Sequence[int], more: Sequence[str], verbose: bool) -> list[str]:
    row = [name]
    for size in sizes:
        row += [f"{size / GB:.2f}", f"{size / GIB:.2f}"]
    return [*row, *more, *([_digits(sizes[0])] if verbose else [])]


def _digits(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def wrap(text: str, bullet: str = "", indent: int = 2) -> str:
    """Return text in lines of at most 80 columns, all but the first indented."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
