"""Pictures as HTML and inline SVG: stacked bar, timeline, heat map. Colours are the style's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from app.web.fits import Fits
from estimator.report import COMPONENTS, MemoryReport, Phase
from estimator.units import GB, GIB, format_both

WIDTH, HEIGHT = 460, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 8, 12, 42


@dataclass(frozen=True, slots=True)
class Part:
    """A component at the peak; `share` is of the peak."""

    name: str
    words: str
    size_bytes: int
    share: float


def parts(report: MemoryReport) -> tuple[Part, ...]:
    """Return the components that are not 0, in their usual order."""
    total = report.peak.allocated_bytes
    sizes = ((name, getattr(report.components, f"{name}_bytes")) for name in COMPONENTS)
    return tuple(
        Part(name, name.replace("_", " "), size, size / total) for name, size in sizes if size
    )


def stacked_bar(shown: Sequence[Part]) -> Markup:
    """Return the components as one bar, its whole width being the peak."""
    words = ", ".join(f"{part.words} {part.share:.0%}" for part in shown)
    pieces = "".join(
        f'<span class="c-{part.name}" style="flex-grow:{part.share:.5f}" '
        f'title="{escape(part.words)}: {format_both(part.size_bytes)}, {part.share:.1%}"></span>'
        for part in shown
    )
    return Markup(
        f'<div class="gm-bar" role="img" aria-label="At the peak: {escape(words)}">{pieces}</div>'
    )


def timeline(phases: Sequence[Phase], limit_bytes: int | None, limit_name: str | None) -> Markup:
    """Return how much is allocated from phase to phase: to each one's peak, then to its end."""
    highest = max(phase.peak_allocated_bytes for phase in phases)
    shows_limit = limit_bytes is not None and limit_bytes <= 4 * highest
    top = 1.08 * max(highest, limit_bytes if shows_limit and limit_bytes is not None else 0)
    base, step = HEIGHT - _BOTTOM, (WIDTH - _LEFT - _RIGHT) / len(phases)

    def up(size_bytes: float) -> str:
        return f"{base - (base - _TOP) * size_bytes / top:.1f}"

    line = [f"M{_LEFT} {up(0)}"]
    for number, phase in enumerate(phases):
        start = _LEFT + number * step
        line.append(
            f"L{start + step * 0.55:.1f} {up(phase.peak_allocated_bytes)}"
            f"L{start + step:.1f} {up(phase.end_allocated_bytes)}"
        )
    path = "".join(line)
    words = "; ".join(
        f"{phase.name.replace('_', ' ')}: peak {format_both(phase.peak_allocated_bytes)}, "
        f"end {format_both(phase.end_allocated_bytes)}"
        for phase in phases
    )
    pieces = [
        f'<svg class="gm-timeline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Allocated memory by phase. {escape(words)}">',
        *_scale(top, up),
        f'<path class="area" d="{path}V{base}H{_LEFT}Z"/><path class="line" d="{path}"/>',
    ]
    for number, phase in enumerate(phases):
        start = _LEFT + number * step
        peak = phase.peak_allocated_bytes
        kind = "peak" if peak == highest else "point"
        pieces.append(
            f'<circle class="{kind}" cx="{start + step * 0.55:.1f}" cy="{up(peak)}" r="4">'
            f"<title>{format_both(peak)}</title></circle>"
            f'<text x="{start + step * 0.5:.1f}" y="{base + 17}">'
            f"{escape(phase.name.replace('_', ' '))}</text>"
            f'<text class="size" x="{start + step * 0.5:.1f}" y="{base + 33}">'
            f"{peak / GB:.2f} GB</text>"
        )
    if shows_limit and limit_bytes is not None:
        pieces.append(
            f'<path class="limit" d="M{_LEFT} {up(limit_bytes)}H{WIDTH - _RIGHT}"/>'
            f'<text class="limit" x="{WIDTH - _RIGHT}" y="{float(up(limit_bytes)) - 5:.1f}">'
            f"{escape(limit_name)} has {limit_bytes / GB:.1f} GB</text>"
        )
    return Markup("".join([*pieces, "</svg>"]))


def _scale(top: float, up: Callable[[float], str]) -> Iterator[str]:
    unit = 10.0 ** len(str(int(top / 4))) / 10
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= top / 4.5)
    for count in range(int(top / step) + 1):
        y = up(count * step)
        yield f'<path class="grid" d="M{_LEFT} {y}H{WIDTH - _RIGHT}"/>'
        words = f"{count * step / GB:g} GB"
        yield f'<text class="tick" x="{_LEFT - 6}" y="{float(y) + 4:.1f}">{words}</text>'


def heat_map(fits: Fits) -> Markup:
    """Return peaks by batch and length as a table; the card's limit is the line between cells."""
    chart, case, room = fits.heat_map, fits.case, fits.room
    known = [size for row in chart.peaks for size in row if size is not None]
    if not known:
        return Markup("")

    def over(row: int, column: int) -> bool:
        return not chart.held[row][column]

    def cell(row: int, column: int) -> str:
        size = chart.peaks[row][column]
        batch, length = chart.batches[row], chart.lengths[column]
        classes = ["over"] if over(row, column) else []
        if (batch, length) == (case.batch_size, case.sequence_length):
            classes.append("here")
        if room is not None:
            if row + 1 < len(chart.batches) and over(row, column) != over(row + 1, column):
                classes.append("edge-below")
            if column + 1 < len(chart.lengths) and over(row, column) != over(row, column + 1):
                classes.append("edge-right")
        if size is None:
            return f'<td class="{" ".join(classes)}"><span>n/a</span></td>'
        level = _level(size, min(known), max(known))
        mark = '<span class="gm-sr">does not fit: </span>' if over(row, column) else ""
        return (
            f'<td class="{" ".join([*classes, f"l{level}"])}" title="{format_both(size)}">{mark}'
            f"{_short(size / GB)}<small>{_short(size / GIB)}</small></td>"
        )

    head = "".join(f'<th scope="col">{length}</th>' for length in chart.lengths)
    body = "".join(
        f'<tr><th scope="row">{batch}</th>'
        + "".join(cell(row, column) for column in range(len(chart.lengths)))
        + "</tr>"
        for row, batch in enumerate(chart.batches)
    )
    limit = (
        ""
        if room is None
        else f"; the line is what {escape(room.gpu.name)} has room for, hatched does not fit"
    )
    return Markup(
        '<table class="gm-heat"><caption>Peak by batch size (down) and sequence length (across): '
        f"GB, and GiB below it{limit}</caption>"
        f'<thead><tr><th scope="col"><span class="gm-sr">batch size</span></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _level(size: int, least: int, most: int) -> int:
    """Return a shade from 0 to 5, by equal ratios."""
    if most <= least:
        return 0
    return round(5 * math.log(size / least) / math.log(most / least))


def _short(value: float) -> str:
    """Return a number in about three digits."""
    if value >= 99_999.5:
        return f"{value:.1e}"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
