"""Writes what upgrades of libraries changed: `python -m benchmarks.versions_page`.

Reads the baselines of the suite `upgrades` in results/baselines (`transformers-*`, `peft-*` and
`bitsandbytes-*`), and writes results/reports/versions.json and docs/versions.md. docs/tracking.md
says how the baselines were made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import baselines
from benchmarks.history import History, tell_history
from benchmarks.history_tables import markdown_lines, to_json

ROOT = Path(__file__).parents[1]
BASELINES = ROOT / "results" / "baselines"
PAGE = ROOT / "docs" / "versions.md"
REPORT = ROOT / "results" / "reports" / "versions.json"

LIBRARIES = ("transformers", "peft", "bitsandbytes")

_HEAD = """# What upgrades changed

The suite `upgrades` ({cases} cases: one for each path through the libraries whose memory an upgrade
may change), traced under {points} sets of versions ({libraries}).
Figures are peak allocated bytes, simulated, not measured; the tracer is the same at every point.
[tracking.md](tracking.md) says how this was made and how to do it for your own cases. Written by

    python -m benchmarks.versions_page

{changed} of {cases} cases changed at all; {more} changed by more than 1 % in one step. `1-3` means
that the figures of these points agree to the byte; `change` is from the figure above. `GB` = 10^9
bytes, `GiB` = 2^30 bytes.
"""


def versions_history(folder: Path = BASELINES) -> History:
    """Return the history of the baselines that are named after a library."""
    chosen = [name for name in baselines.names(folder) if name.partition("-")[0] in LIBRARIES]
    return tell_history(baselines.load(name, folder).side for name in chosen)


def page(history: History) -> str:
    """Return the page in Markdown: only the cases that changed have rows."""
    changed = tuple(case for case in history.cases if case.changed)
    more = [case for case in changed if any(abs(step.relative) > 0.01 for step in case.changes)]
    head = _HEAD.format(
        cases=len(history.cases),
        points=len(history.points),
        libraries=", ".join(history.names),
        changed=len(changed),
        more=len(more),
    )
    lines = [head, *markdown_lines(history, changed)]
    equal = [case.id for case in history.cases if not case.changed]
    if equal:
        lines += ["", "Equal to the byte at every point:", "", *(f"- `{name}`" for name in equal)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write both files; return 0."""
    history = versions_history()
    REPORT.write_text(json.dumps(to_json(history), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(history), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
