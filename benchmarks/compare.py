"""Compares estimates with records, or records with records, case by case.

Pairs are made by `Case.case_id`. The reference is what errors are divided by: the records'
figure where estimates are judged, BASE's where two sets of records are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from benchmarks.error_summary import ErrorSummary, summarize
from benchmarks.judged import Judged, case_keys, judge_counters, judge_report
from benchmarks.sides import Side, SideCase
from benchmarks.store import Problem
from estimator import estimate
from estimator.case import Case
from estimator.errors import GpumemError
from estimator.report import MemoryReport
from estimator.units import relative_error
from profiler.environment import LIBRARIES, Environment

ESTIMATES = ("architecture", "article")
"""The sets of formulas that are held against records, the one that `estimate` uses first."""

PREDICTIONS = (*ESTIMATES, "trace")
"""What is held against measurements; the trace only where it is asked for."""

COUNTERS = ("peak_requested", "peak_allocated", "peak_reserved")

WORDS = {"trace": "traced", "cuda": "measured", "published": "published"}
"""What people are told: a trace is a simulation and is never called measured."""

_MACHINE = ("gpu", "allocator", "cublas_workspace")
"""What must be equal even where library versions may differ."""

Estimator = Callable[[Case, str], MemoryReport]
Tracer = Callable[[Case], MemoryReport]


class CompareError(GpumemError):
    """The two sides cannot be compared; the message names the way out."""


@dataclass(frozen=True, slots=True)
class Row:
    """One case: the reference, and what is held against it by name.

    The names are `architecture` and `article`, or `new` where two sets of records are compared.
    """

    case_id: str
    label: str
    reference: MemoryReport
    compared: dict[str, MemoryReport]
    flags: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    """What it is grouped by beside its case: a published row's source and tier."""

    def error(self, name: str) -> float:
        """Return the relative error of peak allocated bytes: plus is above the reference."""
        return relative_error(
            self.compared[name].peak.allocated_bytes, self.reference.peak.allocated_bytes
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A case that could not be compared. `failed` says that NEW has no figure where BASE has."""

    label: str
    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class RanOut:
    """A run that is known to have needed more than its card has: one-sided evidence.

    `predicted` are the peaks of allocated bytes by predictor, `capacity_bytes` the whole card.
    """

    label: str
    capacity_bytes: int
    predicted: dict[str, int]

    def said_to_fit(self, name: str) -> bool:
        """Whether a predictor's peak is below what the card has: the answer that was wrong."""
        return self.predicted[name] <= self.capacity_bytes


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything a table, a report or a threshold needs; holds no paths and opens no files.

    `kind` is `estimates` or `records`; `judged` the name in `compared` that thresholds look at.
    """

    kind: str
    base: str
    new: str
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    environments: dict[str, Environment] = field(default_factory=dict)
    further: tuple[Judged, ...] = ()
    """Figures that are no peak of allocated bytes, for tables that ask for them."""
    ran_out: tuple[RanOut, ...] = ()

    @property
    def judged(self) -> str:
        """The name of the answer that `--fail-on` judges."""
        return ESTIMATES[0] if self.kind == "estimates" else "new"

    @property
    def names(self) -> tuple[str, ...]:
        """The names that any row has something under, in the order to show them."""
        order = (*PREDICTIONS, "new")
        return tuple(name for name in order if any(name in row.compared for row in self.rows))

    @property
    def summaries(self) -> tuple[ErrorSummary, ...]:
        """One summary a name, over the rows that have it."""
        return tuple(
            summarize(name, [(r.label, r.error(name)) for r in self.rows if name in r.compared])
            for name in self.names
        )


def all_judged(comparison: Comparison, counters: bool = False) -> Iterator[Judged]:
    """Yield every figure of a comparison that can be judged, with what it is grouped by.

    Args:
        counters: whether reserved and device bytes are judged, beside allocated ones.
    """
    for row in comparison.rows:
        keys = {**case_keys(row.reference.case), **row.keys}
        for name, report in row.compared.items():
            yield from judge_report(name, row.label, report, row.reference, keys)
            if counters:
                yield from judge_counters(name, row.label, report, row.reference, keys)
    yield from comparison.further


def predictions(
    case: Case, label: str, left_out: list[LeftOut], estimator: Estimator, trace: Tracer | None
) -> dict[str, MemoryReport]:
    """Return what the formulas, and the trace if there is one, say of a case."""
    found: dict[str, MemoryReport] = {}
    for formulas in ESTIMATES:
        try:
            found[formulas] = estimator(case, formulas)
        except GpumemError as error:
            left_out.append(LeftOut(label, f"no {formulas} estimate: {error}"))
    if trace is not None:
        try:
            found["trace"] = trace(case)
        except GpumemError as error:
            left_out.append(LeftOut(label, f"no trace: {error}"))
    return found


def counter_bytes(report: MemoryReport, counter: str) -> int | None:
    """Return one of `COUNTERS` of a report, None where its source does not know it."""
    value: int | None = getattr(report.peak, counter.removeprefix("peak_") + "_bytes")
    return value


def compare_estimates(
    side: Side,
    estimates_first: bool = True,
    estimator: Estimator = estimate,
    trace: Tracer | None = None,
) -> Comparison:
    """Hold both sets of formulas, computed now, against the records of a side.

    Args:
        trace: how to trace a case, where the trace is to be judged too.
    """
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    for (case_id, _), entry in side.cases.items():
        label = entry.case.label
        reference = _usable(entry, label, left_out, side.name)
        if reference is None:
            continue
        compared = predictions(entry.predicted_case, label, left_out, estimator, trace)
        rows.append(Row(case_id, label, reference, compared, entry.flags))
    notes = [*side.notes(), *_several_sources(side)]
    base, new = ("estimates", side.name) if estimates_first else (side.name, "estimates")
    return Comparison(
        kind="estimates",
        base=base,
        new=new,
        rows=_ordered(rows),
        left_out=tuple(left_out),
        problems=side.problems,
        notes=tuple(dict.fromkeys(notes)),
        environments=side.environments,
    )


def compare_records(
    base: Side,
    new: Side,
    across_environments: bool = False,
    *,
    across_versions: bool = False,
    whole: bool = False,
) -> Comparison:
    """Hold the records of NEW against those of BASE.

    A case that both sides have from one source is compared within that source.

    Args:
        across_environments: compare records whatever they were made with.
        across_versions: compare records of other library, driver and tracer versions, as a
            baseline is there for; source, GPU and allocator settings must be equal all the same.
        whole: a case that BASE has and NEW has not counts as failed.

    Raises:
        CompareError: when pairs come from different environments and that was not asked for.
    """
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    pairs, lonely = _pair(base, new)
    unequal = [pair for pair in pairs if pair[0].environment_id != pair[1].environment_id]
    refused = [pair for pair in unequal if not (across_versions and _same_machine(*pair))]
    if refused and not across_environments:
        raise CompareError(_explain_environments(refused))
    for ours, theirs in pairs:
        label = ours.case.label
        reference = _usable(ours, label, left_out, base.name)
        if reference is None:
            continue
        answer = _usable(theirs, label, left_out, new.name, failed=True)
        if answer is None:
            continue
        flags = (*(f"base: {flag}" for flag in ours.flags), *(f"new: {f}" for f in theirs.flags))
        rows.append(Row(ours.case_id, label, reference, {"new": answer}, flags))
    left_out += [
        LeftOut(entry.case.label, f"only in {name}", whole and name == base.name)
        for entry, name in lonely
    ]
    notes = [*base.notes(), *new.notes()]
    notes += _workspaces_differ(pairs)
    if unequal:
        kinds = {
            (ours.environment_id, theirs.environment_id): (ours, theirs) for ours, theirs in unequal
        }
        found = dict.fromkeys(_differences(*pair) for pair in kinds.values())
        notes += [f"across environments: {differences}" for differences in found]
    return Comparison(
        kind="records",
        base=base.name,
        new=new.name,
        rows=_ordered(rows),
        left_out=tuple(left_out),
        problems=base.problems + new.problems,
        notes=tuple(dict.fromkeys(notes)),
        environments=base.environments | new.environments,
    )


def _workspaces_differ(pairs: Iterable[tuple[SideCase, SideCase]]) -> Iterator[str]:
    """Say so where a traced record has another card's workspaces than the measured one."""
    count = sum(
        ours.workspace_bytes != theirs.workspace_bytes
        for ours, theirs in pairs
        if ours.record.source != theirs.record.source
    )
    if count:
        yield (
            f"{count} cases were traced with other cuBLAS workspaces than those of the GPU that "
            "measured them: `gpumem compare estimates MEASURED --trace` traces them for that card"
        )


def _usable(
    entry: SideCase, label: str, left_out: list[LeftOut], side: str, failed: bool = False
) -> MemoryReport | None:
    """Return a record's report, or note why it cannot be compared."""
    record = entry.record
    report = record.report if record.status == "ok" else None
    if report is None:
        why = "" if record.error is None else f": {record.error.message}"
        left_out.append(LeftOut(label, f"{record.status} in {side}{why}", failed))
    elif report.peak.allocated_bytes <= 0:
        left_out.append(LeftOut(label, f"its peak in {side} is 0 bytes", failed))
        return None
    return report


def _pair(
    base: Side, new: Side
) -> tuple[list[tuple[SideCase, SideCase]], list[tuple[SideCase, str]]]:
    pairs = [(base.cases[key], new.cases[key]) for key in base.cases if key in new.cases]
    paired = {entry.case_id for entry, _ in pairs}
    # What is left has no record of the same source on the other side: traced against measured.
    others = {case_id: entry for (case_id, _), entry in new.cases.items() if case_id not in paired}
    lonely: list[tuple[SideCase, str]] = []
    for (case_id, _), entry in base.cases.items():
        if case_id in paired:
            continue
        other = others.pop(case_id, None)
        if other is None:
            lonely.append((entry, base.name))
        else:
            pairs.append((entry, other))
    lonely += [(entry, new.name) for entry in others.values()]
    return pairs, lonely


def _ordered(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Sort by label, and tell apart the labels that are there twice."""
    rows = list(rows)
    counts = Counter(row.label for row in rows)
    named = [
        replace(row, label=f"{row.label} [{row.case_id[:6]}]") if counts[row.label] > 1 else row
        for row in rows
    ]
    return tuple(sorted(named, key=lambda row: (row.label.lower(), row.reference.source)))


def _several_sources(side: Side) -> Iterable[str]:
    sources = sorted({source for _, source in side.cases})
    if len(sources) > 1:
        yield f"{side.name} holds records that were {' and '.join(WORDS[s] for s in sources)}"


def _same_machine(ours: SideCase, theirs: SideCase) -> bool:
    """Whether two records differ in versions at most."""
    first, second = ours.record.environment, theirs.record.environment
    if first is None or second is None or ours.record.source != theirs.record.source:
        return False
    return all(getattr(first, name) == getattr(second, name) for name in _MACHINE)


def _explain_environments(unequal: list[tuple[SideCase, SideCase]]) -> str:
    return (
        f"{len(unequal)} pairs of records come from different environments "
        f"({_differences(*unequal[0])}): --across-environments compares them all the same"
    )


def _differences(ours: SideCase, theirs: SideCase) -> str:
    """Say what differs between two records' environments, such as `torch 2.12.0 and 2.13.0`."""
    if ours.record.source != theirs.record.source:
        return f"{WORDS[ours.record.source]} and {WORDS[theirs.record.source]}"
    first, second = ours.record.environment, theirs.record.environment
    if first is None or second is None:
        return "one does not say which"
    names = ("gpu", "driver", "cuda", *LIBRARIES, "allocator", "cublas_workspace", "tracer")
    found = [
        f"{name} {getattr(first, name) or 'none'} and {getattr(second, name) or 'none'}"
        for name in names
        if getattr(first, name) != getattr(second, name)
    ]
    return ", ".join(found) or "of different ids"
