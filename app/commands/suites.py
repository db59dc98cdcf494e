"""`gpumem suites`: the suites and their cases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from estimator.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from benchmarks.suite import Suite


@click.command()
@click.argument("suite", metavar="[SUITE]", required=False)
@click.option("-k", "expression", metavar="EXPR", help="Only ids that match: 'lora and not gpt2'.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def suites(suite: str | None, expression: str | None, as_json: bool) -> None:
    """List the suites, or the cases of one.

    SUITE is a name or the path of a TOML file (docs/verbs/suites.md describes the format).
    """
    from benchmarks.selection import select
    from benchmarks.suite import builtin_suites, load_suite

    if suite is None:
        if expression is not None:
            raise click.UsageError("-k chooses cases of one suite: name it")
        found = [load_suite(name) for name in builtin_suites()]
        if as_json:
            click.echo(_document([_suite_row(each) for each in found]))
            return
        for each in found:
            click.echo(f"{each.name:<12} {len(each.cases):>4} cases  {each.description}")
        return
    one = load_suite(suite)
    chosen = select(one.cases, expression, None)
    if as_json:
        cases = [{"id": entry.id, "case": entry.case.to_dict()} for entry in chosen]
        click.echo(_document([_suite_row(one) | {"cases": cases}]))
        return
    click.echo(f"{one.name}: {one.description}" if one.description else one.name)
    for entry in chosen:
        click.echo(f"  {entry.id}")


def _suite_row(suite: Suite) -> dict[str, Any]:
    return {
        "name": suite.name,
        "description": suite.description,
        "case_count": len(suite.cases),
    }


def _document(rows: list[dict[str, Any]]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, "suites": rows})
