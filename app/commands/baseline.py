"""`gpumem baseline`: records kept under a name, to hold later runs against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.output import wrap
from estimator.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from benchmarks.baselines import Baseline

folder_option = click.option(
    "--baselines",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    envvar="GPUMEM_BASELINES",
    default=Path("results") / "baselines",
    help="Where baselines are kept (default: results/baselines, or $GPUMEM_BASELINES).",
)


@click.group(subcommand_metavar="save|list ...", invoke_without_command=True)
@click.pass_context
def baseline(ctx: click.Context) -> None:
    """Keep the records of a suite under a name, to hold later runs against.

    \b
    gpumem run smoke --source trace -o out/before
    gpumem baseline save main out/before
    gpumem compare --baseline main out/after
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@baseline.command()
@click.argument("name", metavar="NAME")
@click.argument("records", metavar="RECORDS")
@click.option("--replace", is_flag=True, help="Write a baseline anew that is there already.")
@folder_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def save(name: str, records: str, replace: bool, folder: Path, as_json: bool) -> None:
    """Keep the newest record of each case as NAME.

    RECORDS is a folder of records, or a file.
    """
    from benchmarks import baselines

    saved = baselines.save(name, records, folder, replace)
    if as_json:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **_row(saved)}))
        return
    click.echo(wrap(f"{baselines.baseline_path(name, folder)}: {_sentence(saved)}"))
    for note in (*saved.side.notes(), *map(str, saved.side.problems)):
        click.echo(f"note: {note}", err=True)


@baseline.command("list")
@folder_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(folder: Path, as_json: bool) -> None:
    """List the baselines and what they were made with."""
    from benchmarks import baselines

    found = [baselines.load(name, folder) for name in baselines.names(folder)]
    if as_json:
        rows = [_row(one) for one in found]
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "baselines": rows}))
    elif found:
        click.echo("\n".join(wrap(f"{one.name}: {_sentence(one)}") for one in found))
    else:
        click.echo(f"no baselines in {folder}: gpumem baseline save NAME RECORDS makes one")


def _sentence(one: Baseline) -> str:
    from benchmarks.history import describe

    cases = one.side.cases.values()
    failed = sum(entry.record.status != "ok" for entry in cases)
    count = f"{len(cases)} cases" + (f" ({failed} without a figure)" if failed else "")
    made = "; ".join(describe(environment) for environment in one.side.environments.values())
    return f"{count}, {made}" if made else count


def _row(one: Baseline) -> dict[str, object]:
    return {
        "name": one.name,
        "path": one.side.name,
        "cases": len(one.side.cases),
        "sources": sorted({source for _, source in one.side.cases}),
        "environments": {
            key: environment.model_dump() for key, environment in one.side.environments.items()
        },
    }
