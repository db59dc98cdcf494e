"""`gpumem estimate`: what a run needs, from formulas."""

from __future__ import annotations

from typing import Any

import click

from app.answers import answer, answer_options
from app.options import case_options
from estimator import Case, MemoryReport
from estimator import estimate as estimate_case
from estimator.coefficients import load_calibration, matching_calibration


@click.command()
@case_options
@click.option(
    "--formulas",
    type=click.Choice(["architecture", "article"]),
    default="architecture",
    help="architecture: ours (default); article: the seed article's, for comparison.",
)
@click.option(
    "--calibration",
    metavar="NAME",
    default="auto",
    help="auto (default): one that has measured runs of this kind; none; a name; a file.",
)
@answer_options
@click.pass_context
def estimate(ctx: click.Context, /, formulas: str, calibration: str, **options: Any) -> None:
    """What a run needs, from formulas, phase by phase.

    MODEL is a catalogue name, a path to a config.json or a folder that holds one. Nothing is
    downloaded, and no GPU is needed.
    """
    chosen = None if calibration in ("auto", "none") else load_calibration(calibration)

    def answer_case(case: Case) -> MemoryReport:
        # The article's own constants are what its formulas are: others only where asked for.
        matching = calibration == "auto" and formulas == "architecture"
        return estimate_case(case, formulas, matching_calibration(case) if matching else chosen)

    answer(ctx, answer_case, options)
