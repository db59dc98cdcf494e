"""How errors are spread, as bars over classes of error, as inline SVG.

Errors reach from hundredths of a percent to thousands of percent on both sides of zero, so the
classes are about logarithmic and have the same width each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from markupsafe import Markup, escape

_STEPS = (0.1, 1, 2, 5, 10, 20, 50)
EDGES = (*(-step for step in reversed(_STEPS)), *_STEPS)
"""Borders between the classes, in percent."""

WIDTH, HEIGHT = 480, 132
_BOTTOM, _TOP = 34, 20


def count_classes(errors: Sequence[float]) -> list[int]:
    """Return how many relative errors (0.01 is 1 %) are in each of the `len(EDGES) + 1` classes.

    A class reaches from its lower border, which belongs to it, to the next.
    """
    counts = [0] * (len(EDGES) + 1)
    for error in errors:
        counts[bisect_right(EDGES, 100 * error)] += 1
    return counts


def class_name(index: int) -> str:
    """Return a class in words: `-5 to -2 %`, `above +50 %`."""
    if index == 0:
        return f"below {EDGES[0]:+g} %"
    if index == len(EDGES):
        return f"above {EDGES[-1]:+g} %"
    return f"{EDGES[index - 1]:+g} to {EDGES[index]:+g} %"


def draw_distribution(name: str, errors: Sequence[float]) -> Markup:
    """Return the picture: a bar a class, its count above it; under-estimates to the left."""
    counts = count_classes(errors)
    width = WIDTH / len(counts)
    height = HEIGHT - _BOTTOM - _TOP
    most = max(counts)
    middle = len(counts) // 2
    base = HEIGHT - _BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="errors of {escape(name)}">',
        f'<path class="axis" d="M0 {base}H{WIDTH}"/>',
    ]
    for index, count in enumerate(counts):
        left = index * width
        side = "under" if index < middle else "over" if index > middle else "exact"
        if count:
            tall = max(height * count / most, 1)
            parts.append(
                f'<rect class="bar-{side}" x="{left + 1:.1f}" y="{base - tall:.1f}" '
                f'width="{width - 2:.1f}" height="{tall:.1f}">'
                f"<title>{class_name(index)}: {count}</title></rect>"
                f'<text x="{left + width / 2:.1f}" y="{base - tall - 4:.1f}">{count}</text>'
            )
    parts += [
        f'<text x="{(index + 1) * width:.1f}" y="{base + 14}">{_edge(edge)}</text>'
        for index, edge in enumerate(EDGES)
    ]
    parts.append(
        f'<text class="end" x="{WIDTH}" y="{base + 29}">over-estimate, %</text>'
        f'<text class="start" x="0" y="{base + 29}">under-estimate, %</text></svg>'
    )
    return Markup("".join(parts))


def _edge(edge: float) -> str:
    return f"{edge:+g}".replace("-", "−").replace("+0.", "+.").replace("−0.", "−.")
