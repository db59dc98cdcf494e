"""Progress of a run: one plain line a finished case, and a bar with time left on a terminal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from benchmarks.needs import short_time
from benchmarks.plan import FAILED, Plan, PlannedCase
from benchmarks.runner import Outcome
from estimator.units import format_gb, format_gib
from profiler.record import Record

OnOutcome = Callable[[Outcome], None]


def outcome_line(outcome: Outcome, number: int, total: int) -> str:
    """Return `[ 3/14] ok       trace     1.23 GB    1.15 GiB   4.2 s  <case id>`."""
    place = f"[{number:>{len(str(total))}}/{total}]"
    source = outcome.planned.key.source
    record = outcome.record
    if record is None:
        return f"{place} {outcome.fate:<8} {source:<6} {outcome.planned.id}"
    return f"{place} {record_summary(record)}  {outcome.planned.id}{_why(record)}"


def record_summary(record: Record) -> str:
    """Return status, source, peak and duration in columns."""
    if record.peak is None:
        peak = " " * 23
    else:
        size_bytes = record.peak.allocated_bytes
        peak = f"{format_gb(size_bytes):>10}  {format_gib(size_bytes):>11}"
    seconds = 0.0 if record.provenance is None else record.provenance.duration_seconds
    return f"{record.status:<8} {record.source:<6} {peak}  {seconds:>5.1f} s"


def _why(record: Record) -> str:
    if record.error is not None:
        return f": {record.error.message}"
    return "".join(f" ({flag})" for flag in record.flags)


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the lines of `--dry-run`: what would run and what it needs by the estimate."""
    runs = "" if plan.total == plan.case_count else f" in {plan.total} runs"
    yield (
        f"suite {plan.suite}, source {plan.source}: {plan.case_count} cases{runs}, "
        f"{len(plan.done)} recorded, {len(plan.to_run)} to run"
    )
    if plan.to_run:
        yield f"time: a rough guess is {short_time(plan.seconds)}, one after another"
    for planned in plan.done:
        assert planned.last is not None
        yield f"{planned.last.status:<8} {_need(planned)}  {planned.id}"
    for planned in plan.to_run:
        how = "".join(f" ({word})" for word in ("alone", "history") if getattr(planned, word))
        yield f"{'to run':<8} {_need(planned)}  {planned.id}{how}"


def _need(planned: PlannedCase) -> str:
    if planned.peak_bytes is None:
        return f"{'no estimate':>23}"
    return f"{format_gb(planned.peak_bytes):>10}  {format_gib(planned.peak_bytes):>11}"


def summary_lines(outcomes: Sequence[Outcome], folder: Path) -> Iterator[str]:
    """Yield how many cases came to what, and what to do about those that are left."""
    statuses = Counter(outcome.record.status for outcome in outcomes if outcome.record)
    left = Counter(outcome.fate for outcome in outcomes if outcome.record is None)
    counts = [f"{count} {word}" for word, count in (*statuses.items(), *left.items())]
    yield f"{len(outcomes)} cases: {', '.join(counts) or 'none'}; records in {folder}"
    if any(status in FAILED for status in statuses):
        yield "some cases failed: `--rerun failed` tries them again"
    if left["no time"]:
        yield "the time budget is used up: run again to go on"
    if left["busy"]:
        yield "another run is at the busy cases: run again when it has ended"


@contextmanager
def progress(plan: Plan, stream: TextIO, quiet: bool) -> Iterator[OnOutcome]:
    """Show the outcomes that the yielded function is called with, on `stream`.

    Colours follow NO_COLOR; a dumb terminal gets plain lines, as a file does.
    """
    lines = _Lines(plan)
    if quiet:
        yield lambda outcome: None
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(plan, stream, lines) as show:
            yield show
    else:
        yield lambda outcome: print(lines.next(outcome), file=stream, flush=True)


class _Lines:
    """Numbers the outcomes, counting on from the cases that were recorded before."""

    def __init__(self, plan: Plan) -> None:
        self._total = plan.total
        self._number = len(plan.done)

    def next(self, outcome: Outcome) -> str:
        self._number += 1
        return outcome_line(outcome, self._number, self._total)


@contextmanager
def _bar(plan: Plan, stream: TextIO, lines: _Lines) -> Iterator[OnOutcome]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream, highlight=False, markup=False, soft_wrap=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(plan.suite, total=plan.total, completed=len(plan.done))

        def show(outcome: Outcome) -> None:
            bar.console.print(lines.next(outcome))
            bar.advance(task)

        yield show
