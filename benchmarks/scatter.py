"""The picture of predicted against reference peaks, both logarithmic, as inline SVG.

Colours come from the page's CSS variables, so that one picture serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from estimator.units import GB

WIDTH, HEIGHT = 480, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 48


@dataclass(frozen=True, slots=True)
class Point:
    """One case of one series. Both sizes are above 0."""

    reference_bytes: int
    predicted_bytes: int
    label: str


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one name; `mark` is its CSS class (`mark-0` to `mark-2`), which has a shape."""

    name: str
    mark: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps bytes to a position between `start` and `end`, logarithmically."""

    low: float
    high: float
    start: float
    end: float

    def at(self, size_bytes: float) -> float:
        share = (math.log(size_bytes) - math.log(self.low)) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def draw_scatter(series: Sequence[Series], x_title: str, y_title: str) -> Markup:
    """Return the picture; the diagonal is agreement, the band around it 10 % either way.

    Raises:
        ValueError: when there is no point at all.
    """
    sizes = [size for one in series for p in one.points for size in _sizes(p)]
    if not sizes:
        raise ValueError("nothing to draw")
    low, high = min(sizes) / 1.3, max(sizes) * 1.3
    x = _Axis(low, high, _LEFT, WIDTH - _RIGHT)
    y = _Axis(low, high, HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(y_title)} against {escape(x_title)}, logarithmic">',
        *_band(x, y),
        *_grid(x, y),
        f'<text class="title" x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 8}">'
        f"{escape(x_title)}</text>",
        f'<text class="title" transform="translate(13 {(_TOP + HEIGHT - _BOTTOM) / 2:.0f}) '
        f'rotate(-90)">{escape(y_title)}</text>',
    ]
    # The last series would hide the ones before it, and the first one matters most.
    for one in reversed(series):
        parts += [_mark(one, point, x, y) for point in one.points]
    return Markup("".join([*parts, "</svg>"]))


def ticks(low: float, high: float) -> list[float]:
    """Return round sizes (1, 2 or 5 times a power of ten bytes) inside the range, at most ten."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f * 10**e) for e in exponents for f in factors if low <= f * 10**e <= high]
        if len(found) <= 10:
            return found
    return found


def _sizes(point: Point) -> tuple[int, int]:
    return point.reference_bytes, point.predicted_bytes


def _band(x: _Axis, y: _Axis) -> Iterator[str]:
    corners = [
        (x.low, x.low * 1.1),
        (x.high / 1.1, x.high),
        (x.high, x.high),
        (x.high, x.high * 0.9),
        (x.low / 0.9, x.low),
        (x.low, x.low),
    ]
    points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in corners)
    yield f'<polygon class="band" points="{points}"/>'
    yield (
        f'<line class="diagonal" x1="{x.start}" y1="{y.start}" x2="{x.end}" y2="{y.end}">'
        "<title>agreement</title></line>"
    )


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    for size in ticks(x.low, x.high):
        text = f"{size / GB:g}"
        across, up = x.at(size), y.at(size)
        yield f'<path class="grid" d="M{across:.1f} {y.start}V{y.end}M{x.start} {up:.1f}H{x.end}"/>'
        yield f'<text class="tick" x="{across:.1f}" y="{y.start + 17}">{text}</text>'
        yield f'<text class="tick end" x="{x.start - 7}" y="{up + 4:.1f}">{text}</text>'


def _mark(series: Series, point: Point, x: _Axis, y: _Axis) -> str:
    across, up = x.at(point.reference_bytes), y.at(point.predicted_bytes)
    title = f"<title>{escape(series.name)}: {escape(point.label)}</title>"
    if series.mark == "mark-0":
        place = f'cx="{across:.1f}" cy="{up:.1f}" r="4.5"'
        return f'<circle class="{series.mark}" {place}>{title}</circle>'
    if series.mark == "mark-2":
        square = f"M{across - 4:.1f} {up - 4:.1f}h8v8h-8z"
        return f'<path class="{series.mark}" d="{square}">{title}</path>'
    diamond = f"M{across:.1f} {up - 5.5:.1f}l5.5 5.5-5.5 5.5-5.5-5.5z"
    return f'<path class="{series.mark}" d="{diamond}">{title}</path>'
