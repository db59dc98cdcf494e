"""`gpumem models`: the catalogue of models."""

from __future__ import annotations

import json

import click

from app.options import asked_quiet
from app.output import table
from estimator.catalogue import CatalogueEntry, entries
from estimator.config_source import ModelConfig
from estimator.errors import ModelError, UnsupportedError
from estimator.families import parse_spec


@click.command()
@click.argument("words", nargs=-1, metavar="[FILTER]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the names only.")
@click.pass_context
def models(ctx: click.Context, words: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """List the model catalogue.

    FILTER: words that the name or the model type contains, ignoring case. The last column says
    whether `gpumem estimate` has formulas for it; `--formulas article` and `trace` know more.
    """
    found = [entry for entry in entries() if _matches(entry, words)]
    if as_json:
        click.echo(json.dumps([_as_dict(entry) for entry in found]))
        return
    if not found:
        raise ModelError(f"no model of the catalogue matches {' '.join(words)!r}")
    if asked_quiet(ctx, quiet):
        click.echo("\n".join(entry.name for entry in found))
        return
    rows = [["model", "type", "params", "ours"]]
    rows += [
        [
            entry.name,
            entry.model_type,
            _short(entry.parameters),
            "yes" if knows(entry) else "no",
        ]
        for entry in found
    ]
    click.echo(table(rows, left=2))
    click.echo(f"{len(found)} of {len(entries())} models; ours: `gpumem estimate` has formulas")


def knows(entry: CatalogueEntry) -> bool:
    """Say whether the architecture formulas know a model."""
    try:
        parse_spec(ModelConfig(entry.name, entry.config, "catalogue", entry.parameters))
    except (UnsupportedError, ModelError):
        return False
    return True


def _short(count: int) -> str:
    """Return a count in four digits: `1.236 B`, `124.4 M`."""
    return f"{count / 1e9:.4g} B" if count >= 10**9 else f"{count / 1e6:.4g} M"


def _matches(entry: CatalogueEntry, words: tuple[str, ...]) -> bool:
    text = f"{entry.name} {entry.model_type}".lower()
    return all(word.lower() in text for word in words)


def _as_dict(entry: CatalogueEntry) -> dict[str, object]:
    return {
        "model": entry.name,
        "model_type": entry.model_type,
        "parameters": entry.parameters,
        "architecture": knows(entry),
        "source": entry.source,
        "note": entry.note,
    }
