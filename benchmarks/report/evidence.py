"""What a report is made from: cases with a reference, and what was predicted for them.

A reference is what was measured, published or traced, in this order of trust; each of the three is
a set of its own, because an error against a trace is not an error against a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.compare import (
    ESTIMATES,
    PREDICTIONS,
    Comparison,
    Estimator,
    LeftOut,
    RanOut,
    Row,
    compare_estimates,
)
from benchmarks.error_summary import ErrorSummary, summarize
from benchmarks.judged import Group, case_keys, group, judge_report
from benchmarks.sides import Side, SideCase
from estimator import estimate

WORDS = {"cuda": "measured", "published": "published", "trace": "traced"}
"""Sources of references and what people are told, the most trusted first."""

KINDS = {
    "inference": "inference",
    "full": "full training",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "dora": "DoRA",
    "qdora": "QDoRA",
}
"""What `judged.case_keys` calls a method, and what people are told."""


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """All cases with one kind of reference, in the order of their labels."""

    word: str
    rows: tuple[Row, ...]
    ran_out: tuple[RanOut, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The predictions that any case has, in the order to show them."""
        return tuple(n for n in PREDICTIONS if any(n in row.compared for row in self.rows))

    @property
    def summaries(self) -> tuple[ErrorSummary, ...]:
        """One summary a prediction, over the cases that have it."""
        return tuple(
            summarize(name, [(r.label, r.error(name)) for r in self.rows if name in r.compared])
            for name in self.names
        )

    def groups(self, by: Sequence[str]) -> tuple[Group, ...]:
        """Return errors by keys of `judged.KEYS`, a prediction at a time."""
        return group(
            (
                judged
                for row in self.rows
                for name, report in row.compared.items()
                for judged in judge_report(
                    name,
                    row.label,
                    report,
                    row.reference,
                    {**case_keys(row.reference.case), **row.keys},
                )
            ),
            by,
        )

    def worst(self, count: int) -> list[Row]:
        """Return the cases whose first prediction is furthest off, the worst first."""
        rows = [row for row in self.rows if ESTIMATES[0] in row.compared]
        return sorted(rows, key=lambda row: abs(row.error(ESTIMATES[0])), reverse=True)[:count]

    def said_to_fit(self) -> list[tuple[str, int, int]]:
        """Return (prediction, wrong, all) of runs that ran out of memory: wrong says it fits."""
        found = []
        for name in PREDICTIONS:
            runs = [run for run in self.ran_out if name in run.predicted]
            if runs:
                found.append((name, sum(run.said_to_fit(name) for run in runs), len(runs)))
        return found


def kind_of(row: Row) -> str:
    """Return the kind of run, one of `KINDS`' values."""
    return KINDS[case_keys(row.reference.case)["method"]]


def gather(
    sides: Iterable[Side], published: Comparison | None = None, estimator: Estimator = estimate
) -> tuple[tuple[ReferenceSet, ...], tuple[str, ...]]:
    """Return the sets that have a case, and in sentences what was left out.

    A case that was traced and measured is judged against the measurement, the trace being one of
    its predictions (unless it has another card's workspaces), and once more against the trace. Of
    several records of a case the newest counts.

    Args:
        published: the formulas held against published figures.
    """
    entries = _newest(sides)
    found: dict[str, list[Row]] = {source: [] for source in WORDS}
    left_out: list[LeftOut] = []
    for source in ("trace", "cuda"):
        side = Side("the records", {k: e for k, e in entries.items() if k[1] == source}, ())
        own = compare_estimates(side, estimator=estimator)
        traced = {row.case_id: row.reference for row in found["trace"]}
        for row in own.rows:
            trace = traced.get(row.case_id)
            if trace is not None and (
                entries[row.case_id, "trace"].workspace_bytes
                != entries[row.case_id, source].workspace_bytes
            ):
                trace = None
            compared = row.compared if trace is None else {**row.compared, "trace": trace}
            found[source].append(replace(row, compared=compared))
        left_out += own.left_out
    if published is not None:
        found["published"] += published.rows
        left_out += published.left_out
    sets = tuple(
        ReferenceSet(
            WORDS[source],
            tuple(sorted(rows, key=lambda row: row.label.lower())),
            published.ran_out if published is not None and source == "published" else (),
        )
        for source, rows in found.items()
        if any(row.compared for row in rows)
    )
    return sets, tuple(dict.fromkeys(f"{gone.label}: {gone.reason}" for gone in left_out))


def _newest(sides: Iterable[Side]) -> dict[tuple[str, str], SideCase]:
    entries: dict[tuple[str, str], SideCase] = {}
    for side in sides:
        for key, entry in side.cases.items():
            if key not in entries or entry.started_at >= entries[key].started_at:
                entries[key] = entry
    return entries
