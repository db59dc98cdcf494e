"""`gpumem suites`: the suites and their cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from estimator.errors import ModelError
from estimator.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from benchmarks.needs import Needs
    from benchmarks.suite import Suite, SuiteCase


@click.command()
@click.argument("suite", metavar="[SUITE]", required=False)
@click.option("-k", "expression", metavar="EXPR", help="Only ids that match: 'lora and not gpt2'.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def suites(suite: str | None, expression: str | None, as_json: bool) -> None:
    """List the suites, or the cases of one, and what they would need.

    SUITE is a name or the path of a TOML file (docs/verbs/suites.md describes the format).
    """
    from benchmarks.selection import select
    from benchmarks.suite import builtin_suites, load_suite

    if suite is None:
        if expression is not None:
            raise click.UsageError("-k chooses cases of one suite: name it")
        found = [load_suite(name) for name in builtin_suites()]
        if as_json:
            click.echo(_document([_suite_row(each, each.cases) for each in found]))
            return
        for each in found:
            click.echo(f"{each.name:<13} {_needs_line(_needs(each, each.cases))}")
            click.echo(f"{'':<13} {each.description}")
        click.echo("peaks are estimates, times rough guesses for one case after another")
        return
    one = load_suite(suite)
    chosen = select(one.cases, expression, None)
    if as_json:
        cases = [{"id": entry.id, "case": entry.case.to_dict()} for entry in chosen]
        click.echo(_document([_suite_row(one, chosen) | {"cases": cases}]))
        return
    click.echo(f"{one.name}: {one.description}" if one.description else one.name)
    click.echo(_needs_line(_needs(one, chosen)))
    for entry in chosen:
        click.echo(f"  {entry.id}")


def _needs(suite: Suite, chosen: Sequence[SuiteCase]) -> Needs:
    from benchmarks.needs import needs_of
    from benchmarks.suite_error import SuiteError

    try:
        return needs_of(entry.case for entry in chosen)
    except ModelError as error:
        raise SuiteError(f"suite {suite.name!r}: model: {error}") from None


def _needs_line(needs: Needs) -> str:
    from benchmarks.needs import short_size, short_time

    return (
        f"{needs.count} cases, up to {short_size(needs.largest_bytes)}; "
        f"{short_time(needs.cuda_seconds)} on a GPU, {short_time(needs.trace_seconds)} traced"
    )


def _suite_row(suite: Suite, chosen: Sequence[SuiteCase]) -> dict[str, Any]:
    needs = _needs(suite, chosen)
    return {
        "name": suite.name,
        "description": suite.description,
        "case_count": len(suite.cases),
        "needs": {
            "case_count": needs.count,
            "largest_peak_allocated_bytes": needs.largest_bytes,
            "without_estimate": needs.unknown,
            "guessed_cuda_seconds": round(needs.cuda_seconds),
            "guessed_trace_seconds": round(needs.trace_seconds),
        },
    }


def _document(rows: list[dict[str, Any]]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, "suites": rows})
