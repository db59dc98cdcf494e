"""`gpumem history`: what cases took, over versions of libraries and drivers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.commands.baseline import folder_option
from estimator.errors import RecordError

if TYPE_CHECKING:
    from benchmarks.sides import Side


@click.command()
@click.argument("records", nargs=-1, metavar="[RECORDS]...")
@folder_option
@click.option("-k", "expression", metavar="EXPR", help="Only cases that match: 'lora and nf4'.")
@click.option("--changed", is_flag=True, help="Only cases whose figures differ.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "markdown"]),
    default="text",
    help="text (default) fits 80 columns.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def history(
    records: tuple[str, ...],
    folder: Path,
    expression: str | None,
    changed: bool,
    style: str,
    as_json: bool,
) -> None:
    """What each case took under each set of versions.

    Each of RECORDS is a folder of records, a record file, or the name of a baseline; without
    any, all baselines are taken. Points are ordered by version, not by date.
    """
    from benchmarks.history import tell_history
    from benchmarks.history_tables import markdown_lines, text_lines, to_json
    from benchmarks.selection import select

    told = tell_history(_sides(records, folder))
    if not told.cases:
        raise RecordError("none of the records says what it was made with: there is no history")
    chosen = select(told.cases, expression, None)
    told = replace(told, cases=tuple(chosen))
    cases = [case for case in chosen if case.changed or not changed]
    if as_json:
        click.echo(json.dumps(to_json(replace(told, cases=tuple(cases)))))
    elif not cases:
        click.echo(f"none of {len(chosen)} cases has changed")
    else:
        lines = markdown_lines if style == "markdown" else text_lines
        click.echo("\n".join(lines(told, cases)))


def _sides(records: tuple[str, ...], folder: Path) -> list[Side]:
    from benchmarks import baselines
    from benchmarks.sides import read_side

    if not records:
        sides = [baselines.load(name, folder).side for name in baselines.names(folder)]
        if not sides:
            raise RecordError(
                f"there are no baselines in {folder}: name folders of records, or save some "
                "(gpumem baseline save NAME RECORDS)"
            )
        return sides
    known = baselines.names(folder)
    return [
        baselines.load(one, folder).side
        if one in known and not Path(one).exists()
        else read_side(one)
        for one in records
    ]
