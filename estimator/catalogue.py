"""The catalogue: real model configurations that ship with the package.

Each row of data/models.json is a published configuration, built with transformers on meta
tensors and counted; its `source` says where the configuration was read. No network is used.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from estimator.errors import ModelError, show_value
from estimator.suggest import closest


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model. `name` is its Hub id; `parameters` counts tied weights once.

    `config` holds `model_type` too; it is shared, so copy it before changing anything.
    """

    name: str
    model_type: str
    parameters: int
    config: dict[str, Any]
    source: str
    note: str | None

    @property
    def short_name(self) -> str:
        """The part of the Hub id after the slash."""
        return self.name.rsplit("/", 1)[-1]


@cache
def entries() -> tuple[CatalogueEntry, ...]:
    """Return the catalogue, sorted by name (ignoring case)."""
    text = files("estimator").joinpath("data", "models.json").read_text(encoding="utf-8")
    rows = (
        CatalogueEntry(
            name=row["id"],
            model_type=row["model_type"],
            parameters=row["parameters"],
            config={"model_type": row["model_type"], **row["config"]},
            source=row["source"],
            note=row.get("note"),
        )
        for row in json.loads(text)
    )
    return tuple(sorted(rows, key=lambda entry: entry.name.lower()))


@lru_cache(maxsize=1024)
def find_model(name: str) -> CatalogueEntry:
    """Return a model by Hub id or by the part after the slash.

    Case is ignored; so are spaces or underscores in place of hyphens and a `-hf` suffix, where
    the result is one model only.

    Raises:
        ModelError: when no model has the name (with suggestions and the ways out), or several
            have it (with the candidates).
    """
    exact = name.strip().lower()
    loose = _loose(name)
    for matches in (
        [entry for entry in entries() if entry.name.lower() == exact],
        [entry for entry in entries() if entry.short_name.lower() == exact],
        [entry for entry in entries() if loose in (_loose(entry.name), _loose(entry.short_name))],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = " or ".join(entry.name for entry in matches)
            raise ModelError(f"model {show_value(name)} is ambiguous: give {names}")
    raise ModelError(
        f"model {show_value(name)} is not in the catalogue of {len(entries())} models"
        f"{_hint(name)} (`gpumem models` lists them; for any other, `hf download` it, or its "
        "config.json and give the path)"
    )


_TUNED = frozenset({"instruct", "it", "chat", "base", "pt"})
"""What a name says of a model's tuning, which as a rule changes no shape (Mixtral-8x22B's grew its
vocabulary by 768 tokens)."""


@lru_cache(maxsize=1024)
def find_relative(name: str) -> CatalogueEntry | None:
    """Return the one model whose name differs in its tuning only, or None.

    `Llama-3.1-8B-Instruct` is tuned from `Llama-3.1-8B`, and has its layers.
    """
    owner, _, short = name.strip().lower().rpartition("/")
    wanted = _untuned(short)
    found = [
        entry
        for entry in entries()
        if _untuned(entry.short_name) == wanted
        and (not owner or entry.name.lower().startswith(f"{owner}/"))
    ]
    return found[0] if len(found) == 1 else None


def _untuned(short_name: str) -> tuple[str, ...]:
    return tuple(part for part in _loose(short_name).split("-") if part not in _TUNED)


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower()).removesuffix("-hf")


def _hint(name: str) -> str:
    """Return `; did you mean ...?`, best first.

    First the same model of another owner, then names that contain this one or are contained in
    it (`Llama-3-8B`, `Llama-3.1-8B-Instruct`), then names that look alike.
    """
    wanted = _loose(name.rsplit("/", 1)[-1])
    short = {entry.name: _loose(entry.short_name) for entry in entries()}
    same = [full for full, key in short.items() if key == wanted]
    within = [
        full for full, key in short.items() if len(wanted) > 4 and (wanted in key or key in wanted)
    ]
    within.sort(key=lambda full: abs(len(short[full]) - len(wanted)))
    by_key = {(full if "/" in name else short[full]): full for full in short}
    similar = [by_key[key] for key in closest(name, by_key)]
    names = list(dict.fromkeys([*same, *within, *similar]))[:3]
    return f"; did you mean {', '.join(names)}?" if names else ""
