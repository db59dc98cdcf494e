"""`gpumem estimate`: what a run needs, from formulas."""

from __future__ import annotations

from typing import Any

import click

from app.answers import answer, answer_options
from app.options import case_options
from estimator import estimate as estimate_case


@click.command()
@case_options
@click.option(
    "--formulas",
    type=click.Choice(["architecture", "article"]),
    default="architecture",
    help="architecture: ours (default); article: the seed article's, for comparison.",
)
@answer_options
@click.pass_context
def estimate(ctx: click.Context, /, formulas: str, **options: Any) -> None:
    """What a run needs, from formulas, phase by phase.

    MODEL is a catalogue name, a path to a config.json or a folder that holds one. Nothing is
    downloaded, and no GPU is needed.
    """
    answer(ctx, lambda case: estimate_case(case, formulas), options)
