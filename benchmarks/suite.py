"""Suites: named lists of cases, declared in TOML and expanded to cases with stable ids.

A suite file has `name`, `description`, an optional `[defaults]` table, `[[case]]` entries (one
case each, with an optional `id`) and `[[matrix]]` entries (every list is expanded, as a product;
`exclude` leaves combinations out), and `[[run]]` entries that say how some of them are to be
measured. TOML has no null: the string "null" stands for it. The format is described in
docs/verbs/suites.md.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.case_ids import case_slug
from benchmarks.run_settings import AS_USUAL, RunSettings, parse_rule, settings_of
from benchmarks.suite_error import SuiteError
from estimator.case import Case
from estimator.errors import CaseError, show_value
from estimator.suggest import did_you_mean

MAX_CASES = 100_000
"""A product above this is a mistake in the file, not a suite."""

_ID = re.compile(r"[a-z0-9][a-z0-9._+-]{0,199}")
_FIELDS = ("name", "description", "defaults", "case", "matrix", "run")


@dataclass(frozen=True, slots=True)
class SuiteCase:
    """One case of a suite. `id` is readable, unique in the suite, and the same on every machine."""

    id: str
    case: Case
    settings: RunSettings = AS_USUAL


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of cases, in the order in which they are run."""

    name: str
    description: str
    cases: tuple[SuiteCase, ...]


def builtin_suites() -> tuple[str, ...]:
    """Return the names of the suites that come with the package, sorted."""
    folder = files("benchmarks").joinpath("suites")
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_suite(name_or_path: str) -> Suite:
    """Return a suite by the name of a built-in one or by the path of a TOML file.

    Raises:
        SuiteError: when it is not there, is not TOML, or an entry is not a valid case.
    """
    if name_or_path in builtin_suites():
        entry = files("benchmarks").joinpath("suites", f"{name_or_path}.toml")
        return parse_suite(entry.read_text(encoding="utf-8"), name_or_path)
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.is_file():
        hint = did_you_mean(name_or_path, builtin_suites())
        raise SuiteError(
            f"suite {show_value(name_or_path)} is not one of {', '.join(builtin_suites())}{hint} "
            "(or give the path of a .toml file)"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SuiteError(f"suite {show_value(name_or_path)} is not UTF-8 text") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise SuiteError(
            f"suite {show_value(name_or_path)} cannot be read: {reason.lower()}"
        ) from None
    return parse_suite(text, path.stem)


def parse_suite(text: str, name: str) -> Suite:
    """Return the suite that a TOML text declares; `name` is used where the text has none.

    Raises:
        SuiteError: naming the suite, the entry and the field.
    """
    where = f"suite {show_value(name)}"
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SuiteError(
            f"{where} is not valid TOML: {str(error) or 'nested too deeply'}"
        ) from None
    for field in data:
        if field not in _FIELDS:
            hint = did_you_mean(field, _FIELDS)
            raise SuiteError(f"{where}: unknown field {show_value(field)}{hint}")
    defaults = data.get("defaults", {})
    if not isinstance(defaults, dict):
        raise SuiteError(f"{where}: defaults must be a table ([defaults])")
    cases: list[SuiteCase] = []
    for entry in _entries(data, defaults, where):
        cases.append(entry)
        if len(cases) > MAX_CASES:
            raise SuiteError(f"{where} has more than {MAX_CASES} cases")
    if not cases:
        raise SuiteError(f"{where} has no cases: add [[case]] or [[matrix]]")
    _check_unique(cases, where)
    rules = [parse_rule(table, f"{where}, run {n}") for n, table in _tables(data, "run", where)]
    settings = settings_of([one.id for one in cases], [one.case for one in cases], rules)
    return Suite(
        name=_text(data, "name", name, where),
        description=_text(data, "description", "", where),
        cases=tuple(
            replace(one, settings=asked) for one, asked in zip(cases, settings, strict=True)
        ),
    )


def _text(data: Mapping[str, Any], field: str, default: str, where: str) -> str:
    value = data.get(field, default)
    if not isinstance(value, str):
        raise SuiteError(f"{where}: {field} is {show_value(value)}, but must be text")
    return value


def _entries(data: dict[str, Any], defaults: dict[str, Any], where: str) -> Iterator[SuiteCase]:
    for number, entry in _tables(data, "case", where):
        entry_id = entry.pop("id", None)
        yield _build({**defaults, **entry}, entry_id, f"{where}, case {number}")
    for number, entry in _tables(data, "matrix", where):
        place = f"{where}, matrix {number}"
        for combination in _expand({**defaults, **entry}, place):
            yield _build(combination, None, place)


def _tables(data: dict[str, Any], field: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    tables = data.get(field, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SuiteError(f"{where}: {field} must be written as [[{field}]]")
    for number, table in enumerate(tables, start=1):
        yield number, dict(table)


def _expand(entry: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the product of every list in a matrix entry, less what `exclude` matches."""
    exclude = entry.pop("exclude", [])
    if not isinstance(exclude, list) or not all(isinstance(rule, dict) for rule in exclude):
        raise SuiteError(f"{where}: exclude must be a list of tables")
    axes = {name: value if isinstance(value, list) else [value] for name, value in entry.items()}
    for name, values in axes.items():
        if not values:
            raise SuiteError(f"{where}: {name} is an empty list")
    if math.prod(len(values) for values in axes.values()) > MAX_CASES:
        raise SuiteError(f"{where}: its lists multiply to more than {MAX_CASES} cases")
    for rule in exclude:
        for name in rule:
            if name not in axes:
                hint = did_you_mean(name, axes)
                raise SuiteError(f"{where}: exclude names {show_value(name)}{hint}")
    used = [False] * len(exclude)
    for chosen in itertools.product(*axes.values()):
        combination = dict(zip(axes, chosen, strict=True))
        matching = [index for index, rule in enumerate(exclude) if _matches(combination, rule)]
        for index in matching:
            used[index] = True
        if not matching:
            yield combination
    for rule, was_used in zip(exclude, used, strict=True):
        if not was_used:
            # A rule that leaves nothing out is a typing error that would run unwanted cases.
            raise SuiteError(f"{where}: exclude {show_value(rule)} matches no combination")


def _matches(combination: dict[str, Any], rule: dict[str, Any]) -> bool:
    return all(
        combination[name] in value if isinstance(value, list) else combination[name] == value
        for name, value in rule.items()
    )


def _build(fields: dict[str, Any], entry_id: Any, where: str) -> SuiteCase:
    if entry_id is not None and not (isinstance(entry_id, str) and _ID.fullmatch(entry_id)):
        raise SuiteError(
            f"{where}: id is {show_value(entry_id)}, but must be lower-case letters, digits "
            "and . _ + -"
        )
    try:
        case = Case.from_dict({name: _null(value) for name, value in fields.items()})
    except CaseError as error:
        raise SuiteError(f"{where}: {error}") from None
    return SuiteCase(entry_id or case_slug(case), case)


def _null(value: Any) -> Any:
    return None if value == "null" else value


def _check_unique(cases: list[SuiteCase], where: str) -> None:
    by_id: dict[str, Case] = {}
    by_content: dict[str, str] = {}
    for entry in cases:
        if by_id.setdefault(entry.id, entry.case) != entry.case:
            raise SuiteError(f"{where}: two different cases have the id {entry.id}: give one an id")
        if entry.case.case_id in by_content:
            first = by_content[entry.case.case_id]
            raise SuiteError(f"{where}: {entry.id} is there twice (first as {first})")
        by_content[entry.case.case_id] = entry.id
