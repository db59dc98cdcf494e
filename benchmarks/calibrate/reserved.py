"""How far estimates of reserved bytes are off: `python -m benchmarks.calibrate.reserved RECORDS`.

RECORDS are folders of traced suites (`gpumem run SUITE --source trace -o FOLDER`). Writes
results/coefficients/counters/reserved.json, its copy in the package, and the table of
docs/counters.md. The intervals come from traces, which are simulations, and hold what they say of
model families that were left out of them; published measurements are set beside them, and bound
what the driver shows above reserved bytes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.calibrate.evidence import PUBLISHED_WORDS, Run, family_of, published_runs
from benchmarks.calibrate.intervals import ONE_SIDED_LEVEL, TWO_SIDED_LEVEL, Refusal, two_sided
from benchmarks.calibrate.left_out import errors, family_weights, weighted_quantile
from benchmarks.sides import read_side
from benchmarks.store import write_whole
from estimator import estimate
from estimator.case import TASKS, Case
from estimator.counters import DeviceRule, ReservedRule
from estimator.errors import GpumemError
from estimator.units import GIB

ROOT = Path(__file__).parents[2]
STORED = ROOT / "results" / "coefficients" / "counters" / "reserved.json"
SHIPPED = ROOT / "estimator" / "data" / "reserved.json"
PAGE = ROOT / "docs" / "counters.md"
_MARKED = re.compile(r"(<!-- reserved:begin -->\n).*?(<!-- reserved:end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pair:
    """A predicted and a reference figure of one counter, in bytes."""

    case: Case
    family: str
    predicted: int
    reference: int

    @property
    def ratio(self) -> float:
        """The reference as a multiple of the prediction."""
        return self.reference / self.predicted


def traced_pairs(folders: Iterable[str]) -> list[Pair]:
    """Return estimated and traced reserved bytes of every case that both answer, each case once.

    Raises:
        RecordError: when there are no records at a path.
    """
    pairs: dict[str, Pair] = {}
    for folder in folders:
        for entry in read_side(folder).cases.values():
            peak, case = entry.record.peak, entry.case
            if entry.record.source != "trace" or peak is None or peak.reserved_bytes is None:
                continue
            predicted = _predicted(case)
            if predicted is not None:
                pairs[case.case_id] = Pair(case, family_of(case), predicted, peak.reserved_bytes)
    return list(pairs.values())


def published_pairs(counter: str, runs: Sequence[Run]) -> list[Pair]:
    """Return estimated reserved bytes beside what was measured of a counter."""
    return [
        Pair(run.case, run.family, predicted, run.counters[counter])
        for run in runs
        if counter in run.counters and (predicted := _predicted(run.case)) is not None
    ]


def _predicted(case: Case) -> int | None:
    try:
        return estimate(case).peak.reserved_bytes
    except GpumemError:
        return None


def reserved_rule(task: str, pairs: Sequence[Pair]) -> ReservedRule:
    """Return the interval for a task.

    Raises:
        GpumemError: no interval holds what it has to.
    """
    import numpy as np

    families = [pair.family for pair in pairs]
    found = two_sided(np.array([pair.ratio for pair in pairs]), families)
    if isinstance(found, Refusal):
        raise GpumemError(f"reserved bytes of {task}: {found.reason}")
    assert found.low is not None
    return ReservedRule(
        task, TWO_SIDED_LEVEL, found.low, found.high, found.coverage, len(pairs), len(set(families))
    )


def device_rule(pairs: Sequence[Pair]) -> DeviceRule:
    """Return the bytes above reserved below which the driver's figure stays in most runs.

    The coverage is that of families left out of it, every family with the same weight.
    """
    import numpy as np

    above = np.array([pair.reference - pair.predicted for pair in pairs], np.float64)
    families = [pair.family for pair in pairs]
    names, weights = np.array(families), family_weights(families)
    held = 0.0
    for family in sorted(set(families)):
        others = names != family
        bound = weighted_quantile(
            above[others], family_weights([str(item) for item in names[others]]), ONE_SIDED_LEVEL
        )
        held += float(weights[~others][above[~others] <= bound].sum())
    most = weighted_quantile(above, weights, ONE_SIDED_LEVEL)
    cards = sorted({pair.case.gpu or "" for pair in pairs})
    return DeviceRule(
        ONE_SIDED_LEVEL, int(most), held, len(pairs), len(set(families)), " and ".join(cards)
    )


def collect(folders: Sequence[str]) -> dict[str, Any]:
    """Return what reserved.json holds.

    Raises:
        GpumemError: as `reserved_rule`; RecordError: as `traced_pairs`.
    """
    traced = traced_pairs(folders)
    by_task = {task: [pair for pair in traced if pair.case.task == task] for task in TASKS}
    runs = published_runs()
    measured = published_pairs("reserved", runs)
    rules = [reserved_rule(task, pairs) for task, pairs in by_task.items()]
    held = {rule.task: rule for rule in rules}
    inside = sum(
        held[pair.case.task].low_ratio <= pair.ratio <= held[pair.case.task].high_ratio
        for pair in measured
    )
    return {
        "about": "Written by python -m benchmarks.calibrate.reserved; rules from traced cases, "
        "which are simulated; device from rows " + PUBLISHED_WORDS,
        "rules": [asdict(rule) for rule in rules],
        "device": asdict(device_rule(published_pairs("device", runs))),
        "errors": [
            *(_errors(f"traced, {task}", pairs) for task, pairs in by_task.items()),
            {**_errors(PUBLISHED_WORDS, measured), "inside_interval": inside},
        ],
    }


def _errors(name: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    import numpy as np

    families = [pair.family for pair in pairs]
    found = errors(
        np.array([pair.predicted for pair in pairs], np.float64),
        np.array([pair.reference for pair in pairs], np.float64),
        families,
    )
    return {"name": name, "cases": len(pairs), "families": len(set(families)), **asdict(found)}


def table(stored: dict[str, Any]) -> str:
    """Return the table of docs/counters.md, with a closing newline."""
    lines = [
        "| reserved bytes against | cases | families | median | 95 % within | worst | under |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in stored["errors"]:
        lines.append(
            f"| {row['name']} | {row['cases']} | {row['families']} | {100 * row['median']:.3f} % "
            f"| {100 * row['p95']:.2f} % | {100 * row['worst']:+.2f} % "
            f"| {100 * row['under']:.0f} % |"
        )
    lines.append("")
    for row in stored["rules"]:
        lines.append(
            f"* {row['task']}: x {row['low_ratio']:.4f} to x {row['high_ratio']:.4f} at "
            f"{row['level']:.0%}, held {row['coverage']:.1%} of left-out families."
        )
    measured, device = stored["errors"][-1], stored["device"]
    lines += [
        f"* Of {measured['cases']} measured and published reserved peaks "
        f"{measured['inside_interval']} lie within.",
        f"* device: up to {device['most_bytes'] / GIB:.2f} GiB above reserved in "
        f"{device['level']:.0%} of {device['runs']} published runs on {device['cards']}; "
        f"held {device['coverage']:.1%} of left-out families.",
    ]
    return "\n".join(lines) + "\n"


def refreshed(text: str, stored: dict[str, Any]) -> str:
    """Return the page's text with the present table between its marks."""
    return _MARKED.sub(lambda found: found.group(1) + table(stored) + found.group(2), text)


def main(arguments: list[str]) -> int:
    """Compare, store, copy, rewrite the page; return 0, or 2 with a sentence."""
    try:
        found = collect(arguments)
    except GpumemError as problem:
        print(f"gpumem: {problem}", file=sys.stderr)
        return 2
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for path in (STORED, SHIPPED):
        write_whole(path, text)
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(table(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
