"""`gpumem report`: everything that is known of the errors, as one HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.commands.baseline import folder_option
from app.options import asked_quiet
from estimator.case import Case
from estimator.errors import GpumemError, RecordError
from estimator.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from benchmarks.report.evidence import ReferenceSet
    from benchmarks.sides import Side
    from estimator.coefficients import Calibration
    from profiler.trace.story import Story

RECORDS = Path("results") / "records"
COEFFICIENTS = Path("results") / "coefficients"
OUT = Path("out")


@click.command()
@click.argument("records", nargs=-1, metavar="[RECORDS]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=OUT / "report.html",
    metavar="FILE",
    help="Where to write it (default: out/report.html).",
)
@click.option(
    "--published/--no-published", default=True, help="What others measured (default: with it)."
)
@click.option(
    "--timelines/--no-timelines",
    default=True,
    help="Trace the worst cases for their timelines, where torch is installed (default).",
)
@folder_option
@click.option("--json", "as_json", is_flag=True, help="Print the summaries as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing unless something is wrong.")
@click.pass_context
def report(
    ctx: click.Context,
    records: tuple[str, ...],
    output: Path,
    published: bool,
    timelines: bool,
    folder: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """How wrong the estimates are, as one HTML file to send.

    RECORDS are folders of records, or record files; without any, results/records and the folders
    in out/ that hold records. The file needs nothing else: no script, no font, no network.
    """
    from benchmarks.evidence.comparison import compare_published
    from benchmarks.history import tell_history
    from benchmarks.report.evidence import gather
    from benchmarks.report.page import Contents, write_summary
    from profiler.provenance import code_version

    quiet = asked_quiet(ctx, quiet)
    sides = _sides(records)
    sets, left_out = gather(sides, compare_published() if published else None)
    kept = _baselines(folder)
    history = tell_history([*kept, *sides])
    if not sets and not history.cases:
        raise RecordError(
            "there is nothing to report: name folders of records, or make some "
            "(gpumem run smoke --source trace)"
        )
    environments = {key: env for side in sides for key, env in side.environments.items()}
    problems = [str(problem) for side in (*sides, *kept) for problem in side.problems]
    version, dirty = code_version()
    contents = Contents(
        sets=sets,
        history=history if len(history.points) > 1 else None,
        calibrations=_calibrations(),
        environments=tuple(environments.values()),
        stories=_stories(sets, quiet) if timelines else None,
        left_out=left_out,
        notes=(*(note for side in sides for note in side.notes()), *problems),
        code_version=version + (" with changes that are not committed" if dirty else ""),
    )
    write_summary(contents, output)
    if as_json:
        click.echo(json.dumps(_json(output, sets)))
    elif not quiet:
        for one in sets:
            first = one.summaries[0]
            click.echo(
                f"{first.name} against {len(one.rows)} {one.word} cases: median "
                f"{100 * first.median:.2f} %, worst {100 * first.worst:+.2f} %"
            )
        click.echo(f"report: {output}")


def _sides(records: tuple[str, ...]) -> list[Side]:
    from benchmarks.sides import read_side

    if records:
        return [read_side(name) for name in records]
    folders = [RECORDS, *sorted(OUT.glob("*/"))]
    sides = [read_side(str(path)) for path in folders if path.is_dir()]
    return [side for side in sides if side.cases]


def _baselines(folder: Path) -> list[Side]:
    from benchmarks import baselines

    return [baselines.load(name, folder).side for name in baselines.names(folder)]


def _calibrations() -> tuple[Calibration, ...]:
    """Return the calibrations of the package, and those stored here that it does not have."""
    from estimator.coefficients import load_calibration, shipped_names

    shipped = [load_calibration(name) for name in shipped_names()]
    stored = [load_calibration(str(path)) for path in sorted(COEFFICIENTS.glob("*.json"))]
    return tuple({one.evidence_hash + one.name: one for one in (*shipped, *stored)}.values())


def _stories(sets: tuple[ReferenceSet, ...], quiet: bool) -> dict[str, Story]:
    """Trace the worst cases; those that cannot be traced are shown by their phases."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("torch", "transformers", "peft")):
        return {}
    from benchmarks.report.page import WORST

    cases = {
        row.case_id: Case.from_dict(row.reference.case) for one in sets for row in one.worst(WORST)
    }
    if not quiet:
        click.echo(f"tracing the {len(cases)} worst cases for their timelines", err=True)
    from profiler.trace import trace_run
    from profiler.trace.story import tell

    stories = {}
    refused = 0
    for case_id, case in cases.items():
        try:
            traced = trace_run(case)
        except GpumemError:
            refused += 1  # The page shows its phases instead, and says so.
        else:
            stories[case_id] = tell(
                traced.timeline, traced.replay, traced.report, traced.expandable
            )
    if refused and not quiet:
        click.echo(f"{refused} of them cannot be traced and are shown by their phases", err=True)
    return stories


def _json(output: Path, sets: tuple[ReferenceSet, ...]) -> dict[str, Any]:
    from benchmarks.group_tables import summary_json

    return {
        "schema_version": SCHEMA_VERSION,
        "report": str(output),
        "summaries": [
            {"against": one.word, **summary_json(summary)}
            for one in sets
            for summary in one.summaries
        ],
    }
