"""Writes the matrix's results as a page of the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.matrix_comparison import Comparison, Result, summarize
from benchmarks.matrix_tables import (
    COUNTERS,
    ENDS,
    by_axis,
    by_family,
    end_errors,
    errors_of,
    split,
)
from estimator.units import format_error, format_gib

_WORST = 15

_HEAD = """# The formulas against the trace

Random cases over every model type that has formulas, and over every axis of a case that both sides
know. Both sides are predictions: nothing on this page is measured. The trace plays transformers'
own code ([trace.md](trace.md)); the formulas are [formulas.md](formulas.md)'s.

This page is written by

    python -m benchmarks.matrix --seed {seed} --count {count} \\
        -o results/reports/matrix.jsonl --held-out results/reports/matrix-7042.jsonl \\
        --page docs/matrix.md

The trace's answers are kept in that file, so that only the formulas are asked again; without it the
run takes some seconds a case and core. `--seed` draws others.

Models are the catalogue's, whole or at another depth or with a larger vocabulary, and made-up ones;
each type takes its turn. Errors are relative to the trace, of peak allocated bytes where nothing
else is said; plus means over-estimate, `under` and `over` are the worst of each.
"""


_HELD_OUT = """## Held out

Cases of another seed, of which none was looked at while formulas were mended: what to expect of
cases that no one has tried.
"""


def write_page(
    path: Path, results: Sequence[Result], seed: int, count: int, held_out: Sequence[Result] = ()
) -> None:
    """Write the page.

    Args:
        results: those of the `count` cases drawn from `seed`.
        held_out: those of cases that formulas were not developed against.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_lines(results, seed, count, held_out)) + "\n", encoding="utf-8")


def _lines(
    results: Sequence[Result], seed: int, count: int, held_out: Sequence[Result]
) -> Iterator[str]:
    compared, failures = split(results)
    yield _HEAD.format(seed=seed, count=count)
    unanswered = count - len(compared)
    yield f"Drawn: {count}. Answered by both: {len(compared)}. Not answered: {unanswered}."
    yield ""
    if compared:
        yield from _totals(compared)
        yield from _apart(held_out)
        yield from _groups("Model types", ("type",), _one(by_family(compared)))
        yield from _groups("Axes", ("axis", "value"), by_axis(compared))
        yield from _worst(compared)
    yield "## Not answered"
    yield ""
    reasons = Counter((failure.side, _reason(failure.message)) for failure in failures)
    for (side, message), number in reasons.most_common():
        yield f"* {number} by the {side}: {message}"
    if len(results) < count:
        yield f"* {count - len(results)} not traced yet"
    if not failures and len(results) == count:
        yield "Nothing."


def _apart(held_out: Sequence[Result]) -> Iterator[str]:
    compared, failures = split(held_out)
    if not compared:
        return
    yield _HELD_OUT
    yield f"Answered by both: {len(compared)}. Not answered: {len(failures)}."
    yield ""
    yield from _totals(compared)


def _reason(message: str) -> str:
    """Return why, without the model's name: many models are refused for one reason."""
    return message.partition(" cannot be traced: ")[2] or message


def _one(groups: dict[str, list[Comparison]]) -> dict[tuple[str, ...], list[Comparison]]:
    return {(name,): items for name, items in groups.items()}


def _totals(compared: Sequence[Comparison]) -> Iterator[str]:
    yield "| what | n | median | 95 % within | under | over |"
    yield "|---|---:|---:|---:|---:|---:|"
    rows = [(f"peak {name}", errors_of(compared, name)) for name in COUNTERS]
    rows += [(name, end_errors(compared, phase)) for name, phase in ENDS.items()]
    for name, errors in rows:
        if not errors:
            continue
        one = summarize(errors)
        yield (
            f"| {name} | {one.count} | {100 * one.median:.4f} % | {100 * one.percentile_95:.4f} % "
            f"| {100 * one.worst_under:+.3f} % | {100 * one.worst_over:+.3f} % |"
        )
    yield ""
    errors = errors_of(compared, "allocated")
    yield (
        f"Beyond 2 %: {sum(abs(error) > 0.02 for error in errors)}; beyond 5 %: "
        f"{sum(abs(error) > 0.05 for error in errors)}; under by more than 2 %: "
        f"{sum(error < -0.02 for error in errors)}."
    )
    yield ""


def _groups(
    title: str, names: tuple[str, ...], groups: dict[tuple[str, ...], list[Comparison]]
) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield f"| {' | '.join(names)} | n | median | 95 % within | under | over |"
    yield f"|{'---|' * len(names)}---:|---:|---:|---:|---:|"
    for values, items in groups.items():
        one = summarize(errors_of(items, "allocated"))
        yield (
            f"| {' | '.join(f'`{value}`' for value in values)} | {one.count} "
            f"| {100 * one.median:.3f} % | {100 * one.percentile_95:.3f} % "
            f"| {format_error(one.worst_under)} | {format_error(one.worst_over)} |"
        )
    yield ""


def _worst(compared: Sequence[Comparison]) -> Iterator[str]:
    yield "## The worst"
    yield ""
    yield "| case | traced | phase | requested | allocated |"
    yield "|---|---:|---|---:|---:|"
    for item in sorted(compared, key=lambda one: -abs(one.allocated_error))[:_WORST]:
        peak = item.trace.peak
        yield (
            f"| {item.case.label} | {format_gib(peak.allocated_bytes)} | {peak.phase} "
            f"| {format_error(item.requested_error)} | {format_error(item.allocated_error)} |"
        )
    yield ""
