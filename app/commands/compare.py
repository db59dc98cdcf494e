"""`gpumem compare`: estimates against records, or records against records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from benchmarks.compare import Comparison

FINDING = 1


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="NEW")
@click.option(
    "--fail-on",
    "limits",
    metavar="LIMITS",
    multiple=True,
    help="Exit with 1 where a counter is off by more: 'peak_allocated:+1%,+32MiB'.",
)
@click.option(
    "--across-environments",
    is_flag=True,
    help="Compare records even if libraries or the GPU differ.",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "markdown"]),
    default="text",
    help="text (default) fits 80 columns.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write one self-contained HTML file.",
)
@click.pass_context
def compare(
    ctx: click.Context,
    base: str,
    new: str,
    limits: tuple[str, ...],
    across_environments: bool,
    style: str,
    as_json: bool,
    report: Path | None,
) -> None:
    """Compare NEW with BASE, case by case.

    Each is a folder of records, a record file, or the word `estimates`: the formulas `article`
    and `architecture`, computed now for the other side's cases. Errors are (predicted -
    reference) / reference, of peak allocated bytes: plus is an over-estimate.
    """
    from benchmarks.tables import markdown_lines, text_lines, to_json
    from benchmarks.thresholds import find_offenders, parse_thresholds

    thresholds = tuple(limit for text in limits for limit in parse_thresholds(text))
    comparison = _compare(base, new, across_environments)
    offenders = find_offenders(comparison, thresholds) if thresholds else ()
    if as_json:
        click.echo(json.dumps(to_json(comparison, offenders)))
    else:
        lines = markdown_lines if style == "markdown" else text_lines
        click.echo("\n".join(lines(comparison, offenders)))
    if report is not None:
        from benchmarks.html_report import write_report

        write_report(comparison, report, offenders)
        click.echo(f"report: {report}", err=as_json)
    if offenders:
        ctx.exit(FINDING)


def _compare(base: str, new: str, across_environments: bool) -> Comparison:
    from benchmarks.compare import CompareError, compare_estimates, compare_records
    from benchmarks.sides import read_side

    if base == new == "estimates":
        raise CompareError("estimates can only be compared with records: give a folder of records")
    if "estimates" in (base, new):
        side = read_side(new if base == "estimates" else base)
        comparison = compare_estimates(side, estimates_first=base == "estimates")
    else:
        comparison = compare_records(read_side(base), read_side(new), across_environments)
    if not (comparison.rows or comparison.left_out or comparison.problems):
        raise CompareError(
            f"there are no records in {' or '.join(sorted({base, new} - {'estimates'}))}"
        )
    return comparison
