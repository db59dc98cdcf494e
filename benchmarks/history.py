"""The history of cases: what each took under each set of versions it was ever run with.

A point of time is a set of versions (torch, CUDA, transformers, peft, bitsandbytes, accelerate,
driver, and the tracer's code for traces), not a date: a suite can be run today under last year's
libraries. Points are ordered by version, as packaging.version does; equal versions (the tracer's
code has a hash, not a version) by the date of their first record.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.case_ids import case_slug
from benchmarks.sides import Side, SideCase
from estimator.report import COMPONENTS, MemoryReport
from estimator.units import relative_error
from profiler.environment import Environment

VERSIONS = (
    "torch",
    "cuda",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "driver",
    "tracer",
)
"""The fields of an environment whose change makes a new point, in the order of the history."""

_MACHINE = ("gpu", "allocator", "cublas_workspace")


@dataclass(frozen=True, slots=True)
class Figure:
    """What a case came to at one point: a report, or the reason why there is none."""

    report: MemoryReport | None
    reason: str | None = None

    @property
    def peak_bytes(self) -> int | None:
        """Peak allocated bytes, None where there is no report."""
        return None if self.report is None else self.report.peak.allocated_bytes


@dataclass(frozen=True, slots=True)
class Change:
    """A step of a case's history from one figure to the next that exists.

    `component` is the one whose bytes at the peak changed most, `component_bytes` by how much.
    """

    first: int
    second: int
    change_bytes: int
    relative: float
    component: str | None
    component_bytes: int


@dataclass(frozen=True, slots=True)
class CaseHistory:
    """One case on one machine: `figures[i]` is that of the history's i-th point, if it ran.

    `id` is the case's readable id, as suites make it.
    """

    id: str
    case_id: str
    label: str
    source: str
    machine: str | None
    figures: tuple[Figure | None, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """The steps between figures that follow one another, those without a change included."""
        there = [
            (index, figure.report)
            for index, figure in enumerate(self.figures)
            if figure is not None and figure.report is not None
        ]
        steps = itertools.pairwise(there)
        return tuple(_change(i, before, j, after) for (i, before), (j, after) in steps)

    @property
    def changed(self) -> bool:
        """Whether figures differ, or some are there and some have a reason instead."""
        kinds = {figure.report is None for figure in self.figures if figure is not None}
        return len(kinds) > 1 or any(step.change_bytes for step in self.changes)


@dataclass(frozen=True, slots=True)
class History:
    """Cases over points; `names` are the versions that differ between the points."""

    points: tuple[Environment, ...]
    names: tuple[str, ...]
    cases: tuple[CaseHistory, ...]

    def title(self, index: int) -> str:
        """Return what tells a point from the others: `transformers 5.0.0, peft 0.18.0`."""
        return describe(self.points[index], self.names or VERSIONS)


def describe(environment: Environment, names: Sequence[str] = VERSIONS) -> str:
    """Return versions as people read them, unknown ones left out."""
    known = ((name, getattr(environment, name)) for name in names)
    return ", ".join(f"{name} {value}" for name, value in known if value is not None)


def tell_history(sides: Iterable[Side]) -> History:
    """Return the history of every case of the sides; of equal points the newest record counts.

    Records that do not say what they were made with are no history and are left out.
    """
    environments: dict[tuple[str | None, ...], Environment] = {}
    newest: dict[tuple[str, str, str | None], dict[tuple[str | None, ...], SideCase]] = {}
    for side in sides:
        for (case_id, source), entry in side.cases.items():
            environment = entry.record.environment
            if environment is None:
                continue
            point = _versions(environment)
            environments.setdefault(point, environment)
            found = newest.setdefault((case_id, source, _machine(environment)), {})
            if point not in found or entry.started_at > found[point].started_at:
                found[point] = entry
    began: dict[tuple[str | None, ...], str] = {}
    for found in newest.values():
        for point, entry in found.items():
            began[point] = min(began.get(point, entry.started_at), entry.started_at)
    order = sorted(
        environments, key=lambda point: ([_sortable(value) for value in point[:-1]], began[point])
    )
    points = tuple(environments[point] for point in order)
    names = tuple(name for i, name in enumerate(VERSIONS) if len({point[i] for point in order}) > 1)
    cases = []
    for (case_id, source, machine), found in newest.items():
        case = next(iter(found.values())).case
        figures = tuple(_figure(found[point]) if point in found else None for point in order)
        cases.append(CaseHistory(case_slug(case), case_id, case.label, source, machine, figures))
    return History(points, names, tuple(sorted(cases, key=lambda case: case.label.lower())))


def stretches(case: CaseHistory) -> Iterator[tuple[int, int, Figure]]:
    """Yield (first, last, figure): points that follow one another and agree to the byte.

    A point at which the case was not run belongs to no stretch, and does not end one.
    """
    first = last = -1
    current: Figure | None = None
    for index, figure in enumerate(case.figures):
        if figure is None:
            continue
        if current is not None and _same(figure, current):
            last = index
            continue
        if current is not None:
            yield first, last, current
        first, last, current = index, index, figure
    if current is not None:
        yield first, last, current


def _same(one: Figure, other: Figure) -> bool:
    return one.peak_bytes == other.peak_bytes and one.reason == other.reason


def _change(first: int, before: MemoryReport, second: int, after: MemoryReport) -> Change:
    deltas = {
        name: getattr(after.components, f"{name}_bytes")
        - getattr(before.components, f"{name}_bytes")
        for name in COMPONENTS
    }
    most = max(deltas, key=lambda name: abs(deltas[name]))
    old, new = before.peak.allocated_bytes, after.peak.allocated_bytes
    return Change(
        first,
        second,
        new - old,
        relative_error(new, old) if old else 0.0,
        most if deltas[most] else None,
        deltas[most],
    )


def _figure(entry: SideCase) -> Figure:
    record = entry.record
    if record.report is not None and record.status == "ok":
        return Figure(record.report)
    why = "" if record.error is None else f": {record.error.message}"
    return Figure(None, f"{record.status}{why}")


def _versions(environment: Environment) -> tuple[str | None, ...]:
    return tuple(getattr(environment, name) for name in VERSIONS)


def _machine(environment: Environment) -> str | None:
    known = [getattr(environment, name) for name in _MACHINE]
    return ", ".join(value for value in known if value is not None) or None


def _sortable(value: str | None) -> tuple[int, object]:
    """Order versions by their numbers; what is no version after them, unknown first."""
    from packaging.version import InvalidVersion, Version

    if value is None:
        return 0, 0
    try:
        return 1, Version(value)
    except InvalidVersion:
        return 2, value
