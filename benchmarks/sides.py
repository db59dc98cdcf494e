"""One side of a comparison: the newest record of each case in a folder or a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.store import Problem, read_records
from estimator.case import Case
from estimator.errors import CaseError
from estimator.gpus import find_gpu, workspace_bytes
from estimator.units import format_error, relative_error
from profiler.environment import Environment
from profiler.record import OWN_LOOP, TRAINER_LOOP, Loop, Record

LOOPS_AGREE = 0.01
"""How far the own loop may be from Trainer before that is flagged."""


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

    @property
    def card(self) -> str | None:
        """The catalogue's name of the GPU that it was measured on, None if it is not there."""
        environment = self.record.environment
        if self.record.source != "cuda" or environment is None or environment.gpu is None:
            return None
        try:
            return find_gpu(environment.gpu).name
        except CaseError:
            return None

    @property
    def predicted_case(self) -> Case:
        """The case as predictions must read it: on the card that it was measured on.

        A case without a card is read with Ampere's cuBLAS workspaces; a measured record of it has
        those of its GPU.
        """
        return self.case if self.case.gpu is not None else replace(self.case, gpu=self.card)

    @property
    def workspace_bytes(self) -> int:
        """The cuBLAS workspace a handle of the card that it was made on, or for."""
        return workspace_bytes(self.predicted_case.gpu)

    @property
    def started_at(self) -> str:
        """When its run began (ISO 8601, UTC), empty where the record does not say."""
        made = self.record.provenance
        return "" if made is None else made.started_at


@dataclass(frozen=True, slots=True)
class Side:
    """What one side has: `cases` by (case_id, source), and the files that hold no record.

    `trainer` holds the records of runs that transformers.Trainer played, where the own loop's are
    there as well; where they are all there is of a case, they are its `cases`.
    """

    name: str
    cases: dict[tuple[str, str], SideCase]
    problems: tuple[Problem, ...]
    trainer: dict[tuple[str, str], SideCase] = field(default_factory=dict)

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
        if self.trainer:
            yield self._about_trainer()
        yield from self._about_cards()
        if dirty:
            yield (
                f"{dirty} of {len(made)} records of {self.name} were made by code with changes "
                "that are not committed"
            )

    def _about_cards(self) -> Iterator[str]:
        """Say where predictions cannot know the workspaces of the GPU."""
        measured = [entry for entry in self.cases.values() if entry.record.source == "cuda"]
        unknown = {
            entry.record.environment.gpu
            for entry in measured
            if entry.record.environment is not None and entry.predicted_case.gpu is None
        }
        for name in sorted(filter(None, unknown)):
            yield (
                f"{self.name} was measured on {name}, which is not in the catalogue of cards: "
                "predictions have Ampere's cuBLAS workspaces"
            )
        settings = {env.cublas_workspace for env in self.environments.values()}
        for setting in sorted(filter(None, settings)):
            yield (
                f"{self.name} was measured with CUBLAS_WORKSPACE_CONFIG={setting}: predictions "
                "have the workspaces of its default"
            )

    def _about_trainer(self) -> str:
        """Say how far the own loop and Trainer are apart."""
        errors = [
            error
            for key, theirs in self.trainer.items()
            if (error := _loops_differ(self.cases[key].record, theirs.record)) is not None
        ]
        count = f"{len(errors)} of {len(self.trainer)} cases of {self.name}"
        if not errors:
            return f"{count} were run by transformers.Trainer as well"
        worst = format_error(max(errors, key=abs))
        return (
            f"{count} were run by transformers.Trainer as well: the own loop's peak is at most "
            f"{worst} apart from it"
        )


def read_side(path: str) -> Side:
    """Read the records of a folder, of a JSON Lines file, or the one of a file.

    Raises:
        RecordError: when there is nothing to read at `path`.
    """
    contents = read_records(Path(path))
    problems = list(contents.problems)
    found: dict[Loop, dict[tuple[str, str], list[Record]]] = {OWN_LOOP: {}, TRAINER_LOOP: {}}
    cases: dict[tuple[str, str], Case] = {}
    for stored in contents.records:
        try:
            case = Case.from_dict(stored.record.case)
        except CaseError as error:
            problems.append(Problem(stored.path, f"its case is not a valid one: {error}"))
            continue
        key = (case.case_id, stored.record.source)
        cases[key] = case
        found[stored.record.loop].setdefault(key, []).append(stored.record)
    own, trainer = (
        {key: _newest(cases[key], key[0], records) for key, records in found[loop].items()}
        for loop in (OWN_LOOP, TRAINER_LOOP)
    )
    beside = {key: entry for key, entry in trainer.items() if key in own}
    checked = {key: _checked(entry, beside.get(key)) for key, entry in own.items()}
    return Side(path, {**trainer, **checked}, tuple(problems), beside)


def _checked(own: SideCase, trainer: SideCase | None) -> SideCase:
    """Return the own loop's record, flagged where Trainer's is too far from it."""
    error = None if trainer is None else _loops_differ(own.record, trainer.record)
    if error is None or abs(error) <= LOOPS_AGREE:
        return own
    flag = f"the own loop's peak is {format_error(error)} apart from transformers.Trainer's"
    return replace(own, flags=(*own.flags, flag))


def _loops_differ(own: Record, trainer: Record) -> float | None:
    """Return the relative error of the own loop's peak allocated bytes against Trainer's."""
    if own.peak is None or trainer.peak is None:
        return None
    return relative_error(own.peak.allocated_bytes, trainer.peak.allocated_bytes)


def _newest(case: Case, case_id: str, records: Sequence[Record]) -> SideCase:
    ordered = sorted(records, key=_age)
    newest = ordered[-1]
    flags = list(newest.flags)
    same = [record for record in ordered if _environment_id(record) == _environment_id(newest)]
    counts = {
        (record.peak.requested_bytes, record.peak.allocated_bytes, record.peak.reserved_bytes)
        for record in same
        if record.peak is not None
    }
    if len(counts) > 1:
        peaks = [allocated for _, allocated, _ in counts]
        flags.append(
            f"its {len(same)} repeats differ by {max(peaks) - min(peaks)} B"
            if max(peaks) > min(peaks)
            else f"its {len(same)} repeats differ in requested or reserved bytes"
        )
    return SideCase(case, case_id, newest, tuple(flags))


def _age(record: Record) -> tuple[str, int]:
    made = record.provenance
    return ("", record.repeat) if made is None else (made.started_at, made.repeat)


def _environment_id(record: Record) -> str | None:
    return None if record.environment is None else record.environment.environment_id
