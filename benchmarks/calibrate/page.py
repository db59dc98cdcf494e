"""Makes the published calibration anew: `python -m benchmarks.calibrate.page`.

Writes results/coefficients/published.json, its copy in the package (the estimator reads nothing of
results/), and the tables of docs/calibration.md. Those of made-up runs are made from
results/reports/calibration_recovery.json (`python -m benchmarks.calibrate.recovery -o`).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.calibrate.answers import answer_runs
from benchmarks.calibrate.calibration import calibrate, store
from benchmarks.calibrate.evidence import published_runs
from benchmarks.calibrate.tables import markdown_lines
from estimator.coefficients import Calibration, load_calibration

ROOT = Path(__file__).parents[2]
NAME = "published"
STORED = ROOT / "results" / "coefficients"
SHIPPED = ROOT / "estimator" / "data" / "calibrations"
PAGE = ROOT / "docs" / "calibration.md"
RECOVERY = ROOT / "results" / "reports" / "calibration_recovery.json"


def stored() -> Calibration:
    """Return the calibration in results/coefficients.

    Raises:
        CalibrationError: when there is none.
    """
    return load_calibration(str(STORED / f"{NAME}.json"))


def refreshed(text: str, calibration: Calibration) -> str:
    """Return the page's text with the present tables between its marks."""
    head = (
        f"Runs {calibration.evidence}; evidence `{calibration.evidence_hash}`, code "
        f"`{calibration.code_version}`."
    )
    text = _between(text, "calibration", [head, "", *markdown_lines(calibration)])
    return _between(text, "recovery", recovery_lines(json.loads(RECOVERY.read_text("utf-8"))))


def recovery_lines(study: dict[str, Any]) -> list[str]:
    """Return the tables of what made-up runs showed (benchmarks/calibrate/recovery.py)."""
    return [
        f"| fit | trials of {study['trials']} in which all coefficients were inside |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in study["recovered"].items()),
        "",
        "| families | spread between | within | 90 % intervals held | 95 % bounds held |",
        "|---|---|---|---|---|",
        *(
            f"| {row['families']} | {row['between']:.1%} | {row['within']:.1%} "
            f"| {row['two_sided']:.1%} | {row['one_sided']:.1%} |"
            for row in study["held_of_new_families"]
        ),
    ]


def _between(text: str, name: str, lines: list[str]) -> str:
    marked = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    body = "\n".join(lines)
    return marked.sub(lambda found: f"{found.group(1)}{body}\n{found.group(2)}", text)


def main() -> int:
    """Fit, store, copy, rewrite the page; return 0."""
    calibration = calibrate(answer_runs(published_runs()).runs, NAME)
    for folder in (STORED, SHIPPED):
        print(store(calibration, folder))
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), calibration), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
