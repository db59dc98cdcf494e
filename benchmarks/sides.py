"""One side of a comparison: the newest record of each case in a folder or a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.store import Problem, read_records
from estimator.case import Case
from estimator.errors import CaseError
from profiler.environment import Environment
from profiler.record import Record


@dataclass(frozen=True, slots=True)
class SideCase:
    """The newest record of a case from one source, and why it may not be trusted."""

    case: Case
    case_id: str
    record: Record
    flags: tuple[str, ...]

    @property
    def environment_id(self) -> str | None:
        """The id of the environment it was made in, None where the record does not say."""
        environment = self.record.environment
        return None if environment is None else environment.environment_id


@dataclass(frozen=True, slots=True)
class Side:
    """What one side has: `cases` by (case_id, source), and the files that hold no record."""

    name: str
    cases: dict[tuple[str, str], SideCase]
    problems: tuple[Problem, ...]

    @property
    def environments(self) -> dict[str, Environment]:
        """The environments of its records by id."""
        found = (entry.record.environment for entry in self.cases.values())
        return {one.environment_id: one for one in found if one is not None}

    def notes(self) -> Iterator[str]:
        """Yield what is to be known of the side as a whole, in sentences."""
        if len(self.environments) > 1:
            yield f"{self.name} holds records of {len(self.environments)} environments"
        made = [entry.record.provenance for entry in self.cases.values()]
        dirty = sum(one is not None and one.dirty is True for one in made)
        if dirty:
            yield (
                f"{dirty} of {len(made)} records of {self.name} were made by code with changes "
                "that are not committed"
            )


def read_side(path: str) -> Side:
    """Read the records of a folder, of a JSON Lines file, or the one of a file.

    Raises:
        RecordError: when there is nothing to read at `path`.
    """
    contents = read_records(Path(path))
    problems = list(contents.problems)
    found: dict[tuple[str, str], list[Record]] = {}
    cases: dict[tuple[str, str], Case] = {}
    for stored in contents.records:
        try:
            case = Case.from_dict(stored.record.case)
        except CaseError as error:
            problems.append(Problem(stored.path, f"its case is not a valid one: {error}"))
            continue
        key = (case.case_id, stored.record.source)
        cases[key] = case
        found.setdefault(key, []).append(stored.record)
    newest = {key: _newest(cases[key], key[0], found[key]) for key in cases}
    return Side(path, newest, tuple(problems))


def _newest(case: Case, case_id: str, records: Sequence[Record]) -> SideCase:
    ordered = sorted(records, key=_age)
    newest = ordered[-1]
    flags = list(newest.flags)
    same = [record for record in ordered if _environment_id(record) == _environment_id(newest)]
    peaks = {record.peak.allocated_bytes for record in same if record.peak is not None}
    if len(peaks) > 1:
        flags.append(f"its {len(same)} repeats differ by {max(peaks) - min(peaks)} B")
    return SideCase(case, case_id, newest, tuple(flags))


def _age(record: Record) -> tuple[str, int]:
    made = record.provenance
    return ("", record.repeat) if made is None else (made.started_at, made.repeat)


def _environment_id(record: Record) -> str | None:
    return None if record.environment is None else record.environment.environment_id
