"""A calibration as text for a terminal of 80 columns, and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from estimator.coefficients import Calibration, Coefficient, Fit, IntervalRule
from estimator.units import MIB

WIDTH = 80


def text_lines(
    calibration: Calibration, unanswered: Sequence[tuple[str, int]] = ()
) -> Iterator[str]:
    """Yield the lines for a terminal.

    Args:
        unanswered: why runs have no estimate, and how many have none for it.
    """
    yield from _wrapped(
        f"calibration {calibration.name}, from runs {calibration.evidence}; evidence "
        f"{calibration.evidence_hash}, code {calibration.code_version}"
    )
    for fit in calibration.fits:
        yield ""
        yield f"{fit.name}: {fit.counter} bytes, {_base(fit)}"
        yield from _wrapped(f"{_use(fit)}: {fit.reason}", "  ")
        families = f", families {', '.join(fit.families)}" if fit.families else ""
        yield from _wrapped(f"{fit.runs} runs{families}", "  ")
        for item in fit.coefficients:
            value = _number(item, item.value)
            yield f"  {item.name:<25}{value:>8} {_unit(item):<20}{_interval(item)}"
    yield ""
    yield "intervals: measured / predicted, and the share held of left-out families"
    for rule in calibration.intervals:
        yield from _wrapped(f"{rule.counter}, {rule.kind}: {_rule(rule)}", "  ")
    if not calibration.intervals:
        yield "  none"
    if unanswered:
        yield ""
        yield "runs without an estimate"
        for reason, count in unanswered:
            yield from _wrapped(f"{count} x {reason}", "  ")


def markdown_lines(calibration: Calibration) -> Iterator[str]:
    """Yield the calibration as Markdown tables: fits, coefficients, intervals."""
    yield "| fit | errors | counter | runs | median | 95th pct | worst | under |"
    yield "|---|---|---|---|---|---|---|---|"
    for fit in calibration.fits:
        for name, found in (("before", fit.before), ("after", fit.after)):
            if found is not None:
                shares = (found.median, found.p95, found.worst, found.under)
                cells = " | ".join(_percent(share) for share in shares)
                yield f"| {fit.name} | {name} | {fit.counter} | {fit.runs} | {cells} |"
    yield ""
    for fit in calibration.fits:
        yield f"* `{fit.name}` ({_names(fit.families)}): {_use(fit)}; {fit.reason}."
    yield ""
    yield "| coefficient | unit | without | fitted | interval | bounds | runs | used |"
    yield "|---|---|---|---|---|---|---|---|"
    for fit in calibration.fits:
        for item in fit.coefficients:
            yield (
                f"| `{item.name}` | {_unit(item)} | {_number(item, item.nominal)} "
                f"| {_number(item, item.value) if item.runs else '-'} | {_interval(item)} "
                f"| {_number(item, item.least)} to {_number(item, item.most)} | {item.runs} "
                f"| {'yes' if _use(fit) == 'used' and item.runs else 'no'} |"
            )
    yield ""
    yield "| counter | kind of run | interval | runs | families |"
    yield "|---|---|---|---|---|"
    for rule in calibration.intervals:
        yield (
            f"| {rule.counter} | {rule.kind} | {_rule(rule)} | {rule.runs} "
            f"| {_names(rule.families)} |"
        )


def _rule(rule: IntervalRule) -> str:
    if rule.high_ratio is None or rule.coverage is None:
        return rule.reason
    low = "up to" if rule.low_ratio is None else f"x {rule.low_ratio:.4g} to"
    return (
        f"{low} x {rule.high_ratio:.4g} at {rule.level:.0%}, held {rule.coverage:.1%}; "
        f"{rule.reason}"
    )


def _use(fit: Fit) -> str:
    if fit.formulas == "measured":
        return "a check, not used"
    return "used" if fit.accepted else "not used"


def _base(fit: Fit) -> str:
    return "above reserved" if fit.formulas == "measured" else f"{fit.formulas} formulas"


def _interval(item: Coefficient) -> str:
    if item.low is None or item.high is None:
        return "no run tells"
    return f"{_number(item, item.low)} to {_number(item, item.high)}"


def _is_bytes(item: Coefficient) -> bool:
    return item.unit == "B"


def _unit(item: Coefficient) -> str:
    return "MiB" if _is_bytes(item) else item.unit


def _number(item: Coefficient, value: float) -> str:
    return f"{value / MIB:.0f}" if _is_bytes(item) else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "-"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
