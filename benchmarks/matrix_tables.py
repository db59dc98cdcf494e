"""The matrix's results as text: the totals, tables by family and by axis, the worst cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from benchmarks.matrix_answers import Answer
from benchmarks.matrix_comparison import Comparison, Failure, Result, Summary, summarize
from estimator.case import Case
from estimator.config_source import load_config
from estimator.units import format_error, format_gib

COUNTERS = ("requested", "allocated")
ENDS = {
    "weights, after loading": "load",
    "weights and optimizer states, after a step": "optimizer_step",
}
"""What is allocated when a phase has ended, by what it is."""


def split(results: Sequence[Result]) -> tuple[list[Comparison], list[Failure]]:
    """Return what was compared, and what one side did not answer."""
    compared = [result for result in results if isinstance(result, Comparison)]
    return compared, [result for result in results if isinstance(result, Failure)]


def errors_of(compared: Sequence[Comparison], counter: str) -> list[float]:
    """Return the relative errors of a counter of `COUNTERS`."""
    return [getattr(item, f"{counter}_error") for item in compared]


def end_errors(compared: Sequence[Comparison], phase: str) -> list[float]:
    """Return the relative errors of what is left after a phase, of the cases that have it."""
    found = (item.end_error(phase) for item in compared)
    return [error for error in found if error is not None]


def beyond(compared: Sequence[Comparison]) -> str:
    """Return how many peaks are far off, in one line."""
    errors = errors_of(compared, "allocated")
    return (
        f"allocated beyond 2 %: {sum(abs(error) > 0.02 for error in errors)}, "
        f"beyond 5 %: {sum(abs(error) > 0.05 for error in errors)}, "
        f"under by more than 2 %: {sum(error < -0.02 for error in errors)}"
    )


def family(case: Case) -> str:
    """Return the case's model type."""
    return load_config(case.model).model_type


def axes(item: Comparison) -> Iterator[tuple[str, str]]:
    """Yield (axis, value) pairs of a case, as the tables name them."""
    case = item.case
    dora = case.lora is not None and case.lora.use_dora
    yield "task", case.task
    yield "dtype", case.dtype
    yield "attention", case.attention
    yield "quantization", str(case.quantization)
    yield "autocast", str(case.mixed_precision)
    yield "method", "dora" if dora else case.method
    if case.training:
        yield "optimizer", case.optimizer
        yield "checkpointing", str(case.gradient_checkpointing).lower()
        yield "accumulation", str(case.gradient_accumulation_steps)
        yield "keep_logits", str(case.keep_logits).lower()
        yield "loss", case.loss
    else:
        yield "cache", case.cache
    if case.stack is not None:
        yield "stack", case.stack
    yield "parameters", _range(item.trace.parameters.total / 1e9, (0, 1, 10, 100), " B")
    yield "batch", _range(case.batch_size, (1, 2, 5, 17))
    yield "length", _range(case.sequence_length, (1, 512, 2048, 8192, 16_385))


def _range(value: float, ends: tuple[int, ...], unit: str = "") -> str:
    """Return the half-open range that a value is in, numbered so that ranges sort."""
    last = max(index for index, end in enumerate(ends) if value >= end)
    if last + 1 == len(ends):
        return f"{last + 1}: from {ends[last]}{unit}"
    return f"{last + 1}: {ends[last]} to below {ends[last + 1]}{unit}"


def by_family(compared: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Return the comparisons of each model type, in the order of their names."""
    groups: dict[str, list[Comparison]] = {}
    for item in compared:
        groups.setdefault(family(item.case), []).append(item)
    return dict(sorted(groups.items()))


def by_axis(compared: Sequence[Comparison]) -> dict[tuple[str, ...], list[Comparison]]:
    """Return the comparisons of each value of each axis, axes in the order of `axes`."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    order: list[str] = []
    for item in compared:
        for axis, value in axes(item):
            if axis not in order:
                order.append(axis)
            groups.setdefault((axis, value), []).append(item)
    return dict(sorted(groups.items(), key=lambda pair: (order.index(pair[0][0]), pair[0][1])))


def text_lines(results: Sequence[Result], show: int, groups: bool) -> Iterator[str]:
    """Yield the totals, the tables where `groups`, and the `show` worst cases with what differs."""
    compared, failures = split(results)
    for (side, message), count in Counter((f.side, f.message) for f in failures).most_common():
        yield f"no answer of the {side} ({count}): {message}"
    if not compared:
        return
    for counter in COUNTERS:
        yield f"{counter}: {_totals(summarize(errors_of(compared, counter)))}"
    for name, phase in ENDS.items():
        if errors := end_errors(compared, phase):
            yield f"{name}: {_totals(summarize(errors), digits=4)}"
    yield beyond(compared)
    elsewhere = sum(item.formulas.peak.phase != item.trace.peak.phase for item in compared)
    yield f"peak in another phase than the trace's: {elsewhere}"
    if groups:
        yield from _table("family", {(name,): items for name, items in by_family(compared).items()})
        yield from _table("axis", by_axis(compared))
    for item in sorted(compared, key=lambda c: -abs(c.allocated_error))[:show]:
        yield describe(item)


def _totals(summary: Summary, digits: int = 3) -> str:
    return (
        f"{summary.count} cases, median {100 * summary.median:.{digits}f} %, "
        f"95 % within {100 * summary.percentile_95:.{digits}f} %, worst "
        f"{100 * summary.worst:.{max(2, digits - 1)}f} %, "
        f"worst under-estimate {format_error(summary.worst_under)}"
    )


def _table(title: str, groups: dict[tuple[str, ...], list[Comparison]]) -> Iterator[str]:
    yield ""
    yield f"{title:<38}{'n':>5}{'median':>10}{'95th':>9}{'under':>9}{'over':>9}"
    for values, items in groups.items():
        one = summarize(errors_of(items, "allocated"))
        yield (
            f"{' '.join(values):<38}{one.count:>5}{100 * one.median:>8.3f} %"
            f"{100 * one.percentile_95:>7.2f} %{100 * one.worst_under:>+7.2f} %"
            f"{100 * one.worst_over:>+7.2f} %"
        )
    yield ""


def describe(item: Comparison) -> str:
    """Return one case with its errors and the components that differ most."""
    differences = sorted(item.differences().items(), key=lambda pair: -abs(pair[1]))[:3]
    peak = item.trace.peak
    return (
        f"{format_error(item.requested_error)} requested, "
        f"{format_error(item.allocated_error)} allocated: {item.case.label} "
        f"[{item.case.case_id}] {format_gib(peak.allocated_bytes)} in {peak.phase} "
        f"(formulas: {item.formulas.peak.phase}); "
        + ", ".join(f"{name} {size:+d} B" for name, size in differences)
    )


def slowest_lines(answers: Sequence[Answer], show: int) -> Iterator[str]:
    """Yield where the trace's seconds went."""
    total = sum(answer.seconds for answer in answers)
    yield f"traced in {total:.0f} s of one core each, {total / max(1, len(answers)):.2f} s a case"
    for answer in sorted(answers, key=lambda one: -one.seconds)[:show]:
        yield f"{answer.seconds:7.1f} s  {answer.case.label} [{answer.case.case_id}]"
