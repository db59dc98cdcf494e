"""`gpumem compare`: estimates against records, or records against records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.commands.baseline import folder_option
from estimator.errors import CaseError, show_choices, show_value
from estimator.suggest import did_you_mean

if TYPE_CHECKING:
    from benchmarks.compare import Comparison, Tracer

FINDING = 1
GATE = "peak_allocated:+1%"
"""What a comparison with a baseline fails on where nothing else is said."""


@click.command()
@click.argument("sides", nargs=-1, metavar="[BASE] NEW")
@click.option(
    "--baseline",
    metavar="NAME",
    help="BASE is a saved baseline; a gate: --fail-on is peak_allocated:+1% unless given.",
)
@click.option(
    "--allow-missing", is_flag=True, help="A baseline's case that NEW has not fails nothing."
)
@folder_option
@click.option(
    "--fail-on",
    "limits",
    metavar="LIMITS",
    multiple=True,
    help="Exit with 1 where a counter is off by more: 'peak_allocated:+1%,+32MiB'.",
)
@click.option(
    "--by",
    "keys",
    metavar="KEYS",
    multiple=True,
    help="Errors by family, method, dtype, component, phase, ... in place of the cases.",
)
@click.option(
    "--tier",
    "tiers",
    metavar="TIERS",
    multiple=True,
    help="Tiers of published rows, A (default), B or C: 'A,B'.",
)
@click.option(
    "--trace", "with_trace", is_flag=True, help="Trace the cases too: seconds a case, needs torch."
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
    sides: tuple[str, ...],
    baseline: str | None,
    allow_missing: bool,
    folder: Path,
    limits: tuple[str, ...],
    keys: tuple[str, ...],
    tiers: tuple[str, ...],
    with_trace: bool,
    across_environments: bool,
    style: str,
    as_json: bool,
    report: Path | None,
) -> None:
    """Compare NEW with BASE, case by case.

    Each is a folder of records, a record file, or a word: `estimates`, the formulas `article`
    and `architecture`, computed now for the other side's cases; `published`, what others measured
    and published. Errors are (predicted - reference) / reference, of peak allocated bytes: plus is
    an over-estimate.

    With --baseline, NEW alone is given. Library versions may then differ, GPU and allocator
    settings may not; a drop is shown and fails nothing.
    """
    from benchmarks.evidence.rows import TIERS
    from benchmarks.judged import KEYS
    from benchmarks.tables import markdown_lines, text_lines, to_json
    from benchmarks.thresholds import find_drops, find_offenders, parse_thresholds

    _check_sides(ctx, sides, baseline, allow_missing)
    by = _read_list(keys, "--by", KEYS)
    if tiers and "published" not in sides:
        raise click.UsageError("--tier is of published rows: give BASE or NEW as published", ctx)
    if with_trace and "estimates" not in sides:
        raise click.UsageError("--trace is for estimates: give BASE or NEW as estimates", ctx)
    if baseline is not None and not limits:
        limits = (GATE,)
    thresholds = tuple(limit for text in limits for limit in parse_thresholds(text))
    if baseline is not None:
        comparison = _against_baseline(
            baseline, sides[0], folder, across_environments, not allow_missing
        )
    else:
        wanted = _read_list(tiers, "--tier", TIERS) or ("A",)
        comparison = _compare(sides[0], sides[1], across_environments, wanted, with_trace)
    offenders = find_offenders(comparison, thresholds) if thresholds else ()
    drops = find_drops(comparison, thresholds)
    if as_json:
        click.echo(json.dumps(to_json(comparison, (*offenders, *drops), by)))
    else:
        lines = markdown_lines if style == "markdown" else text_lines
        click.echo("\n".join(lines(comparison, (*offenders, *drops), by)))
    if report is not None:
        from benchmarks.html_report import write_report

        write_report(comparison, report, (*offenders, *drops))
        click.echo(f"report: {report}", err=as_json)
    if offenders:
        ctx.exit(FINDING)


def _check_sides(
    ctx: click.Context, sides: tuple[str, ...], baseline: str | None, allow_missing: bool
) -> None:
    if baseline is None:
        if allow_missing:
            raise click.UsageError("--allow-missing is for --baseline NAME", ctx)
        if len(sides) != 2:
            raise click.UsageError("give BASE and NEW, or --baseline NAME and NEW", ctx)
    elif len(sides) != 1:
        raise click.UsageError("with --baseline give NEW alone: a folder of records", ctx)


def _against_baseline(
    name: str, new: str, folder: Path, across_environments: bool, whole: bool
) -> Comparison:
    from benchmarks.baselines import load
    from benchmarks.compare import CompareError, compare_records
    from benchmarks.sides import read_side

    if new == "estimates":
        raise CompareError("a baseline holds records: give a folder of records, not estimates")
    base, side = load(name, folder).side, read_side(new)
    if not side.cases:
        raise CompareError(f"there are no records in {new}")
    return compare_records(base, side, across_environments, across_versions=True, whole=whole)


def _read_list(texts: tuple[str, ...], option: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of an option that takes several, joined by commas or given again."""
    words = [word.strip() for text in texts for word in text.split(",")]
    for word in words:
        if word not in allowed:
            hint = did_you_mean(word, allowed)
            raise CaseError(
                f"{option} is {show_value(word)}, but must be {show_choices(allowed)}{hint}", option
            )
    return tuple(dict.fromkeys(words))


def _tracer() -> Tracer:
    from profiler.trace import trace_case

    return trace_case


def _compare(
    base: str, new: str, across_environments: bool, tiers: tuple[str, ...], with_trace: bool
) -> Comparison:
    from benchmarks.compare import CompareError, compare_estimates, compare_records
    from benchmarks.evidence.comparison import compare_published, compare_with_published
    from benchmarks.sides import read_side

    if base == new and base in ("estimates", "published"):
        raise CompareError(f"{base} can only be compared with records: give a folder of records")
    trace = _tracer() if with_trace else None
    if "estimates" in (base, new):
        first = base == "estimates"
        other = new if first else base
        if other == "published":
            return compare_published(tiers, first, trace=trace)
        comparison = compare_estimates(read_side(other), estimates_first=first, trace=trace)
    elif base == "published":
        return compare_with_published(read_side(new), tiers)
    elif new == "published":
        raise CompareError("what is published is the base: give published first, then the records")
    else:
        comparison = compare_records(read_side(base), read_side(new), across_environments)
    if not (comparison.rows or comparison.left_out):
        where = " or ".join(sorted({base, new} - {"estimates"}))
        if comparison.problems:
            raise CompareError(
                f"no file in {where} holds a record that can be read: {comparison.problems[0]}"
            )
        raise CompareError(f"there are no records in {where}")
    return comparison
