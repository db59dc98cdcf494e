"""The pages of the verbs show what the commands really print.

`python tests/integration/test_docs.py` writes the present output into the pages.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import readme_table

ROOT = Path(__file__).parents[2]

# Pages whose output depends on neither the machine nor the versions of the libraries.
PAGES = ("estimate", "fit", "history", "models", "gpus", "suites", "README")

_BLOCK = re.compile(r"^```\n\$ gpumem (?P<arguments>.*)\n(?P<output>(?:.*\n)*?)```$", re.MULTILINE)


def page(verb: str) -> Path:
    if verb == "README":
        return ROOT / "README.md"
    return ROOT / "docs" / "verbs" / f"{verb}.md"


def run(arguments: str) -> str:
    command = [sys.executable, "-m", "app", *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.parametrize("verb", PAGES)
def test_shown_output_is_real(verb: str) -> None:
    blocks = list(_BLOCK.finditer(page(verb).read_text(encoding="utf-8")))
    assert blocks
    for block in blocks:
        assert run(block["arguments"]) == block["output"]


def test_the_readmes_table_is_current() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_table.refreshed(text) == text


def refresh() -> None:
    """Write the present output into the pages."""
    for verb in PAGES:
        text = page(verb).read_text(encoding="utf-8")
        new = _BLOCK.sub(
            lambda block: f"```\n$ gpumem {block['arguments']}\n{run(block['arguments'])}```", text
        )
        page(verb).write_text(new, encoding="utf-8")


if __name__ == "__main__":
    refresh()
