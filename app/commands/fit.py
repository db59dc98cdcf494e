"""`gpumem fit`: the largest batch, the longest sequence, and what makes a case fit on a card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from app.answers import FINDING, answer_cases, answer_options, verbosity
from app.fitting import Fitting, headline, render, to_dict
from app.needs import check_model
from app.options import case_options, read_case
from estimator.case import Case
from estimator.errors import CaseError
from estimator.gpus import find_gpu
from estimator.headroom import CONTEXT_HIGH_BYTES, Room
from estimator.units import GIB

SOURCES = ("architecture", "trace")


@click.command()
@case_options
@click.option(
    "--source",
    type=click.Choice(SOURCES),
    default="architecture",
    help="architecture: our formulas (default); trace: the real code, simulated.",
)
@click.option(
    "--surface",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --source trace: keep what was traced, and answer from it without torch.",
)
@click.option(
    "--reserve-gib",
    metavar="X",
    help="GiB of the card to leave to others, in place of the CUDA context's 0.55.",
)
@answer_options
@click.pass_context
def fit(
    ctx: click.Context,
    /,
    source: str,
    surface: Path | None,
    reserve_gib: str | None,
    **options: Any,
) -> None:
    """What fits on --gpu: the largest batch, the longest sequence, the cheapest changes.

    The batch is found at the given length, and the length at the given batch. Where the case does
    not fit as it is, the changes that make it fit are listed by what they cost. MODEL is as in
    `gpumem estimate`.
    """
    if surface is not None and source != "trace":
        raise click.UsageError("--surface is for --source trace", ctx)
    solve = _solver(source, surface, _reserve(reserve_gib))
    if options["cases_file"] is not None:
        if options["check"] or surface is not None:
            name = "--check" if options["check"] else "--surface"
            raise click.UsageError(f"{name} is for one case, not for --cases", ctx)
        answer_cases(ctx, lambda case: to_dict(solve(case)), options)
        return
    result = solve(read_case(options))
    if options["as_json"]:
        click.echo(json.dumps(to_dict(result)))
    else:
        quiet, verbose = verbosity(ctx, options)
        click.echo(headline(result) if quiet else render(result, verbose))
    if options["check"] and not result.fits:
        ctx.exit(FINDING)


def _solver(source: str, surface: Path | None, reserve_bytes: int) -> Callable[[Case], Fitting]:
    def solve(case: Case) -> Fitting:
        if case.gpu is None:
            raise CaseError("fit needs a card: give --gpu (`gpumem gpus` lists them)", "gpu")
        room = Room(find_gpu(case.gpu), reserve_bytes)
        if room.room_bytes <= 0:
            raise CaseError(
                f"--reserve-gib leaves nothing of {room.gpu.name}, which has "
                f"{room.gpu.memory_bytes / GIB:.2f} GiB"
            )
        if source == "architecture":
            return Fitting.estimated(case, room)
        check_model(case)
        return Fitting.traced(case, room, surface)

    return solve


def _reserve(text: str | None) -> int:
    if text is None:
        return CONTEXT_HIGH_BYTES
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1024:
        raise CaseError(f"--reserve-gib is {text[:60]!r}, but must be a number from 0 to 1024")
    return int(value * GIB)
