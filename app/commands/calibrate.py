"""`gpumem calibrate`: coefficients and intervals from measured runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.options import asked_quiet

if TYPE_CHECKING:
    from benchmarks.calibrate.evidence import Run

PUBLISHED = "published"


@click.command()
@click.argument("evidence", metavar="[EVIDENCE]...", nargs=-1)
@click.option("--name", metavar="NAME", help="Of the calibration; default: that of the evidence.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write FOLDER/NAME.json; without it nothing is written.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the bootstrap (default 0).")
@click.option("--json", "as_json", is_flag=True, help="Print the calibration as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="One line.")
@click.pass_context
def calibrate(
    ctx: click.Context,
    evidence: tuple[str, ...],
    name: str | None,
    output: Path | None,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fit coefficients and intervals to measured runs, and keep what holds.

    EVIDENCE is folders of measured records, or the word `published` (the default): what others
    measured. Each model family is left out in turn; what does not improve it is refused.
    `gpumem estimate --calibration FOLDER/NAME.json` uses the result.
    """
    from benchmarks.calibrate.answers import answer_runs
    from benchmarks.calibrate.calibration import calibrate as fit_all
    from benchmarks.calibrate.calibration import store
    from benchmarks.calibrate.least_squares import need_scipy
    from benchmarks.calibrate.tables import text_lines

    need_scipy()
    sources = evidence or (PUBLISHED,)
    answers = answer_runs(run for source in sources for run in _runs(source))
    calibration = fit_all(answers.runs, _name(name, sources), seed)
    path = None if output is None else store(calibration, output)
    if as_json:
        click.echo(json.dumps(calibration.to_dict()))
    elif asked_quiet(ctx, quiet):
        used = [fit.name for fit in calibration.fits if fit.accepted]
        held = sum(rule.held for rule in calibration.intervals)
        click.echo(
            f"{calibration.name}: {len(answers.runs)} runs, used {', '.join(used) or 'no fit'}, "
            f"{held} of {len(calibration.intervals)} intervals"
        )
    else:
        click.echo("\n".join(text_lines(calibration, answers.unanswered)))
    if path is not None:
        click.echo(f"calibration: {path}", err=as_json)


def _runs(source: str) -> tuple[Run, ...]:
    from benchmarks.calibrate.evidence import EvidenceError, measured_runs, published_runs

    if source == PUBLISHED:
        return published_runs()
    runs = measured_runs(Path(source))
    if not runs:
        raise EvidenceError(
            f"{source} has no measured run to learn from: traces are predictions, and flagged "
            "records and held-out cases are left out"
        )
    return runs


def _name(given: str | None, sources: tuple[str, ...]) -> str:
    name = given
    if name is None:
        name = PUBLISHED if sources == (PUBLISHED,) else Path(sources[0]).resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name in ("none", "auto"):
        raise click.UsageError(
            f"--name is {name!r}, but must be letters, digits, dots, dashes and underscores "
            "(and not none or auto)"
        )
    return name
