"""What a report is made from: cases with a reference and what was predicted for them.

A reference is what was measured, published or traced, in this order of trust; each of the three is
a set of its own, because an error against a trace is not an error against a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.error_summary import ErrorSummary, percentile, summarize
from benchmarks.evidence.rows import PublishedRow
from benchmarks.sides import Side, SideCase
from estimator import estimate
from estimator.case import Case
from estimator.errors import GpumemError
from estimator.report import MemoryReport
from estimator.units import relative_error

PREDICTIONS = ("architecture", "article", "trace")
"""What may be held against a reference, in the order to show it; the first is what is judged."""

WORDS = ("measured", "published", "traced")
"""The kinds of references, the most trusted first."""

KINDS = ("inference", "full training", "LoRA", "QLoRA")

Estimator = Callable[[Case, str], MemoryReport]


@dataclass(frozen=True, slots=True)
class Judged:
    """A case, its reference, and what was predicted for it by name.

    `report` is the reference as a report, None for published figures, which are one number;
    `source` their citation. `flags` say why a reference may not be trusted.
    """

    case: Case
    label: str
    reference_bytes: int
    predicted: dict[str, MemoryReport]
    report: MemoryReport | None = None
    source: str | None = None
    flags: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if not self.case.training:
            return "inference"
        if self.case.method == "full":
            return "full training"
        return "QLoRA" if self.case.quantization else "LoRA"

    def error(self, name: str) -> float:
        """Return the relative error of peak allocated bytes: plus is an over-estimate."""
        return relative_error(self.predicted[name].peak.allocated_bytes, self.reference_bytes)


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """All cases with one kind of reference, in the order of their labels."""

    word: str
    cases: tuple[Judged, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The predictions that any case has, in the order to show them."""
        return tuple(n for n in PREDICTIONS if any(n in case.predicted for case in self.cases))

    @property
    def summaries(self) -> tuple[ErrorSummary, ...]:
        """One summary a prediction, over the cases that have it."""
        return tuple(
            summarize(name, [(c.label, c.error(name)) for c in self.cases if name in c.predicted])
            for name in self.names
        )

    def margin(self, name: str, share: float) -> float:
        """Return what must be added to a prediction so that it is enough in `share` of cases."""
        needed = sorted(
            max(0.0, case.reference_bytes / case.predicted[name].peak.allocated_bytes - 1)
            for case in self.cases
            if name in case.predicted
        )
        return percentile(needed, share)

    def worst(self, count: int) -> list[Judged]:
        """Return the cases whose first prediction is furthest off, the worst first."""
        judged = [case for case in self.cases if PREDICTIONS[0] in case.predicted]
        return sorted(judged, key=lambda c: abs(c.error(PREDICTIONS[0])), reverse=True)[:count]


def judge(
    sides: Iterable[Side],
    published: Iterable[PublishedRow] = (),
    estimator: Estimator = estimate,
) -> tuple[tuple[JudgedSet, ...], tuple[str, ...]]:
    """Return the sets that have a case, and in sentences what was left out.

    A case that was traced and measured is judged against the measurement, the trace being one of
    its predictions, and once more against the trace. Of several records of a case the newest
    counts.
    """
    found: dict[str, list[Judged]] = {word: [] for word in WORDS}
    left_out: list[str] = []
    entries: dict[tuple[str, str], SideCase] = {}
    for side in sides:
        for key, entry in side.cases.items():
            if key not in entries or entry.started_at >= entries[key].started_at:
                entries[key] = entry
    for (case_id, source), entry in entries.items():
        record = entry.record
        report = record.report if record.status == "ok" else None
        if report is None or report.peak.allocated_bytes <= 0:
            why = "" if record.error is None else f": {record.error.message}"
            left_out.append(f"{entry.case.label}: {record.status}{why}")
            continue
        predicted = dict(_estimates(entry.case, estimator, left_out))
        if source == "cuda":
            other = entries.get((case_id, "trace"))
            traced = None if other is None else other.record.report
            if traced is not None and traced.peak.allocated_bytes > 0:
                predicted["trace"] = traced
        word = "measured" if source == "cuda" else "traced"
        size_bytes = report.peak.allocated_bytes
        label = entry.case.label
        found[word].append(
            Judged(entry.case, label, size_bytes, predicted, report, flags=entry.flags)
        )
    for row in published:
        if row.case is not None and row.size_bytes:
            predicted = dict(_estimates(row.case, estimator, left_out))
            found["published"].append(
                Judged(row.case, row.case.label, row.size_bytes, predicted, None, row.source)
            )
    sets = tuple(
        JudgedSet(word, tuple(sorted(cases, key=lambda case: case.label.lower())))
        for word, cases in found.items()
        if any(case.predicted for case in cases)
    )
    return sets, tuple(dict.fromkeys(left_out))


def _estimates(
    case: Case, estimator: Estimator, left_out: list[str]
) -> Iterator[tuple[str, MemoryReport]]:
    for formulas in ("architecture", "article"):
        try:
            report = estimator(case, formulas)
        except GpumemError as error:
            left_out.append(f"{case.label}: no {formulas} estimate: {error}")
        else:
            if report.peak.allocated_bytes > 0:
                yield formulas, report
