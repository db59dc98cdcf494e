"""`--fail-on`: limits that turn a comparison into an exit code.

`peak_allocated:+1%` fails on growth above 1 %, `-1%` on shrinkage, `1%` on either;
`+32MiB` takes bytes. Items are joined by commas, each is judged on its own, and one without a
counter takes the counter before it.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from benchmarks.compare import COUNTERS, Comparison, Row, counter_bytes
from estimator.errors import GpumemError, show_choices, show_value
from estimator.suggest import did_you_mean
from estimator.units import format_both, format_error, relative_error

_LIMIT = re.compile(r"([+-]?)(\d{1,15}(?:\.\d{1,9})?) ?(%|B|KiB|MiB|GiB|kB|KB|MB|GB)")
_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


class ThresholdError(GpumemError):
    """`--fail-on` cannot be read, or there is nothing to judge by it."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit on the change of a counter. `direction` is 1, -1, or 0 for both ways.

    Exactly one of `share` (0.01 is 1 %) and `size_bytes` is set.
    """

    text: str
    counter: str
    direction: int
    share: Fraction | None = None
    size_bytes: Fraction | None = None

    @property
    def mirrored(self) -> Threshold:
        """The same limit in the other direction, `+1%` for `-1%`."""
        sign = {1: "-", -1: "+", 0: ""}[self.direction]
        limit = self.text.removeprefix(f"{self.counter}:").lstrip("+-")
        return replace(self, text=f"{self.counter}:{sign}{limit}", direction=-self.direction)

    def exceeded(self, base_bytes: int, new_bytes: int) -> bool:
        """Return whether the change from base to new is more than the limit allows."""
        change = new_bytes - base_bytes
        change = abs(change) if self.direction == 0 else change * self.direction
        limit = self.share * base_bytes if self.share is not None else self.size_bytes
        assert limit is not None
        return change > limit


@dataclass(frozen=True, slots=True)
class Offender:
    """A case that a threshold caught (or could not judge), in one sentence.

    `fails` is False for a drop: memory that was saved is shown, but fails no gate that did not
    ask for it.
    """

    label: str
    threshold: str
    sentence: str
    fails: bool = True


def parse_thresholds(text: str) -> tuple[Threshold, ...]:
    """Read `peak_allocated:+1%,+32MiB,peak_reserved:1%`.

    Raises:
        ThresholdError: naming the item and what is allowed.
    """
    thresholds: list[Threshold] = []
    counter: str | None = None
    for item in text.split(","):
        name, colon, limit = item.strip().rpartition(":")
        if colon:
            counter = name.strip()
        if counter is None:
            example = f"peak_allocated:{limit or '+1%'}"
            raise ThresholdError(f"--fail-on {show_value(text)} names no counter: write {example}")
        if counter not in COUNTERS:
            raise ThresholdError(
                f"--fail-on: counter is {show_value(counter)}, but must be "
                f"{show_choices(COUNTERS)}{did_you_mean(counter, COUNTERS)}"
            )
        thresholds.append(_parse_limit(counter, limit.strip()))
    return tuple(thresholds)


def _parse_limit(counter: str, limit: str) -> Threshold:
    match = _LIMIT.fullmatch(limit)
    if match is None:
        raise ThresholdError(
            f"--fail-on: limit is {show_value(limit)}, but must be like +1%, -1%, 1% or +32MiB"
        )
    sign, number, unit = match.groups()
    direction = {"+": 1, "-": -1, "": 0}[sign]
    text = f"{counter}:{limit}"
    if unit == "%":
        return Threshold(text, counter, direction, share=Fraction(number) / 100)
    return Threshold(text, counter, direction, size_bytes=Fraction(number) * _UNITS[unit])


def find_offenders(
    comparison: Comparison, thresholds: tuple[Threshold, ...]
) -> tuple[Offender, ...]:
    """Return what the thresholds catch, and the cases that NEW has no figure for but BASE has.

    A counter that a source does not know counts as caught: a gate must not pass unseen.

    Raises:
        ThresholdError: when no case at all could be judged.
    """
    offenders = [
        Offender(gone.label, "failed", f"{gone.label}: {gone.reason}")
        for gone in comparison.left_out
        if gone.failed
    ]
    judged = [row for row in comparison.rows if comparison.judged in row.compared]
    if not judged and not offenders:
        raise ThresholdError("--fail-on has nothing to judge: the two sides share no usable case")
    for row in judged:
        for threshold in thresholds:
            sentence = _judge(row, comparison.judged, threshold)
            if sentence is not None:
                offenders.append(Offender(row.label, threshold.text, sentence))
    return tuple(offenders)


def find_drops(comparison: Comparison, thresholds: tuple[Threshold, ...]) -> tuple[Offender, ...]:
    """Return, between records, what fell by more than a threshold lets it grow.

    Counters whose fall a threshold judges itself (`-1%`, `1%`) are left to it.
    """
    if comparison.kind != "records":
        return ()
    judged = {threshold.counter for threshold in thresholds if threshold.direction < 1}
    limits = [t.mirrored for t in thresholds if t.counter not in judged]
    name = comparison.judged
    drops = []
    for row, threshold in itertools.product(comparison.rows, limits):
        sizes = [counter_bytes(r, threshold.counter) for r in (row.reference, row.compared[name])]
        sentence = None if None in sizes else _judge(row, name, threshold)
        if sentence is not None:
            drops.append(Offender(row.label, threshold.text, sentence, fails=False))
    return tuple(drops)


def _judge(row: Row, name: str, threshold: Threshold) -> str | None:
    base_bytes = counter_bytes(row.reference, threshold.counter)
    new_bytes = counter_bytes(row.compared[name], threshold.counter)
    if base_bytes is None or new_bytes is None:
        whose = row.reference.source if base_bytes is None else row.compared[name].source
        return f"{row.label}: {threshold.counter} is not known to {whose} ({threshold.text})"
    if not threshold.exceeded(base_bytes, new_bytes):
        return None
    change = format_error(relative_error(new_bytes, base_bytes)) if base_bytes else "from 0"
    return (
        f"{row.label}: {threshold.counter} {format_both(base_bytes)} -> {format_both(new_bytes)}, "
        f"{change} ({threshold.text})"
    )
