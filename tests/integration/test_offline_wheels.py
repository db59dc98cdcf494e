"""The list of wheels for a GPU machine without a network is what gpumem needs beside torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def closure(names: Iterable[str], known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return distributions with all that they require, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in known:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(needed.name))
    return frozenset(found)


def test_the_list_in_the_docs_is_complete() -> None:
    page = (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"-c constraints\.txt -d wheels ((?:.|\n)*?)```", page)
    profile = "accelerate bitsandbytes nvidia-ml-py peft safetensors transformers"
    gpumem = "click jinja2 pydantic rich"
    with_torch = closure(["torch"])
    needed = closure([*profile.split(), *gpumem.split()], known=with_torch)
    assert listed.replace("\\", " ").split() == sorted(needed)
