"""The trace against every published row that is cited: `python -m benchmarks.published`.

Rows are in results/published/cited.json. A row's figure is a measurement that others published;
ours is a prediction. Prints a table and the median, and writes them as JSON with `-o FILE`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from estimator.case import Case
from estimator.report import MemoryReport
from estimator.units import format_error, format_gb, relative_error

CITED = Path(__file__).parents[1] / "results" / "published" / "cited.json"


def read_rows(path: Path = CITED) -> list[dict[str, Any]]:
    """Return the cited rows: id, source, metric, instant, allocated_bytes, case."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def predicted_bytes(report: MemoryReport, instant: str) -> int:
    """Return what a report says of a row's instant: the peak, or the end of the last phase."""
    if instant == "after_step":
        return report.phases[-1].end_allocated_bytes
    return report.peak.allocated_bytes


def compare_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trace each row's case (equal cases once) and return its prediction and relative error."""
    from profiler.trace import trace_case

    reports: dict[str, MemoryReport] = {}
    results = []
    for row in rows:
        case = Case.from_dict(row["case"])
        if case.case_id not in reports:
            reports[case.case_id] = trace_case(case)
        predicted = predicted_bytes(reports[case.case_id], row["instant"])
        results.append(
            {
                "id": row["id"],
                "label": case.label,
                "instant": row["instant"],
                "published_bytes": row["allocated_bytes"],
                "traced_bytes": predicted,
                "relative_error": relative_error(predicted, row["allocated_bytes"]),
            }
        )
    return results


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    results = compare_rows(read_rows())
    for result in results:
        print(
            f"{result['id']}  {result['instant']:10}  {format_gb(result['published_bytes']):>9}  "
            f"{format_gb(result['traced_bytes']):>9}  {100 * result['relative_error']:+9.4f} %  "
            f"{result['label']}"
        )
    for instant in ("peak", "after_step"):
        errors = [abs(r["relative_error"]) for r in results if r["instant"] == instant]
        worst = max((r["relative_error"] for r in results if r["instant"] == instant), key=abs)
        print(
            f"{instant}: {len(errors)} rows, median {100 * statistics.median(errors):.4f} %, "
            f"worst {format_error(worst)}"
        )
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
