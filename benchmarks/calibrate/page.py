"""Makes the published calibration anew: `python -m benchmarks.calibrate.page`.

Writes results/coefficients/published.json, its copy in the package (the estimator reads nothing of
results/), and the tables of docs/calibration.md.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

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
_MARKED = re.compile(r"(<!-- calibration:begin -->\n).*?(<!-- calibration:end -->)", re.DOTALL)


def stored() -> Calibration:
    """Return the calibration in results/coefficients.

    Raises:
        CalibrationError: when there is none.
    """
    return load_calibration(str(STORED / f"{NAME}.json"))


def refreshed(text: str, calibration: Calibration) -> str:
    """Return the page's text with a calibration's tables between its marks."""
    head = (
        f"Runs {calibration.evidence}; evidence `{calibration.evidence_hash}`, code "
        f"`{calibration.code_version}`."
    )
    body = "\n".join([head, "", *markdown_lines(calibration)])
    return _MARKED.sub(lambda found: f"{found.group(1)}{body}\n{found.group(2)}", text)


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
