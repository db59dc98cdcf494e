"""`gpumem gpus`: the catalogue of cards."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from app.options import asked_quiet
from app.output import table
from estimator.errors import CaseError
from estimator.gpus import gpus as cards
from estimator.units import GB, GIB


@click.command()
@click.argument("words", nargs=-1, metavar="[FILTER]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the names only.")
@click.pass_context
def gpus(ctx: click.Context, words: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """List the cards and the memory they really have.

    FILTER: words that the name or the architecture contains, ignoring case. The memory is what
    nvidia-smi shows as total: "80GB" is a name.
    """
    found = [
        card
        for card in cards()
        if all(word.lower() in f"{card.name} {card.architecture}".lower() for word in words)
    ]
    if as_json:
        click.echo(json.dumps([asdict(card) for card in found]))
        return
    if not found:
        raise CaseError(f"no card of the catalogue matches {' '.join(words)!r}")
    if asked_quiet(ctx, quiet):
        click.echo("\n".join(card.name for card in found))
        return
    rows = [["card", "architecture", "MiB", "GB", "GiB"]]
    rows += [
        [
            card.name,
            card.architecture,
            str(card.memory_mib),
            f"{card.memory_bytes / GB:.2f}",
            f"{card.memory_bytes / GIB:.2f}",
        ]
        for card in found
    ]
    click.echo(table(rows, left=2))
