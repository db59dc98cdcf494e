"""What a run would do: which cases are recorded already, which are left, what they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.durations import guess_duration
from benchmarks.needs import predict_peak
from benchmarks.run_settings import trainer_runs
from benchmarks.store import CaseKey
from benchmarks.suite import Suite, SuiteCase
from benchmarks.suite_error import SuiteError
from estimator.case import Case
from estimator.errors import ModelError
from estimator.report import Peak
from estimator.units import MIB
from profiler.record import OWN_LOOP, TRAINER_LOOP, Loop, Record

FAILED = ("error", "timeout")
"""Statuses that say nothing about memory. `oom` is not one of them: it is a result."""

CONTEXT_BYTES = 640 * MIB
"""Kept free for a CUDA context and its libraries, which no allocator's limit holds back."""

_SLACK_BYTES = 512 * MIB


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """A run of a case with what is recorded of it and what it is predicted to need.

    `peak` is the prediction: the `architecture` estimate, else that of a traced record in the same
    folder, else None. `last` is the newest record of this source, environment and loop, `repeats`
    counts those that come before this run's, `wanted` those that there are to be in the end.
    `alone` keeps all others off the card, `history` asks for an allocation history; `seconds` is a
    rough guess.
    """

    id: str
    case: Case
    key: CaseKey
    peak: Peak | None
    last: Record | None
    repeats: int
    wanted: int = 1
    alone: bool = False
    history: bool = False
    seconds: float = 0.0

    @property
    def peak_bytes(self) -> int | None:
        """Predicted peak allocated bytes."""
        return None if self.peak is None else self.peak.allocated_bytes

    @property
    def share_bytes(self) -> int | None:
        """Bytes that its allocator may reserve where it shares the card: what is predicted, and
        some room for what fragmentation adds (on small models up to a third, by traces)."""
        if self.peak is None:
            return None
        allowed = self.peak.allocated_bytes * 6 // 5
        if self.peak.reserved_bytes is not None:
            allowed = max(allowed, self.peak.reserved_bytes * 21 // 20)
        return allowed + _SLACK_BYTES

    @property
    def need_bytes(self) -> int | None:
        """Bytes of the card to keep for it: its share and a CUDA context."""
        share = self.share_bytes
        return None if share is None else share + CONTEXT_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """The chosen cases in the suite's order: `done` are recorded, `to_run` are not."""

    suite: str
    source: str
    done: tuple[PlannedCase, ...]
    to_run: tuple[PlannedCase, ...]

    @property
    def total(self) -> int:
        """How many runs there are in all."""
        return len(self.done) + len(self.to_run)

    @property
    def case_count(self) -> int:
        """How many different cases they are of."""
        return len({planned.key.case_id for planned in (*self.done, *self.to_run)})

    @property
    def seconds(self) -> float:
        """A rough guess of how long `to_run` takes, one after another."""
        return sum(planned.seconds for planned in self.to_run)


def make_plan(
    suite: Suite,
    chosen: Sequence[SuiteCase],
    source: str,
    environment_id: str,
    recorded: Mapping[CaseKey, Sequence[Record]],
    rerun: str | None = None,
    loop: Loop | None = None,
) -> Plan:
    """Divide the chosen cases of a suite into those recorded and those to run.

    A record counts only for the same source and environment: after an upgrade of a library,
    everything is to be run again.

    Args:
        loop: `own` or `trainer` for all the cases that have it; None for what the suite says.

    Raises:
        SuiteError: when a case names a model that cannot be found or read, or no case is left.
    """
    done: list[PlannedCase] = []
    to_run: list[PlannedCase] = []
    traced = {
        key.case_id: records[-1] for key, records in recorded.items() if key.source == "trace"
    }
    for entry in chosen:
        for name, wanted in _loops(entry, source, loop):
            key = CaseKey(entry.case.case_id, source, environment_id, name)
            records = recorded.get(key, ())
            planned = _planned(entry, suite.name, key, records, traced.get(key.case_id))
            missing = _missing(records, wanted, rerun)
            planned = replace(planned, wanted=len(records) + missing)
            to_run += (_repeat(planned, number, wanted > 1) for number in range(missing))
            if not missing:
                done.append(planned)
    if not done and not to_run:
        raise SuiteError(f"suite {suite.name!r}: none of {len(chosen)} cases runs through Trainer")
    return Plan(suite.name, source, tuple(done), tuple(to_run))


def _loops(entry: SuiteCase, source: str, loop: Loop | None) -> Iterator[tuple[Loop, int]]:
    """Yield the loops that a case is to be run by, and how many records of each are wanted."""
    settings = entry.settings
    measured = source == "cuda"
    if loop != TRAINER_LOOP:
        yield OWN_LOOP, settings.repeats if measured else 1
    if (loop is None and measured and settings.trainer) or (
        loop == TRAINER_LOOP and trainer_runs(entry.case)
    ):
        yield TRAINER_LOOP, 1


def _missing(records: Sequence[Record], wanted: int, rerun: str | None) -> int:
    """Return how many more records are to be made."""
    again = rerun == "all" or (rerun == "failed" and bool(records) and records[-1].status in FAILED)
    return max(wanted - len(records), 1 if again else 0)


def _planned(
    entry: SuiteCase,
    suite_name: str,
    key: CaseKey,
    records: Sequence[Record],
    traced: Record | None,
) -> PlannedCase:
    try:
        peak = predict_peak(entry.case)
        seconds = guess_duration(entry.case, key.source).total_s
    except ModelError as error:
        raise SuiteError(f"suite {suite_name!r}, case {entry.id}: model: {error}") from None
    if peak is None and traced is not None:
        peak = traced.peak
    return PlannedCase(
        id=entry.id if key.loop == OWN_LOOP else f"{entry.id}@{key.loop}",
        case=entry.case,
        key=key,
        peak=peak,
        last=records[-1] if records else None,
        repeats=len(records),
        # Paged optimizers' states lie in managed memory, which no allocator's limit holds back.
        alone=entry.settings.alone or "paged" in entry.case.optimizer,
        history=entry.settings.history and key.source == "cuda",
        seconds=seconds,
    )


def _repeat(planned: PlannedCase, number: int, several: bool) -> PlannedCase:
    """Return the run that makes the `number`-th (from 0) of the records that are missing."""
    repeat = planned.repeats + number
    name = f"{planned.id}#{repeat + 1}" if several else planned.id
    return replace(planned, id=name, repeats=repeat)
