"""A run's memory from its beginning to its end, as inline SVG.

`draw_story` stacks the components of a traced run over its allocations. `draw_phases` is for runs
of which only phases are known: the peak and the end of each, one bar a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

from estimator.report import COMPONENTS, MemoryReport
from estimator.units import GB, format_both, format_gb
from profiler.trace.story import Story, place

WIDTH, HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 4, 12, 22
_COLUMNS = 220
"""Instants that are drawn: of each column the highest, so that no peak is lost."""

_LETTER = 6.2


def draw_story(story: Story, marks: Sequence[tuple[str, int, str]] = ()) -> Markup:
    """Return the picture of a traced run.

    Args:
        marks: (name, bytes, CSS class) of levels to draw across: what was predicted.
    """
    points = story.points
    total = points.turnover_bytes[-1]
    places = [
        place(event, turnover, story.events, total)
        for event, turnover in zip(points.events, points.turnover_bytes, strict=True)
    ]
    kept = _thin(places, points.allocated_bytes)
    high = max(max(points.allocated_bytes), *(size for _, size, _ in marks), 1) * 1.08
    below = [0] * len(kept)
    areas = []
    for name in COMPONENTS:
        column = points.components.get(name)
        if column is None:
            continue
        above = [low + column[index] for low, index in zip(below, kept, strict=True)]
        outline = _steps([places[i] for i in kept], above, high) + _steps(
            [places[i] for i in kept], below, high, back=True
        )
        areas.append(f'<path class="c-{name}" d="M{outline}z"/>')
        below = above
    phases = [
        (phase.name, places[_first(points.events, phase.first_event)]) for phase in story.phases
    ]
    return Markup(
        "".join(
            [
                _open(f"memory over the run, peak {format_both(story.peak.allocated_bytes)}"),
                *_grid(high),
                *areas,
                *_names([*phases, ("", 1.0)]),
                *_levels(marks, high),
                "</svg>",
            ]
        )
    )


def draw_phases(
    reports: Sequence[tuple[str, MemoryReport]], marks: Sequence[tuple[str, int, str]] = ()
) -> Markup:
    """Return the picture of phases: full bars to a phase's peak, a line at its end.

    Args:
        reports: (name, report), one or two.
        marks: as in `draw_story`.
    """
    names = list(dict.fromkeys(p.name for _, report in reports for p in report.phases))
    peaks = [phase.peak_allocated_bytes for _, report in reports for phase in report.phases]
    high = max(*peaks, *(size for _, size, _ in marks), 1) * 1.08
    parts = [_open("memory by phase"), *_grid(high)]
    width = (WIDTH - _LEFT - _RIGHT) / len(names)
    bar = width * 0.8 / len(reports)
    for number, (source, report) in enumerate(reports):
        for phase in report.phases:
            left = _LEFT + names.index(phase.name) * width + width * 0.1 + number * bar
            top, end = _y(phase.peak_allocated_bytes, high), _y(phase.end_allocated_bytes, high)
            title = f"{source}, {phase.name}: peak {format_gb(phase.peak_allocated_bytes)}"
            parts.append(
                f'<rect class="source-{number}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{bar - 1:.1f}" height="{HEIGHT - _BOTTOM - top:.1f}">'
                f"<title>{escape(title)}, end {format_gb(phase.end_allocated_bytes)}</title>"
                f'</rect><path class="end-line" d="M{left:.1f} {end:.1f}h{bar - 1:.1f}"/>'
            )
    parts += _names([(name, i / len(names)) for i, name in enumerate(names)] + [("", 1.0)])
    parts += _levels(marks, high)
    return Markup("".join([*parts, "</svg>"]))


def _open(title: str) -> str:
    return (
        f'<svg class="chart timeline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">'
    )


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(size_bytes: float, high: float) -> float:
    base = HEIGHT - _BOTTOM
    return base - size_bytes / high * (base - _TOP)


def _thin(places: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Return the index of the highest instant of each column, in order."""
    best: dict[int, int] = {}
    for index, share in enumerate(places):
        column = min(int(share * _COLUMNS), _COLUMNS - 1)
        if column not in best or sizes[index] > sizes[best[column]]:
            best[column] = index
    return sorted({0, *best.values(), len(places) - 1})


def _steps(shares: Sequence[float], sizes: Sequence[int], high: float, back: bool = False) -> str:
    points = [f"{_x(x):.0f} {_y(size, high):.1f}" for x, size in zip(shares, sizes, strict=True)]
    return ("L" if back else "") + "L".join(reversed(points) if back else points)


def _first(events: Sequence[int], event: int) -> int:
    return next((i for i, known in enumerate(events) if known >= event), len(events) - 1)


def _grid(high: float) -> Iterator[str]:
    step = _round_step(high)
    levels = accumulate([0.0] + [step] * int(high / step))
    for level in levels:
        y = _y(level, high)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
        yield f'<text class="end" x="{_LEFT - 5}" y="{y + 4:.1f}">{level / GB:g}</text>'
    yield f'<text class="start" x="0" y="{_TOP - 2}">GB</text>'


def _round_step(high: float) -> float:
    """Return a round distance of at most five lines."""
    unit = 1.0
    while high / unit > 5:
        for factor in (2, 5, 10):
            if high / (unit * factor) <= 5:
                return unit * factor
        unit *= 10
    return unit


def _names(marks: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Yield the names of phases below the picture, where there is room for them."""
    for (name, start), (_, end) in pairwise(marks):
        x = _x(start)
        if start > 0:
            yield f'<path class="phase" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>'
        if _x(end) - x > _LETTER * len(name):
            middle = (x + _x(end)) / 2
            yield f'<text x="{middle:.1f}" y="{HEIGHT - 7}">{escape(name.replace("_", " "))}</text>'


def _levels(marks: Sequence[tuple[str, int, str]], high: float) -> Iterator[str]:
    for name, size, style in marks:
        title = escape(f"{name}: {format_both(size)}")
        y = _y(size, high)
        yield f'<path class="level {style}" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}">'
        yield f"<title>{title}</title></path>"
