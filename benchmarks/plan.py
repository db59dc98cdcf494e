"""What a run would do: which cases are recorded already, which are left, what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.needs import predict_peak
from benchmarks.store import CaseKey
from benchmarks.suite import Suite, SuiteCase, SuiteError
from estimator.case import Case
from estimator.errors import ModelError
from estimator.units import GIB
from profiler.record import Record

FAILED = ("error", "timeout")
"""Statuses that say nothing about memory. `oom` is not one of them: it is a result."""


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """A case with what is recorded of it and what it is predicted to need.

    `peak_bytes` is the `architecture` estimate of peak allocated bytes, None where it has none.
    `last` is the newest record of this source and environment; `repeats` counts them.
    """

    id: str
    case: Case
    key: CaseKey
    peak_bytes: int | None
    last: Record | None
    repeats: int

    @property
    def need_bytes(self) -> int | None:
        """Bytes to keep free on the card: the estimate, 10 % more, and 1 GiB of CUDA context."""
        return None if self.peak_bytes is None else self.peak_bytes * 11 // 10 + GIB


@dataclass(frozen=True, slots=True)
class Plan:
    """The chosen cases in the suite's order: `done` are recorded, `to_run` are not."""

    suite: str
    source: str
    done: tuple[PlannedCase, ...]
    to_run: tuple[PlannedCase, ...]

    @property
    def total(self) -> int:
        """How many cases were chosen."""
        return len(self.done) + len(self.to_run)


def make_plan(
    suite: Suite,
    chosen: Sequence[SuiteCase],
    source: str,
    environment_id: str,
    recorded: Mapping[CaseKey, Sequence[Record]],
    rerun: str | None = None,
) -> Plan:
    """Divide the chosen cases of a suite into those recorded and those to run.

    A record counts only for the same source and environment: after an upgrade of a library,
    everything is to be run again.

    Raises:
        SuiteError: when a case names a model that cannot be found or read.
    """
    done: list[PlannedCase] = []
    to_run: list[PlannedCase] = []
    for entry in chosen:
        key = CaseKey(entry.case.case_id, source, environment_id)
        records = recorded.get(key, ())
        planned = PlannedCase(
            id=entry.id,
            case=entry.case,
            key=key,
            peak_bytes=_predict(entry, suite.name),
            last=records[-1] if records else None,
            repeats=len(records),
        )
        (to_run if _is_wanted(planned, rerun) else done).append(planned)
    return Plan(suite.name, source, tuple(done), tuple(to_run))


def _is_wanted(planned: PlannedCase, rerun: str | None) -> bool:
    if planned.last is None or rerun == "all":
        return True
    return rerun == "failed" and planned.last.status in FAILED


def _predict(entry: SuiteCase, suite_name: str) -> int | None:
    try:
        return predict_peak(entry.case)
    except ModelError as error:
        raise SuiteError(f"suite {suite_name!r}, case {entry.id}: model: {error}") from None
