"""Writes README's error table from the stored reports: `python -m benchmarks.readme_table`.

results/reports/published.json is what `python -m benchmarks.published` writes;
results/reports/suites_traced.json holds the summaries of `gpumem compare estimates RECORDS --json`
over traced suites, which `python -m benchmarks.readme_table SUITE=FILE ...` takes over from such
files.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import published

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "results" / "reports"
SUITES = REPORTS / "suites_traced.json"
README = ROOT / "README.md"
_MARKED = re.compile(r"(<!-- errors:begin -->\n).*?(<!-- errors:end -->)", re.DOTALL)


def published_lines(report: dict[str, Any]) -> list[str]:
    """Return the table's rows of predictions against published measurements of tier A."""
    rows = published.peaks(report)
    return [
        _line(one.name, "published measurements", one.count, [e for _, e in errors])
        for one in published.summaries(rows)
        for errors in [published.errors(rows, one.name)]
    ]


def suite_lines(suites: dict[str, Any]) -> list[str]:
    """Return the table's rows of the formulas against traced suites."""
    return [
        f"| `{summary['name']}` | traced (suite {name}) | {summary['count']} | "
        f"{100 * summary['median_absolute_error']:.3f} % | {100 * summary['worst_error']:+.2f} % |"
        for name, suite in suites.items()
        for summary in suite["summary"]
    ]


def table() -> str:
    """Return the table in Markdown, with a closing newline."""
    suites = json.loads(SUITES.read_text(encoding="utf-8"))
    lines = [
        "| prediction | against | n | median error | worst |",
        "|---|---|---|---|---|",
        *published_lines(published.read_report()),
        *suite_lines(suites),
        "",
        "Errors are (predicted - reference) / reference of peak allocated bytes; plus is an",
        "over-estimate. Published are prefills, generations, full, LoRA and QLoRA",
        "fine-tunes from 0.5B to 70B, on the stacks they ran on, which are named presets",
        "(`--stack`): [docs/published.md](docs/published.md).",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, against: str, count: int, errors: list[float]) -> str:
    median = statistics.median(abs(error) for error in errors)
    worst = max(errors, key=abs)
    return f"| `{name}` | {against} | {count} | {100 * median:.3f} % | {100 * worst:+.2f} % |"


def refreshed(text: str) -> str:
    """Return README's text with the present table between its marks."""
    return _MARKED.sub(lambda found: found.group(1) + table() + found.group(2), text)


def take_over(name: str, comparison: Path) -> None:
    """Store the summary of a comparison of estimates with a traced suite."""
    found = json.loads(comparison.read_text(encoding="utf-8"))
    suites = json.loads(SUITES.read_text(encoding="utf-8")) if SUITES.exists() else {}
    suites[name] = {
        "summary": found["summary"],
        "left_out": [f"{item['label']}: {item['reason']}" for item in found["left_out"]],
        "environments": found["environments"],
    }
    SUITES.write_text(json.dumps(suites, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Take over the comparisons that are named, rewrite README's table; return 0."""
    for argument in arguments:
        name, _, path = argument.partition("=")
        take_over(name, Path(path))
    README.write_text(refreshed(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
