"""How wrong predictions are against what others measured: `python -m benchmarks.published`.

Writes results/reports/published.json (every row with what was predicted) and from it the tables of
docs/published.md. `--trace` traces the runs too, some minutes; without it the traced figures that
are stored stay.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison, all_judged
from benchmarks.error_summary import ErrorSummary, summarize
from benchmarks.evidence.comparison import compare_published
from benchmarks.evidence.rows import FOLDER, KEPT, published_measurements, read_rows
from benchmarks.group_tables import share
from estimator.units import format_both, format_error

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "results" / "reports" / "published.json"
PAGE = ROOT / "docs" / "published.md"
NAMES = ("architecture", "article", "trace")
_MARKED = re.compile(r"(<!-- tables:begin -->\n).*?(<!-- tables:end -->)", re.DOTALL)
_LOOSE = 0.01
"""Rows that are further off are listed."""


def collect(trace: bool = False) -> dict[str, Any]:
    """Return every answered row with its predictions, and what ran out of memory.

    Args:
        trace: trace the runs too.
    """
    if not trace:
        return to_rows(compare_published(("A", "B")))
    from profiler.trace import trace_case

    return to_rows(compare_published(("A", "B"), trace=trace_case))


def to_rows(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison with published rows as `published.json` holds it."""
    tiers = {row.row_id: row for row in published_measurements()}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in all_judged(comparison):
        if one.keys.get("counter") != "allocated":
            continue
        row_id, _, label = one.label.partition(": ")
        row = rows.setdefault(
            (row_id, one.keys["phase"]),
            {
                "id": row_id,
                "label": label,
                "tier": tiers[row_id].tier,
                "instant": one.keys["phase"],
                **{key: one.keys[key] for key in ("source", "family", "method", "stack")},
                "published_bytes": one.reference_bytes,
                "predicted": {},
            },
        )
        row["predicted"][one.name] = one.predicted_bytes
    return {
        "about": "Written by python -m benchmarks.published; the published bytes are measurements "
        "of others (results/published/measurements.jsonl), the predicted ones are computed.",
        "rows": list(rows.values()),
        "ran_out": [
            {
                "label": run.label,
                "capacity_bytes": run.capacity_bytes,
                "predicted": run.predicted,
            }
            for run in comparison.ran_out
        ],
    }


def keep_traces(report: dict[str, Any], stored: dict[str, Any]) -> None:
    """Take the traced figures of a stored report over, where a row has none."""
    known = {(row["id"], row["instant"]): row["predicted"] for row in stored["rows"]}
    for row in report["rows"]:
        traced = known.get((row["id"], row["instant"]), {}).get("trace")
        if traced is not None:
            row["predicted"].setdefault("trace", traced)


def errors(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[str, float]]:
    """Return (label, relative error) of what a predictor said of rows."""
    return [
        (f"{row['id']}: {row['label']}", row["predicted"][name] / row["published_bytes"] - 1)
        for row in rows
        if name in row["predicted"]
    ]


def summaries(
    rows: Sequence[dict[str, Any]], names: Sequence[str] = NAMES
) -> Iterator[ErrorSummary]:
    """Yield a summary of each predictor that said anything of rows."""
    for name in names:
        found = errors(rows, name)
        if found:
            yield summarize(name, found)


def peaks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of tier A that are peaks."""
    return [row for row in report["rows"] if row["instant"] == "peak" and row["tier"] == "A"]


def tables(report: dict[str, Any]) -> str:
    """Return the tables of docs/published.md, with a closing newline."""
    highest = peaks(report)
    lines = ["Peaks of allocated bytes, tier A:", "", *_table("runs of", _by(highest, "source"))]
    lines += ["", *_table("method", _by(highest, "method"))]
    lines += ["", "What is left after a training step, tiers A and B:", ""]
    lines += _table("method", _by(_at(report, "after the step"), "method"))
    lines += ["", "What is left after the last token, tier B:", ""]
    lines += [*_table("family", _by(_at(report, "after generate"), "family")), ""]
    lines += [*_far_off(highest), "", *_ran_out(report), "", *_kept()]
    return "\n".join(lines) + "\n"


def _at(report: dict[str, Any], instant: str) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["instant"] == instant]


def _by(rows: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return {"all": rows, **dict(sorted(found.items()))}


def _table(title: str, groups: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield (
        f"| {title} | prediction | n | median | 95 % within | worst | under by over 3 % "
        "| margin 95 % | margin 99 % |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, rows in groups.items():
        for one in summaries(rows):
            low = sum(error < -0.03 for _, error in errors(rows, one.name))
            yield (
                f"| {name} | `{one.name}` | {one.count} | {100 * one.median:.3f} % "
                f"| {share(one.p95)} | {format_error(one.worst)} | {low} "
                f"| {share(one.margin_95)} | {share(one.margin_99)} |"
            )


def _far_off(rows: list[dict[str, Any]]) -> Iterator[str]:
    far = [(label, error) for label, error in errors(rows, NAMES[0]) if abs(error) > _LOOSE]
    yield f"Peaks that `architecture` misses by more than {_LOOSE:.0%}: {len(far)}."
    yield ""
    yield from (f"* {label}: {format_error(error)}" for label, error in far)


def _ran_out(report: dict[str, Any]) -> Iterator[str]:
    runs = report["ran_out"]
    yield f"Runs that ran out of memory: {len(runs)}. Predictions that are below the whole card:"
    yield ""
    for name in NAMES:
        said = [run for run in runs if name in run["predicted"]]
        wrong = [run for run in said if run["predicted"][name] <= run["capacity_bytes"]]
        if said:
            yield f"* `{name}`: {len(wrong)} of {len(said)}"
        for run in wrong:
            yield (
                f"  * {run['label']}: {format_both(run['predicted'][name])} of "
                f"{format_both(run['capacity_bytes'])}"
            )


def _kept() -> Iterator[str]:
    kept = read_rows(FOLDER / KEPT)
    cases = published_measurements()
    yield (
        f"Of {len(kept) + len(cases)} published rows {len(cases)} state a case; {len(kept)} are "
        "kept with the reason, the most frequent of which are:"
    )
    yield ""
    yield "| rows | reason |"
    yield "|---|---|"
    reasons = Counter(row.reason for row in kept)
    yield from (f"| {count} | {reason} |" for reason, count in reasons.most_common(12))


def refreshed(text: str, report: dict[str, Any]) -> str:
    """Return the page's text with the present tables between its marks."""
    return _MARKED.sub(lambda found: found.group(1) + tables(report) + found.group(2), text)


def read_report() -> dict[str, Any]:
    """Return what is stored."""
    report: dict[str, Any] = json.loads(REPORT.read_text(encoding="utf-8"))
    return report


def main(arguments: list[str] | None = None) -> int:
    """Write the report and the page, print the summary; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", action="store_true", help="trace the runs too: minutes")
    options = parser.parse_args(arguments)
    report = collect(options.trace)
    if REPORT.exists():
        keep_traces(report, read_report())
    rows = (json.dumps(row) for row in report["rows"])
    runs = (json.dumps(run) for run in report["ran_out"])
    REPORT.write_text(
        f'{{"about": {json.dumps(report["about"])},\n"rows": [\n'
        + ",\n".join(rows)
        + '\n],\n"ran_out": [\n'
        + ",\n".join(runs)
        + "\n]}\n",
        encoding="utf-8",
    )
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
    for one in summaries(peaks(report)):
        print(
            f"{one.name:13}{one.count:5}  median {100 * one.median:.4f} %  95 % within "
            f"{share(one.p95)}  worst {format_error(one.worst)} ({one.worst_label})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
