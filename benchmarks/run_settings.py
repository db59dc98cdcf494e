"""How a case of a suite is measured: `[[run]]` entries. What is measured is the case's own affair.

They matter on a GPU only: a trace answers the same on every repeat and has no card to itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.selection import Predicate, SelectionError, parse_expression
from benchmarks.suite_error import SuiteError
from estimator.case import Case
from estimator.errors import show_value
from estimator.suggest import did_you_mean

MAX_REPEATS = 100


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a case is measured.

    `repeats` is how many records of it are wanted; `alone` keeps other cases off the card, for the
    driver's counter; `history` writes PyTorch's allocation history beside each record; `trainer`
    asks for one more record, through transformers.Trainer.
    """

    repeats: int = 1
    alone: bool = False
    history: bool = False
    trainer: bool = False

    def joined(self, other: RunSettings) -> RunSettings:
        """Return what both ask for together."""
        return RunSettings(
            max(self.repeats, other.repeats),
            self.alone or other.alone,
            self.history or other.history,
            self.trainer or other.trainer,
        )


AS_USUAL = RunSettings()


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[run]]` entry: settings for the cases whose ids its expression matches."""

    where: str
    expression: str
    matches: Predicate
    settings: RunSettings


def parse_rule(table: Mapping[str, Any], where: str) -> Rule:
    """Return a `[[run]]` entry; `where` begins its errors.

    Raises:
        SuiteError: for an unknown field, a wrong value, or an expression that cannot be read.
    """
    known = ("match", *(field.name for field in fields(RunSettings)))
    for name in table:
        if name not in known:
            hint = did_you_mean(name, known)
            raise SuiteError(f"{where}: unknown field {show_value(name)}{hint}")
    values = {name: value for name, value in table.items() if name != "match"}
    if not values:
        raise SuiteError(f"{where} asks for nothing: give {', '.join(known[1:])}")
    for name, value in values.items():
        if name == "repeats":
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or not 1 <= value <= MAX_REPEATS
            ):
                raise SuiteError(
                    f"{where}: repeats is {show_value(value)}, but must be a whole number from 1 "
                    f"to {MAX_REPEATS}"
                )
        elif not isinstance(value, bool):
            raise SuiteError(f"{where}: {name} is {show_value(value)}, but must be true or false")
    match = table.get("match")
    if not isinstance(match, str):
        raise SuiteError(f"{where}: match is {show_value(match)}, but must be an expression for -k")
    try:
        test = parse_expression(match)
    except SelectionError as error:
        raise SuiteError(f"{where}: match: {error}") from None
    return Rule(where, match, test, RunSettings(**values))


def settings_of(
    ids: Sequence[str], cases: Sequence[Case], rules: Sequence[Rule]
) -> list[RunSettings]:
    """Return the settings of each case, by all the rules that match its id.

    Raises:
        SuiteError: when a rule matches nothing, or asks Trainer for what it does not do.
    """
    settings = [AS_USUAL] * len(ids)
    for rule in rules:
        matching = [index for index, name in enumerate(ids) if rule.matches(name)]
        if not matching:
            # As with `exclude`: a rule without effect is a typing error.
            raise SuiteError(f"{rule.where}: match {show_value(rule.expression)} matches no case")
        for index in matching:
            if rule.settings.trainer and not trainer_runs(cases[index]):
                raise SuiteError(
                    f"{rule.where}: Trainer trains, keeps no logits and has no chunked loss: "
                    f"it cannot run {ids[index]}"
                )
            settings[index] = settings[index].joined(rule.settings)
    return settings


def trainer_runs(case: Case) -> bool:
    """Whether transformers.Trainer itself runs what a case says: TRL's keeps the logits, or has a
    fused head."""
    return case.training and not case.keep_logits and case.loss != "chunked"
