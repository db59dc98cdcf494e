"""A coefficient's point and interval on a line, beside what held without evidence."""

from __future__ import annotations

from markupsafe import Markup, escape

from estimator.coefficients import Coefficient

WIDTH, HEIGHT = 150, 18
_EDGE = 6


def draw_range(coefficient: Coefficient) -> Markup | None:
    """Return the picture: a line for the interval, a dot for the point, a tick for the nominal.

    None where there is no interval.
    """
    if coefficient.low is None or coefficient.high is None:
        return None
    known = (coefficient.low, coefficient.high, coefficient.value, coefficient.nominal)
    low, high = min(known), max(known)
    if low == high:
        return None

    def at(value: float) -> str:
        return f"{_EDGE + (value - low) / (high - low) * (WIDTH - 2 * _EDGE):.1f}"

    middle = HEIGHT / 2
    title = (
        f"{coefficient.name}: {coefficient.value:.4g} ({coefficient.low:.4g} to "
        f"{coefficient.high:.4g}), nominal {coefficient.nominal:.4g}"
    )
    return Markup(
        f'<svg class="range" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<path class="nominal" d="M{at(coefficient.nominal)} 2V{HEIGHT - 2}"/>'
        f'<path class="interval" d="M{at(coefficient.low)} {middle}H{at(coefficient.high)}"/>'
        f'<circle class="point" cx="{at(coefficient.value)}" cy="{middle}" r="4"/></svg>'
    )
